"""Change the code that guards something, piece by piece, and count the changes that no test notices.

`python tests/mutation [TARGET…] [--minutes N] [--only TEXT]` (make mutation ARGS=…): what is tried stands in
`targets.yaml`. What was found is kept below `.mutation`, so that a run that was stopped goes on where it was.
Ends with 1 when a target has fewer than 90 % of its mutants killed, or an explanation (`explained.yaml`) is not
true any more; with 2 when the tests fail as they are; with 3 when the time was not enough.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
KEPT = ROOT / ".mutation"
LEAST_PERCENT = 90.0
PYTEST = ("-q", "-p", "no:rerunfailures", "-p", "no:xdist", "-p", "no:cacheprovider", "-o", "markers=flaky")


def main() -> int:
    targets: dict[str, dict[str, Any]] = yaml.safe_load((HERE / "targets.yaml").read_text())
    arguments = argparse.ArgumentParser(prog="make mutation", description=__doc__)
    arguments.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(targets)}; default: all")
    arguments.add_argument("--minutes", type=float, help="stop after so long; the next run goes on from there")
    arguments.add_argument("--only", default="", help="mutants whose id has this text in it")
    given = arguments.parse_args()
    if unknown := set(given.targets) - targets.keys():
        raise SystemExit(f"mutation: no target {', '.join(sorted(unknown))}; there are {', '.join(targets)}")
    wanted = given.targets or list(targets)
    if len(wanted) > 1:
        # Each in a process of its own: what one imports is nothing to the next.
        return max(_alone(each, given) for each in wanted)
    name = wanted[0]
    until = time.monotonic() + 60 * given.minutes if given.minutes else float("inf")
    return tried(name, targets[name], until, given.only)


def _alone(name: str, given: argparse.Namespace) -> int:
    more = [f"--minutes={given.minutes}"] if given.minutes else []
    return subprocess.run([sys.executable, str(HERE), name, f"--only={given.only}", *more], check=False).returncode


def tried(name: str, target: dict[str, Any], until: float, only: str) -> int:
    """Try a target's mutants and print what became of them."""
    import mutants
    from trial import Trial

    files = sorted(
        {
            str(file.relative_to(mutants.PACKAGE))
            for glob in target["mutate"]
            for file in mutants.PACKAGE.glob(glob)
        }
    )
    every = [mutant for file in files for mutant in mutants.of(file)]
    wanted = [mutant for mutant in every if only in mutant.id]
    trial = Trial(wanted, files, KEPT / f"{name}.json", until, target.get("anew", ()))
    for key in [each for each in os.environ if each.startswith(("BRIDGE_", "AIRFLOW_"))]:
        del os.environ[key]
    os.chdir(ROOT)
    without = [f"--deselect={each}" for each in target.get("without", ())]
    # Copies of databases, one for each mutant: in memory, where there is such a place.
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(
        prefix="mutation-", dir=memory if os.access(memory, os.W_OK) else None
    ) as scratch:
        os.environ["TMPDIR"] = tempfile.tempdir = scratch
        code = pytest.main([*PYTEST, *without, *target["tests"]], plugins=[trial])
    if code not in (0, 5):
        print(f"{name}: pytest ended with {code}")
        return 2
    return reported(name, wanted, {each.id for each in every}, trial.fates, trial.finished)


def reported(name: str, wanted: list[Any], ids: set[str], fates: dict[str, dict[str, Any]], finished: bool) -> int:
    """Print what became of `wanted`; `ids` are those of all the target's mutants."""
    explained: dict[str, str] = (yaml.safe_load((HERE / "explained.yaml").read_text()) or {}).get(name) or {}
    counts: dict[str, Counter[str]] = {}
    for mutant in wanted:
        counts.setdefault(mutant.file, Counter())[fates.get(mutant.id, {"fate": "not tried"})["fate"]] += 1
    faults = 0
    for mutant in wanted:
        fate = fates.get(mutant.id, {"fate": "not tried"})["fate"]
        if fate in ("survived", "unseen") and mutant.id not in explained:
            print(f"  {fate}: {mutant.id}\n      {mutant.file}:{mutant.first}: {mutant.change}")
    for each in explained:
        if each not in ids:
            print(f"  explained, and not there: {each}")
            faults += 1
        elif fates.get(each, {}).get("fate") in ("killed", "timeout"):
            print(f"  explained, and killed: {each}")
            faults += 1
    for file, count in counts.items():
        print(f"  {file}: {_killed(count)} of {sum(count.values())} ({dict(count)})")
    total = sum(counts.values(), Counter())
    percent = 100 * _killed(total) / max(1, sum(total.values()))
    left = sum(1 for each in wanted if fates.get(each.id, {}).get("fate") in ("survived", "unseen"))
    print(
        f"{name}: {_killed(total)} of {sum(total.values())} mutants killed, {percent:.1f} %;"
        f" {left} survive, of which {len({each.id for each in wanted} & explained.keys())} are explained",
        flush=True,
    )
    if not finished:
        print(f"{name}: not finished; the next run goes on from here")
        return 3
    return 1 if percent < LEAST_PERCENT or faults else 0


def _killed(count: Counter[str]) -> int:
    return count["killed"] + count["timeout"]


if __name__ == "__main__":
    sys.exit(main())
