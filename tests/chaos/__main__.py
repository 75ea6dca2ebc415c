"""`make chaos`: nothing is lost, with the whole platform and many messages.

Takes some minutes. The ledgers and, when it fails, the logs stay in the directory that it names at the end.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from chaos_platform import Platform
from chaos_world import Chaos

BATCH_SHARE = 50
"""Of so many messages one goes to a flow in batch mode."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--count", type=int, default=20_000, help="messages to send (default 20000)")
    parser.add_argument("--rate", type=float, default=150.0, help="messages a second (default 150)")
    parser.add_argument("--seed", type=int, help="what a former run printed, to do the same again")
    parser.add_argument("--minutes", type=float, default=40.0, help="longest time of raging (default 40)")
    given = parser.parse_args()
    seed = random.randrange(1_000_000) if given.seed is None else given.seed
    directory = Path(tempfile.mkdtemp(prefix="bridge-chaos-"))
    print(f"seed {seed}, ledgers in {directory}", flush=True)
    world = Platform(directory)
    chaos = Chaos(world, directory, random.Random(seed))
    batch = max(1, given.count // BATCH_SHARE)
    began = time.monotonic()
    with world.running(), chaos.destination():
        keys = chaos.deploy(["stream", "batch"])
        senders = [
            chaos.send("stream", keys["stream"], given.count - batch, given.rate),
            chaos.send("batch", keys["batch"], batch, given.rate / BATCH_SHARE),
        ]
        try:
            chaos.rage(senders, within_s=given.minutes * 60)
            print(f"raged for {time.monotonic() - began:.0f} s, waiting for the rest", flush=True)
        finally:
            for sender in senders:
                sender.kill()
        print(chaos.prove(chaos.settle(within_s=900), given.count), flush=True)
    print(f"nothing was lost, in {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
