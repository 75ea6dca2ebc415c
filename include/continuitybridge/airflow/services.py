"""What a plan that runs in a task gets from outside: its organization's keys and connections, asked of the
api-server under the task's own token, and the task's log. Both are kept for the life of the task."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from typing import Any

from continuitybridge.airflow.secrets import KEYS, TOKEN_PREFIX, connection_id
from continuitybridge.errors import BridgeError, NotFound, Unavailable, Verdict, class_of
from continuitybridge.nodes.base import ConnectionInfo
from continuitybridge.tokens import Place
from continuitybridge.vault.keyring import DataKeys

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_flow_log = logging.getLogger("continuitybridge.flow")


class TaskServices:
    """`Services` of a task. `connection` raises `NotFound` for what the organization's environment does not have,
    `ReconnectNeeded` for what has no token, `Unavailable` when the api-server does not answer."""

    def __init__(self) -> None:
        self._connections: dict[str, ConnectionInfo] = {}

    def connection(self, name: str, *, refused: int | None = None) -> ConnectionInfo:
        known = self._connections.get(name)
        if known is None or not known.holds(time.time(), refused):
            extra = ask(connection_id(name, refused=refused))
            if extra is None:
                raise NotFound(
                    f"there is no connection {name!r} in this environment; make it with `bridge connection set`",
                    connection=name,
                )
            known = self._connections[name] = connection_info(name, extra)
        return known

    def log(self, level: str, text: str, fields: Mapping[str, Any]) -> None:
        log_line(level, text, fields)


def log_line(level: str, text: str, fields: Mapping[str, Any]) -> None:
    """A line of a flow in the task's log."""
    more = "".join(f" {key}={value!r}" for key, value in fields.items())
    _flow_log.log(_LEVELS.get(level, logging.INFO), "%s%s", text, more)


def connection_info(name: str, extra: str) -> ConnectionInfo:
    """A connection as the api-server gave it; from here on whatever prints its credentials prints asterisks.
    Raises what kept the api-server from giving it a credential."""
    found = json.loads(extra)
    if (problem := found.get("problem")) is not None:
        raise (class_of(problem["code"]) or BridgeError)(
            problem["detail"], verdict=Verdict(problem["verdict"]), **problem["facts"]
        )
    info = ConnectionInfo(
        name,
        found["base_url"],
        found["headers"],
        found["auth"],
        found["expires_at"],
        found["token"],
        tuple(found["renew_on"]),
    )
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


def ask_to_refresh(place: Place) -> str:
    """Have the api-server refresh a connection's token; gives how that went (`tokens.refresh_ahead`). Raises
    `NotFound` for whoever may not ask that, `Unavailable`."""
    name = f"{place.organization_id}:{place.environment}:{place.connection}"
    found = _get(TOKEN_PREFIX + name)
    if found is None:
        raise NotFound("the api-server refreshes no token for this task")
    return str(found.login)


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
