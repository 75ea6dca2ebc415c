"""The processes the platform consists of: how each is started and stopped. The supervisor's configuration, the
launcher and the status page read it from here."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from continuitybridge.database.embedded import EmbeddedPostgres
from continuitybridge.runtime import valkey
from continuitybridge.settings import Settings

Argv = Callable[[Settings], list[str]]


@dataclass(frozen=True, slots=True)
class Program:
    """One supervised process.

    `group` decides the order: `store` starts first and stops last. `needs` names its port's setting.
    `stop_wait_s` is how long it may take to stop before it is killed.
    """

    name: str
    group: str
    argv: Argv
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
        stop = {"stop_signal": signal.SIGINT, "stop_wait_s": 60}
        stores.append(Program("postgres", "store", _postgres, "database_port", **stop))  # type: ignore[arg-type]
    if settings.redis_embedded and settings.redis_url is None:
        stores.append(Program("valkey", "store", valkey.command, "redis_port"))
    return (
        *stores,
        Program("api-server", "platform", _airflow("api-server"), "http_port"),
        # Their log servers bind every address; on one machine the api-server reads the files themselves.
        Program("scheduler", "platform", _airflow("scheduler", "--skip-serve-logs")),
        Program("dag-processor", "platform", _airflow("dag-processor")),
        Program("triggerer", "platform", _airflow("triggerer", "--skip-serve-logs")),
        Program("dispatch", "platform", _bridge("dispatch")),
        Program("warehouse", "demo", _warehouse, "warehouse_port", part_of_demo=True),
    )


def embedded_postgres(settings: Settings) -> EmbeddedPostgres:
    """The embedded server of this state directory."""
    return EmbeddedPostgres(settings.state_dir / "postgres", settings.database_port, settings.host)


def _postgres(settings: Settings) -> list[str]:
    return embedded_postgres(settings).command()


def _airflow(*arguments: str) -> Argv:
    return lambda settings: [sys.executable, "-m", "airflow", *arguments]


def _bridge(*arguments: str) -> Argv:
    return lambda settings: [str(Path(sys.executable).with_name("bridge")), *arguments]


def _warehouse(settings: Settings) -> list[str]:
    return [sys.executable, "-m", "continuitybridge.runtime.warehouse"]
