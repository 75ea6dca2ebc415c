"""Airflow's options that this product needs, and why. The supervisor, the tests and the command line all pass
them as `AIRFLOW__SECTION__KEY`, so that every process of Airflow reads the same; imports no Airflow.

Not here: what is secret or found at start (database URL, Fernet key, signing keys), which the runtime adds.
"""

from __future__ import annotations

import json
from pathlib import Path

from continuitybridge.settings import Settings, project_root

FLOW_BUNDLE = "flows"
"""Name of the DAG bundle made from the deployments."""

DAGS_BUNDLE = "dags"
"""Name of the DAG bundle of `dags/`: stream workers, maintenance and examples in Python, platform code."""

STREAM_DAG = "stream"
"""The DAG whose tasks are the stream workers."""

STREAM_FILE = "stream.py"
"""Where that DAG stands in its bundle."""

TOKEN_REFRESH_DAG = "maintenance_token_refresh"  # noqa: S105  (no secret)
"""The DAG that refreshes tokens ahead."""

TOKEN_REFRESH_FILE = "maintenance/token_refresh.py"  # noqa: S105
"""Where that DAG stands in its bundle."""

STREAM_POOL = "stream"
"""The stream workers' pool: batch flows never wait for them, nor they for batch flows."""


def organization_pool(slug: str) -> str:
    """The pool of an organization's batch flows."""
    return f"organization.{slug}"


Options = dict[tuple[str, str], str]


def airflow_options(settings: Settings) -> Options:
    """Options by (section, key). Times are in seconds where the key does not say otherwise."""
    return {
        **_core(settings),
        **_api(settings),
        **_flows_become_dags(settings),
        **_runs_start_soon_and_survive(settings),
        **_secrets(),
        ("logging", "worker_log_server_port"): str(settings.log_port),
        ("logging", "trigger_log_server_port"): str(settings.triggerer_log_port),
        ("logging", "logging_level"): "INFO",
        # It says every second that it looks for changed files.
        ("logging", "namespace_levels"): "airflow.dag_processing.manager=WARNING",
        ("usage_data_collection", "enabled"): "False",
    }


def stream_slots(settings: Settings) -> int:
    """Most stream workers at once: while one generation takes over from another, both work."""
    return 2 * settings.stream_workers


def airflow_home(settings: Settings) -> Path:
    """Airflow's home directory (logs, generated files)."""
    return settings.state_dir / "airflow"


def _core(settings: Settings) -> Options:
    root = project_root()
    return {
        # Airflow's LocalExecutor, with tasks that outlive their scheduler.
        ("core", "executor"): "continuitybridge.airflow.executor.LastingExecutor",
        # The default pool has as many slots as there are for tasks beside the stream workers (see `pools`).
        ("core", "parallelism"): str(settings.task_parallelism + stream_slots(settings)),
        ("core", "default_pool_task_slot_count"): str(settings.task_parallelism),
        # The class' name must not hold the text "FabAuthManager": Airflow would sync permissions of every DAG
        # at every parse (3 CPU-seconds per 200 DAGs); ours decides by the DAG's name instead.
        ("core", "auth_manager"): "continuitybridge.airflow.auth_manager.OrganizationAuthManager",
        ("core", "dags_folder"): str(root / "dags"),
        ("core", "plugins_folder"): str(root / "plugins"),
        ("core", "load_examples"): "False",
        # Resolving a full name asks DNS, which takes seconds on machines without it.
        ("core", "hostname_callable"): "socket.gethostname",
        ("core", "test_connection"): "Disabled",
        ("database", "external_db_managers"): "continuitybridge.airflow.db_manager.BridgeDBManager",
        ("database", "load_default_connections"): "False",
        # `bridge up` has migrated before it starts anything, so that each process need not look.
        ("database", "check_migrations"): "False",
    }


def _api(settings: Settings) -> Options:
    return {
        # Airflow binds every address unless told.
        ("api", "host"): settings.host,
        ("api", "port"): str(settings.http_port),
        # What stands before the paths of links, in mails and of logs: where people find the platform.
        ("api", "base_url"): settings.external_url,
        ("api", "workers"): "1",
        ("api", "expose_config"): "False",
        ("api", "expose_stacktrace"): "False",
        ("core", "execution_api_server_url"): f"{settings.base_url}/execution/",
        # A member who is removed or demoted is so at the next request, not half a minute later.
        ("fab", "cache_ttl"): "0",
        ("fab", "config_file"): str(Path(__file__).with_name("webserver_config.py")),
        # What a browser's session holds stands in the database, where it can be ended.
        ("fab", "session_backend"): "database",
    }


def _flows_become_dags(settings: Settings) -> Options:
    storage = airflow_home(settings) / "bundles"
    bundles = [
        {
            "name": FLOW_BUNDLE,
            "classpath": "continuitybridge.airflow.bundle.FlowBundle",
            "kwargs": {"refresh_interval": 1},
        },
        {
            "name": DAGS_BUNDLE,
            "classpath": "airflow.dag_processing.bundles.local.LocalDagBundle",
            "kwargs": {"path": str(project_root() / "dags"), "refresh_interval": 30},
        },
    ]
    return {
        ("dag_processor", "dag_bundle_config_list"): json.dumps(bundles),
        ("dag_processor", "dag_bundle_storage_path"): str(storage),
        # A deploy is looked for every second (a cheap query), and only files that changed are parsed.
        ("dag_processor", "bundle_refresh_check_interval"): "1",
        ("dag_processor", "min_file_process_interval"): "300",
        ("dag_processor", "file_parsing_sort_mode"): "modified_time",
        ("dag_processor", "parsing_processes"): "2",
        # Looks at the source for what would make a DAG differ from parse to parse; ours holds nothing such.
        ("dag_processor", "dag_version_inflation_check_level"): "off",
        # With the default of 30 a changed flow keeps running its old tasks for half a minute.
        ("core", "min_serialized_dag_update_interval"): "0",
        # A removed flow's DAG goes within seconds.
        ("scheduler", "parsing_cleanup_interval"): "10",
        ("dag_processor", "stale_dag_threshold"): "5",
    }


def _runs_start_soon_and_survive(settings: Settings) -> Options:
    return {
        # A run of one task takes 0.5 s instead of 1.6 s.
        ("scheduler", "scheduler_idle_sleep_time"): "0.1",
        # Who dies is known at once: a task's worker to its scheduler (see `executor`), a scheduler to the next one
        # (see `runtime.launch`). These are for what only hangs, and long enough for a machine that is slow: a
        # scheduler that believes itself dead runs again what it has just begun.
        ("scheduler", "scheduler_health_check_threshold"): "30",
        ("scheduler", "orphaned_tasks_check_interval"): "30",
        # Nobody can send a heartbeat while the api-server starts again.
        ("scheduler", "task_instance_heartbeat_timeout"): "90",
        ("scheduler", "task_instance_heartbeat_timeout_detection_interval"): "5",
        ("workers", "min_heartbeat_interval"): "5",
        # While the api-server is away tasks work on, some minutes long: leases and epochs keep what they do right.
        ("workers", "max_failed_heartbeats"): "30",
        ("workers", "execution_api_retry_wait_max"): "5",
        # A task may begin while its file is being replaced.
        ("workers", "missing_dag_retries"): "10",
        ("workers", "missing_dag_retry_delay"): "1",
        ("core", "default_task_retry_delay"): "5",
        ("core", "max_active_runs_per_dag"): "16",
    }


def _secrets() -> Options:
    return {
        # Answers a task for its own organization only; in the api-server, against the task's own token.
        ("secrets", "backend"): "continuitybridge.airflow.secrets.OrganizationSecrets",
        ("secrets", "use_cache"): "False",
    }
