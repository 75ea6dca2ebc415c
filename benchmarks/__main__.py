"""`make bench`: takes every figure and prints it beside what is to be reached.

`python -m benchmarks [NAME …] [--rounds N]` takes some of them. A benchmark is a function that gives figures;
what it needs beyond this project it installs for itself, or says that it is skipped. Exit status 1 when a figure
is missed, 2 for an unknown name.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

from benchmarks.figures import Figure, machine, print_table

BENCHES: dict[str, str] = {
    "engine": "benchmarks.engine_throughput",
    "delivery": "benchmarks.delivery_cost",
    "compile": "benchmarks.compile_flows",
    "deploy": "benchmarks.deploy_visible",
    "latency": "benchmarks.batch_latency",
    "intake": "benchmarks.intake",
    "caches": "benchmarks.caches",
    "guard": "benchmarks.guard",
    "neighbour": "benchmarks.noisy_neighbour",
    "settled": "benchmarks.settled_ten_million",
    "stream-latency": "benchmarks.stream_latency",
    "stream-fairness": "benchmarks.stream_fairness",
    "stream-throughput": "benchmarks.stream_throughput",
    "reply": "benchmarks.reply_round_trip",
    "stream-memory": "benchmarks.stream_memory",
}
"""Name → module with `TITLE` and `figures(rounds)`."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(BENCHES)}")
    parser.add_argument("--rounds", type=int, help="samples of each figure (each benchmark has its own default)")
    given = parser.parse_args()
    unknown = [name for name in given.names if name not in BENCHES]
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(BENCHES)}")
    # The sinks that are delivered to listen on this machine.
    os.environ["BRIDGE_EGRESS_ALLOW"] = "127.0.0.1"
    print(machine())
    missed = False
    for name in given.names or BENCHES:
        module = import_module(BENCHES[name])
        take: Callable[..., list[Figure]] = module.figures
        options: dict[str, Any] = {"rounds": given.rounds} if given.rounds else {}
        figures = take(**options)
        print_table(module.TITLE, figures)
        missed |= any(figure.reached is False for figure in figures)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
