"""What is said of destinations: by people, by processes, and who hears it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable

import pytest
from click.testing import CliRunner

from continuitybridge import connections, database, destinations
from continuitybridge.cli import bridge
from continuitybridge.destinations.shared import all_states
from continuitybridge.engine.circuit import CircuitState
from continuitybridge.engine.destinations import OF_OTHERS, Destinations
from continuitybridge.errors import CircuitOpen, ConfigurationError, DeliveryFailed, DestinationPaused, NotFound
from continuitybridge.organizations import Organization


def test_connections_are_destinations_and_so_is_whatever_something_was_said_of(organization: Organization) -> None:
    owner = organization.organization_id
    connections.put(owner, "prod", "warehouse", {"base_url": "https://w.example"}, "anna")
    destinations.pause(owner, "prod", "api.example.com", by="bert", reason="they rebuild")
    listed = {each.name: each for each in destinations.list_destinations(owner)}
    assert {name: (each.connection, each.status) for name, each in listed.items()} == {
        "warehouse": (True, "active"),
        "api.example.com": (False, "paused"),
    }
    assert (listed["api.example.com"].status_by, listed["api.example.com"].reason) == ("bert", "they rebuild")
    assert destinations.list_destinations(owner, "test") == []


def test_processes_obey_what_people_say(organization: Organization) -> None:
    owner = organization.organization_id
    destinations.pause(owner, "prod", "warehouse", by="anna")
    destinations.configure(owner, "prod", "shop", {"max_concurrency": 1, "circuit_failures": 2})
    gate = Destinations(destinations.states(owner, "prod"))
    with pytest.raises(DestinationPaused):
        gate.enter("warehouse")
    gate.enter("shop")
    assert not gate.has_room("shop")
    assert [state.name for state in destinations.states(owner, "dev")] == [OF_OTHERS]
    destinations.resume(owner, "prod", "warehouse", by="anna")
    gate = Destinations(all_states()[owner, "prod"])
    gate.enter("warehouse")


def test_a_circuit_that_one_process_opened_is_open_for_the_next(organization: Organization) -> None:
    owner, told = organization.organization_id, []
    destinations.configure(owner, "prod", "shop", {"circuit_failures": 2, "circuit_wait_s": 30})
    first = Destinations(destinations.states(owner, "prod"), on_change=lambda *change: told.append(change))
    for _ in range(2):
        first.enter("shop")
        first.leave("shop", DeliveryFailed("503"))
    for name, circuit in told:
        destinations.record(owner, "prod", name, circuit)
    assert destinations.show(owner, "prod", "shop").circuit == "open"
    second = Destinations(destinations.states(owner, "prod"))
    with pytest.raises(CircuitOpen) as refused:
        second.enter("shop")
    assert 25 < refused.value.facts["retry_after_s"] <= 30
    # A process that saw less does not undo it; one that saw a success does; so does a person.
    destinations.record(owner, "prod", "shop", CircuitState(2, 1, time.time() + 1))
    assert destinations.show(owner, "prod", "shop").circuit == "open"
    destinations.record(owner, "prod", "shop", CircuitState())
    assert destinations.show(owner, "prod", "shop").circuit == "closed"
    destinations.record(owner, "prod", "shop", CircuitState(2, 1, time.time() + 60))
    assert destinations.resume(owner, "prod", "shop", by="anna").circuit == "closed"


def test_every_change_is_told_at_its_commit(organization: Organization) -> None:
    owner = organization.organization_id
    heard: list[str] = []
    ready = threading.Event()

    def listen() -> None:
        ready.set()
        for notice in database.listen([destinations.CHANNEL], timeout_s=3):
            heard.append(notice.payload)
            if heard.count(f"{owner}/prod/shop") == 3:
                return

    thread = threading.Thread(target=listen)
    thread.start()
    ready.wait(5)
    time.sleep(0.5)
    destinations.pause(owner, "prod", "shop", by="anna")
    destinations.configure(owner, "prod", "shop", {"max_concurrency": 4})
    destinations.record(owner, "prod", "shop", CircuitState(2, 1, time.time() + 60))
    thread.join(10)
    assert heard.count(f"{owner}/prod/shop") == 3


def test_what_is_wrong_is_refused(organization: Organization) -> None:
    owner = organization.organization_id
    for name in ("", "Shop", "a/b", "x" * 300, "a b"):
        with pytest.raises(ConfigurationError):
            destinations.pause(owner, "prod", name, by="anna")
    with pytest.raises(NotFound):
        destinations.pause(owner, "nowhere", "shop", by="anna")
    for changes in ({"max_concurrency": 0}, {"circuit_wait_s": 0.0}, {"owner": 1}):
        with pytest.raises(ConfigurationError):
            destinations.configure(owner, "prod", "shop", changes)


def test_another_organizations_destination_is_its_own(make_organization: Callable[[], Organization]) -> None:
    mine, theirs = make_organization().organization_id, make_organization().organization_id
    destinations.pause(theirs, "prod", "shop", by="anna")
    assert destinations.show(mine, "prod", "shop").status == "active"
    destinations.resume(mine, "prod", "shop", by="bert")
    assert destinations.show(theirs, "prod", "shop").status == "paused"


def test_an_operator_works_by_command(organization: Organization) -> None:
    where = ["-o", organization.slug, "-e", "prod"]

    def call(*arguments: str) -> str:
        result = CliRunner().invoke(bridge, ["destination", *arguments])
        assert result.exit_code == 0, result.output
        return result.output

    assert "they move" in call("pause", "shop", *where, "--reason", "they move")
    call("set", "shop", *where, "--max-concurrency", "3", "--failures", "0", "--wait-s", "2")
    [found] = json.loads(call("list", *where, "--json"))
    assert (found["status"], found["max_concurrency"], found["circuit_failures"], found["circuit_wait_s"]) == (
        "paused", 3, 0, 2.0,
    )  # fmt: skip
    assert "draining" in call("drain", "shop", *where)
    assert "active" in call("resume", "shop", *where)
    assert "0 parts" in call("cancel", "shop", *where, "--yes")
    call("set", "shop", *where, "--defaults")
    [found] = json.loads(call("list", *where, "--json"))
    assert found["max_concurrency"] == 64
    assert CliRunner().invoke(bridge, ["destination", "set", "shop", *where]).exit_code == 2
