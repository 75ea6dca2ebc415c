"""Waiting for a message at a webhook."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException, TaskDeferred

from continuitybridge import deployments
from continuitybridge.airflow.operators import WebhookSensor, WebhookTrigger
from continuitybridge.database import aio
from continuitybridge.engine.message import Outcome
from continuitybridge.flows.load import load_flow
from continuitybridge.inbox import batches
from continuitybridge.inbox.accept import Acceptance, accept
from continuitybridge.inbox.claim import claim
from continuitybridge.inbox.settle import settle
from continuitybridge.organizations import Organization
from continuitybridge.vault.keyring import Keyring

FLOW = """
flow: orders
version: 1.0.0
index: {po_number: .id}
triggers:
  - id: in
    type: webhook_trigger
    config: {slug: orders, verification: api_key}
steps:
  - {id: parse, type: json_parser}
"""
START = datetime.now(UTC) - timedelta(seconds=1)


class Hook:
    """A deployed flow's webhook and what comes in there (as intake puts it, after verification)."""

    def __init__(self, organization: Organization, keyring: Keyring, tmp_path: Path) -> None:
        self.organization = organization
        self.keyring = keyring
        file = tmp_path / "orders.flow.yaml"
        file.write_text(FLOW)
        deployments.deploy(organization.organization_id, "prod", load_flow(file), "test")

    def receive(self, po_number: str, endpoint: str = "orders") -> str:
        return accept(self.acceptance(po_number, endpoint), self.keyring).message_id

    def receive_and_settle(self, po_number: str) -> str:
        """A message that its flow has done with before anybody looks."""
        batch = batches.adopt(
            f"{self.organization.slug}.prod.orders",
            "r1",
            organization_id=self.organization.organization_id,
            environment="prod",
            flow="orders",
            version="1.0.0",
            acceptances=[self.acceptance(po_number, "orders")],
            keys=self.keyring,
        )
        (unit,) = claim(batch, "test", 60, 10, keys=self.keyring)
        plan = deployments.get_plan(self.organization.organization_id, "orders", "1.0.0")
        settle(unit, Outcome(unit.message.id, "done"), keys=self.keyring, plan=plan)
        return unit.message_id

    def acceptance(self, po_number: str, endpoint: str) -> Acceptance:
        return Acceptance(
            organization_id=self.organization.organization_id,
            environment="prod",
            flow="orders",
            version="1.0.0",
            source="webhook",
            endpoint=endpoint,
            body=f'{{"id": "{po_number}"}}'.encode(),
            content_type="application/json",
            headers={},
            keys={"po_number": po_number},
        )

    def sensor(self, **parameters: Any) -> WebhookSensor:
        given = {"organization": self.organization.slug, "environment": "prod", "endpoint": "orders", **parameters}
        return WebhookSensor(task_id="wait", **given)


@pytest.fixture
def hook(organization: Organization, keyring: Keyring, tmp_path: Path) -> Iterator[Hook]:
    return Hook(organization, keyring, tmp_path)


def context(run_after: datetime = START) -> Any:
    return {"dag_run": SimpleNamespace(run_after=run_after), "ti": None}


async def fired(trigger: WebhookTrigger) -> dict[str, Any]:
    try:
        async for event in trigger.run():
            return dict(event.payload)
    finally:
        await aio.close_pools()
    raise AssertionError("the trigger ended without an event")


def rebuilt(deferred: TaskDeferred) -> WebhookTrigger:
    """The trigger as the triggerer makes it from what was stored."""
    path, arguments = deferred.trigger.serialize()
    module, name = path.rsplit(".", 1)
    trigger: WebhookTrigger = getattr(sys.modules[module], name)(**arguments)
    return trigger


def test_a_message_that_is_there_already_ends_the_wait_at_once(hook: Hook) -> None:
    first, _ = hook.receive("PO-1"), hook.receive("PO-2")
    told = hook.sensor().execute(context())
    assert told["message_id"] == first
    assert told["keys"] == {"po_number": "PO-1"}
    assert (told["flow"], told["version"], told["state"]) == ("orders", "1.0.0", "accepted")
    assert datetime.fromisoformat(told["accepted_at"]).tzinfo is not None


def test_a_message_that_comes_later_ends_the_wait_in_the_triggerer(hook: Hook) -> None:
    sensor = hook.sensor(poke_interval=0.05, timeout=60)
    with pytest.raises(TaskDeferred) as deferred:
        sensor.execute(context())
    assert deferred.value.method_name == "execute_complete"
    assert deferred.value.timeout == timedelta(seconds=60)

    async def scenario() -> tuple[str, dict[str, Any]]:
        waiting = asyncio.create_task(fired(rebuilt(deferred.value)))
        await asyncio.sleep(0.2)
        assert not waiting.done()
        name = await asyncio.to_thread(hook.receive, "PO-3")
        return name, await asyncio.wait_for(waiting, 30)

    name, event = asyncio.run(scenario())
    assert sensor.execute_complete(context(), event)["message_id"] == name


def test_only_a_message_with_the_keys_after_the_time_at_the_endpoint_counts(hook: Hook) -> None:
    hook.receive("PO-1")
    with pytest.raises(TaskDeferred):
        hook.sensor(keys={"po_number": "PO-2"}).execute(context())
    with pytest.raises(TaskDeferred):
        hook.sensor().execute(context(run_after=datetime.now(UTC) + timedelta(hours=1)))
    with pytest.raises(TaskDeferred):
        hook.sensor(after="2999-01-01T00:00:00+00:00").execute(context())
    hook.receive("PO-2", endpoint="elsewhere")
    with pytest.raises(TaskDeferred):
        hook.sensor(keys={"po_number": "PO-2"}).execute(context())
    wanted = hook.receive("PO-2")
    assert hook.sensor(keys={"po_number": "PO-2"}).execute(context())["message_id"] == wanted


def test_a_message_that_its_flow_has_done_with_is_seen_all_the_same(hook: Hook) -> None:
    name = hook.receive_and_settle("PO-1")
    told = hook.sensor(keys={"po_number": "PO-1"}).execute(context())
    assert (told["message_id"], told["state"]) == (name, "done")


def test_it_waits_in_the_worker_on_request(hook: Hook) -> None:
    name = hook.receive("PO-1")
    assert hook.sensor(deferrable=False, poke_interval=0.1).execute(context())["message_id"] == name


def test_another_organizations_message_is_never_seen(hook: Hook, make_organization: Any, tmp_path: Path) -> None:
    hook.receive("PO-1")
    other = Hook(make_organization(), hook.keyring, tmp_path)
    with pytest.raises(TaskDeferred):
        other.sensor().execute(context())


@pytest.mark.parametrize(
    "wrong",
    [
        {"organization": "nobody"},
        {"endpoint": "nowhere"},
        {"environment": "test"},
        {"after": "yesterday"},
        {"after": "2026-01-01T00:00:00"},
    ],
)
def test_what_can_never_come_fails_the_task_at_once(wrong: dict[str, Any], hook: Hook) -> None:
    with pytest.raises(AirflowFailException):
        hook.sensor(**wrong).execute(context())


def test_an_endpoint_that_goes_away_ends_the_wait_with_a_failure(hook: Hook) -> None:
    trigger = WebhookTrigger(
        str(hook.organization.organization_id), "prod", "gone", {}, START.isoformat(), poll_interval_s=0.05
    )
    event = asyncio.run(fired(trigger))
    with pytest.raises(AirflowFailException, match="gone"):
        hook.sensor().execute_complete(context(), event)
