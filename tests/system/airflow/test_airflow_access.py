"""One organization's people and tasks see nothing of another's."""

from __future__ import annotations

import contextlib
import json
import secrets as random_secrets
import subprocess
from base64 import b64encode
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
from trial import FLOW, Gate, Tenant, Trial, delivered, settled

from continuitybridge.database.embedded import EmbeddedPostgres, bin_dir

TOKEN = """
import json, os
from continuitybridge.runtime.environment import process_environment
from continuitybridge.settings import get_settings
os.environ.update(process_environment(get_settings()))
from airflow.api_fastapi.auth.tokens import JWTGenerator, get_signing_args
from airflow.configuration import conf
from airflow.models import TaskInstance
from airflow.utils.session import create_session
from sqlalchemy import select
with create_session() as session:
    statement = select(TaskInstance.id).where(TaskInstance.dag_id == {dag_id!r}, TaskInstance.state == {state!r})
    tasks = session.scalars(statement.order_by(TaskInstance.start_date.desc())).all()
generator = JWTGenerator(
    **get_signing_args(make_secret_key_if_needed=False),
    valid_for=300,
    audience=conf.get("execution_api", "jwt_audience"),
)
print(json.dumps([generator.generate({{"sub": str(task)}}) for task in tasks]))
"""
"""Signs tokens for tasks that there are: what a thief of a running task's token would hold."""


@pytest.fixture(scope="module")
def rivals(trial: Trial) -> tuple[Tenant, Tenant]:
    """Two organizations, each with flow `order` and a secret connection `vault` of its own."""
    made = trial.organization(), trial.organization()
    for tenant in made:
        tenant.connect(
            "vault", "http://127.0.0.1:9/", secret=f"token-of-{tenant.slug}-{random_secrets.token_hex(8)}"
        )
        tenant.deploy("order", FLOW.format(version="1.0.0", path=tenant.slug))
    return made


@pytest.fixture(scope="module")
def people(trial: Trial, rivals: tuple[Tenant, Tenant]) -> dict[str, str]:
    """Users of the first organization by role, signed in."""
    mine = rivals[0]
    users = {role: f"{role}-{mine.slug}" for role in ("customer_admin", "customer_user", "consultant")}
    passwords = trial.accounts(users.values())
    for role, name in users.items():
        trial.bridge("organization", "member", "add", "-o", mine.slug, name, "--role", role)
        trial.sign_in(name, passwords[name])
    return users


@pytest.mark.parametrize("role", ["customer_admin", "customer_user", "consultant"])
def test_a_member_sees_his_organizations_dags_only(
    trial: Trial, rivals: tuple[Tenant, Tenant], people: dict[str, str], role: str
) -> None:
    mine, theirs = rivals
    user = people[role]
    listed = {dag["dag_id"] for dag in trial.api("GET", "/dags", user=user).json()["dags"]}
    assert listed == {mine.dag_id("order")}
    assert trial.api("GET", f"/dags/{mine.dag_id('order')}/details", user=user).is_success
    for path in ("", "/details", "/dagRuns", "/tasks", "/dagVersions"):
        assert trial.api("GET", f"/dags/{theirs.dag_id('order')}{path}", user=user).status_code in (403, 404)
    runs = trial.api("GET", "/dags/~/dagRuns", user=user).json()["dag_runs"]
    assert {run["dag_id"] for run in runs} <= {mine.dag_id("order")}
    for path in ("/connections", "/variables", "/config", "/assets", "/eventLogs"):
        assert trial.api("GET", path, user=user).status_code == 404, path


def test_that_a_consultant_came_in_by_airflows_own_pages_stands_in_the_trail_once(
    trial: Trial, rivals: tuple[Tenant, Tenant], people: dict[str, str]
) -> None:
    mine, theirs = rivals
    user, dag_id = people["consultant"], mine.dag_id("order")
    for _ in range(3):
        for path in (f"/api/v2/dags/{dag_id}/details", f"/ui/grid/structure/{dag_id}", f"/ui/grid/runs/{dag_id}"):
            assert trial._clients[user].get(path).is_success, path
    assert trial.api("GET", f"/dags/{dag_id}/details", user=people["customer_admin"]).is_success
    assert trial.api("GET", f"/dags/{theirs.dag_id('order')}/details", user=user).status_code == 404

    def entered(tenant: Tenant) -> list[tuple[str, str]]:
        arguments = ("-o", tenant.slug, "--action", "consultant.entered", "--json")
        told = json.loads(trial.bridge("audit", "list", *arguments).stdout)
        return [(each["actor"], each["address"]) for each in told]

    assert entered(mine) == [(user, "127.0.0.1")]
    assert entered(theirs) == []


def test_who_may_start_and_pause(trial: Trial, rivals: tuple[Tenant, Tenant], people: dict[str, str]) -> None:
    mine, theirs = rivals
    body = {"logical_date": None, "conf": {"payload": {"po": "PO-by-member"}}}
    for role, allowed in (("customer_admin", True), ("consultant", True), ("customer_user", False)):
        user = people[role]
        made = trial.api("POST", f"/dags/{mine.dag_id('order')}/dagRuns", user=user, json=body)
        assert made.status_code == (200 if allowed else 403), role
        other = trial.api("POST", f"/dags/{theirs.dag_id('order')}/dagRuns", user=user, json=body)
        assert other.status_code in (403, 404)
        paused = trial.api("PATCH", f"/dags/{mine.dag_id('order')}", user=user, json={"is_paused": False})
        assert paused.status_code == (200 if allowed else 403), role
        assert trial.api("DELETE", f"/dags/{mine.dag_id('order')}", user=user).status_code == 404
        backfill = {
            "dag_id": mine.dag_id("order"),
            "from_date": "2026-01-01T00:00:00Z",
            "to_date": "2026-01-02T00:00:00Z",
        }
        assert trial.api("POST", "/backfills", user=user, json=backfill).status_code == 404
    assert len(delivered(mine, "PO-by-member", times=2)) == 2


def ask(trial: Trial, token: str | None, connection: str) -> httpx.Response:
    return httpx.get(
        f"{trial.url}/execution/connections/{connection}",
        headers={"Authorization": f"Bearer {token}"} if token else {},
        timeout=60,
    )


def tokens_of(trial: Trial, dag_id: str, state: str) -> list[str]:
    """A token of each of the DAG's tasks in this state, the last one's first."""
    code = TOKEN.format(dag_id=dag_id, state=state)
    tokens: list[str] = json.loads(trial.python(code).splitlines()[-1])
    return tokens


def test_a_running_task_gets_its_own_organizations_secrets_and_no_others(
    trial: Trial, rivals: tuple[Tenant, Tenant]
) -> None:
    mine, theirs = rivals
    gate = Gate(trial, "PO-secrets")
    message_id = mine.send("order", {"po": "PO-secrets"})
    assert gate.reached.wait(60)
    token = tokens_of(trial, mine.dag_id("order"), "running")[0]
    found = ask(trial, token, "bridge-connection:vault").json()
    assert f"token-of-{mine.slug}-" in found["extra"]
    assert theirs.slug not in json.dumps(found)
    keys = json.loads(ask(trial, token, "bridge-keys").json()["extra"])
    assert len(keys) == 1
    for name in ("bridge-connection:unknown", "bridge-connection:../vault", "postgres_default", "bridge-keyring"):
        assert ask(trial, token, name).status_code == 404, name
    refused = httpx.get(
        f"{trial.url}/execution/variables/some",
        headers={"Authorization": f"Bearer {token}"},
        timeout=60,
    )
    assert refused.status_code == 404
    assert ask(trial, None, "bridge-keys").status_code == 401
    assert ask(trial, token[:-2] + "xx", "bridge-keys").status_code == 403
    gate.open.set()
    settled(mine, message_id)


FORGED = """
import json, os, time
from continuitybridge.runtime.environment import process_environment
from continuitybridge.settings import get_settings
os.environ.update(process_environment(get_settings()))
import jwt
from airflow.api_fastapi.auth.tokens import JWTGenerator, get_signing_args
from airflow.configuration import conf
task = jwt.decode({token!r}, options={{"verify_signature": False}})["sub"]
audience = conf.get("execution_api", "jwt_audience")
def signed(**changes):
    given = dict(get_signing_args(make_secret_key_if_needed=False), valid_for=300, audience=audience)
    return JWTGenerator(**(given | changes)).generate({{"sub": task}})
claims = jwt.decode({token!r}, options={{"verify_signature": False}})
print(json.dumps({{
    "of another key": signed(secret_key=os.urandom(32).hex()),
    "expired": signed(valid_for=-3600),
    "for another audience": signed(audience="apache-airflow"),
    "unsigned": jwt.encode(claims, "", algorithm="none"),
    "of nobody": JWTGenerator(**get_signing_args(make_secret_key_if_needed=False), valid_for=300,
                              audience=audience).generate({{"sub": "01980000-0000-7000-8000-000000000000"}}),
}}))
"""


def test_a_forged_expired_or_foreign_token_opens_nothing_and_a_true_one_its_own_dag_only(
    trial: Trial, rivals: tuple[Tenant, Tenant]
) -> None:
    mine, theirs = rivals
    settled(theirs, theirs.send("order", {"po": "PO-theirs"}))
    gate = Gate(trial, "PO-fence")
    message_id = mine.send("order", {"po": "PO-fence"})
    assert gate.reached.wait(60)
    own, other = mine.dag_id("order"), theirs.dag_id("order")
    token = tokens_of(trial, own, "running")[0]
    foreign = trial.runs(other)[-1]["dag_run_id"]
    running = next(run["dag_run_id"] for run in trial.runs(own) if run["state"] == "running")

    def tasks(dag_id: str, run_id: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = trial.api("GET", f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances").json()[
            "task_instances"
        ]
        return found

    task_id = next(each["task_id"] for each in tasks(own, running) if each["state"] == "running")
    task = tasks(other, foreign)[0]["id"]
    own_task = next(each["id"] for each in tasks(own, running) if each["state"] == "running")
    asset = f"bridge://{theirs.slug}/prod/order"
    outlet = {"name": asset, "uri": asset, "type": "Asset"}
    event = {"dest_asset_key": {"name": asset, "uri": asset}, "extra": {}}
    success = {"state": "success", "end_date": "2026-01-01T00:00:00Z"}
    deferred = {"state": "deferred", "classpath": "subprocess.Popen", "next_method": "execute"}

    def events() -> int:
        return int(trial.api("GET", "/assets/events").json()["total_entries"])

    before = events()

    def call(method: str, path: str, given: str = token, headers: Any = None, **more: Any) -> int:
        headers = {"Authorization": f"Bearer {given}"} | (headers or {})
        answer = httpx.request(method, f"{trial.url}/execution/{path}", headers=headers, timeout=60, **more)
        return answer.status_code

    paths = ("connections/bridge-keys", "connections/bridge-connection:vault", f"dag-runs/{own}/{running}/state")
    assert [call("GET", path) for path in paths] == [200, 200, 200]
    for what, bad in json.loads(trial.python(FORGED.format(token=token)).splitlines()[-1]).items():
        for path in paths:
            assert call("GET", path, bad) in (401, 403, 404), (what, path)
        # Before it is looked at what it asks for.
        expected = 404 if what == "of nobody" else 403
        assert call("GET", f"dag-runs/{other}/{foreign}/state", bad) == expected, what
    beginning = f"xcoms/{own}/{running}/{task_id}"
    assert call("POST", f"{beginning}/mark", json="x") == 201
    assert call("GET", f"{beginning}/mark") == 200
    assert call("GET", "task-instances/count", params={"dag_id": own}) == 200
    for method, path, more in (
        ("GET", f"dag-runs/{other}/{foreign}/state", {}),
        ("GET", f"dag-runs/{other}/{foreign}", {}),
        ("POST", f"dag-runs/{other}/made", {"json": {"conf": {}}}),
        ("POST", f"xcoms/{other}/{foreign}/{task_id}/mark", {"json": "x"}),
        ("GET", f"xcoms/{other}/{foreign}/{task_id}/mark", {}),
        ("GET", f"dags/{other}", {}),
        ("GET", "task-instances/states", {"params": {"dag_id": other}}),
        ("GET", "task-instances/states", {"params": {"dag_id": [own, other]}}),
        ("GET", f"task-instances/previous/{other}/{task_id}", {}),
        ("GET", f"task-instances/{task}/previous-successful-dagrun", {}),
        ("PUT", f"task-instances/{task}/heartbeat", {"json": {"hostname": "x", "pid": 1}}),
        ("GET", "variables/keys", {}),
        ("PUT", "variables/mine", {"json": {"value": "x"}}),
        ("GET", "assets/by-name", {"params": {"name": "x"}}),
        ("GET", "asset-events/by-asset", {"params": {"name": "x"}}),
        ("GET", "an-address-of-tomorrow", {}),
        ("POST", f"dag-runs/{other}/{foreign}/clear", {}),
        ("DELETE", f"xcoms/{other}/{foreign}/{task_id}/mark", {}),
        ("PUT", "store/asset/by-name/value", {"params": {"name": asset}, "json": {"value": "x"}}),
        ("POST", f"hitlDetails/{own_task}", {"json": {"ti_id": task, "options": ["a"], "subject": "x"}}),
        ("PATCH", f"task-instances/{own_task}/state", {"json": success | {"task_outlets": [outlet]}}),
        ("PATCH", f"task-instances/{own_task}/state", {"json": success | {"outlet_events": [event]}}),
        ("PATCH", f"task-instances/{own_task}/state", {"json": success | {"of_tomorrow": 1}}),
        ("PATCH", f"task-instances/{own_task}/state", {"json": deferred}),
        ("PATCH", f"task-instances/{own_task}/state", {"content": b"x" * 100_000}),
        # Read as what it is, in whatever encoding.
        (
            "PATCH",
            f"task-instances/{own_task}/state",
            {
                "content": json.dumps(success | {"task_outlets": [outlet]}).encode("utf-16"),
                "headers": {"content-type": "application/json"},
            },
        ),
    ):
        assert call(method, path, **more) == 404, (method, path)
    assert "made" not in {run["dag_run_id"] for run in trial.runs(other)}
    assert events() == before
    assert [each["state"] for each in tasks(own, running) if each["id"] == own_task] == ["running"]
    gate.open.set()
    settled(mine, message_id)


def test_a_secret_is_found_nowhere_that_it_does_not_belong(trial: Trial, rivals: tuple[Tenant, Tenant]) -> None:
    """A credential, a webhook's key, a typed secret and a password within a message, through a delivery and a dead
    letter: looked for wherever anything is written or shown."""
    mine, _ = rivals
    canaries = {name: f"canary-{name}-{random_secrets.token_hex(16)}" for name in ("auth", "pin", "field")}
    mine.connect("guarded", trial.destination.url, secret=canaries["auth"])
    value = json.dumps({"pin": canaries["pin"]})
    given = ("-o", mine.slug, "-e", "prod", "--type", "custom", "--from-file", "-")
    trial.bridge("secret", "set", "pin", *given, input=value)
    text = FLOW.format(version="1.0.0", path="guarded").replace("order", "guarded")
    mine.deploy("guarded", text.replace("connection: target", "connection: guarded"))
    canaries["webhook"] = mine.secrets["guarded"]
    body = {"po": "PO-canary", "password": canaries["field"]}
    settled(mine, mine.send("guarded", body))
    trial.destination.answer = lambda delivery: 400
    dead = mine.send("guarded", body)
    settled(mine, dead, "dead")
    assert trial.destination.of("/guarded")[-1].headers["authorization"] == f"Bearer {canaries['auth']}"

    shown = {
        "message": trial._clients["admin"].get(f"/bridge/messages/{dead}").text,
        "secrets": trial._clients["admin"].get("/bridge/secrets", params={"organization": mine.slug}).text,
        "audit": trial.bridge("audit", "export", "-o", mine.slug).stdout,
        "dead letters": trial.bridge("inbox", "dead", "-o", mine.slug, "-e", "prod").stdout,
        "status": trial.bridge("inbox", "status", dead, "-o", mine.slug).stdout,
    }
    for log in trial.state_dir.rglob("*.log"):
        shown[str(log)] = log.read_text(errors="replace")
    for process in ours(trial):
        with contextlib.suppress(psutil.Error):
            shown[f"process {process.pid}"] = " ".join([*process.cmdline(), *process.environ().values()])
    # All of Airflow's tables (rendered templates, XComs, ...) and all of ours, as a backup holds them.
    server = EmbeddedPostgres(trial.state_dir / "postgres", int(trial.settings["BRIDGE_DATABASE_PORT"]))
    address = urlsplit(server.admin_url)._replace(path="/continuitybridge").geturl()
    dump = subprocess.run(
        [str(bin_dir() / "pg_dump"), "--data-only", address],
        capture_output=True,
        check=True,
        timeout=120,
    ).stdout.decode(errors="replace")
    assert "rendered_task_instance_fields" in dump
    assert "bridge.secret_versions" in dump
    shown["dump"] = dump
    assert len(shown) > 15
    for name, canary in canaries.items():
        for place, found in shown.items():
            assert canary not in found, (name, place)
            assert canary.encode().hex() not in found, (name, place)
            assert b64encode(canary.encode()).decode()[:-4] not in found, (name, place)


def ours(trial: Trial) -> list[psutil.Process]:
    """All processes of the installation."""
    found = {each.pid: each for each in trial.processes().values()}
    for each in list(found.values()):
        with contextlib.suppress(psutil.Error):
            found |= {child.pid: child for child in each.children(recursive=True)}
    assert len(found) > 5
    return list(found.values())


PLATFORMS = """
import os
from continuitybridge.runtime.environment import process_environment
from continuitybridge.settings import get_settings
os.environ.update(process_environment(get_settings()))
from airflow.models import Connection, Variable
from airflow.utils.session import create_session
with create_session() as session:
    session.add(Connection(conn_id={name!r}, conn_type="http", host="127.0.0.1", password="x"))
    session.add(Variable(key={name!r}, val="x"))
"""
"""Makes a connection and a variable of the platform's own, such as Python DAGs use."""


def test_a_task_that_has_ended_and_a_former_try_get_nothing(trial: Trial, rivals: tuple[Tenant, Tenant]) -> None:
    mine, _ = rivals
    platforms = f"platforms-{random_secrets.token_hex(4)}"
    trial.python(PLATFORMS.format(name=platforms))
    message_id = mine.send("order", {"po": "PO-ended"})
    settled(mine, message_id)
    token = tokens_of(trial, mine.dag_id("order"), "success")[0]

    def asked() -> dict[str, int]:
        paths = [f"connections/{name}" for name in ("bridge-keys", "bridge-connection:vault", platforms)]
        headers = {"Authorization": f"Bearer {token}"}
        return {
            path: httpx.get(f"{trial.url}/execution/{path}", headers=headers, timeout=60).status_code
            for path in [*paths, f"variables/{platforms}"]
        }

    assert set(asked().values()) == {404}, asked()
    run = trial.runs(mine.dag_id("order"))[-1]["dag_run_id"]
    cleared = trial.api(
        "POST",
        f"/dags/{mine.dag_id('order')}/clearTaskInstances",
        json={"dry_run": False, "dag_run_id": run, "only_failed": False},
    )
    assert cleared.is_success, cleared.text
    assert set(asked().values()) == {404}, asked()


def test_a_connection_of_another_organization_is_missing_to_a_flow(
    trial: Trial, rivals: tuple[Tenant, Tenant]
) -> None:
    mine, theirs = rivals
    theirs.connect("only-theirs", trial.destination.url, secret=random_secrets.token_hex(16))
    text = FLOW.format(version="1.0.0", path="stolen").replace("order", "thief")
    mine.deploy("thief", text.replace("connection: target", "connection: only-theirs"))
    message_id = mine.send("thief", {"po": "PO-stolen"})
    settled(mine, message_id, "dead")
    assert not trial.destination.of("/stolen")


def test_task_logs_show_no_credential(trial: Trial, rivals: tuple[Tenant, Tenant]) -> None:
    mine, _ = rivals
    secret = f"very-secret-{random_secrets.token_hex(16)}"
    mine.connect("talkative", trial.destination.url, secret=secret)
    text = FLOW.format(version="1.0.0", path="talk").replace("order", "talk")
    mine.deploy("talk", text.replace("connection: target", "connection: talkative"))
    message_id = mine.send("talk", {"po": "PO-talk"})
    [delivery] = delivered(mine, "PO-talk")
    assert delivery.headers["authorization"] == f"Bearer {secret}"
    settled(mine, message_id)
    logs = list((trial.state_dir).rglob("*.log"))
    assert len(logs) > 5
    for log in logs:
        assert secret not in log.read_text(errors="replace"), log
