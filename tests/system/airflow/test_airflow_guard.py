"""Every route of Airflow's REST and UI API, asked by each role with the identifiers of another organization:
nothing of it comes back, nothing of it changes, and it answers as what does not exist.

The routes are read from the Airflow that is installed, so that those of a new version are asked too.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import httpx
import pytest
from trial import FLOW, Tenant, Trial, settled

ROUTES = """
import json, os
from continuitybridge.runtime.environment import process_environment
from continuitybridge.settings import get_settings
os.environ.update(process_environment(get_settings()))
from airflow.api_fastapi.core_api.routes.public import public_router
from airflow.api_fastapi.core_api.routes.ui import ui_router
from airflow.providers.fab.auth_manager.api_fastapi.routes.router import fab_router
found = [
    (method, prefix + route.path)
    for prefix, router in (("", ui_router), ("", public_router), ("/auth", fab_router))
    for route in router.routes
    for method in sorted(getattr(route, "methods", None) or ())
]
print(json.dumps(found))
"""
DOCUMENTS = (
    *("/docs", "/redoc", "/openapi.json", "/auth/docs", "/auth/redoc", "/auth/openapi.json"),
    *("/execution/docs", "/execution/redoc", "/execution/openapi.json"),
)
OPEN = {"/api/v2/monitor/health", "/api/v2/auth/login", "/api/v2/auth/logout"}
SIGNING_IN = re.compile(r"/auth/(token|login|logout)|/ui/auth/token")
TELLING = {"detail", "title", "status"}


@dataclass(frozen=True)
class Names:
    """What to fill into a route's path, query and body."""

    dag_id: str
    run_id: str
    task_id: str = "parse"

    def path(self, template: str) -> str:
        known = {"dag_id": self.dag_id, "dag_run_id": self.run_id, "run_id": self.run_id, "task_id": self.task_id}
        numbers = ("map_index", "try_number", "task_try_number", "version_number")

        def value(match: re.Match[str]) -> str:
            name = match[1].partition(":")[0]
            if name in known:
                return known[name]
            return (
                "-1" if name == "map_index" else "1" if name in numbers or name.endswith("_id") else "return_value"
            )

        return re.sub(r"\{([^}]+)\}", value, template)

    @property
    def query(self) -> dict[str, Any]:
        return {"dag_id": self.dag_id, "dag_ids": self.dag_id, "run_id": self.run_id, "dag_run_id": self.run_id}

    @property
    def body(self) -> dict[str, Any]:
        return {
            "dag_id": self.dag_id,
            "dag_ids": [self.dag_id],
            "dag_run_id": self.run_id,
            "logical_date": None,
            "conf": {},
            "is_paused": True,
            "new_state": "success",
            "state": "success",
            "task_ids": [self.task_id],
            "chosen_options": ["Approve"],
            "params_input": {},
            "key": "k",
            "value": "v",
            "name": "n",
            "note": "n",
            "dry_run": False,
            "from_date": "2026-01-01T00:00:00Z",
            "to_date": "2026-01-02T00:00:00Z",
            "actions": [{"action": "delete", "entities": [self.dag_id]}],
        }


@pytest.fixture(scope="module")
def routes(trial: Trial) -> list[tuple[str, str]]:
    found = [(method, path) for method, path in json.loads(trial.python(ROUTES).splitlines()[-1])]
    assert len(found) > 120
    return found


@pytest.fixture(scope="module")
def rivals(trial: Trial) -> tuple[Tenant, Tenant]:
    """Two organizations, each with a run of its own."""
    made = trial.organization(), trial.organization()
    for tenant in made:
        tenant.deploy("order", FLOW.format(version="1.0.0", path=tenant.slug))
        settled(tenant, tenant.send("order", {"po": f"PO-of-{tenant.slug}"}))
    return made


@pytest.fixture(scope="module")
def clients(trial: Trial, rivals: tuple[Tenant, Tenant]) -> dict[str, httpx.Client]:
    """By role, members of the first organization; and somebody who has not signed in."""
    mine = rivals[0]
    users = {role: f"{role}-of-{mine.slug}" for role in ("customer_admin", "customer_user", "consultant")}
    passwords = trial.accounts(users.values())
    found = {"stranger": httpx.Client(base_url=trial.url, timeout=60)}
    for role, name in users.items():
        trial.bridge("organization", "member", "add", "-o", mine.slug, name, "--role", role)
        trial.sign_in(name, passwords[name])
        found[role] = trial._clients[name]
    return found


def names_of(trial: Trial, tenant: Tenant) -> Names:
    return Names(tenant.dag_id("order"), trial.runs(tenant.dag_id("order"))[0]["dag_run_id"])


def ask(client: httpx.Client, method: str, template: str, names: Names, *, queried: bool = True) -> httpx.Response:
    body = None if method in ("GET", "HEAD", "DELETE") else names.body
    query = names.query if queried else {}
    return client.request(method, names.path(template), params=query, json=body, follow_redirects=False)


def told(answer: httpx.Response, names: Names) -> tuple[int, str]:
    """What an answer says, without the names that were asked for."""
    text = answer.text.replace(names.dag_id, "D").replace(names.run_id, "R")
    return answer.status_code, text


@pytest.mark.parametrize("role", ["customer_admin", "customer_user", "consultant"])
def test_no_route_gives_or_changes_anything_of_another_organization(
    trial: Trial,
    rivals: tuple[Tenant, Tenant],
    clients: dict[str, httpx.Client],
    routes: list[tuple[str, str]],
    role: str,
) -> None:
    _, theirs = rivals
    client = clients[role]
    foreign = names_of(trial, theirs)
    nobodys = Names(f"org-{'0' * 8}.prod.order", foreign.run_id.replace("bridge__", "bridge__0"))
    before = trial.api("GET", f"/dags/{foreign.dag_id}/dagRuns/{foreign.run_id}").json()
    wrong = []
    for method, template in routes:
        if SIGNING_IN.match(template) or template in OPEN:
            continue
        for queried in (True, False):
            answer = ask(client, method, template, foreign, queried=queried)
            asked = f"{method} {template} {'?dag_id=theirs' if queried else ''}: {answer.status_code}"
            content = answer.text.replace(foreign.dag_id, "") if not answer.is_success else answer.text
            if theirs.slug in content:
                wrong.append(f"{asked} names them: {answer.text[:200]}")
            if method != "GET" and answer.is_success:
                wrong.append(f"{asked} was done: {answer.text[:200]}")
            if answer.status_code >= 500:
                wrong.append(f"{asked}: {answer.text[:200]}")
            if told(answer, foreign) != told(ask(client, method, template, nobodys, queried=queried), nobodys):
                wrong.append(f"{asked} answers otherwise than what does not exist: {answer.text[:200]}")
    assert wrong == []
    assert trial.api("GET", f"/dags/{foreign.dag_id}/dagRuns/{foreign.run_id}").json() == before
    assert trial.api("GET", f"/dags/{foreign.dag_id}").json()["is_paused"] is False
    assert len(trial.runs(foreign.dag_id)) == 1


@pytest.mark.parametrize("role", ["customer_admin", "customer_user", "consultant"])
def test_what_is_the_platforms_is_not_there_for_a_member(clients: dict[str, httpx.Client], role: str) -> None:
    for path in (
        *("/api/v2/connections", "/api/v2/variables", "/api/v2/config", "/api/v2/eventLogs", "/api/v2/jobs"),
        *("/api/v2/providers", "/api/v2/assets", "/api/v2/dags/stream", "/api/v2/dagSources/stream"),
        *("/ui/dependencies", "/ui/connections/hook_meta", "/auth/fab/v1/users", "/auth/fab/v1/roles", *DOCUMENTS),
    ):
        assert clients[role].get(path).status_code == 404, path
    for path, key in (
        ("/api/v2/pools", "pools"),
        ("/api/v2/importErrors", "import_errors"),
        ("/api/v2/assets/events", "asset_events"),
    ):
        answer = clients[role].get(path)
        assert (answer.status_code, answer.json()[key]) == (200, []), path


def test_a_body_cannot_say_for_a_get_what_the_address_does_not(
    trial: Trial, rivals: tuple[Tenant, Tenant], clients: dict[str, httpx.Client]
) -> None:
    mine, theirs = rivals
    for path in ("/api/v2/backfills", f"/api/v2/dags/{theirs.dag_id('order')}/dagRuns", "/ui/backfills"):
        answer = clients["customer_admin"].request(
            "GET", path, params={"dag_id": theirs.dag_id("order")}, json={"dag_id": mine.dag_id("order")}
        )
        assert answer.status_code == 400, path


@pytest.mark.parametrize("role", ["customer_user", "admin"])
def test_what_no_name_can_hold_is_not_there(
    trial: Trial, rivals: tuple[Tenant, Tenant], clients: dict[str, httpx.Client], role: str
) -> None:
    dag_id = rivals[0].dag_id("order")
    assert trial.api("GET", "/version").is_success
    client = trial._clients["admin"] if role == "admin" else clients[role]
    for path in (f"/api/v2/dags/{dag_id}%00/dagRuns", f"/api/v2/dags/{dag_id}/dagRuns?run_id_pattern=%00"):
        answer = client.get(path)
        assert (answer.status_code, answer.json()) == (404, {"detail": "Not Found"}), path


def test_a_stranger_is_told_to_sign_in_and_nothing_else(
    rivals: tuple[Tenant, Tenant], trial: Trial, clients: dict[str, httpx.Client], routes: list[tuple[str, str]]
) -> None:
    names = names_of(trial, rivals[0])
    for method, template in [*routes, *(("GET", each) for each in DOCUMENTS)]:
        if SIGNING_IN.match(template) or template in OPEN:
            continue
        answer = ask(clients["stranger"], method, template, names)
        assert answer.status_code == 401, (method, template, answer.text[:200])
        assert set(answer.json()) <= TELLING
    assert clients["stranger"].get("/api/v2/monitor/health").is_success


def test_a_member_reaches_what_airflows_pages_need_of_his_own(
    trial: Trial, rivals: tuple[Tenant, Tenant], clients: dict[str, httpx.Client]
) -> None:
    names = names_of(trial, rivals[0])
    for template in (
        *("/ui/config", "/ui/auth/me", "/ui/auth/menus", "/ui/dags", "/ui/dashboard/dag_stats"),
        *("/ui/grid/structure/{dag_id}", "/ui/grid/runs/{dag_id}"),
        *("/ui/gantt/{dag_id}/{run_id}", "/ui/dags/{dag_id}/latest_run", "/ui/structure/structure_data"),
        *("/api/v2/dags", "/api/v2/dags/{dag_id}", "/api/v2/dags/{dag_id}/details", "/api/v2/dags/{dag_id}/tasks"),
        *("/api/v2/dags/{dag_id}/dagRuns/{dag_run_id}", "/api/v2/dags/{dag_id}/dagRuns", "/api/v2/version"),
        "/api/v2/dags/{dag_id}/dagRuns/{dag_run_id}/taskInstances",
        "/api/v2/dags/{dag_id}/dagRuns/{dag_run_id}/taskInstances/{task_id}",
        "/api/v2/dags/{dag_id}/dagRuns/{dag_run_id}/taskInstances/{task_id}/tries",
        "/api/v2/dags/{dag_id}/dagRuns/{dag_run_id}/taskInstances/{task_id}/logs/1",
        "/api/v2/dags/{dag_id}/dagRuns/{dag_run_id}/taskInstances/{task_id}/xcomEntries",
        *("/api/v2/dagSources/{dag_id}", "/api/v2/dags/{dag_id}/dagVersions", "/api/v2/dagStats"),
        *("/api/v2/dags/~/dagRuns", "/api/v2/dags/~/dagRuns/~/hitlDetails"),
        "/api/v2/dags/~/dagRuns/~/taskInstances",
    ):
        path = names.path(template)
        query = {"dag_id": names.dag_id} if template.endswith("structure_data") else {}
        for role in ("customer_admin", "customer_user", "consultant"):
            answer = clients[role].get(path, params=query)
            assert answer.is_success, (role, template, answer.status_code, answer.text[:300])
            assert rivals[1].slug not in answer.text, template


def test_the_guard_stands_before_airflow_and_users_are_counted_there_too(
    clients: dict[str, httpx.Client], trial: Trial
) -> None:
    for path in ("/api/v2/dags", "/ui/config"):
        told = clients["customer_user"].get(path).headers
        assert re.match(r'"user";q=\d+;w=60', told["ratelimit-policy"]), path
        assert re.match(r'"user";r=\d+;t=\d+', told["ratelimit"]), path
    with httpx.Client(base_url=trial.url, timeout=60) as stranger:
        head = stranger.get("/", headers={"x-large": "x" * 40_000})
        assert (head.status_code, head.json()["code"]) == (431, "head-too-large")
        deep = b'{"username": ' + b"[" * 1_000 + b"]" * 1_000 + b"}"
        body = stranger.post("/auth/token", content=deep, headers={"content-type": "application/json"})
        assert (body.status_code, body.json()["code"]) == (422, "unprocessable-content")
        assert stranger.get("/", follow_redirects=True).status_code == 200


def test_a_cookie_changes_something_from_the_platforms_own_pages_only(trial: Trial) -> None:
    name = f"clicker-{uuid4().hex[:8]}"
    password = trial.accounts([name])[name]
    with httpx.Client(base_url=trial.url, timeout=60) as browser:
        page = browser.get("/auth/login/")
        token = re.search(r'name="csrf_token"[^>]*value="([^"]+)"', page.text)
        assert token is not None
        form = {"username": name, "password": password, "csrf_token": token[1]}
        foreign, own = {"origin": "https://evil.example"}, {"origin": trial.url}
        assert browser.post("/auth/login/", data=form, headers=foreign).status_code == 403
        assert browser.post("/auth/login/", data=form).status_code == 403
        browser.post("/auth/login/", data=form, headers=own)
        assert "_token" in browser.cookies
        for path in ("/api/v2/dags/none.prod.such", "/ui/none", "/bridge/flows/none/prod/such"):
            assert browser.patch(path, json={}, headers=foreign).status_code == 403, path
            assert browser.patch(path, json={}, headers={"sec-fetch-site": "cross-site"}).status_code == 403, path
            assert browser.patch(path, json={}, headers=own).status_code in (404, 405), path


def test_every_answer_tells_browsers_to_be_careful(trial: Trial) -> None:
    for path in ("/", "/auth/users/list/", "/api/v2/monitor/health", "/api/v2/dags", "/static/pin_32.png"):
        headers = httpx.get(trial.url + path, timeout=60).headers
        assert headers["content-security-policy"] == "frame-ancestors 'self'; object-src 'none'", path
        assert headers["x-content-type-options"] == "nosniff", path
    for path in ("/bridge/health/live", "/bridge/me", "/bridge/hooks/none/prod/such", "/auth/login/"):
        headers = httpx.get(trial.url + path, timeout=60).headers
        assert "default-src 'none'" in headers["content-security-policy"], path
        assert headers["referrer-policy"] == "same-origin", path
