"""What a flow's task may ask of the api-server: what is about itself and its own DAG.

Airflow lets every task read and write the XComs, runs and variables of all. Tasks of flows' DAGs run what tenants
wrote down, so each of them reaches the addresses below only, with its own ids in them; everything else is not
there, also an address that a later version of Airflow adds. Connections and variables are the secrets backend's to
answer (`secrets`). Tasks of Python DAGs, which are platform code, pass.

Whose task asks is read from its token before Airflow verifies it: a token that does not hold is refused by Airflow
whatever it says, and one that holds says the truth.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from urllib.parse import parse_qs
from uuid import UUID

import jwt
import orjson
from starlette.types import ASGIApp, Receive, Scope, Send

_PREFIX = "/execution/"
_KEPT = 10_000
"""Tasks whose DAG is remembered: it never changes."""
_BY_TASK = frozenset({"task-instances", "task-reschedules", "hitlDetails", "connection-tests"})
"""Addresses that name a task next."""
_BY_DAG = frozenset({"dags", "dag-runs", "xcoms"})
"""Addresses that name a DAG next."""
_QUERIED = frozenset(
    {
        *("task-instances/count", "task-instances/states", "task-instances/breadcrumbs"),
        *("dag-runs/count", "dag-runs/previous"),
    }
)
"""Addresses that name a DAG in their query."""


class ExecutionFenceMiddleware:
    """ASGI middleware of the whole api-server; costs requests outside `/execution` one comparison."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._dags: OrderedDict[UUID, str | None] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or _PREFIX not in scope["path"] or await self._may(scope):
            await self.app(scope, receive, send)
        else:
            await _not_there(send)

    async def _may(self, scope: Scope) -> bool:
        path = scope["path"].partition(_PREFIX)[2]
        task = _claimed_task(scope)
        if task is None or path.startswith("health"):
            # Airflow refuses it, or tells it nothing.
            return True
        segments = path.split("/")
        if _is_about_task(segments, task):
            return True
        known, dag_id = await self._flow_of(task)
        if not known:
            # A former try of a task, or none at all.
            return False
        return dag_id is None or _is_about_dag(scope, path, segments, dag_id)

    async def _flow_of(self, task: UUID) -> tuple[bool, str | None]:
        """Whether there is such a task, and the DAG of it if that is a flow's."""
        if task in self._dags:
            self._dags.move_to_end(task)
            return True, self._dags[task]
        known, dag_id = await asyncio.to_thread(_look_up, task)
        if known:
            self._dags[task] = dag_id
            if len(self._dags) > _KEPT:
                self._dags.popitem(last=False)
        return known, dag_id


def _is_about_task(segments: list[str], task: UUID) -> bool:
    named = segments[2:3] if segments[:2] == ["store", "ti"] else segments[1:2] if segments[0] in _BY_TASK else []
    try:
        return bool(named) and UUID(named[0]) == task
    except ValueError:
        return False


def _is_about_dag(scope: Scope, path: str, segments: list[str], dag_id: str) -> bool:
    if segments[0] == "connections":
        return True
    if segments[0] == "variables":
        return scope["method"] == "GET" and path != "variables/keys"
    if path in _QUERIED:
        named = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True).get("dag_id", [])
        return bool(named) and set(named) == {dag_id}
    if segments[:2] == ["task-instances", "previous"]:
        return segments[2:3] == [dag_id]
    return segments[0] in _BY_DAG and segments[1:2] == [dag_id]


def _claimed_task(scope: Scope) -> UUID | None:
    """The task that the request says it is of. Of several headers of the name the first counts, as in Airflow."""
    value = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
    scheme, _, token = value.decode("latin-1").partition(" ")
    if scheme.lower() != "bearer":
        return None
    try:
        claims = jwt.decode(token, options={"verify_signature": False})
        return UUID(str(claims.get("sub")))
    except (jwt.PyJWTError, ValueError):
        return None


def _look_up(task: UUID) -> tuple[bool, str | None]:
    from airflow.models import DagModel, TaskInstance
    from airflow.utils.session import create_session
    from sqlalchemy import select

    from continuitybridge.airflow.configuration import FLOW_BUNDLE

    with create_session() as session:
        row = session.execute(
            select(TaskInstance.dag_id, DagModel.bundle_name)
            .outerjoin(DagModel, DagModel.dag_id == TaskInstance.dag_id)
            .where(TaskInstance.id == task)
        ).first()
    if row is None:
        return False, None
    return True, row.dag_id if row.bundle_name == FLOW_BUNDLE else None


async def _not_there(send: Send) -> None:
    body = orjson.dumps({"detail": {"reason": "not_found", "message": "this is not there for this task"}})
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 404, "headers": headers})
    await send({"type": "http.response.body", "body": body})
