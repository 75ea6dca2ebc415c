"""Whatever is killed and however the destination misbehaves: nothing is lost, nothing invented, and what comes
twice comes under the same key. The whole of it, with Airflow and many more messages, is `make chaos`."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from chaos_processes import Processes
from chaos_world import Chaos

COUNT = 300
RATE_PER_S = 40


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory that an account of the server's own may pass through."""
    path = Path(tempfile.mkdtemp(prefix="bridge-chaos-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


def test_every_202_is_delivered_or_stands_in_triage_whatever_is_killed(directory: Path) -> None:
    seed = int(os.environ.get("CHAOS_SEED") or random.randrange(1_000_000))
    print(f"CHAOS_SEED={seed}")
    world = Processes(directory)
    chaos = Chaos(world, directory, random.Random(seed))
    with world.running(), chaos.destination():
        keys = chaos.deploy(["stream"])
        sender = chaos.send("stream", keys["stream"], COUNT, RATE_PER_S)
        try:
            chaos.rage([sender], within_s=240)
        finally:
            sender.kill()
        print(chaos.prove(chaos.settle(within_s=90), COUNT))
