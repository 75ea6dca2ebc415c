"""API keys at Airflow's own routes and at ours: what their user may do in their organization, and nothing else."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from trial import FLOW, Tenant, Trial, delivered

END_AIRFLOWS_CONNECTIONS = """
import os, psycopg
from continuitybridge.runtime.environment import process_environment
from continuitybridge.settings import get_settings
os.environ.update(process_environment(get_settings()))
url = os.environ["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"].partition(":")[2]
with psycopg.connect("postgresql:" + url, autocommit=True) as connection:
    ended = connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = current_user "
        "AND pid <> pg_backend_pid() AND state IN ('idle', 'idle in transaction')"
    ).fetchall()
print(len(ended))
"""


@pytest.fixture(scope="module")
def rivals(trial: Trial) -> tuple[Tenant, Tenant]:
    made = trial.organization(), trial.organization()
    for tenant in made:
        tenant.deploy("order", FLOW.format(version="1.0.0", path=tenant.slug))
    return made


@pytest.fixture
def admin(trial: Trial, rivals: tuple[Tenant, Tenant]) -> str:
    """An administrator of both organizations, signed in."""
    name = f"keeper-{rivals[0].slug}"
    if name not in trial._clients:
        password = trial.accounts([name])[name]
        for tenant in rivals:
            trial.bridge("organization", "member", "add", "-o", tenant.slug, name, "--role", "customer_admin")
        trial.sign_in(name, password)
    return name


def make(trial: Trial, user: str, tenant: Tenant, name: str, scope: str) -> dict[str, Any]:
    if user == "admin":
        trial.api("GET", "/version")  # signs in
    made = trial._clients[user].post(
        f"/bridge/api-keys?organization={tenant.slug}", json={"name": name, "scope": scope, "days": 1}
    )
    assert made.status_code == 201, made.text
    found: dict[str, Any] = made.json()
    return found


def client(trial: Trial, key: str, header: str = "authorization") -> httpx.Client:
    value = f"Bearer {key}" if header == "authorization" else key
    return httpx.Client(base_url=trial.url, headers={header: value}, timeout=60)


@pytest.mark.parametrize("header", ["authorization", "x-api-key"])
@pytest.mark.parametrize("user", ["keeper", "admin"])
def test_a_key_triggers_and_reads_in_its_organization_and_nowhere_else(
    trial: Trial, rivals: tuple[Tenant, Tenant], admin: str, user: str, header: str
) -> None:
    mine, theirs = rivals
    name = f"{user}-{header}"
    writing = client(
        trial, make(trial, admin if user == "keeper" else "admin", mine, name, "write")["key"], header
    )
    assert {each["dag_id"] for each in writing.get("/api/v2/dags").json()["dags"]} <= {
        mine.dag_id("order"),
        f"{mine.slug}.prod._approvals",
    }
    assert writing.get("/bridge/me").json()["superadmin"] is False
    for path in (f"/dags/{theirs.dag_id('order')}", "/dags/stream", "/connections", "/variables", "/eventLogs"):
        assert writing.get(f"/api/v2{path}").status_code == 404, path
    body = {"logical_date": None, "conf": {"payload": {"po": f"PO-{name}"}}}
    made = writing.post(f"/api/v2/dags/{mine.dag_id('order')}/dagRuns", json=body)
    assert made.status_code == 200, made.text
    delivered(mine, f"PO-{name}")
    assert writing.post(f"/api/v2/dags/{theirs.dag_id('order')}/dagRuns", json=body).status_code == 404


def test_a_key_that_may_read_changes_nothing(trial: Trial, rivals: tuple[Tenant, Tenant], admin: str) -> None:
    mine = rivals[0]
    reading = client(trial, make(trial, admin, mine, "reads", "read")["key"])
    assert reading.get(f"/api/v2/dags/{mine.dag_id('order')}").status_code == 200
    body = {"logical_date": None, "conf": {"payload": {"po": "PO-never"}}}
    assert reading.post(f"/api/v2/dags/{mine.dag_id('order')}/dagRuns", json=body).status_code == 403
    assert reading.patch(f"/api/v2/dags/{mine.dag_id('order')}", json={"is_paused": True}).status_code == 403
    assert reading.post(f"/bridge/flows/{mine.slug}/prod/order/disable").status_code == 403


def test_a_key_ends_when_it_is_revoked_with_its_users_membership_and_when_he_is_deactivated(
    trial: Trial, rivals: tuple[Tenant, Tenant]
) -> None:
    mine = rivals[0]
    name = f"leaver-{mine.slug}"
    password = trial.accounts([name])[name]
    trial.bridge("organization", "member", "add", "-o", mine.slug, name, "--role", "customer_admin")
    trial.sign_in(name, password)
    keys = [make(trial, name, mine, f"leaver-{n}", "read") for n in range(2)]
    clients = [client(trial, each["key"]) for each in keys]
    paths = ("/api/v2/dags", "/bridge/me", "/ui/dags")

    def answers(of: httpx.Client) -> set[int]:
        return {of.get(path).status_code for path in paths}

    assert [answers(each) for each in clients] == [{200}, {200}]
    # Each by another process than the one that answers, and at the next request.
    trial.bridge("api-key", "revoke", "-o", mine.slug, keys[0]["key_id"])
    assert answers(clients[0]) == {401}
    assert answers(clients[1]) == {200}
    dag = f"/api/v2/dags/{mine.dag_id('order')}"
    assert clients[1].get(dag).status_code == 200
    trial.bridge("organization", "member", "remove", "-o", mine.slug, name)
    assert clients[1].get(dag).status_code == 404
    assert clients[1].get(f"/bridge/flows?organization={mine.slug}").status_code == 404
    trial.python(
        "import os\n"
        "from continuitybridge.runtime.environment import process_environment\n"
        "from continuitybridge.settings import get_settings\n"
        "os.environ.update(process_environment(get_settings()))\n"
        "from airflow.providers.fab.www.app import create_app\n"
        "app = create_app(enable_plugins=False)\n"
        "with app.app_context():\n"
        f"    user = app.appbuilder.sm.find_user(username={name!r})\n"
        "    user.active = False\n"
        "    app.appbuilder.sm.update_user(user)\n"
    )
    assert answers(clients[1]) == {401}


def test_what_is_no_key_is_refused_at_every_door(trial: Trial) -> None:
    for header in ("authorization", "x-api-key"):
        wrong = client(trial, "cb_" + "A" * 43, header)
        for path in ("/api/v2/dags", "/ui/dags", "/bridge/me", "/api/v2/version", "/"):
            assert wrong.get(path).status_code == 401, (header, path)


def test_a_lost_database_connection_makes_no_key_and_no_password_wrong(
    trial: Trial, rivals: tuple[Tenant, Tenant]
) -> None:
    mine, name = rivals[0], "constant"
    password = trial.accounts([name])[name]
    trial.bridge("organization", "member", "add", "-o", mine.slug, name, "--role", "customer_admin")
    trial.sign_in(name, password)
    key = client(trial, make(trial, name, mine, "constant", "read")["key"])

    def ask(number: int) -> int:
        if number % 2:
            return key.get("/bridge/me").status_code
        token = {"username": name, "password": password}
        return httpx.post(f"{trial.url}/auth/token", json=token, timeout=60).status_code

    with ThreadPoolExecutor(8) as pool:
        for _ in range(4):
            assert {key.get("/bridge/me").status_code for _ in range(8)} == {200}
            assert int(trial.python(END_AIRFLOWS_CONNECTIONS)) > 0
            assert set(pool.map(ask, range(16))) == {200, 201}
