"""What a benchmark gives: figures, with what is to be reached."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Figure:
    """One measured quantity: the samples of all rounds, of which the median counts. `reach` is what it should be
    at least (or at most, with `at_most`); None where it stands beside others for comparison."""

    name: str
    unit: str
    samples: Sequence[float]
    reach: float | None = None
    at_most: bool = False

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def reached(self) -> bool | None:
        if self.reach is None:
            return None
        return self.median <= self.reach if self.at_most else self.median >= self.reach

    def row(self) -> tuple[str, ...]:
        target = "" if self.reach is None else f"{'≤' if self.at_most else '≥'} {_number(self.reach)}"
        return (
            self.name,
            _number(self.median),
            self.unit,
            target,
            {None: "", True: "reached", False: "MISSED"}[self.reached],
            f"{_number(min(self.samples))} … {_number(max(self.samples))}",
        )


def interleaved(rounds: int, measures: Sequence[Callable[[], float]]) -> list[list[float]]:
    """Samples of each measure, one after the other in every round, so that a machine that changes its speed
    changes it for all. A first round, which warms things up, is not counted."""
    samples: list[list[float]] = [[] for _ in measures]
    for number in range(rounds + 1):
        for measure, into in zip(measures, samples, strict=True):
            value = measure()
            if number:
                into.append(value)
    return samples


def machine() -> str:
    """What the figures were taken on."""
    model = platform.processor() or platform.machine()
    for line in _lines("/proc/cpuinfo"):
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    memory = next((line.split()[1] for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), "0")
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return (
        f"{model}, {os.cpu_count()} cores, {int(memory) / 2**20:.0f} GiB, Linux {platform.release()}, "
        f"Python {platform.python_version()}; load before: {load}"
    )


def print_table(title: str, figures: Sequence[Figure]) -> None:
    rows = [("", "median", "", "to reach", "", "min … max"), *(figure.row() for figure in figures)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    print(f"\n{title}")
    for row in rows:
        cells = [
            cell.rjust(width) if column in (1, 3) else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print(("  " + "  ".join(cells)).rstrip())


def _number(value: float) -> str:
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
