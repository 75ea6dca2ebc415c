"""The second wall before Airflow's own pages and REST API: what is not allowed here by name is not there.

The auth manager decides what a user may do; this decides which addresses exist for him at all. Strangers reach
what signs them in and whether the server lives. Who is no superadmin reaches the addresses in `_MEMBERS`, about
DAGs of his own organizations; everything else answers as an address that does not exist, also an address that a
later version of Airflow adds. Superadmins, `/bridge` (its own gate) and `/execution` (task tokens) pass.

What Airflow's pages ask for and a member may not see is answered with an empty list (`_EMPTY`), so that they work.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

import orjson
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from continuitybridge.errors import TooManyRequests
from continuitybridge.request_paths import path_of

if TYPE_CHECKING:
    from continuitybridge.api import SignedIn

_GUARDED = ("/ui", "/api/v2", "/docs", "/redoc", "/openapi.json", "/execution/docs", "/execution/redoc")
_GUARDED_EXACTLY = ("/execution/openapi.json",)
_FABS_OWN = ("/auth/docs", "/auth/redoc", "/auth/openapi.json", "/auth/fab", "/auth/api")
"""Users and roles over HTTP, and the documents about them; what signs people in stands beside it."""
_FOR_STRANGERS = frozenset({"/api/v2/monitor/health", "/api/v2/auth/login", "/api/v2/auth/logout"})

_DAG_QUERIES = ("dag_id", "dag_ids")

_ABOUT = re.compile(r"/dags/([^/~][^/]*)")

_EMPTY: Mapping[str, Mapping[str, object]] = {
    "/api/v2/importErrors": {"import_errors": [], "total_entries": 0},
    "/api/v2/plugins/importErrors": {"import_errors": [], "total_entries": 0},
    "/api/v2/pools": {"pools": [], "total_entries": 0},
    "/api/v2/assets/events": {"asset_events": [], "total_entries": 0},
    "/ui/teams": {"teams": [], "total_entries": 0},
}

_RUN = "dags/D/dagRuns/S"
_TASK = f"{_RUN}/taskInstances/S"
_MEMBERS: Mapping[str, Iterable[str]] = {
    "GET": (
        *(f"/ui/{each}" for each in ("config", "auth/menus", "auth/me", "dags", "backfills")),
        *(f"/ui/dashboard/{each}" for each in ("dag_stats", "historical_metrics_data")),
        "/ui/structure/structure_data",
        *(f"/ui/grid/{each}/D" for each in ("structure", "runs", "ti_summaries")),
        *("/ui/gantt/D/S", "/ui/calendar/D", "/ui/next_run_assets/D"),
        *("/ui/dags/D/latest_run", "/ui/dags/D/deadlineAlerts"),
        *(f"/ui/{_RUN}/{each}" for each in ("deadlines", "stats")),
        *(f"/api/v2/{each}" for each in ("version", "dags", "dagTags", "dagStats", "dagWarnings", "plugins")),
        *("/api/v2/dagSources/D", "/api/v2/dags/D", "/api/v2/dags/D/details"),
        *("/api/v2/dags/D/tasks", "/api/v2/dags/D/tasks/S"),
        *("/api/v2/dags/D/dagVersions", "/api/v2/dags/D/dagVersions/S"),
        *("/api/v2/dags/D/dagRuns", f"/api/v2/{_RUN}", f"/api/v2/{_RUN}/wait"),
        *(f"/api/v2/{_RUN}/hitlDetails", f"/api/v2/{_RUN}/taskInstances"),
        *(f"/api/v2/{_TASK}", f"/api/v2/{_TASK}/S", f"/api/v2/{_TASK}/listMapped"),
        *(f"/api/v2/{_TASK}/{each}" for each in ("dependencies", "tries", "tries/S", "links", "logs/S")),
        *(f"/api/v2/{_TASK}/S/{each}" for each in ("dependencies", "tries", "tries/S", "hitlDetails")),
        *(f"/api/v2/{_TASK}/{each}" for each in ("externalLogUrl/S", "xcomEntries", "xcomEntries/P")),
        *("/api/v2/dags/~/dagRuns", "/api/v2/dags/~/dagRuns/~/hitlDetails"),
        *("/api/v2/dags/~/dagRuns/~/taskInstances", "/api/v2/dags/~/dagRuns/~/taskInstances/~/xcomEntries"),
        *(f"/ui/dags/~/dagRuns/~/{each}" for each in ("deadlines",)),
        *("/api/v2/auth/login", "/api/v2/auth/logout", "/api/v2/monitor/health"),
    ),
    "POST": (
        *(f"/api/v2/dags/D/{each}" for each in ("dagRuns", "clearTaskInstances", "clearDagRuns")),
        *("/api/v2/dags/D/favorite", "/api/v2/dags/D/unfavorite", f"/api/v2/{_RUN}/clear"),
    ),
    "PATCH": (
        *("/api/v2/dags/D", f"/api/v2/{_RUN}", f"/api/v2/{_TASK}", f"/api/v2/{_TASK}/S"),
        *(f"/api/v2/{_TASK}/dry_run", f"/api/v2/{_TASK}/S/dry_run", f"/api/v2/{_TASK}/S/hitlDetails"),
    ),
}
"""Method → addresses. D: a DAG of one of the user's organizations; S: one segment; P: the rest."""

_PLACEHOLDERS = {"D": r"(?P<dag>[^/~][^/]*)", "S": r"[^/]+", "P": r".+"}


def _pattern(address: str) -> str:
    return "/".join(_PLACEHOLDERS.get(part) or re.escape(part) for part in address.split("/"))


_ALLOWED: Mapping[str, tuple[re.Pattern[str], ...]] = {
    method: tuple(re.compile(_pattern(address)) for address in addresses) for method, addresses in _MEMBERS.items()
}


class AirflowGuardMiddleware:
    """ASGI middleware of the whole api-server; costs requests outside of Airflow's own a comparison."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _is_guarded(path := path_of(scope)) or _is_for_strangers(scope, path):
            await self.app(scope, receive, send)
            return
        from continuitybridge.airflow.auth_manager import asking_once

        with asking_once():
            await self._guarded(scope, receive, send, path)

    async def _guarded(self, scope: Scope, receive: Receive, send: Send, path: str) -> None:
        from continuitybridge.airflow.http_auth import authenticate

        request = Request(scope, receive)
        user = await authenticate(request)
        if user is not None and (refused := await _counted(user, scope, path)) is not None:
            from continuitybridge.api.gate import answer

            await answer(refused, send)
        elif user is None:
            await _answer(send, 401, {"detail": "Not authenticated"})
        elif "\0" in path or b"%00" in scope["query_string"]:
            # The database holds no such text; Airflow would fail over it.
            await _answer(send, 404, {"detail": "Not Found"})
        elif user.superadmin and user.api_key is None:
            await self.app(scope, receive, send)
        elif scope["method"] in ("GET", "HEAD") and _has_body(scope):
            # Airflow would take the body's word for which DAG is meant, before the address's.
            await _answer(send, 400, {"detail": "a GET request has no body"})
        elif scope["method"] == "GET" and path in _EMPTY:
            await _answer(send, 200, _EMPTY[path])
        elif await _is_allowed(user, scope, path):
            await self.app(scope, receive, send)
        else:
            await _answer(send, 404, {"detail": "Not Found"})


def _is_guarded(path: str) -> bool:
    # Between what is mounted within one another a slash too many is lost: /auth//api is FAB's /api.
    path = re.sub("/+", "/", path)
    return path in _GUARDED_EXACTLY or any(
        path == each or path.startswith(f"{each}/") for each in (*_GUARDED, *_FABS_OWN)
    )


def _is_for_strangers(scope: Scope, path: str) -> bool:
    return path in _FOR_STRANGERS and scope["method"] in ("GET", "HEAD") and not _has_body(scope)


def _has_body(scope: Scope) -> bool:
    headers = dict(scope["headers"])
    return headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers


async def _counted(user: SignedIn, scope: Scope, path: str) -> TooManyRequests | None:
    """Counts the request (`guard.admission`); gives why not. What is about a DAG goes on its organization's
    account too, where the user is a member."""
    from continuitybridge.airflow.auth_manager import organization_of
    from continuitybridge.guard.admission import admit_caller

    key = user.api_key
    organization = None if key is None else key.organization
    if key is None and not user.superadmin and (about := _ABOUT.search(path)) and await _are_own(user, [about[1]]):
        organization = organization_of(about[1])
    try:
        await admit_caller(
            scope, user.user_name, api_key=None if key is None else key.key_id, organization=organization
        )
    except TooManyRequests as error:
        return error
    return None


async def _is_allowed(user: SignedIn, scope: Scope, path: str) -> bool:
    method = "GET" if scope["method"] == "HEAD" else scope["method"]
    match = next(filter(None, (each.fullmatch(path) for each in _ALLOWED.get(method, ()))), None)
    if match is None:
        return False
    query = parse_qs(scope["query_string"].decode("latin-1"))
    dags = [dag for name in _DAG_QUERIES for dag in query.get(name, ())]
    if (own := match.groupdict().get("dag")) is not None:
        dags.append(own)
    if not dags:
        return True
    from continuitybridge.guard.network import sender_of
    from continuitybridge.settings import get_settings

    found = sender_of(scope, get_settings().trusted_networks)
    return await _are_own(user, dags, entered_from=(None if found is None else str(found),))


async def _are_own(user: SignedIn, dag_ids: Iterable[str], entered_from: tuple[str | None] | None = None) -> bool:
    """Whether all of them are of his organizations; then, with `entered_from` (an address), he enters these."""
    from anyio import to_thread

    from continuitybridge.airflow.auth_manager import enter_organizations, levels_of, organization_of

    def look() -> bool:
        levels = levels_of(user.user_name, user.superadmin)
        own = all(organization_of(dag_id) in levels for dag_id in dag_ids)
        if own and entered_from is not None:
            enter_organizations(user.user_name, dag_ids, *entered_from)
        return own

    return await to_thread.run_sync(look)


async def _answer(send: Send, status: int, body: Mapping[str, object]) -> None:
    data = orjson.dumps(body)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(data)).encode()),
        (b"cache-control", b"no-store"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": data})
