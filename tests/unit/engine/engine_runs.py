"""Runs declared flows for the tests: a flow's steps as YAML in, outcomes out."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson

from continuitybridge.engine import runner
from continuitybridge.engine.limits import Limits
from continuitybridge.engine.message import Message, Outcome
from continuitybridge.engine.services import LocalServices
from continuitybridge.flows.lint import check
from continuitybridge.flows.load import load_flow
from continuitybridge.flows.plan import Plan, compile_flow

HEAD = """
flow: tested
version: 1.0.0
triggers:
  - {id: in, type: manual_trigger}
"""

PASS_ON = HEAD + "steps:\n  - {id: parse, type: json_parser}\n"

HOSTILE = (
    PASS_ON
    + """
  - id: work
    type: jq
    config:
      program: |
        if .do == "loop" then last(range(1e15))
        elif .do == "memory" then [range(1e12)]
        elif .do == "string" then "x" * 1e10
        elif .do == "deep" then reduce range(.n) as $i (0; [.])
        elif .do == "raise" then error("no")
        elif .do == "split" then range(.n)
        elif .do == "large" then "x" * .n
        elif .do == "regex" then ("a" * 40 + "!") | test("(a|aa|a?)*(a|aa|a?)*(a|aa|a?)*$")
        else . end
"""
)

SLOW = PASS_ON + "  - {id: work, type: jq, config: {program: 'if .busy then last(range(.busy)) else . end'}}\n"


def plan_of(text: str, files: Mapping[str, str] | None = None) -> Plan:
    loaded = load_flow(text, files=files)
    check(loaded)
    return compile_flow(loaded.flow)


def messages(*bodies: Any) -> list[Message]:
    """One message per body, named m1, m2, …; what is not bytes becomes JSON text."""
    return [
        Message(f"m{n}", body if isinstance(body, bytes) else orjson.dumps(body))
        for n, body in enumerate(bodies, 1)
    ]


def run(plan: Plan, given: Iterable[Message], *, using: Any = runner.run, **more: Any) -> dict[str, Outcome]:
    """Outcomes by message id; each message has exactly one."""
    more.setdefault("services", LocalServices(log=lambda *_: None))
    more.setdefault("limits", Limits())
    found: dict[str, Outcome] = {}
    for outcome in using(plan, given, **more):
        assert outcome.message_id not in found
        found[outcome.message_id] = outcome
    return found


def bodies(outcome: Outcome) -> list[Any]:
    return [output.message.body for output in outcome.outputs]


def ids(outcome: Outcome) -> list[str]:
    return [output.message.id for output in outcome.outputs]


def codes(outcome: Outcome) -> list[str]:
    return [failure.code for failure in outcome.failures]


# -- processes ----------------------------------------------------------------------------------------------


def processes(name: str, ancestor: int | None = None) -> list[int]:
    """Living processes called `name` below `ancestor` (this process)."""
    ancestor = ancestor or os.getpid()
    parents: dict[int, tuple[int, str, str]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                comm, _, rest = (entry / "stat").read_text().rpartition(")")
            except OSError:
                continue
            state, parent = rest.split()[:2]
            parents[int(entry.name)] = (int(parent), comm.partition("(")[2], state)

    def below(pid: int) -> bool:
        while pid in parents:
            if pid == ancestor:
                return True
            pid = parents[pid][0]
        return False

    return [pid for pid, (_, comm, state) in parents.items() if comm == name and state != "Z" and below(pid)]


def node_processes(ancestor: int | None = None) -> list[int]:
    return processes("bridge-nodes", ancestor)


def nurseries(ancestor: int | None = None) -> list[int]:
    return processes("bridge-nursery", ancestor)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(true: Callable[[], Any], timeout_s: float = 20) -> Any:
    """What `true` gives once it is truthy; fails the test when that takes too long."""
    until = time.monotonic() + timeout_s
    while not (value := true()):
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.01)
    return value


def endless(start: int = 1) -> Iterator[Message]:
    n = start
    while True:
        yield Message(f"m{n}", b"{}")
        n += 1
