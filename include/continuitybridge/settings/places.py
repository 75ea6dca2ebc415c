"""Where the platform's servers answer, what it writes where, and its database and cache."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, Field, SecretStr


def project_root() -> Path:
    """The checkout: where `dags/`, `plugins/` and `include/` stand."""
    return Path(__file__).resolve().parents[3]


class Places(BaseModel):
    """The state directory, addresses and ports, stores."""

    state_dir: Path = Field(
        default_factory=lambda: project_root() / ".bridge",
        description="Directory of everything the platform writes: keys, databases, logs, Airflow's home.",
    )
    host: str = Field(default="127.0.0.1", description="Address every server of the platform binds.")
    http_port: int = Field(default=8080, ge=1, le=65535, description="Port of Airflow's api-server.")
    database_port: int = Field(default=5433, ge=1, le=65535, description="Port of the embedded PostgreSQL.")
    redis_port: int = Field(default=6380, ge=1, le=65535, description="Port of the embedded Valkey.")
    warehouse_port: int = Field(default=8090, ge=1, le=65535, description="Port of the demo warehouse.")
    log_port: int = Field(default=8793, ge=1, le=65535, description="Port on which a worker serves its task logs.")
    triggerer_log_port: int = Field(
        default=8794, ge=1, le=65535, description="Port on which the triggerer serves its logs."
    )

    database_url: SecretStr | None = Field(
        default=None,
        description="PostgreSQL server of your own, as a role that may create roles and databases. "
        "Unset: the embedded server is used.",
    )
    redis_url: SecretStr | None = Field(
        default=None, description="Redis or Valkey server of your own. Unset: the embedded one is used."
    )
    redis_embedded: bool = Field(
        default=False,
        description="Run the embedded Valkey, in which the processes count rate limits together. Without effect "
        "when BRIDGE_REDIS_URL is set.",
    )
    database_app_url: SecretStr | None = Field(
        default=None, description="Connection of the application role (bound by row-level security)."
    )
    database_relay_url: SecretStr | None = Field(
        default=None, description="Connection of the role that moves messages across organizations."
    )
    database_platform_url: SecretStr | None = Field(
        default=None, description="Connection of the role that manages organizations and memberships."
    )
    database_owner_url: SecretStr | None = Field(
        default=None, description="Connection of the role that owns the tables; used by migrations only."
    )
    database_pool_size: int = Field(default=8, ge=1, description="Connections per role and process.")

    @property
    def keys_dir(self) -> Path:
        return self.state_dir / "keys"
