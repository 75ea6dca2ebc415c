"""What a plan that runs in a task gets from outside: its organization's keys and connections, asked of the
api-server under the task's own token, and the task's log. Both are kept for the life of the task."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from continuitybridge.airflow.secrets import CONNECTION_PREFIX, KEYS
from continuitybridge.errors import NotFound, Unavailable
from continuitybridge.nodes.base import ConnectionInfo
from continuitybridge.vault.keyring import DataKeys

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_flow_log = logging.getLogger("continuitybridge.flow")


class TaskServices:
    """`Services` of a task. `connection` raises `NotFound` for what the organization's environment does not have,
    `Unavailable` when the api-server does not answer."""

    def __init__(self) -> None:
        self._connections: dict[str, ConnectionInfo] = {}

    def connection(self, name: str) -> ConnectionInfo:
        if name not in self._connections:
            extra = ask(CONNECTION_PREFIX + name)
            if extra is None:
                raise NotFound(
                    f"there is no connection {name!r} in this environment; make it with `bridge connection set`",
                    connection=name,
                )
            self._connections[name] = connection_info(name, extra)
        return self._connections[name]

    def log(self, level: str, text: str, fields: Mapping[str, Any]) -> None:
        log_line(level, text, fields)


def log_line(level: str, text: str, fields: Mapping[str, Any]) -> None:
    """A line of a flow in the task's log."""
    more = "".join(f" {key}={value!r}" for key, value in fields.items())
    _flow_log.log(_LEVELS.get(level, logging.INFO), "%s%s", text, more)


def connection_info(name: str, extra: str) -> ConnectionInfo:
    """A connection as the api-server gave it; from here on whatever prints its credentials prints asterisks."""
    found = json.loads(extra)
    info = ConnectionInfo(name, found["base_url"], found["headers"], found["auth"])
    _hide(info)
    return info


def data_keys() -> DataKeys:
    """The data keys of the task's organization. Raises `NotFound` when the api-server has none for this task,
    `Unavailable` when it does not answer."""
    extra = ask(KEYS)
    if extra is None:
        raise NotFound("the api-server has no data keys for this task")
    return DataKeys.from_json(extra)


def ask(conn_id: str) -> str | None:
    """The extra of a connection, from the api-server and from nowhere else; None when it has none for this task.
    Raises `Unavailable` when it does not answer. May block, and may be called from any thread."""
    from airflow.sdk.log import mask_secret

    found = _get(conn_id)
    if found is None:
        return None
    extra = str(found.extra)
    mask_secret(extra)
    return extra


def ask_leased_keys() -> str | None:
    """As `ask`, the data keys of a stream worker (see `secrets`)."""
    found = _get(KEYS)
    return None if found is None else str(found.login)


def _get(conn_id: str) -> Any:
    """Airflow's own look-up would go through the worker's environment too, and tell an api-server that is down
    from a missing connection no more."""
    from airflow.sdk.exceptions import AirflowRuntimeError, ErrorType
    from airflow.sdk.execution_time import task_runner
    from airflow.sdk.execution_time.comms import ConnectionResult, GetConnection

    try:
        answer = task_runner.SUPERVISOR_COMMS.send(GetConnection(conn_id=conn_id))
    except (AirflowRuntimeError, OSError, EOFError) as error:
        # It does not answer, or the task's supervisor is dead.
        raise Unavailable(f"the api-server did not give {conn_id} ({type(error).__name__})") from error
    if isinstance(answer, ConnectionResult):
        return answer
    reason = getattr(answer, "error", None)
    if reason == ErrorType.CONNECTION_NOT_FOUND:
        return None
    raise Unavailable(f"the api-server did not give {conn_id} ({reason})")


def _hide(info: ConnectionInfo) -> None:
    from airflow.sdk.log import mask_secret

    for name, value in info.auth.items():
        if name not in ("type", "header", "username"):
            mask_secret(value)
    for value in info.headers.values():
        mask_secret(value)
