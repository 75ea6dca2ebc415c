"""What a flow's task may ask of the api-server: what is about itself and its own DAG.

Airflow lets every task read and write the XComs, runs and variables of all. Tasks of flows' DAGs run what tenants
wrote down, so each of them reaches the addresses below only, with its own ids in them; everything else is not
there, also an address that a later version of Airflow adds. Connections and variables are the secrets backend's to
answer (`secrets`). Tasks of Python DAGs, which are platform code, pass.

The token is verified first, as Airflow does it afterwards: whoever forged one costs no look-up.

A task's own addresses take bodies, and the body of how it ended could name others' things: assets that it brought
up to date, a class for the triggerer to run. A flow's task has none of these (`compiler`), so its body may not
either. Only the task of an approval asks a person, and waits for the answer (`approvals`).
"""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from functools import cache
from typing import TYPE_CHECKING
from urllib.parse import parse_qs
from uuid import UUID

import jwt
import orjson
from starlette.types import ASGIApp, Receive, Scope, Send

from continuitybridge.airflow.approval_names import DAG_NAME
from continuitybridge.airflow.bodies import replayed

if TYPE_CHECKING:
    from airflow.api_fastapi.auth.tokens import JWTValidator

_PREFIX = "/execution/"
_KEPT = 10_000
"""Tasks whose DAG is remembered: it never changes."""
_BY_TASK = frozenset({"task-instances", "task-reschedules"})
"""Addresses that name a task next."""
_ASKING = "hitlDetails"
"""Address where a task asks a person, and looks for the answer; names a task next."""
_BY_DAG = frozenset({"dags", "dag-runs", "xcoms"})
"""Addresses that name a DAG next."""
_QUERIED = frozenset(
    {
        *("task-instances/count", "task-instances/states", "task-instances/breadcrumbs"),
        *("dag-runs/count", "dag-runs/previous"),
    }
)
"""Addresses that name a DAG in their query."""

_ENDINGS = frozenset(
    {"success", "failed", "skipped", "removed", "upstream_failed", "up_for_retry", "up_for_reschedule"}
)
"""States that a flow's task may tell of itself."""
_OF_AN_ENDING = frozenset(
    {"state", "end_date", "rendered_map_index", "reschedule_date", "retry_delay_seconds", "retry_reason"}
)
_NAMES_ASSETS = ("task_outlets", "outlet_events")
_MAX_ENDING_BYTES = 65_536


class ExecutionFenceMiddleware:
    """ASGI middleware of the whole api-server; costs requests outside `/execution` one comparison."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._dags: OrderedDict[UUID, str | None] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or _PREFIX not in scope["path"]:
            await self.app(scope, receive, send)
            return
        path = scope["path"].partition(_PREFIX)[2]
        token = _bearer(scope)
        if token is None or path.startswith("health"):
            # Airflow refuses it, or tells it nothing.
            await self.app(scope, receive, send)
            return
        task = await _task_of(token)
        if task is None:
            await _answer(send, 403, {"detail": "Invalid auth token"})
            return
        segments = path.split("/")
        if segments[0] == _ASKING:
            if await self._may_ask(segments, task):
                await self.app(scope, receive, send)
            else:
                await _not_there(send)
        elif not _is_about_task(segments, task):
            known, dag_id = await self._flow_of(task)
            # Who is not known is a former try of a task, or none at all.
            if known and (dag_id is None or _is_about_dag(scope, path, segments, dag_id)):
                await self.app(scope, receive, send)
            else:
                await _not_there(send)
        elif segments[2:3] == ["state"] and scope["method"] == "PATCH" and (dag := (await self._flow_of(task))[1]):
            body = await _body(receive)
            if body is None or not (_is_an_ending(body) or (_is_approvals(dag) and _waits_for_a_person(body))):
                await _not_there(send)
            else:
                await self.app(scope, replayed(body, receive), send)
        else:
            await self.app(scope, receive, send)

    async def _may_ask(self, segments: list[str], task: UUID) -> bool:
        """Whether it may ask a person: for itself, and of a flow's DAGs the approvals' only."""
        known, dag_id = await self._flow_of(task)
        return known and _names(segments[1:2], task) and (dag_id is None or _is_approvals(dag_id))

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
    return _names(named, task)


def _names(named: list[str], task: UUID) -> bool:
    try:
        return bool(named) and UUID(named[0]) == task
    except ValueError:
        return False


def _is_approvals(dag_id: str) -> bool:
    return dag_id.endswith(f".{DAG_NAME}")


def _waits_for_a_person(body: bytes) -> bool:
    given = _object(body) or {}
    return (given.get("state"), given.get("next_method")) == ("awaiting_input", "execute_complete")


def _object(body: bytes) -> dict[str, object] | None:
    """Read as Airflow reads it."""
    try:
        given = json.loads(body)
    except ValueError:
        return None
    return given if isinstance(given, dict) else None


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


def _is_an_ending(body: bytes) -> bool:
    """Whether a flow's task may say that of itself."""
    given = _object(body)
    if given is None or not isinstance(given.get("state"), str) or given["state"] not in _ENDINGS:
        return False
    return not any(given.pop(name, None) for name in _NAMES_ASSETS) and given.keys() <= _OF_AN_ENDING


def _bearer(scope: Scope) -> str | None:
    """Of several headers of the name the first counts, as in Airflow."""
    value = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
    scheme, _, token = value.decode("latin-1").partition(" ")
    return token if scheme.lower() == "bearer" else None


async def _task_of(token: str) -> UUID | None:
    """The task whose token it is; None where it does not hold."""
    try:
        claims = await _validator().avalidated_claims(token, {})
        return UUID(str(claims.get("sub")))
    except (jwt.PyJWTError, ValueError):
        return None


@cache
def _validator() -> JWTValidator:
    """As that of Airflow's own application."""
    from airflow.api_fastapi.auth.tokens import JWTValidator, get_sig_validation_args
    from airflow.configuration import conf

    issuer = conf.get("api_auth", "jwt_issuer", fallback=None)
    return JWTValidator(
        required_claims=frozenset({"aud", "exp", "iat", *(("iss",) if issuer else ())}),
        issuer=issuer,
        audience=conf.get_mandatory_list_value("execution_api", "jwt_audience"),
        **get_sig_validation_args(make_secret_key_if_needed=False),
    )


async def _body(receive: Receive) -> bytes | None:
    """The whole body; None where it is too large, or the caller is gone."""
    parts = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        parts += message.get("body", b"")
        if len(parts) > _MAX_ENDING_BYTES:
            return None
        if not message.get("more_body", False):
            return bytes(parts)


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
    await _answer(send, 404, {"detail": {"reason": "not_found", "message": "this is not there for this task"}})


async def _answer(send: Send, status: int, content: object) -> None:
    body = orjson.dumps(content)
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
