"""Waiting in a stream worker: nobody else releases what waits there."""

from __future__ import annotations

import time
from collections.abc import Callable

from stream_world import Destination, Flow, Working, wait_until

from continuitybridge import deployments
from continuitybridge.flows.load import load_flow
from continuitybridge.inbox import reconcile, waits
from continuitybridge.inbox.status import status

CHECK = """
flow: check
version: 1.0.0
mode: stream
triggers: [{id: in, type: manual_trigger}]
steps:
  - {id: read, type: json_parser}
  - {id: grant, type: jq, config: {program: '{granted: (.n < 5)}'}}
"""


def test_what_waits_goes_on_a_moment_after_it_may(
    make_flow: Callable[[], Flow], working: Callable[..., Working], destination: Destination
) -> None:
    flow = make_flow()
    deployments.deploy(flow.id, "prod", load_flow(CHECK), "test")
    call = "  - {id: ask, type: subflow, config: {flow: check, field: credit}}\n"
    pair = "  - {id: pair, type: join, config: {key: .k, stream: .s, streams: [a, b]}}\n"
    with working():
        flow.deploy("1.1.0", steps=call)
        flow.send(0)
        flow.await_done(1)
        flow.send(1)
        flow.await_done(2)
        flow.deploy("1.2.0", steps=pair)
        flow.send(2, k=1, s="a")
        wait_until(lambda: flow.states()["handed_over"] == 1)
        flow.send(3, k=1, s="b")
        flow.await_done(4)
        flow.deploy("1.3.0", steps="  - {id: hold, type: delay, config: {for_s: 0.5}}\n")
        began = time.monotonic()
        flow.send(4)
        flow.await_done(5)
        assert time.monotonic() - began >= 0.5
    assert destination.numbers() == [0, 1, 3, 4]
    assert reconcile.violations(flow.id) == []


def test_a_person_decides_about_a_message_of_a_stream(
    make_flow: Callable[[], Flow], working: Callable[..., Working], destination: Destination
) -> None:
    flow = make_flow()
    steps = "  - {id: ask, type: approval, next: {approved: deliver, rejected: end}}\n"
    flow.deploy("1.1.0", steps=steps)
    [message] = flow.send(1)
    with working():
        wait_until(lambda: waits.list_approvals(flow.id, keys=flow.keyring))
        [approval] = waits.list_approvals(flow.id, keys=flow.keyring)
        assert status(flow.id, message).parts[0].waits_for == "person"
        waits.decide(flow.id, approval.approval_id, "approved", by="ann")
        flow.await_done(1)
    assert destination.numbers() == [1]
