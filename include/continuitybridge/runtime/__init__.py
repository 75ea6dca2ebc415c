"""Running the platform on one machine: the processes under their supervisor, what they find in their environment,
the demo."""

from continuitybridge.runtime.environment import airflow_environment, process_environment

__all__ = ["airflow_environment", "process_environment"]
