"""Two demo organizations, two real orders that travel from webhook to warehouse, and one that Airflow is told to
run. `make run` ends here.

Demo accounts exist only where this ran. Everything is made when it is absent and left alone when it is there, so
that running it again only sends more orders.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
from standardwebhooks import Webhook

from continuitybridge import connections, deployments, organizations
from continuitybridge.airflow.roles import MEMBER_ROLE
from continuitybridge.database.bootstrap import write_env
from continuitybridge.errors import Conflict, NotFound, Unavailable
from continuitybridge.flows.load import load_flow
from continuitybridge.inbox import status as messages
from continuitybridge.organizations import Organization, Role
from continuitybridge.runtime import keys, platform, warehouse
from continuitybridge.runtime.progress import Progress
from continuitybridge.runtime.provisioning import Account
from continuitybridge.runtime.supervisor import Supervisor, tail
from continuitybridge.settings import Settings, get_settings, project_root
from continuitybridge.webhooks import endpoints

ENVIRONMENT = "prod"
OPERATOR = "demo"
ACCEPT_WAIT_S = 30.0
DELIVERY_WAIT_S = 120.0
"""How long an order may take on a slow machine before the demo says what is wrong."""

FLOW = "order-to-warehouse"
FLOWS = (FLOW, "stock-from-csv", "daily-order-summary")


@dataclass(frozen=True, slots=True)
class DemoOrganization:
    slug: str
    name: str

    def members(self) -> Iterator[tuple[str, str, Role]]:
        """User name, last name and role of the people who belong to it."""
        yield f"{self.slug}-admin", "Admin", Role.CUSTOMER_ADMIN
        yield f"{self.slug}-user", "User", Role.CUSTOMER_USER


ORGANIZATIONS = (DemoOrganization("aurora", "Aurora Outdoor"), DemoOrganization("borealis", "Borealis Foods"))


@dataclass(frozen=True, slots=True)
class Order:
    """A file that is posted as it is, and the endpoint that takes it."""

    file: str
    slug: str
    content_type: str


ORDERS = (
    Order("purchase-order.xml", "orders-ubl", "application/xml"),
    Order("purchase-order.json", "orders", "application/json"),
)


RUN_ORDER = "purchase-order.json"
"""What Airflow is told to run the flow on."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """What became of one order: times in milliseconds from the accepting commit to the settling one."""

    order: Order
    message_id: str
    state: messages.MessageStatus
    received: dict[str, Any]

    @property
    def milliseconds(self) -> float:
        assert self.state.ended_at is not None  # noqa: S101  (it is settled)
        return (self.state.ended_at - self.state.accepted_at).total_seconds() * 1000


def run(progress: Progress) -> list[Delivery]:
    """Bring the platform up with the demo and send the orders. Raises what `platform.up` raises, and
    `Unavailable` with the end of the right log when an order is not delivered in time."""
    settings = get_settings()
    progress.say("ContinuityBridge")
    for organization in ORGANIZATIONS:
        warehouse.api_key(settings, organization.slug)
    _allow_warehouse(settings)
    started = platform.up(progress, accounts=_accounts(settings), demo=True)
    settings = started.settings
    with progress.step("organizations, connections, flows"):
        for organization in ORGANIZATIONS:
            _furnish(settings, organization)
            progress.note(organization.slug)
    with progress.step("their DAGs in Airflow"):
        _wait_for_dags(settings, started.password_file.read_text().strip())
    sender = ORGANIZATIONS[0].slug
    deliveries = [_send(settings, sender, order, progress) for order in ORDERS]
    run_id = _run_by_airflow(settings, ORGANIZATIONS[0], progress)
    _report(settings, sender, deliveries, run_id, started, progress)
    return deliveries


# ---------------------------------------------------------------- organizations
def _accounts(settings: Settings) -> list[Account]:
    return [
        Account(
            username=user,
            first_name=organization.name,
            last_name=last_name,
            email=f"{user}@{organization.slug}.example",
            role=MEMBER_ROLE,
            password=keys.password(_demo_keys(settings) / f"{user}.password")[0],
        )
        for organization in ORGANIZATIONS
        for user, last_name, _ in organization.members()
    ]


def _furnish(settings: Settings, demo: DemoOrganization) -> None:
    """Organization, members, connection to the warehouse, deployed flows: what is absent is made."""
    try:
        organization = organizations.by_slug(demo.slug)
    except NotFound:
        organization = organizations.create(demo.slug, demo.name)
    known = {(member.user_name, member.role) for member in organizations.members(organization.organization_id)}
    for user, _, role in demo.members():
        if (user, role) not in known:
            organizations.add_member(organization.organization_id, user, role)
    _connect(settings, organization)
    for name in FLOWS:
        file = project_root() / "include" / "examples" / name / f"{name}.flow.yaml"
        try:
            deployed = deployments.deploy(organization.organization_id, ENVIRONMENT, load_flow(file), OPERATOR)
        except Conflict:
            # The example was edited and deployed under this version: what runs is the user's business.
            continue
        for slug, secret in deployed.new_secrets.items():
            _keep_secret(settings, organization.slug, slug, secret)


def _wait_for_dags(settings: Settings, password: str) -> None:
    """Return when Airflow shows a DAG of each deployed flow, so that the first order's time is an order's."""
    wanted = [f"{o.slug}.{ENVIRONMENT}.{flow}" for o in ORGANIZATIONS for flow in FLOWS]
    deadline = time.monotonic() + DELIVERY_WAIT_S
    with httpx.Client(base_url=settings.base_url, timeout=ACCEPT_WAIT_S) as client:
        answer = client.post("/auth/token", json={"username": platform.SUPERADMIN, "password": password})
        # Whoever changed the password since knows how to look himself.
        headers = {"Authorization": f"Bearer {answer.json().get('access_token')}"} if answer.is_success else None
        while headers and wanted:
            seen = client.get(f"/api/v2/dags/{wanted[0]}", headers=headers)
            if seen.is_success and not seen.json()["is_stale"]:
                wanted.pop(0)
            elif time.monotonic() > deadline:
                log = Supervisor(settings).log_of("dag-processor")
                raise Unavailable(
                    f"Airflow does not show DAG {wanted[0]} after {DELIVERY_WAIT_S:.0f} s; "
                    f"the end of {log}:\n{tail(log, 15)}"
                )
            else:
                time.sleep(0.2)


def _connect(settings: Settings, organization: Organization) -> None:
    base_url = f"http://{settings.host}:{settings.warehouse_port}"
    stored = connections.list_connections(organization.organization_id, ENVIRONMENT)
    if any(c.name == "warehouse" and c.settings["base_url"].rstrip("/") == base_url for c in stored):
        return
    key = warehouse.api_key(settings, organization.slug)
    definition = {"base_url": base_url, "auth": {"type": "api_key", "header": "X-API-Key", "value": key}}
    connections.put(organization.organization_id, ENVIRONMENT, "warehouse", definition, OPERATOR)


def _allow_warehouse(settings: Settings) -> None:
    """Flows may call the warehouse, and nothing else on this machine. Said where the platform's settings are kept,
    for the processes that start later too; beside what the environment says, which wins."""
    address = f"[{settings.host}]" if ":" in settings.host else settings.host
    rule = f"{address}:{settings.warehouse_port}"
    if rule in (each.strip() for each in settings.egress_allow.split(",")):
        return
    allowed = ",".join(filter(None, (settings.egress_allow, rule)))
    if "BRIDGE_EGRESS_ALLOW" in os.environ:
        os.environ["BRIDGE_EGRESS_ALLOW"] = allowed
    else:
        write_env(settings.state_dir / "bridge.env", {"BRIDGE_EGRESS_ALLOW": allowed})


def _demo_keys(settings: Settings) -> Path:
    return settings.keys_dir / "demo"


def _secret_file(settings: Settings, organization: str, slug: str) -> Path:
    return _demo_keys(settings) / f"{organization}.{ENVIRONMENT}.{slug}.secret"


def _keep_secret(settings: Settings, organization: str, slug: str, secret: str) -> None:
    file = _secret_file(settings, organization, slug)
    keys.private_directory(file.parent)
    keys.write_private(file, secret + "\n")


def _secret(settings: Settings, organization: str, slug: str) -> str:
    try:
        return _secret_file(settings, organization, slug).read_text().strip()
    except FileNotFoundError:
        # It was shown once, to somebody else: take a new one. The one before goes on for a day.
        organization_id = organizations.by_slug(organization).organization_id
        secret = endpoints.rotate_secret(organization_id, ENVIRONMENT, slug).secret
        _keep_secret(settings, organization, slug, secret)
        return secret


# ---------------------------------------------------------------- orders
def _send(settings: Settings, organization: str, order: Order, progress: Progress) -> Delivery:
    """Post one order as its sender would, and wait until it is settled and the warehouse has it."""
    organization_id = organizations.by_slug(organization).organization_id
    body = (project_root() / "include" / "examples" / FLOW / "samples" / order.file).read_bytes()
    with progress.step(f"{order.file}: accepted,"), httpx.Client(timeout=ACCEPT_WAIT_S) as client:
        message_id = _post(client, settings, organization, order, body)
        deadline = time.monotonic() + DELIVERY_WAIT_S
        while True:
            state = messages.status(organization_id, message_id)
            if state.state in ("done", "dead", "skipped", "discarded"):
                break
            if time.monotonic() > deadline:
                raise _undelivered(settings, state, f"not delivered after {DELIVERY_WAIT_S:.0f} s")
            time.sleep(0.05)
        if state.state != "done":
            why = "; ".join(f"{f.node_id}: {f.code}" for f in state.failures)
            raise _undelivered(settings, state, f"{state.state} ({why})")
        received = _received(client, settings, organization, message_id)
        if not received:
            raise _undelivered(settings, state, "settled, but the warehouse has no such order")
        progress.note("delivered")
    return Delivery(order, message_id, state, received[0])


def _post(client: httpx.Client, settings: Settings, organization: str, order: Order, body: bytes) -> str:
    """Sign as Standard Webhooks 1.0 says and post; the message's id."""
    webhook_id, now = f"msg_{uuid4().hex}", datetime.now(UTC)
    signature = Webhook(_secret(settings, organization, order.slug)).sign(webhook_id, now, body.decode())
    headers = {
        "content-type": order.content_type,
        "webhook-id": webhook_id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": signature,
    }
    deadline = time.monotonic() + ACCEPT_WAIT_S
    while True:
        answer = client.post(_hook(settings, organization, order.slug), content=body, headers=headers)
        if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE or time.monotonic() > deadline:
            break
        # What was killed a moment ago comes back; as a sender should, come again with the same webhook-id.
        time.sleep(float(answer.headers.get("retry-after", 1)))
    if answer.status_code != httpx.codes.ACCEPTED:
        log = Supervisor(settings).log_of("api-server")
        raise Unavailable(
            f"the webhook answered {answer.status_code}: {answer.text[:500]}\nthe end of {log}:\n{tail(log, 10)}"
        )
    return str(answer.json()["id"])


def _hook(settings: Settings, organization: str, slug: str) -> str:
    return f"{settings.base_url}/bridge/hooks/{organization}/{ENVIRONMENT}/{slug}"


def _received(
    client: httpx.Client, settings: Settings, organization: str, message_id: str
) -> list[dict[str, Any]]:
    """What the warehouse says it got of this message."""
    answer = client.get(
        f"http://{settings.host}:{settings.warehouse_port}/orders",
        headers={"X-API-Key": warehouse.api_key(settings, organization)},
    )
    orders: Sequence[dict[str, Any]] = answer.raise_for_status().json()["orders"]
    return [order for order in orders if order["idempotency_key"].startswith(f"{message_id}:")]


def _run_by_airflow(settings: Settings, demo: DemoOrganization, progress: Progress) -> str | None:
    """Have Airflow run the flow on the JSON order, as the organization's administrator does over its REST API; the
    run's id. None when he has another password by now."""
    user = next(user for user, _, role in demo.members() if role is Role.CUSTOMER_ADMIN)
    password = keys.password(_demo_keys(settings) / f"{user}.password")[0]
    runs = f"/api/v2/dags/{demo.slug}.{ENVIRONMENT}.{FLOW}/dagRuns"
    order = (project_root() / "include" / "examples" / FLOW / "samples" / RUN_ORDER).read_text()
    with (
        progress.step(f"{RUN_ORDER}, run by Airflow:"),
        httpx.Client(base_url=settings.base_url, timeout=ACCEPT_WAIT_S) as client,
    ):
        answer = client.post("/auth/token", json={"username": user, "password": password})
        if not answer.is_success:
            progress.note(f"left out, {user} has another password")
            return None
        client.headers["authorization"] = f"Bearer {answer.json()['access_token']}"
        made = client.post(runs, json={"logical_date": None, "conf": {"payload": json.loads(order)}})
        if not made.is_success:
            raise Unavailable(f"Airflow answered {made.status_code}: {made.text[:500]}")
        run_id = str(made.json()["dag_run_id"])
        deadline = time.monotonic() + DELIVERY_WAIT_S
        while (state := client.get(f"{runs}/{run_id}").raise_for_status().json()["state"]) != "success":
            if state == "failed" or time.monotonic() > deadline:
                log = Supervisor(settings).log_of("scheduler")
                raise Unavailable(f"the DAG run {run_id} is {state}; the end of {log}:\n{tail(log, 15)}")
            time.sleep(0.1)
        progress.note("delivered")
    return run_id


def _undelivered(settings: Settings, state: messages.MessageStatus, what: str) -> Unavailable:
    supervisor = Supervisor(settings)
    parts = [f"message {state.message_id} is {what}"]
    for name in ("dispatch", "scheduler", "dag-processor"):
        log = supervisor.log_of(name)
        parts.append(f"the end of {log}:\n{tail(log, 8)}")
    return Unavailable("\n".join(parts))


# ---------------------------------------------------------------- report
def _report(
    settings: Settings,
    organization: str,
    deliveries: Sequence[Delivery],
    run_id: str | None,
    started: platform.Started,
    progress: Progress,
) -> None:
    dag_id = f"{organization}.{ENVIRONMENT}.{FLOW}"
    for delivery in deliveries:
        order = delivery.received["order"]
        progress.say()
        progress.say(f"{delivery.order.file} → {_hook(settings, organization, delivery.order.slug)}")
        progress.say(f"  message    {delivery.message_id}")
        progress.say(f"  delivered  {delivery.milliseconds:,.0f} ms after it was accepted")
        progress.say(
            f"  warehouse  {delivery.received['receipt']}: {order['order_number']} for {order['customer']}"
        )
        for line in order["lines"]:
            progress.say(f"             {line['quantity']:>6} {line['unit']:<7} {line['sku']}")
        progress.say(f"             Idempotency-Key {delivery.received['idempotency_key']}")
        if delivery.state.run_id:
            progress.say(f"  DAG run    {settings.base_url}/dags/{dag_id}/runs/{delivery.state.run_id}")
        else:
            progress.say(f"  stream of  {settings.base_url}/dags/{dag_id}")
    if run_id is not None:
        progress.say()
        progress.say(f"{RUN_ORDER} → POST {settings.base_url}/api/v2/dags/{dag_id}/dagRuns")
        progress.say(f"  DAG run    {settings.base_url}/dags/{dag_id}/runs/{run_id}")
    progress.say()
    progress.say(f"The platform runs ({progress.elapsed_s:.0f} s). Look around at {settings.base_url}")
    for line in started.superadmin():
        progress.say(f"  {line}")
    for account in _accounts(settings):
        progress.say(
            f"  {account.first_name} {account.last_name}: {account.username}, password {account.password}"
        )
    progress.say(f"  What the warehouse has: http://{settings.host}:{settings.warehouse_port}/orders")
    progress.say(f"    (X-API-Key: {warehouse.api_key(settings, organization)})")
    progress.say("Stop it with `make stop`; `make status` and `make logs` show how it is.")
