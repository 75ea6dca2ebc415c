"""What the engine carries on one core, and how fast `bridge flow run` starts.

The flow is parse → validate → (jq) → map → serialise of a purchase order of 1 KB, with the nodes and the limits
that a deployment has. `inline` runs it in the measuring process: the engine alone on a core. `child` as production
does, in a killable node process; the process that feeds it and takes its outcomes is held on the same core, which
production does not do. A core-second is what both processes took of the
processor, which other work on the machine changes less than it changes the time on the wall.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
from benchmarks.figures import Figure, interleaved

from continuitybridge.engine import runner
from continuitybridge.engine.limits import Limits
from continuitybridge.engine.message import Message
from continuitybridge.engine.services import LocalServices
from continuitybridge.flows.lint import check
from continuitybridge.flows.load import load_flow
from continuitybridge.flows.plan import Plan, compile_flow
from continuitybridge.settings import Settings

TITLE = "Engine"

FLOW = """
flow: order
version: 1.0.0
triggers:
  - {id: order-in, type: manual_trigger}
steps:
  - {id: parse, type: json_parser}
  - id: check
    type: validation
    config:
      schema:
        type: object
        required: [po_number, buyer, lines]
        properties:
          po_number: {type: string, pattern: '^PO-[0-9]+$'}
          currency: {enum: [CHF, EUR, USD]}
          buyer:
            type: object
            required: [id, country]
            properties: {id: {type: string}, country: {type: string, minLength: 2, maxLength: 2}}
          lines:
            type: array
            minItems: 1
            items:
              type: object
              required: [sku, quantity]
              properties:
                sku: {type: string}
                quantity: {type: integer, minimum: 1}
                price: {type: number, minimum: 0}
  - id: map
    type: object_mapper
    config:
      mapping:
        id: $.po_number
        currency: {path: $.currency, default: CHF}
        customer: {number: $.buyer.id, country: $.buyer.country, city: $.buyer.address.city}
        items:
          arrayPath: $.lines
          itemMapping: {article: $.sku, quantity: $.quantity, unit_price: $.price}
  - {id: serialise, type: json_builder}
"""

JQ = """  - id: shape
    type: jq
    config: {program: '.lines |= map(select(.quantity > 0))'}
"""

ORDER = {
    "po_number": "PO-4711",
    "ordered_at": "2026-03-01T08:15:00Z",
    "currency": "CHF",
    "buyer": {
        "id": "C-1077",
        "name": "Muster Haustechnik AG",
        "country": "CH",
        "address": {"street": "Bahnhofstrasse 12", "zip": "8001", "city": "Zürich"},
    },
    "lines": [
        {"sku": f"SKU-{n:05d}", "quantity": n, "price": 12.5 * n, "text": f"Copper pipe, {n * 5} mm, 3 m"}
        for n in range(1, 10)
    ],
    "notes": ["deliver before noon", "ring twice"],
}


def figures(rounds: int = 7) -> list[Figure]:
    """Throughput with and without jq, in both ways, and the start of the command."""
    found = _throughput(rounds)
    found.append(Figure("bridge flow run, one message, start to end", "s", _starts(rounds), 1.0, at_most=True))
    return found


def _throughput(rounds: int) -> list[Figure]:
    body = orjson.dumps(ORDER)
    core = {max(os.sched_getaffinity(0))}
    former = os.sched_getaffinity(0)
    cases: list[tuple[str, Plan, int, Any, float | None]] = []
    for name, text, count, reach in (
        ("without jq", FLOW, 20_000, 20_000.0),
        ("with jq", FLOW.replace("  - id: map", JQ + "  - id: map"), 5_000, 4_000.0),
    ):
        plan = _plan(text)
        cases.append((f"{name}, inline", plan, count, runner.run_inline, reach))
        cases.append((f"{name}, child", plan, count, None, None))
    os.sched_setaffinity(0, core)
    try:
        samples: list[list[float]] = [[] for _ in cases]
        spent: list[list[float]] = [[] for _ in cases]
        for number in range(rounds + 1):
            for (_, plan, count, way, _), into, spent_into in zip(cases, samples, spent, strict=True):
                wall, processor = _carry(plan, body, count, way)
                if number:
                    into.append(count / wall)
                    spent_into.append(count / processor)
    finally:
        os.sched_setaffinity(0, former)
    found = []
    for (name, _, _, _, reach), into, spent_into in zip(cases, samples, spent, strict=True):
        found.append(Figure(f"{name}: {len(body)} bytes", "messages/s on one core", into, reach))
        found.append(Figure(f"{name}: the same", "messages/core-second", spent_into))
    return found


def _carry(plan: Plan, body: bytes, count: int, way: Any) -> tuple[float, float]:
    """Seconds on the wall and of the processor for `count` messages."""
    own = runner.Runner(start="fork")
    run: Callable[..., Iterator[Any]] = way or own.run
    services, limits = LocalServices(), Limits.from_settings(Settings())
    for _ in run(plan, [Message("warm", body)], services=services, limits=limits):
        pass
    before, start = _processor_s(), time.perf_counter()
    done = 0
    for outcome in run(plan, _messages(body, count), services=services, limits=limits):
        done += outcome.status == "done"
    wall = time.perf_counter() - start
    if way is None:
        own.close()  # only now its processes' times are known
    if done != count:
        raise SystemExit(f"{done} of {count} messages came through")
    return wall, _processor_s() - before


def _messages(body: bytes, count: int) -> Iterator[Message]:
    for number in range(count):
        yield Message(str(number), body)


def _processor_s() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _plan(text: str) -> Plan:
    loaded = load_flow(text)
    check(loaded)
    return compile_flow(loaded.flow)


def _starts(rounds: int) -> list[float]:
    with tempfile.TemporaryDirectory(prefix="bridge-bench-") as name:
        here = Path(name)
        (here / "order.flow.yaml").write_text(FLOW)
        (here / "order.json").write_bytes(orjson.dumps(ORDER))
        command = [str(Path(sys.executable).with_name("bridge")), "flow", "run", "order.flow.yaml"]

        def once() -> float:
            start = time.perf_counter()
            subprocess.run(
                [*command, "--input", "order.json"],
                cwd=here,
                check=True,
                stdout=subprocess.DEVNULL,
                env={**os.environ, "BRIDGE_STATE_DIR": str(here)},
            )
            return time.perf_counter() - start

        return interleaved(rounds, [once])[0]
