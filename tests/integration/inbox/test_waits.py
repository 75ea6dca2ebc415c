"""Children and waiting, through the tables: what waits, what it goes on with, and that it does so once."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from psycopg.types.json import Jsonb
from waits_world import World

from continuitybridge import audit, database
from continuitybridge.audit import reading
from continuitybridge.audit.reading import Filter
from continuitybridge.errors import ConfigurationError, NotFound
from continuitybridge.inbox import reconcile, triage, waits
from continuitybridge.inbox.accept.rows import Mode
from continuitybridge.inbox.replay import replay
from continuitybridge.inbox.sweep import sweep
from continuitybridge.inbox.waits import release_due
from continuitybridge.organizations import Organization
from continuitybridge.vault import rotation
from continuitybridge.vault.keyring import Keyring

ORDER = {"number": "PO-7", "lines": [{"sku": "A"}, {"sku": "B"}, {"sku": "C"}]}
SPLIT = "{id: lines, type: split, config: {items: .lines}}"
APART = "{id: apart, type: jq, config: {program: .}, isolate: true}"
BREAKS_B = '{id: apart, type: jq, config: {program: \'if .sku == "B" then error("b") end\'}, isolate: true}'
MENDED = "{id: apart, type: jq, config: {program: '.sku |= ascii_downcase'}, isolate: true}"
GATHER = "{id: gather, type: aggregate, config: {result: 'map(.sku)'}}"


@pytest.fixture
def world(organization: Organization, keyring: Keyring) -> World:
    return World(organization, keyring)


def nothing_is_left_behind(world: World) -> bool:
    return all(world.count(table) == 0 for table in ("waits", "wait_parts", "hand_overs", "messages"))


# -- the children of a split --------------------------------------------------------------------------------


def test_children_that_ran_apart_are_gathered_under_their_parents_id(world: World) -> None:
    world.deploy("orders", SPLIT, APART, GATHER)
    message = world.accept("orders", ORDER)
    world.settle(world.claim())
    parts = world.status(message).parts
    assert [(part.child_id, part.node_id) for part in parts] == [(f"{message}.{n}", "apart") for n in (1, 2, 3)]
    world.work()
    assert world.left == [(message, "gather", ["A", "B", "C"])]
    assert world.states(message) == ["done"]
    assert nothing_is_left_behind(world)
    assert world.count("wait_groups") == 0


def test_a_sibling_that_is_dropped_or_goes_elsewhere_holds_up_nobody(world: World) -> None:
    some = "{id: some, type: conditional, config: {branches: {drop: '.sku == \"B\"'}}"
    world.deploy("orders", SPLIT, APART, some + ", next: {drop: end, otherwise: gather}}", GATHER)
    world.accept("orders", ORDER)
    world.work()
    assert sorted(world.left, key=lambda each: each[1])[0][2] == ["A", "C"]
    assert nothing_is_left_behind(world)


def test_a_dead_sibling_leaves_the_message_in_triage_until_it_is_replayed(world: World) -> None:
    world.deploy("orders", SPLIT, BREAKS_B, GATHER)
    message = world.accept("orders", ORDER)
    world.work()
    assert world.states(message) == ["dead"]
    assert sorted(part.state for part in world.status(message).parts) == ["dead", "waiting", "waiting"]
    assert [letter.node_id for letter in triage.list_dead(world.organization_id)] == ["apart"]
    world.deploy("orders", SPLIT, MENDED, GATHER, version="1.1.0")
    [done] = replay(world.organization_id, [message], by="test", start="failure", version="newest")
    assert done.refused is None
    world.work()
    assert world.bodies() == [["A", "b", "C"]]
    assert world.states(message) == ["done"]


def test_a_message_whose_siblings_wait_for_a_dead_one_can_be_discarded(world: World) -> None:
    world.deploy("orders", SPLIT, BREAKS_B, GATHER)
    message = world.accept("orders", ORDER)
    world.work()
    assert triage.discard(world.organization_id, [message], by="test") == [message]
    assert world.states(message) == ["discarded"]
    assert nothing_is_left_behind(world)
    assert world.count("wait_groups") == 0


@pytest.mark.parametrize("on_missing", ["partial", "fail"])
def test_or_the_aggregate_goes_on_without_it_or_fails(world: World, on_missing: str) -> None:
    gather = GATHER.replace("{result", f"{{on_missing: {on_missing}, result")
    world.deploy("orders", SPLIT, BREAKS_B, gather)
    message = world.accept("orders", ORDER)
    world.work()
    assert world.bodies() == ([["A", "C"]] if on_missing == "partial" else [])
    codes = {failure.code for failure in world.status(message).failures}
    assert codes == {"transform-failed"} | ({"incomplete"} if on_missing == "fail" else set())
    assert world.states(message) == ["dead"]


def test_a_sibling_replayed_after_its_group_went_on_is_late(world: World) -> None:
    gather = GATHER.replace("{result", "{on_missing: partial, result")[:-1] + ", next: {out: end, late: note}}"
    world.deploy("orders", SPLIT, BREAKS_B, gather, "{id: note, type: logger}")
    message = world.accept("orders", ORDER)
    world.work()
    world.deploy("orders", SPLIT, MENDED, gather, "{id: note, type: logger}", version="1.1.0")
    replay(world.organization_id, [message], by="test", start="failure", version="newest")
    world.work()
    assert world.left[-1][1:] == ("note", {"sku": "b"})
    assert world.states(message) == ["done"]


def test_a_parent_that_is_replayed_gathers_its_children_once(world: World) -> None:
    last = "{id: last, type: jq, config: {program: 'if length == 3 then error(\"no\") end'}}"
    world.deploy("orders", SPLIT, APART, GATHER, last)
    message = world.accept("orders", ORDER)
    world.work()
    assert world.states(message) == ["dead"]
    for version in ("1.0.0", "1.1.0"):
        if version == "1.1.0":
            world.deploy("orders", SPLIT, APART, GATHER, version=version)
        replay(world.organization_id, [message], by="test", version=version)
        world.work()
    assert world.left == [(message, "gather", ["A", "B", "C"])]
    assert world.status(message).generation == 2
    assert nothing_is_left_behind(world)


def test_a_failed_aggregation_is_resumed_with_what_it_had_gathered(world: World) -> None:
    broken = "{id: gather, type: aggregate, config: {result: 'error(\"no\")'}}"
    world.deploy("orders", SPLIT, APART, broken)
    message = world.accept("orders", ORDER)
    world.work()
    assert world.states(message) == ["dead"]
    world.deploy("orders", SPLIT, APART, GATHER, version="1.1.0")
    replay(world.organization_id, [message], by="test", start="failure", version="newest")
    world.work()
    assert world.left == [(message, "gather", ["A", "B", "C"])]


# -- across messages ----------------------------------------------------------------------------------------

PAIR = (
    "{id: pair, type: join, config: {key: .number, timeout_s: %s},"
    " next: {out: deliver, timeout: alone, late: late}}"
)
PAIR_STEPS = (
    "{id: alone, type: logger, next: end}",
    "{id: late, type: logger, next: end}",
    "{id: deliver, type: jq, config: {program: .}}",
)


def deploy_pair(world: World, *, timeout_s: float = 3600, deliver: str = ".", version: str = "1.0.0") -> None:
    orders = "{id: orders, type: jq, config: {program: .}, next: pair}"
    payments = "{id: payments, type: jq, config: {program: .}, next: pair}"
    route = "{id: by, type: conditional, config: {branches: {o: .total}}, next: {o: orders, otherwise: payments}}"
    steps = [*PAIR_STEPS[:2], PAIR_STEPS[2].replace("program: .", f"program: '{deliver}'")]
    world.deploy("pay", route, orders, payments, PAIR % timeout_s, *steps, version=version)


def test_what_belongs_together_is_joined_whenever_it_came(world: World) -> None:
    deploy_pair(world)
    payment = world.accept("pay", {"number": 7, "paid": True})
    other = world.accept("pay", {"number": 8, "paid": True})
    world.work()
    assert world.states(payment, other) == ["handed_over", "handed_over"]
    assert [(part.waits_for, part.until is not None) for part in world.status(payment).parts] == [("group", True)]
    order = world.accept("pay", {"number": 7, "total": 120})
    world.work()
    # The first stream's message carries on, whichever came first; the other ends with it.
    assert world.left == [(order, "deliver", {"number": 7, "total": 120, "paid": True})]
    assert world.states(order, payment, other) == ["done", "done", "handed_over"]
    assert {"gathered_at": "pair", "into": order} in world.status(payment).trace


def test_a_join_whose_time_is_over_goes_on_with_what_came_and_tells_the_late_one_apart(world: World) -> None:
    deploy_pair(world, timeout_s=0.2)
    order = world.accept("pay", {"number": 7, "total": 120})
    world.work()
    assert world.states(order) == ["handed_over"]
    # Nobody keeps the time but the table: any process that looks later finds it over.
    world.work_until(lambda: world.left)
    assert world.left == [(order, "alone", {"number": 7, "total": 120})]
    payment = world.accept("pay", {"number": 7, "paid": True})
    world.work()
    assert world.left[-1] == (payment, "late", {"number": 7, "paid": True})
    assert world.states(order, payment) == ["done", "done"]


def test_when_a_late_one_is_forgotten_the_next_begins_a_join_of_its_own(world: World) -> None:
    deploy_pair(world)
    world.accept("pay", {"number": 7, "paid": True})
    world.accept("pay", {"number": 7, "total": 120})
    world.work()
    with database.relay() as connection:
        connection.execute(
            "UPDATE bridge.wait_groups SET forget_at = now() WHERE organization_id = %s", (world.organization_id,)
        )
    sweep()
    assert world.count("wait_groups") == 0
    again = world.accept("pay", {"number": 7, "total": 130})
    world.work()
    assert world.states(again) == ["handed_over"]


def test_the_carrier_of_a_join_finds_it_again_when_it_is_run_from_its_beginning(world: World) -> None:
    deploy_pair(world, deliver='error("down")')
    payment = world.accept("pay", {"number": 7, "paid": True})
    order = world.accept("pay", {"number": 7, "total": 120})
    world.work()
    assert world.states(order, payment) == ["dead", "done"]
    deploy_pair(world, version="1.1.0")
    for attempt in range(2):
        replay(world.organization_id, [order], by="test", version="newest")
        if attempt == 0:
            # Killed while it ran: the lease is lost, another worker begins anew.
            world.claim("killed")
            with database.relay() as connection:
                connection.execute(
                    "UPDATE bridge.messages SET lease_until = now() WHERE organization_id = %s"
                    " AND state = 'claimed'",
                    (world.organization_id,),
                )
            sweep(created_idle_s=0, started_idle_s=0)
        world.work()
        if attempt == 0:
            assert world.left == [(order, "deliver", {"number": 7, "total": 120, "paid": True})]
    # Settled by now, it stands alone: its partner would have to be replayed too.
    assert world.states(order, payment) == ["handed_over", "done"]
    replay(world.organization_id, [payment], by="test", version="newest")
    world.work()
    assert world.states(order, payment) == ["done", "done"]
    assert world.bodies()[-1] == {"number": 7, "total": 120, "paid": True}


def test_two_that_complete_a_join_at_the_same_moment_complete_it_once(world: World) -> None:
    deploy_pair(world)
    for number in range(12):
        world.accept("pay", {"number": number, "paid": True})
        world.accept("pay", {"number": number, "total": number + 1})
    units = world.claim()
    start = threading.Barrier(2)

    def worker(mine: list) -> None:  # type: ignore[type-arg]
        start.wait()
        world.settle(mine)

    by_number = sorted(units, key=lambda unit: unit.message.body)
    threads = [threading.Thread(target=worker, args=(by_number[n::2],)) for n in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    world.work()
    assert Counter(body["number"] for body in world.bodies()) == Counter(range(12))
    assert all(body["paid"] for body in world.bodies())
    [counts] = reconcile.counts(world.organization_id)
    assert (counts.accepted, counts.done) == (24, 24)


def test_a_group_by_key_is_complete_by_its_size_or_its_time(world: World) -> None:
    world.deploy(
        "bulk", "{id: bulk, type: aggregate, config: {key: .c, size: 3, timeout_s: 0.3, result: 'map(.n)'}}"
    )
    ids = [world.accept("bulk", {"c": "x", "n": n}) for n in range(4)]
    world.settle(sorted(world.claim(), key=lambda unit: ids.index(unit.message_id)))
    world.work()
    assert world.left == [(ids[0], "bulk", [0, 1, 2])]
    assert [(failure.code) for failure in world.status(ids[3]).failures] == ["incomplete"]  # late, without a route
    world.accept("bulk", {"c": "y", "n": 9})
    world.work_until(lambda: len(world.left) == 2)
    assert world.bodies()[-1] == [9]


def test_branches_that_ran_apart_are_joined(world: World) -> None:
    world.deploy(
        "offers",
        "{id: fork, type: jq, config: {program: .}, next: [post, courier]}",
        "{id: post, type: jq, config: {program: '{price: 9}'}, isolate: true, next: pick}",
        "{id: courier, type: jq, config: {program: '{price: 14}'}, isolate: true, next: pick}",
        "{id: pick, type: join, config: {join: array}}",
    )
    message = world.accept("offers", {})
    world.work()
    assert world.left == [(f"{message}.1", "pick", [{"price": 9}, {"price": 14}])]
    assert nothing_is_left_behind(world)


# -- times and people ---------------------------------------------------------------------------------------


def test_a_delayed_message_is_claimed_when_its_time_has_come(world: World) -> None:
    world.deploy("later", "{id: hold, type: delay, config: {until: .at}}")
    at = datetime.now(UTC) + timedelta(seconds=0.7)
    message = world.accept("later", {"at": at.isoformat()})
    world.work()
    [part] = world.status(message).parts
    assert abs((part.available_at - at).total_seconds()) < 0.001
    assert (world.states(message), world.left) == (["handed_over"], [])
    world.work_until(lambda: world.left)
    assert 0 <= (datetime.now(UTC) - at).total_seconds() < 5
    assert world.states(message) == ["done"]


def test_a_person_decides_once_and_the_trace_says_who_and_why(world: World, keyring: Keyring) -> None:
    world.deploy(
        "ask",
        "{id: ask, type: approval, config: {title: 'Order {{ body.number }}', details: '{total}'},"
        " next: {approved: yes, rejected: no}}",
        "{id: yes, type: jq, config: {program: '[$vars.approval.by, $vars.approval.comment]'}, next: end}",
        "{id: no, type: jq, config: {program: '\"no\"'}}",
    )
    first, second = (world.accept("ask", {"number": n, "total": 10 * n}) for n in (1, 2))
    world.work()
    found = waits.list_approvals(world.organization_id, keys=keyring)
    assert [(a.message_id, a.title, a.details) for a in found] == [
        (first, "Order 1", {"total": 10}),
        (second, "Order 2", {"total": 20}),
    ]
    assert waits.decide(world.organization_id, found[0].approval_id, "approved", by="ann", comment="fine") == first
    with pytest.raises(NotFound):
        waits.decide(world.organization_id, found[0].approval_id, "rejected", by="bob")
    waits.decide(world.organization_id, found[1].approval_id, "rejected", by="bob")
    world.work()
    assert sorted(world.bodies(), key=str) == [["ann", "fine"], "no"]
    [decided] = [entry for entry in world.status(first).trace if "decided_at" in entry]
    assert (decided["decision"], decided["by"], decided["comment"]) == ("approved", "ann", "fine")
    assert waits.list_approvals(world.organization_id, keys=keyring) == []


def test_an_erased_person_stands_in_no_trace_any_more(
    world: World, keyring: Keyring, make_organization: Callable[[], Organization]
) -> None:
    """Whoever decided, discarded, skipped or replayed; others stay, and so do they in another organization."""
    other = World(make_organization(), keyring)
    decided: dict[World, list[str]] = {}
    for each in (world, other):
        each.deploy(
            "ask",
            "{id: ask, type: approval, next: {approved: yes, rejected: no}}",
            "{id: yes, type: jq, config: {program: '$vars.approval.by'}, next: end}",
            "{id: no, type: jq, config: {program: '\"no\"'}}",
        )
        decided[each] = [each.accept("ask", {"n": n}) for n in range(4)]
        each.work()
        waiting = {a.message_id: a.approval_id for a in waits.list_approvals(each.organization_id, keys=keyring)}
        for message, by in zip(decided[each], ("ann", "annabel"), strict=False):
            waits.decide(each.organization_id, waiting[message], "approved", by=by)
        each.work()
        # This one has not gone on yet: who decided stands in what it goes on with.
        waits.decide(each.organization_id, waiting[decided[each][2]], "approved", by="ann")
        with database.tenant(each.organization_id) as connection:
            names = ("discarded_by", "replayed_by", "skipped_by")
            trace = [{name: by, "n": n} for n, name in enumerate(names) for by in ("ann", "bob")]
            connection.execute(
                "UPDATE bridge.messages SET trace = trace || %s WHERE organization_id = %s AND message_id = %s",
                (Jsonb([*trace, {"replayed_by": "ann (job 1)"}]), each.organization_id, decided[each][3]),
            )

    def named(each: World) -> list[list[str]]:
        return [
            [entry[name] for entry in each.status(message).trace for name in entry if name.endswith("by")]
            for message in decided[each]
        ]

    before = named(other)
    assert before == named(world)
    assert before == [["ann"], ["annabel"], ["ann"], ["ann", "bob"] * 3 + ["ann (job 1)"]]
    audit.erase_person(world.organization_id, "ann", keyring)
    assert named(world) == [["erased"], ["annabel"], ["erased"], ["erased", "bob"] * 3 + ["erased"]]
    assert named(other) == before
    [told] = reading.search(world.organization_id, Filter(action="audit.person_erased"), keys=keyring)
    assert told.details["messages"] == 3
    assert sorted(world.bodies()) == ["ann", "annabel"]
    world.work()
    assert sorted(world.bodies()) == ["ann", "annabel", "erased"]


def test_an_undecided_approval_takes_its_default_when_the_time_is_over(world: World) -> None:
    world.deploy(
        "ask",
        "{id: ask, type: approval, config: {timeout_s: 0.2, default: rejected},"
        " next: {approved: end, rejected: no}}",
        "{id: no, type: logger}",
    )
    world.accept("ask", {})
    world.work_until(lambda: world.left)
    assert [node for _, node, _ in world.left] == ["no"]


def test_a_decision_after_the_time_is_over_is_none_though_nobody_has_let_the_message_go_on(
    world: World, keyring: Keyring
) -> None:
    """Whatever was down meanwhile: it is the time that counts, not who was there to see it end."""
    ask = "{id: ask, type: approval, config: {timeout_s: 0.3, default: rejected}"
    world.deploy("ask", ask + ", next: {approved: end, rejected: no}}", "{id: no, type: logger}")
    world.accept("ask", {})
    world.settle(world.claim())
    [approval] = waits.list_approvals(world.organization_id, keys=keyring)
    time.sleep(0.35)
    assert waits.list_approvals(world.organization_id, keys=keyring) == []
    with pytest.raises(NotFound):
        waits.decide(world.organization_id, approval.approval_id, "approved", by="ann")
    world.work()
    assert [node for _, node, _ in world.left] == ["no"]


@pytest.mark.parametrize("mode", ["stream", "batch"])
def test_groups_outlive_a_change_of_the_data_key(organization: Organization, keyring: Keyring, mode: Mode) -> None:
    world = World(organization, keyring, mode)
    deploy_pair(world)
    world.deploy("three", "{id: three, type: aggregate, config: {key: .k, size: 3, late_s: 0}}")
    payment = world.accept("pay", {"number": 7, "paid": True})
    world.accept("three", {"k": 1, "n": 1})
    world.work()
    rotation.rotate_data_key(organization.organization_id, by="anna")
    order = world.accept("pay", {"number": 7, "total": 120})
    world.accept("three", {"k": 1, "n": 2})
    world.work()
    assert world.left == [(order, "deliver", {"number": 7, "total": 120, "paid": True})]
    assert world.states(payment) == ["done"]
    rotation.rotate_data_key(organization.organization_id, by="anna")
    late = world.accept("pay", {"number": 7, "paid": True})
    world.accept("three", {"k": 1, "n": 3})
    world.work()
    assert [node for sent, node, _ in world.left if sent == late] == ["late"]
    assert [each["n"] for each in world.bodies()[-1]] == [1, 2, 3]
    # What begins now begins under the current key, so that the former ones are needed no more some day.
    world.accept("three", {"k": 1, "n": 4})
    world.work()
    with database.tenant(organization.organization_id) as connection:
        [(key_hash,)] = connection.execute("SELECT key_hash FROM bridge.wait_groups WHERE closed_at IS NULL")
    assert int.from_bytes(key_hash[:4], "big") == 3


# -- other flows --------------------------------------------------------------------------------------------

CALL = "{id: credit, type: subflow, config: {flow: check, send: '{total}', field: credit}}"


def test_a_called_flow_answers_with_what_leaves_it(world: World) -> None:
    world.deploy("check", "{id: grant, type: jq, config: {program: '{granted: (.total < 100)}'}, isolate: true}")
    world.deploy("orders", CALL)
    message = world.accept("orders", {"total": 10})
    world.settle(world.claim())
    assert [part.called_id for part in world.status(message).parts] == [f"{message}.credit"]
    world.work()
    assert world.left[-1] == (message, "credit", {"total": 10, "credit": {"granted": True}})
    assert world.states(message, f"{message}.credit") == ["done", "done"]
    assert nothing_is_left_behind(world)


def test_a_call_by_a_step_whose_id_is_a_number_is_no_child_of_its_message(world: World) -> None:
    """As editors number their nodes. An id, and with it an Idempotency-Key, that two share loses a delivery."""
    world.deploy("check", "{id: each, type: jq, config: {program: .}}")
    each = "{id: each, type: jq, config: {program: .}}"
    world.deploy("orders", SPLIT, each, GATHER, "{id: '1', type: subflow, config: {flow: check}}")
    message = world.accept("orders", ORDER)
    world.settle(world.claim())
    [part] = world.status(message).parts
    assert part.called_id == f"{message}.~1"
    world.work()
    assert world.states(message, f"{message}.~1") == ["done", "done"]


def test_several_results_are_a_list_and_none_ends_the_message(world: World) -> None:
    world.deploy("check", "{id: all, type: jq, config: {program: '.total | range(.)'}}", APART)
    world.deploy("orders", CALL)
    many, none = world.accept("orders", {"total": 3}), world.accept("orders", {"total": 0})
    world.work()
    assert [each for each in world.left if each[1] == "credit"] == [
        (many, "credit", {"total": 3, "credit": [0, 1, 2]})
    ]
    assert world.states(many, none) == ["done", "done"]


def test_a_failed_call_takes_the_error_route_and_a_replayed_one_runs_the_dead_letter_again(world: World) -> None:
    world.deploy("check", "{id: grant, type: jq, config: {program: 'error(\"down\")'}}")
    handled = CALL[:-1] + ", on_error: mend, next: end}"
    world.deploy("orders", handled, "{id: mend, type: jq, config: {program: $vars.error.code}}")
    world.deploy("bare", CALL)
    world.accept("orders", {"total": 1})
    message = world.accept("bare", {"total": 1})
    world.work()
    assert world.bodies() == ["subflow-failed"]
    assert world.states(message, f"{message}.credit") == ["dead", "dead"]
    world.deploy("check", "{id: grant, type: jq, config: {program: '{granted: true}'}}", version="1.1.0")
    replay(world.organization_id, [message], by="test", start="failure")
    world.work()
    assert world.left[-1] == (message, "credit", {"total": 1, "credit": {"granted": True}})
    assert world.states(message, f"{message}.credit") == ["done", "done"]
    assert world.status(f"{message}.credit").version == "1.1.0"


def test_a_parent_replayed_from_its_beginning_calls_again_under_the_same_id(world: World) -> None:
    world.deploy("check", "{id: grant, type: jq, config: {program: '{granted: true}'}}")
    world.deploy("orders", CALL)
    message = world.accept("orders", {"total": 1})
    world.work()
    replay(world.organization_id, [message], by="test")
    world.work()
    assert [each[0] for each in world.left] == [f"{message}.credit", message] * 2
    assert world.status(f"{message}.credit").replays == 1


def test_calls_that_can_never_end_fail(world: World) -> None:
    world.deploy("orders", CALL.replace("flow: check", "flow: orders"))
    message = world.accept("orders", {"total": 1})
    world.work()
    status = world.status(message)
    assert (status.state, [failure.code for failure in status.failures]) == ("dead", ["subflow-failed"])
    deepest = world.status(message + ".credit" * 8)
    assert (
        "8 calls" in triage.context(world.organization_id, deepest.failures[0].failure_id, world.keyring)["detail"]
    )  # type: ignore[index]
    with database.tenant(world.organization_id) as connection:
        connection.execute("UPDATE bridge.deployments SET status = 'disabled'")


def test_a_flow_that_calls_what_is_not_deployed_there_is_refused(world: World) -> None:
    with pytest.raises(ConfigurationError) as refused:
        world.deploy("orders", CALL)
    [problem] = refused.value.facts["problems"]
    assert (problem["field"], problem["value"]) == ("steps[1].config.flow", "check")


# -- in streams ---------------------------------------------------------------------------------------------


def test_the_same_waits_hold_in_streams(organization: Organization, keyring: Keyring) -> None:
    world = World(organization, keyring, "stream")
    deploy_pair(world)
    payment, order = (world.accept("pay", {"number": 7, **more}) for more in ({"paid": True}, {"total": 120}))
    world.deploy("check", "{id: grant, type: jq, config: {program: '{granted: true}'}}")
    world.deploy("orders", "{id: hold, type: delay, config: {for_s: 0.2}}", CALL)
    called = world.accept("orders", {"total": 10})
    world.deploy("split", SPLIT, BREAKS_B, GATHER)
    split = world.accept("split", ORDER)
    world.work_until(lambda: world.states(called) == ["done"])
    assert sorted(world.left, key=str)[-3:] == [
        (order, "deliver", {"number": 7, "total": 120, "paid": True}),
        (called, "credit", {"total": 10, "credit": {"granted": True}}),
        (f"{called}.credit", "grant", {"granted": True}),
    ]
    assert world.states(order, payment, split) == ["done", "done", "dead"]
    world.deploy("split", SPLIT, MENDED, GATHER, version="1.1.0")
    replay(world.organization_id, [split], by="test", start="failure", version="newest")
    world.work()
    assert world.left[-1] == (split, "gather", ["A", "b", "C"])


# -- whoever is killed, and however much there is -----------------------------------------------------------


FORK = "{id: fork, type: jq, config: {program: .}, next: [a, b, c]}"
BRANCHES = [f"{{id: {each}, type: jq, config: {{program: '.{each} = 1'}}, next: gather%s}}" for each in "abc"]


@pytest.mark.parametrize("apart", ["abc", "bc", "a"])
@pytest.mark.parametrize(
    ("before", "gather", "gives"),
    [
        ((), "join, config: {strategy: any}", {"n": 1, "a": 1, "b": 1, "c": 1}),
        ((), "join, config: {strategy: majority}", {"n": 1, "a": 1, "b": 1, "c": 1}),
        ((), "join, config: {strategy: minimum, minimum: 2}", {"n": 1, "a": 1, "b": 1, "c": 1}),
        (["{id: each, type: split, config: {items: '[., .]'}}"], "aggregate, config: {result: length}", 6),
    ],
)
def test_what_is_gathered_of_a_message_is_the_same_whichever_stages_it_crosses(
    make_organization: Callable[[], Organization],
    keyring: Keyring,
    before: list[str],
    gather: str,
    gives: object,
    apart: str,
) -> None:
    """In a stream there are none: all that comes without waiting is there before it is looked at."""
    seen = []
    for mode in ("stream", "batch"):
        world = World(make_organization(), keyring, mode)
        branches = [step % (", isolate: true" if step[5] in apart else "") for step in BRANCHES]
        last = "{id: late, type: jq, config: {program: '\"late\"'}, next: end}"
        world.deploy(
            "forks",
            *before,
            FORK,
            *branches,
            f"{{id: gather, type: {gather}, next: {{out: end, late: late}}}}",
            last,
        )
        message = world.accept("forks", {"n": 1}, "M")
        world.work()
        found = world.status(message)
        counts: Counter[tuple[str, str]] = Counter()
        for entry in found.trace:
            for name in ("received", "emitted", "failed"):
                counts[str(entry.get("node_id")), name] += entry.get(name, 0)
        seen.append((world.left, found.state, found.failures, counts))
    assert seen[0] == seen[1]
    assert [body for _, _, body in seen[0][0]] == [gives]


@pytest.mark.parametrize("mode", ["stream", "batch"])
def test_what_waits_for_a_time_is_not_awaited_where_enough_have_come(
    organization: Organization, keyring: Keyring, mode: Mode
) -> None:
    world = World(organization, keyring, mode)
    world.deploy(
        "forks",
        "{id: fork, type: jq, config: {program: .}, next: [a, b, c]}",
        "{id: a, type: jq, config: {program: '.a = 1'}, isolate: true, next: gather}",
        "{id: b, type: jq, config: {program: '.b = 1'}, next: gather}",
        "{id: c, type: delay, config: {for_s: 0.5}, next: gather}",
        "{id: gather, type: join, config: {strategy: majority}, next: {out: end, late: late}}",
        "{id: late, type: logger, next: end}",
    )
    message = world.accept("forks", {"n": 1})
    world.work()
    assert world.bodies() == [{"n": 1, "a": 1, "b": 1}]
    world.work_until(lambda: world.states(message) == ["done"])
    assert [node for _, node, _ in world.left] == ["gather", "late"]


@pytest.mark.parametrize(
    ("before", "gather", "gives"),
    [
        ((), "join", {"n": 1, "a": 1, "b": 1}),
        ((), "join, config: {strategy: any}", {"n": 1, "a": 1, "b": 1}),
        (["{id: each, type: split, config: {items: '[., .]'}}"], "aggregate, config: {result: length}", 4),
    ],
)
def test_a_branch_that_leads_elsewhere_is_not_awaited_and_nothing_falls_out_of_its_run(
    world: World, before: list[str], gather: str, gives: object
) -> None:
    world.deploy(
        "forks",
        *before,
        FORK.replace("c]", "side]"),
        *(step % "" for step in BRANCHES[:2]),
        f"{{id: gather, type: {gather}, next: end}}",
        "{id: side, type: jq, config: {program: '\"side\"'}, isolate: true, next: end}",
    )
    message = world.accept("forks", {"n": 1})
    assert world.run_once()
    assert world.states(message) == ["done"]
    assert world.left[0][1:] == ("gather", gives)
    assert {node for _, node, _ in world.left[1:]} == {"side"}


@pytest.mark.parametrize("mode", ["stream", "batch"])
def test_a_branch_that_hangs_holds_up_no_join_to_which_it_does_not_lead(
    organization: Organization, keyring: Keyring, mode: Mode
) -> None:
    world = World(organization, keyring, mode)
    world.deploy(
        "forks",
        FORK.replace("c]", "side]"),
        BRANCHES[0] % "",
        "{id: b, type: delay, config: {for_s: 0.001}, next: gather}",
        "{id: gather, type: join, next: end}",
        "{id: side, type: delay, config: {for_s: 0.001}, next: end}",
    )
    message = world.accept("forks", {"n": 1})
    world.settle(world.claim())
    time.sleep(0.01)
    units = {unit.entry: unit for unit in world.claim()}
    world.settle([units.pop("b")])
    world.settle(world.claim())
    assert world.bodies() == [{"n": 1, "a": 1}]
    assert world.states(message) == ["handed_over"]
    world.settle(units.values())
    assert world.states(message) == ["done"]


def test_children_that_have_all_come_are_complete_though_more_of_them_could(world: World) -> None:
    """As where the flow is paused meanwhile, or another stage takes long."""
    world.deploy(
        "orders",
        SPLIT,
        "{id: fork, type: jq, config: {program: .}, next: [gather, apart]}",
        APART[:-1] + ", next: gather}",
        "{id: gather, type: aggregate, config: {timeout_s: 0.2, result: '[$vars.aggregate.reason, length]'},"
        " next: {out: end, late: end}}",
    )
    message = world.accept("orders", ORDER)
    world.settle(world.claim())
    units = world.claim()
    apart = [unit for unit in units if unit.entry == "apart"]
    assert len(apart) == 3
    world.settle([unit for unit in units if unit.entry == "gather"])
    time.sleep(0.25)
    assert release_due().groups == 1
    world.settle(world.claim())
    assert world.bodies() == [["complete", 3]]
    world.settle(apart)
    world.work()
    assert world.states(message) == ["done"]
    assert {entry["how"] for entry in world.status(message).trace if "how" in entry} == {"complete"}


def test_a_group_whose_messages_somebody_writes_is_completed_by_whoever_looks_next(world: World) -> None:
    """Killed between arrival and completion: the last one has arrived, and the group has not gone on."""
    deploy_pair(world)
    payment = world.accept("pay", {"number": 7, "paid": True})
    world.work()
    world.accept("pay", {"number": 7, "total": 120})
    with database.relay() as connection:
        connection.execute("SELECT FROM bridge.messages WHERE message_id = %s FOR UPDATE", (payment,))
        world.settle(world.claim())
        assert world.left == []
    assert release_due().groups == 1
    world.work()
    assert world.bodies() == [{"number": 7, "total": 120, "paid": True}]


def test_hundreds_of_children_are_gathered(world: World) -> None:
    world.deploy("many", "{id: each, type: split}", APART, "{id: sum, type: aggregate, config: {result: add}}")
    world.accept("many", list(range(300)))
    world.settle(world.claim())
    world.settle(world.claim(), together=100)
    world.settle(world.claim(), together=100)
    world.work()
    assert world.bodies() == [sum(range(300))]


def test_what_is_too_much_together_is_a_failure_and_not_loaded(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.deploy("orders", SPLIT, APART, GATHER)
    message = world.accept("orders", ORDER)
    monkeypatch.setattr("continuitybridge.inbox.waits.resuming.most_bytes", lambda: 100)
    world.work()
    assert [failure.code for failure in world.status(message).failures] == ["limit-exceeded"]
