"""The processes the platform consists of: how each is started and stopped. The supervisor's configuration, the
launcher and the status page read it from here."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass

from continuitybridge.database.embedded import EmbeddedPostgres
from continuitybridge.runtime import valkey
from continuitybridge.settings import Settings


@dataclass(frozen=True, slots=True)
class Program:
    """One supervised process: a Python module with its arguments, or (`argv`) another program.

    `group` decides the order: `store` starts first and stops last, and `api` stops before it, because what tasks
    come to is told to the api-server. `port_setting` names the setting of its port.
    `stop_wait_s` is how long it may take to stop before it is killed.
    """

    name: str
    group: str
    module: str = ""
    arguments: tuple[str, ...] = ()
    argv: Callable[[Settings], list[str]] | None = None
    port_setting: str | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    stop_wait_s: int = 20
    part_of_demo: bool = False

    @property
    def process_name(self) -> str:
        """Its name at the supervisor."""
        return f"{self.group}:{self.name}"


def programs(settings: Settings) -> tuple[Program, ...]:
    """What runs with these settings, in the order it starts."""
    stores = []
    if settings.database_url is None:
        # INT is PostgreSQL's fast shutdown; TERM would wait for every session to leave.
        stores.append(
            Program(
                "postgres",
                "store",
                argv=lambda settings: embedded_postgres(settings).command(),
                port_setting="database_port",
                stop_signal=signal.SIGINT,
                stop_wait_s=60,
            )
        )
    if settings.redis_embedded and settings.redis_url is None:
        stores.append(Program("valkey", "store", argv=valkey.command, port_setting="redis_port"))
    return (
        *stores,
        _airflow("api-server", group="api", port_setting="http_port"),
        # Their log servers bind every address; on one machine the api-server reads the files themselves.
        _airflow("scheduler", "--skip-serve-logs"),
        _airflow("dag-processor"),
        _airflow("triggerer", "--skip-serve-logs"),
        Program("dispatch", "platform", "continuitybridge.cli", ("dispatch",)),
        Program(
            "warehouse",
            "demo",
            "continuitybridge.runtime.warehouse",
            port_setting="warehouse_port",
            part_of_demo=True,
        ),
    )


def embedded_postgres(settings: Settings) -> EmbeddedPostgres:
    """The embedded server of this state directory."""
    return EmbeddedPostgres(settings.state_dir / "postgres", settings.database_port, settings.host)


def _airflow(name: str, *arguments: str, group: str = "platform", port_setting: str | None = None) -> Program:
    return Program(name, group, "airflow", (name, *arguments), port_setting=port_setting)
