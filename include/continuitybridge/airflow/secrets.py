"""Airflow secrets backend: a task gets the keys and connections that its messages need, and nobody else's.

Of a task of a flow's DAG:

- `bridge-keys`: its own organization's data keys, never the master key.
- `bridge-connection:<name>`: the connection of that name in the flow's own environment; where it authenticates by
  a token, the access token alone. With `~<number>` behind the name: another than this one, which was refused.

Of a stream worker, a task of `dags/stream.py`, which runs messages of many organizations:

- `bridge-keys`: the data keys of the organizations of which a message is leased to it at this moment.
- `bridge-connection:<organization id>:<environment>:<name>`: that connection, while a message of that organization
  and environment is leased to it.

Of the task of `dags/maintenance/token_refresh.py`:

- `bridge-token:<organization id>:<environment>:<name>`: nothing but whether that connection's token, which is due,
  was refreshed.

So a token that leaks from a worker opens what the worker is working on, while it works. A worker moves messages as
the database's relay role and may lease any: towards whoever holds that role too, this is no wall.

Of a task of these that does not run (any more), and of a former try of any task: nothing.

It answers in the api-server only, against the verified token of a running task. Who asks without an identity (DAG
processor, scheduler, a command) gets None. What a task may not have is refused at once, so that Airflow's next
backends are not asked either; nor are they when it cannot be told now who asks, or what for.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol
from uuid import UUID

from airflow.secrets.base_secrets import BaseSecretsBackend

KEYS = "bridge-keys"
CONNECTION_PREFIX = "bridge-connection:"
REFUSED = "~"
"""Between a connection's name and the number of its credential that the destination did not take."""
TOKEN_PREFIX = "bridge-token:"  # noqa: S105  (no secret)
CONNECTION_TYPE = "bridge"
CACHE_S = 60.0

_log = logging.getLogger("continuitybridge.secrets")


class Asker(Protocol):
    """A running task and what is its own. `patience_s`: how long it waits for a token that has to be obtained."""

    patience_s: ClassVar[float]

    def keys(self) -> dict[str, str]:
        """The field of the connection that holds its data keys, as `DataKeys.to_json` writes them."""

    def place(self, name: str) -> tuple[UUID, str, str] | None:
        """Organization, environment and name of the connection it means, if that may be its own."""


@dataclass(frozen=True, slots=True)
class FlowTask:
    """A task of a flow's DAG."""

    patience_s: ClassVar[float] = 4.0
    organization_id: UUID
    environment: str

    def keys(self) -> dict[str, str]:
        return {"extra": _keys([self.organization_id])}

    def place(self, name: str) -> tuple[UUID, str, str] | None:
        return self.organization_id, self.environment, name


@dataclass(frozen=True, slots=True)
class StreamTask:
    """A stream worker; `owner` is how the name in its leases begins. It asks one thing after the other, for all
    organizations."""

    patience_s: ClassVar[float] = 1.0
    owner: str

    def keys(self) -> dict[str, str]:
        from continuitybridge.inbox.leases import leased_to

        # Not in `extra`: a task's supervisor keeps every extra that it has seen, to mask it in logs, and here each
        # answer differs from the one before.
        return {"login": _keys({organization_id for organization_id, _ in leased_to(self.owner)})}

    def place(self, name: str) -> tuple[UUID, str, str] | None:
        from continuitybridge.inbox.leases import leased_to

        try:
            organization, environment, connection = name.split(":")
            organization_id = UUID(organization)
        except ValueError:
            return None
        if (organization_id, environment) not in leased_to(self.owner, organization_id):
            return None
        return organization_id, environment, connection


@dataclass(frozen=True, slots=True)
class RefreshTask:
    """The task that refreshes tokens ahead: it is told of none."""

    patience_s: ClassVar[float] = 2.0

    def keys(self) -> dict[str, str]:
        raise refusal(KEYS)

    def place(self, name: str) -> tuple[UUID, str, str] | None:
        return None


@dataclass(frozen=True, slots=True)
class EndedTask:
    """A task that has ended or not begun, or a former try: its token may still hold, but it is given nothing."""

    patience_s: ClassVar[float] = 0.0

    def keys(self) -> dict[str, str]:
        raise refusal(KEYS)

    def place(self, name: str) -> tuple[UUID, str, str] | None:
        return None


class OrganizationSecrets(BaseSecretsBackend):
    """See the module. Raises a refusal (404 to the task) for everything that is not the asker's own, and one (503)
    when that cannot be told now, or not be given."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__()

    def get_connection(self, conn_id: str, team_name: str | None = None) -> Any:
        with _nothing_falls_through(conn_id):
            return self._connection(conn_id)

    def _connection(self, conn_id: str) -> Any:
        asker = _asker()
        if asker is None:
            if _is_ours(conn_id):
                return _refuse_or_none(conn_id)
            return None
        if conn_id == KEYS:
            fields = asker.keys()
        elif conn_id.startswith(CONNECTION_PREFIX):
            fields = {"extra": _connection(asker, conn_id.removeprefix(CONNECTION_PREFIX))}
        elif conn_id.startswith(TOKEN_PREFIX) and isinstance(asker, RefreshTask):
            fields = {"login": _refreshed(conn_id.removeprefix(TOKEN_PREFIX))}
        else:
            raise refusal(conn_id)
        return self._get_connection_class()(conn_id=conn_id, conn_type=CONNECTION_TYPE, **fields)

    def get_conn_value(self, conn_id: str, team_name: str | None = None) -> str | None:
        return None

    def get_variable(self, key: str, team_name: str | None = None) -> str | None:
        """Airflow's variables are the platform's; a flow's task and a stream worker have none."""
        with _nothing_falls_through(key):
            if _asker() is not None:
                raise refusal(key)
        return None

    def get_config(self, key: str) -> str | None:
        return None


def refusal(name: str, *, now: bool = False) -> Exception:
    """What Airflow takes as a final no, and its API answers as 404: the same for what does not exist. `now`: it
    may be there, but cannot be given now (503)."""
    from airflow.sdk.exceptions import AirflowSecretsBackendAccessDenied
    from fastapi import HTTPException

    class Refused(AirflowSecretsBackendAccessDenied, HTTPException):
        def __init__(self) -> None:
            status, reason = (503, "unavailable") if now else (404, "not_found")
            message = f"{name} cannot be had now" if now else f"{name} is not there for this task"
            HTTPException.__init__(self, status, detail={"reason": reason, "message": message})

    return Refused()


@contextmanager
def _nothing_falls_through(name: str) -> Iterator[None]:
    """Airflow asks its next backend after any exception but a refusal: the environment, then everything."""
    from airflow.sdk.exceptions import AirflowSecretsBackendAccessDenied

    try:
        yield
    except AirflowSecretsBackendAccessDenied:
        raise
    except Exception as error:
        _log.warning("a task could not be given %s (%s)", name, type(error).__name__)
        raise refusal(name, now=True) from error


def connection_id(name: str, *, refused: int | None = None) -> str:
    """What a task asks for."""
    return f"{CONNECTION_PREFIX}{name}" + ("" if refused is None else f"{REFUSED}{refused}")


def _is_ours(conn_id: str) -> bool:
    return conn_id == KEYS or conn_id.startswith((CONNECTION_PREFIX, TOKEN_PREFIX))


def _refuse_or_none(conn_id: str) -> None:
    from continuitybridge.airflow.identity import asking_task

    # A task of a Python DAG has an identity, but no organization.
    if asking_task() is not None:
        raise refusal(conn_id)


def _asker() -> Asker | None:
    from continuitybridge.airflow.identity import asking_task

    task_id = asking_task()
    return _task(task_id) if task_id is not None else None


def _task(task_id: UUID) -> Asker | None:
    """The task, if it is a flow's or of a DAG of ours; None for another's, whether it runs or not. A DAG's name
    alone proves nothing, anybody's Python DAG may bear it: the bundle it came from counts, and the file."""
    from airflow.models import DagModel, TaskInstance
    from airflow.utils.session import create_session
    from airflow.utils.state import TaskInstanceState
    from sqlalchemy import select

    from continuitybridge.airflow.configuration import (
        DAGS_BUNDLE,
        FLOW_BUNDLE,
        STREAM_DAG,
        STREAM_FILE,
        TOKEN_REFRESH_DAG,
        TOKEN_REFRESH_FILE,
    )

    with create_session() as session:
        row = session.execute(
            select(DagModel.dag_id, DagModel.bundle_name, DagModel.relative_fileloc, TaskInstance.state)
            .join(TaskInstance, TaskInstance.dag_id == DagModel.dag_id)
            .where(TaskInstance.id == task_id)
        ).first()
    if row is None:
        return EndedTask()
    running = row.state == TaskInstanceState.RUNNING
    if row.bundle_name == FLOW_BUNDLE:
        organization, environment, _ = row.dag_id.split(".", 2)
        return FlowTask(_organization_id(organization), environment) if running else EndedTask()
    place = (row.dag_id, row.bundle_name, row.relative_fileloc)
    if place == (STREAM_DAG, DAGS_BUNDLE, STREAM_FILE):
        return StreamTask(stream_owner(task_id)) if running else EndedTask()
    if place == (TOKEN_REFRESH_DAG, DAGS_BUNDLE, TOKEN_REFRESH_FILE):
        return RefreshTask() if running else EndedTask()
    return None


def stream_owner(task_id: UUID) -> str:
    """How the name in a stream worker's leases begins; what follows says of which generation it is. A task that is
    tried again has another id, so what its former try still holds, or does, is nobody's."""
    return f"stream/{task_id}@"


_known: dict[str, tuple[float, UUID]] = {}


def _organization_id(slug: str) -> UUID:
    """Kept for a minute: a slug never changes hands while its organization lives."""
    from continuitybridge import organizations
    from continuitybridge.errors import NotFound

    known = _known.get(slug)
    if known is not None and time.monotonic() - known[0] < CACHE_S:
        return known[1]
    try:
        found = organizations.by_slug(slug).organization_id
    except NotFound:
        raise refusal(slug) from None
    _known[slug] = (time.monotonic(), found)
    return found


def _keys(organization_ids: Iterable[UUID]) -> str:
    """An organization that has none (it is being deleted), or whose keys a key management service does not tell
    now, keeps the others from nothing. Raises `Unavailable` where there are no keys but for that."""
    from continuitybridge.errors import NotFound, Unavailable
    from continuitybridge.vault import Keyring

    held: dict[str, Any] = {}
    silent: Unavailable | None = None
    for organization_id in organization_ids:
        try:
            held |= json.loads(Keyring.open().export(organization_id).to_json())
        except Unavailable as error:
            silent = error
        except NotFound:
            continue
    if silent is not None and not held:
        raise silent
    return json.dumps(held)


def _connection(asker: Asker, name: str) -> str:
    from continuitybridge import tokens
    from continuitybridge.errors import BridgeError, NotFound
    from continuitybridge.vault import Keyring

    name, _, refused = name.partition(REFUSED)
    place = asker.place(name)
    if place is None or not (refused == "" or refused.isdigit()):
        raise refusal(CONNECTION_PREFIX + name)
    try:
        found = tokens.resolve(
            *place, Keyring.open(), refused=int(refused) if refused else None, wait_s=asker.patience_s
        )
    except NotFound:
        raise refusal(CONNECTION_PREFIX + name) from None
    except BridgeError as error:
        # Airflow would tell it as if there were no such connection.
        return json.dumps(
            {
                "problem": {
                    "code": error.code,
                    "detail": error.detail,
                    "verdict": error.verdict.value,
                    "facts": error.facts,
                }
            },
            default=str,
        )
    return json.dumps(
        {
            "base_url": found.base_url,
            "headers": dict(found.headers),
            "auth": dict(found.auth),
            "expires_at": found.expires_at,
            "token": found.token,
            "renew_on": found.renew_on,
        }
    )


def _refreshed(name: str) -> str:
    from continuitybridge import tokens
    from continuitybridge.vault import Keyring

    try:
        organization, environment, connection = name.split(":")
        place = tokens.Place(UUID(organization), environment, connection)
    except ValueError:
        raise refusal(TOKEN_PREFIX + name) from None
    return tokens.refresh_ahead(place, Keyring.open(), wait_s=RefreshTask.patience_s)
