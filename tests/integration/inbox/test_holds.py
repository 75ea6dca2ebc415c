"""Held flows: what is paused is not claimed, what is cancelled is settled, and who said so is on record."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from click.testing import CliRunner
from inbox_world import Deployed, done, failed, handed_over
from waits_world import World

from continuitybridge import database, destinations
from continuitybridge.cli import bridge
from continuitybridge.errors import NotFound
from continuitybridge.inbox import batches, holds, reconcile
from continuitybridge.inbox.claim import claim
from continuitybridge.inbox.settle import settle
from continuitybridge.inbox.status import status
from continuitybridge.organizations import Organization
from continuitybridge.vault.keyring import Keyring


@pytest.fixture(autouse=True)
def the_store_agrees_with_itself(deployed: Deployed) -> Iterator[None]:
    yield
    assert reconcile.violations(deployed.organization_id) == []


def place(deployed: Deployed) -> tuple[object, str, str]:
    return deployed.organization_id, deployed.environment, deployed.flow


def dispatched(deployed: Deployed) -> list[batches.Batch]:
    """What a dispatcher makes of this flow's messages now."""
    with database.relay() as connection:
        others = connection.execute(
            "SELECT organization_id, environment, flow FROM bridge.deployments WHERE organization_id <> %s",
            (deployed.organization_id,),
        ).fetchall()
    return batches.dispatch_ready(paused=others)


def test_a_paused_flow_is_neither_dispatched_nor_claimed_and_accepts_all_the_same(deployed: Deployed) -> None:
    batch, [first] = deployed.batch()
    [held] = holds.hold(*place(deployed), "pause", by="anna", reason="the warehouse moves")
    assert (held.kind, held.by, held.reason, held.origin, held.unsettled) == (
        "pause", "anna", "the warehouse moves", "bridge", 1,
    )  # fmt: skip
    assert claim(batch, "w", 30, 10, keys=deployed.keyring) == []
    [second] = deployed.accept()
    assert dispatched(deployed) == []
    assert holds.resume(*place(deployed)) == []
    assert [unit.message_id for unit in claim(batch, "w", 30, 10, keys=deployed.keyring)] == [first]
    [following] = dispatched(deployed)
    assert [unit.message_id for unit in claim(following, "w", 30, 10, keys=deployed.keyring)] == [second]


def test_airflows_pause_and_a_persons_hold_a_flow_independently(
    deployed: Deployed, make_deployed: Callable[[], Deployed]
) -> None:
    other = make_deployed()
    deployed.accept()
    with database.relay() as connection:
        elsewhere = connection.execute(
            "SELECT organization_id, environment, flow FROM bridge.flow_holds WHERE origin = 'airflow'"
        ).fetchall()
    mirrored = [*elsewhere, place(deployed)]
    assert holds.mirror_airflow([*mirrored, (other.organization_id, "prod", "not-deployed")]) == 1
    assert holds.mirror_airflow(mirrored) == 0
    holds.hold(*place(deployed), "pause", by="anna")
    assert [hold.origin for hold in holds.resume(*place(deployed))] == ["airflow"]
    assert dispatched(deployed) == []
    holds.hold(*place(deployed), "pause", by="anna")
    assert holds.mirror_airflow(elsewhere) == 1
    assert dispatched(deployed) == []
    holds.resume(*place(deployed))
    assert len(dispatched(deployed)) == 1


def test_draining_replaces_pausing_and_lets_run_what_is_there(deployed: Deployed) -> None:
    batch, _ = deployed.batch()
    holds.hold(*place(deployed), "pause", by="anna")
    [hold] = holds.hold(*place(deployed), "drain", by="bert")
    assert (hold.kind, hold.by, hold.unsettled) == ("drain", "bert", 1)
    with pytest.raises(holds.Draining) as refused:
        holds.check_taking(*place(deployed), deployed.version)
    assert refused.value.facts["retry_after_s"] > 0
    [unit] = claim(batch, "w", 30, 10, keys=deployed.keyring)
    settle(unit, done(unit), keys=deployed.keyring)
    assert holds.list_holds(deployed.organization_id)[0].unsettled == 0
    holds.resume(*place(deployed))
    holds.check_taking(*place(deployed), deployed.version)


def test_what_calls_a_draining_flow_takes_nothing_new_and_what_it_has_goes_on(
    organization: Organization, keyring: Keyring
) -> None:
    world = World(organization, keyring)
    sends = "{id: send, type: http_request, config: {url: 'https://wms.example/orders'}}"
    world.deploy("last", "{id: note, type: logger}")
    world.deploy("check", "{id: rate, type: subflow, config: {flow: last}}")
    # Flows may call themselves, and each other.
    pick = (
        "{id: pick, type: conditional, config: {branches: {more: .more}}, next: {more: again, otherwise: credit}}"
    )
    again = "{id: again, type: subflow, config: {flow: orders}, next: end}"
    world.deploy("orders", pick, again, "{id: credit, type: subflow, config: {flow: check}}")
    world.deploy("beside", "{id: note, type: logger}")
    waiting = world.accept("orders", {})
    world.settle(world.claim())

    def taking(flow: str) -> str:
        try:
            holds.check_taking(organization.organization_id, "prod", flow, world.version(flow))
        except holds.Draining as error:
            return error.detail
        return "takes"

    holds.hold(organization.organization_id, "prod", "last", "drain", by="anna")
    assert "the flow is being drained" in taking("last")
    assert {taking(flow) for flow in ("check", "orders")} == {
        "a flow that it calls is being drained: it takes no new messages"
    }
    assert taking("beside") == "takes"
    world.work()
    assert world.states(waiting) == ["done"]
    holds.resume(organization.organization_id, "prod", "last")
    assert taking("orders") == "takes"
    world.deploy("last", sends, version="1.1.0")
    destinations.drain(organization.organization_id, "prod", "wms.example", by="anna")
    assert "a destination of the flow" in taking("last")
    assert "a destination of a flow that it calls" in taking("orders")
    assert taking("beside") == "takes"


def test_cancelling_settles_everything_but_dead_letters_and_says_who_and_why(deployed: Deployed) -> None:
    batch, ids = deployed.batch(4)
    units = claim(batch, "w", 30, 3, keys=deployed.keyring)
    settle(units[0], failed(units[0]), keys=deployed.keyring, plan=deployed.plan)
    settle(units[1], handed_over(units[1], "deliver", "archive"), keys=deployed.keyring)
    cancelled = holds.cancel(*place(deployed), by="anna", reason="sent twice by the shop")
    assert (cancelled.messages, cancelled.left) == (3, False)
    assert settle_late(deployed, units[2]) == "stale"
    states = [status(deployed.organization_id, message_id) for message_id in ids]
    assert [each.state for each in states] == ["dead", "skipped", "skipped", "skipped"]
    assert states[2].trace[-1] == {"skipped_by": "anna", "reason": "sent twice by the shop"}
    assert deployed.accept()
    assert batches.finish(batch)


def settle_late(deployed: Deployed, unit: object) -> str:
    from continuitybridge.inbox.settle import settle_many

    [became] = settle_many([(unit, done(unit))], keys=deployed.keyring)
    return became


def test_a_cancel_that_reached_its_limit_says_so_and_goes_on_when_it_is_repeated(deployed: Deployed) -> None:
    deployed.accept(5)
    first = holds.cancel(*place(deployed), by="anna", limit=3)
    second = holds.cancel(*place(deployed), by="anna", limit=3)
    assert (first.messages, first.left, second.messages, second.left) == (3, True, 2, False)


def test_another_organizations_flow_cannot_be_held_or_cancelled(
    deployed: Deployed, make_deployed: Callable[[], Deployed]
) -> None:
    theirs = make_deployed()
    theirs.accept()
    for verb in (
        lambda *of: holds.hold(*of, "pause", by="anna"),
        holds.resume,
        lambda *of: holds.cancel(*of, by="anna"),
    ):
        with pytest.raises(NotFound):
            verb(deployed.organization_id, theirs.environment, theirs.flow)
    assert len(dispatched(theirs)) == 1


def test_an_operator_holds_a_flow_by_command(deployed: Deployed) -> None:
    where = [deployed.flow, "-o", deployed.organization.slug, "-e", deployed.environment]

    def call(*arguments: str) -> str:
        result = CliRunner().invoke(bridge, ["flow", *arguments])
        assert result.exit_code == 0, result.output
        return result.output

    deployed.accept(2)
    assert "the shop moves" in call("pause", *where, "--reason", "the shop moves")
    listed = call("holds", "-o", deployed.organization.slug)
    assert "pause" in listed
    assert "the shop moves" in listed
    assert "2 messages" in call("cancel", *where, "--yes", "--reason", "no need")
    assert "drain" in call("drain", *where)
    assert "resumed" in call("resume", *where)
    assert deployed.flow not in call("holds", "-o", deployed.organization.slug)
