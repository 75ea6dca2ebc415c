"""One organization's people and tasks see nothing of another's."""

from __future__ import annotations

import json
import secrets as random_secrets

import httpx
import pytest
from trial import FLOW, Gate, Tenant, Trial, delivered, settled

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


def test_a_task_that_has_ended_gets_nothing(trial: Trial, rivals: tuple[Tenant, Tenant]) -> None:
    mine, _ = rivals
    message_id = mine.send("order", {"po": "PO-ended"})
    settled(mine, message_id)
    token = tokens_of(trial, mine.dag_id("order"), "success")[0]
    assert ask(trial, token, "bridge-keys").status_code == 404
    assert ask(trial, token, "bridge-connection:vault").status_code == 404


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
