"""What a plan that runs in a task gets from outside: its organization's keys and connections, asked of the
api-server under the task's own token, and the task's log. A connection is kept while its credential holds; keys
are asked for anew: a task may run for longer than a rotated key is kept."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any
from uuid import UUID

from continuitybridge.airflow.secrets import KEYS, TOKEN_PREFIX, connection_id
from continuitybridge.errors import BridgeError, NotFound, Unavailable, Verdict, class_of
from continuitybridge.nodes.base import ConnectionInfo
from continuitybridge.nodes.hidden import of_connection
from continuitybridge.tokens import Place
from continuitybridge.vault.cipher import DataKey
from continuitybridge.vault.keyring import REFRESH_S, DataKeys, Ring

ASK_AGAIN_S = REFRESH_S * 0.75
"""After this time keys are asked for anew, beside the work."""

KEPT_S = 600.0
"""How long keys are used while nobody gives others; a rotated one is kept for longer (`custody.retiring`)."""

PATIENCE_S = 1.0
"""How long an answer is waited for when there is something to go on with."""

PAUSE_S = 5.0
"""How soon is asked or waited again after that was in vain."""

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_log = logging.getLogger("continuitybridge.stage")
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


class TaskKeys(Ring):
    """A `Cipher` for the task's organization, for any number of threads. Keys are asked for anew after a minute,
    so that nothing is encrypted under one that was retired, and at once when one is met that is not held. While
    none are given, it goes on with what it holds for `KEPT_S`; then its verbs raise what kept them.

    Made, it asks for the first time, and raises as `data_keys`.
    """

    def __init__(self, ask_keys: Callable[[], DataKeys] | None = None) -> None:
        self._ask = ask_keys or data_keys
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="bridge-keys")
        self._lock = threading.Lock()
        self._asking: Future[DataKeys] | None = None
        self._quiet_until = float("-inf")
        self._asked_at, self._last = time.monotonic(), self._ask()

    def _key(self, organization_id: UUID, version: int | None) -> DataKey:
        keys = self._current()
        try:
            return keys._key(organization_id, version)
        except NotFound:
            if version is None:
                raise
        with suppress(NotFound):
            return self._begin_asking().result()._key(organization_id, version)
        # That was asked, maybe, before the key was made.
        return self._begin_asking().result()._key(organization_id, version)

    def _held(self, organization_id: UUID) -> DataKeys:
        return self._current()

    def _current(self) -> DataKeys:
        now = time.monotonic()
        age, held = now - self._asked_at, self._last
        if age < ASK_AGAIN_S or (age < KEPT_S and now < self._quiet_until):
            return held
        patience_s = None if age >= KEPT_S else PATIENCE_S if age >= REFRESH_S else 0.0
        try:
            return self._begin_asking().result(patience_s)
        except (BridgeError, TimeoutError) as error:
            if age >= KEPT_S:
                raise
            if age >= REFRESH_S:
                said = getattr(error, "detail", "no answer yet")
                _log.warning("data keys could not be asked for now: %s", said)
            self._quiet_until = now + PAUSE_S
            return held

    def _begin_asking(self) -> Future[DataKeys]:
        with self._lock:
            if self._asking is None or self._asking.done():
                self._asking = self._thread.submit(self._renew)
            return self._asking

    def _renew(self) -> DataKeys:
        asked_at = time.monotonic()
        found = self._ask()
        self._last, self._asked_at = found, asked_at
        return found


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

    for value in of_connection(info):
        mask_secret(value)
    for value in info.headers.values():
        mask_secret(value)
