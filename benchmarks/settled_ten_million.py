"""Are accepting and claiming as fast beside ten million settled messages as beside none?

Two servers of PostgreSQL, each with its own data directory and the product's configuration: one is empty, the
other has settled messages of the last 90 days in their partitions, with payload, search keys and trace, the
idempotency keys of those within the window, and failures. The same work is done on both in turns: pairs, of
which the ratio counts.

`python -m benchmarks settled` takes it with ten million; `python benchmarks/settled_ten_million.py --count
100000 --rounds 3` a small one. Ten million take some 9 GB of disk (a temporary directory, removed at the end)
and some minutes to fill.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import psycopg  # noqa: E402
from benchmarks.figures import Figure, print_table  # noqa: E402

from continuitybridge import deployments, organizations  # noqa: E402
from continuitybridge.database import connections, migrate  # noqa: E402
from continuitybridge.database.bootstrap import bootstrap  # noqa: E402
from continuitybridge.database.embedded import EmbeddedPostgres  # noqa: E402
from continuitybridge.engine.message import NodeTrace, Outcome, Output  # noqa: E402
from continuitybridge.flows.load import load_flow  # noqa: E402
from continuitybridge.inbox import batches, listing, retention  # noqa: E402
from continuitybridge.inbox.accept import Acceptance, accept  # noqa: E402
from continuitybridge.inbox.accept.aio import GroupCommit  # noqa: E402
from continuitybridge.inbox.claim import claim  # noqa: E402
from continuitybridge.inbox.retry import RetryPolicy  # noqa: E402
from continuitybridge.inbox.settle import settle_many  # noqa: E402
from continuitybridge.inbox.settle.endings import ending_of  # noqa: E402
from continuitybridge.inbox.stream import StreamClaims, StreamSettlements, Wanted  # noqa: E402
from continuitybridge.settings import get_settings  # noqa: E402
from continuitybridge.vault.keyring import Keyring  # noqa: E402

TITLE = "Ten million settled messages beside none (ratios of interleaved pairs)"

COUNT = 10_000_000
KEPT_DAYS = 90
WINDOW_DAYS = 7
MESSAGES = 3_000
"""Messages of one measurement."""
CALLERS = 100
GROUP = 200

FLOW = """
flow: {name}
version: 1.0.0
mode: {mode}
triggers: [{{id: in, type: manual_trigger}}]
steps: [{{id: note, type: logger, config: {{message: x}}}}]
"""
BODY = b'{"po_number": "PO-4711", "lines": [{"sku": "A-1", "quantity": 2}], "buyer": "ACME"}' * 4
TRACE = '[{"node_id": "note", "received": 1, "emitted": 1, "failed": 0, "duration_us": 120}]'

# The columns of a settled message, made from a number. Ids are UUIDv7 of the time of acceptance, as the product's.
_SETTLED = """
INSERT INTO bridge.{table} (organization_id, message_id, environment, flow, version, source, endpoint, result,
    payload, content_type, size_bytes, keys, generation, replays, attempts, trace, retention_class, placement,
    accepted_at, settled_at)
SELECT '{organization}', substr(h, 1, 8) || '-' || substr(h, 9, 4) || '-7' || substr(h, 13, 3) || '-8'
       || substr(h, 16, 3) || '-' || substr(h, 19, 12), 'prod', 'order-' || i % 10, '1.0.0', 'webhook', 'orders',
       'done', decode(repeat(md5(i::text), 12), 'hex'), 'application/json', 340,
       jsonb_build_object('po_number', 'PO-' || i), 1, 0, 1, '{trace}', 'standard', 'standard', at,
       at + interval '20 ms'
FROM generate_series({first}::int8, {last}::int8) AS i,
     LATERAL (SELECT timestamptz '{begins}' + interval '{seconds} seconds' * ((i - {first})::float8 / {many}))
         AS t (at),
     LATERAL (SELECT lpad(to_hex((extract(epoch FROM at) * 1000)::int8), 12, '0') || md5(i::text)) AS x (h)
"""
_KEYS = """
INSERT INTO bridge.idempotency_keys (organization_id, environment, endpoint, key_hash, body_hash, message_id,
                                     expires_at)
SELECT '{organization}', 'prod', 'orders', sha256(i::text::bytea), decode('00000001' || repeat(md5(i::text), 2),
       'hex'), gen_random_uuid()::text, now() + interval '1 day' + interval '1 second' * (i % 500000)
FROM generate_series(1, {many}) AS i
"""
_FAILURES = """
INSERT INTO bridge.failures (organization_id, failure_id, message_id, child_id, environment, flow, version,
                             node_id, node_type, code, verdict, final, attempt, context, at)
SELECT '{organization}', gen_random_uuid(), gen_random_uuid()::text, 'x', 'prod', 'order-1', '1.0.0', 'note',
       'logger', 'delivery-failed', 'transient', false, 1, decode(repeat(md5(i::text), 16), 'hex'),
       now() - interval '1 day' * (i % {days})
FROM generate_series(1, {many}) AS i
"""


class World:
    """One server with an organization and its flows. All work runs in an event loop of its own."""

    def __init__(self, directory: Path) -> None:
        self._state = directory / "state"
        self.server = EmbeddedPostgres(self._state / "postgres", _free_port())
        self._loop = asyncio.new_event_loop()

    def start(self) -> None:
        self.server.initialise()
        # Rows that are written into a table made in the same transaction need no log then.
        with (self.server.data_dir / "postgresql.conf").open("a") as file:
            file.write("\nwal_level = minimal\nmax_wal_senders = 0\nmax_parallel_maintenance_workers = 2\n")
        self.server.start(die_with_parent=True)
        with self.active():
            bootstrap(self.server.admin_url, self._state)
            get_settings.cache_clear()
            migrate.upgrade(connections.owner_url())
            self.owner = organizations.create("bench", "Bench", tier="enterprise").organization_id
            for mode in ("stream", "batch"):
                loaded = load_flow(FLOW.format(name=mode, mode=mode))
                deployments.deploy(self.owner, "prod", loaded, "bench")
            self.keys = Keyring.open().export(self.owner)
            self.claims = StreamClaims("bench", 600)
            self.settlements = StreamSettlements()
            self.commits = GroupCommit(self.keys)
            self._loop.run_until_complete(self.commits.start())

    def stop(self) -> None:
        with self.active():
            self._loop.run_until_complete(self._close())
            connections.close_pools()
        self._loop.close()
        self.server.stop()

    async def _close(self) -> None:
        await self.commits.stop()
        await self.claims.close()
        await self.settlements.close()

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """The process's settings name this server meanwhile."""
        os.environ["BRIDGE_STATE_DIR"] = str(self._state)
        os.environ["BRIDGE_DATABASE_PORT"] = str(self.server.port)
        get_settings.cache_clear()
        try:
            yield
        finally:
            get_settings.cache_clear()

    def fill(self, count: int, say: Callable[[str], None]) -> None:
        """Settled messages of the last `KEPT_DAYS`, by week, each week in a table that is indexed when it is
        full and then made a partition."""
        width = retention.WIDTH_DAYS["standard"]
        today = datetime.now(UTC).date()
        this_week = date(1970, 1, 1) + timedelta(days=(today - date(1970, 1, 1)).days // width * width)
        weeks = [this_week - timedelta(days=width * n) for n in range(1, KEPT_DAYS // width + 1)]
        each = count // len(weeks)
        with psycopg.connect(connections.owner_url(), autocommit=True) as connection:
            connection.execute("SET maintenance_work_mem = '512MB'")
            connection.execute("SET synchronous_commit = off")
            for n, begins in enumerate(weeks):
                self._fill_week(connection, begins, width, n * each, each)
                say(f"{(n + 1) * each:,} of {count:,} settled messages")
            with _unprotected(connection, "idempotency_keys", "failures"):
                connection.execute(_KEYS.format(organization=self.owner, many=count * WINDOW_DAYS // KEPT_DAYS))
                connection.execute(_FAILURES.format(organization=self.owner, many=count // 100, days=KEPT_DAYS))
            connection.execute("VACUUM (ANALYZE)")

    def _fill_week(
        self, connection: psycopg.Connection[Any], begins: date, width: int, first: int, many: int
    ) -> None:
        table = f"settled_messages_standard_{begins:%Y%m%d}"
        parent = "settled_messages_standard"
        with connection.transaction():
            connection.execute(
                f"CREATE TABLE bridge.{table} (LIKE bridge.{parent} INCLUDING ALL EXCLUDING INDEXES)"
            )
            connection.execute(
                _SETTLED.format(
                    table=table,
                    organization=self.owner,
                    trace=TRACE,
                    first=first,
                    last=first + many - 1,
                    many=many,
                    begins=begins,
                    seconds=width * 86_400,
                )
            )
            for name, definition in connection.execute(
                "SELECT indexrelid::regclass::text, pg_get_indexdef(indexrelid) FROM pg_index"
                " WHERE indrelid = %s::regclass",
                (f"bridge.{parent}",),
            ).fetchall():
                own = definition.replace(f"ON ONLY bridge.{parent}", f"ON bridge.{table}")
                own = own.replace(name.removeprefix("bridge."), f"{table}_{uuid4().hex[:8]}", 1)
                connection.execute(own)
            connection.execute(f"ALTER TABLE bridge.{table} ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY")
            ends = begins + timedelta(days=width)
            connection.execute(
                f"ALTER TABLE bridge.{parent} ATTACH PARTITION bridge.{table}"
                f" FOR VALUES FROM ('{begins}') TO ('{ends}')"
            )

    # -- what is measured: seconds for `MESSAGES`, or for as many as it says -----------------------------------

    def accept(self) -> float:
        """Webhooks at the group commit, each with an idempotency key, from 100 callers."""

        async def caller(many: int) -> None:
            for _ in range(many):
                await self.commits.submit(self._acceptance("stream", idempotency_key=uuid4().hex))

        async def all_callers() -> None:
            await asyncio.gather(*(caller(MESSAGES // CALLERS) for _ in range(CALLERS)))

        return self._timed(lambda: self._loop.run_until_complete(all_callers()))

    def claim_stream(self) -> float:
        """A stream worker's claims of them, 200 at a time."""
        self.held = []

        async def claims() -> None:
            wanted = [Wanted(self.owner, "prod", "stream", GROUP)]
            while len(self.held) < MESSAGES:
                assert await self.claims.ready_flows()
                self.held += await self.claims.claim(wanted, 2**30)

        return self._timed(lambda: self._loop.run_until_complete(claims()))

    def settle_stream(self) -> float:
        """Their settlements as done, 200 at a time."""
        units = [sealed.open(self.keys, "bench") for sealed in self.held]
        policy = RetryPolicy.from_settings()
        endings = [ending_of(unit, _done(unit), self.keys, None, policy) for unit in units]

        async def settlements() -> None:
            for n in range(0, len(endings), GROUP):
                became = await self.settlements.settle(endings[n : n + GROUP])
                assert set(became) == {"done"}

        return self._timed(lambda: self._loop.run_until_complete(settlements()))

    def accept_named(self) -> float:
        """200 messages one by one whose callers name them for ever (a replayed file, a run's own id)."""

        def calls() -> None:
            for _ in range(200):
                accept(self._acceptance("batch", message_id=uuid4().hex), self.keys)

        return self._timed(calls)

    def claim_batch(self) -> float:
        """Dispatching and claiming those 200 in batch mode; they are settled after it."""
        held: list[Any] = []

        def work() -> None:
            [batch] = batches.dispatch_ready()
            for _ in range(2):
                held.extend(claim(batch, "bench", 600, 100, keys=self.keys))

        seconds = self._timed(work)
        assert len(held) == 200
        settle_many([(unit, _done(unit)) for unit in held], keys=self.keys)
        with contextlib.suppress(Exception):
            batches.finish(batches.open_batches()[0])
        return seconds

    def page(self) -> float:
        """A page of the newest messages, by an indexless filter's side: ten times."""

        def pages() -> None:
            for _ in range(10):
                listing.list_messages(self.owner, limit=50)

        return self._timed(pages)

    def _timed(self, work: Callable[[], object]) -> float:
        with self.active():
            start = time.perf_counter()
            work()
            return time.perf_counter() - start

    def _acceptance(self, flow: Any, **changes: Any) -> Acceptance:
        return Acceptance(
            organization_id=self.owner,
            environment="prod",
            flow=flow,
            version="1.0.0",
            source="webhook",
            body=BODY,
            content_type="application/json",
            endpoint="orders",
            trigger="in",
            mode=flow,
            **changes,
        )


def _done(unit: Any) -> Outcome:
    return Outcome(
        unit.message.id, "done", [Output(unit.message, "note")], trace=[NodeTrace("note", 1, 1, 0, 120)]
    )


@contextlib.contextmanager
def _unprotected(connection: psycopg.Connection[Any], *tables: str) -> Iterator[None]:
    for table in tables:
        connection.execute(f"ALTER TABLE bridge.{table} NO FORCE ROW LEVEL SECURITY")
    yield
    for table in tables:
        connection.execute(f"ALTER TABLE bridge.{table} FORCE ROW LEVEL SECURITY")


def _free_port() -> int:
    while True:
        port = random.randrange(15_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


MEASURES: dict[str, tuple[str, float | None]] = {
    "accept": ("accept, group commit", 1.2),
    "claim_stream": ("claim, stream worker", 1.2),
    "settle_stream": ("settle, stream worker", 1.2),
    "accept_named": ("accept, named by its caller", 1.2),
    "claim_batch": ("dispatch and claim, batch", 1.2),
    "page": ("a page of the newest messages", None),
}


def figures(rounds: int = 7, count: int = COUNT, say: Callable[[str], None] = print) -> list[Figure]:
    """Ratios filled to empty, and the times behind them."""
    before = {key: value for key, value in os.environ.items() if key.startswith("BRIDGE_")}
    with tempfile.TemporaryDirectory(prefix="bridge-settled-") as name:
        empty, filled = World(Path(name) / "empty"), World(Path(name) / "filled")
        try:
            for world in (empty, filled):
                world.start()
            began = time.monotonic()
            with filled.active():
                filled.fill(count, say)
            say(f"filled in {time.monotonic() - began:.0f} s")
            pairs = _pairs(empty, filled, rounds)
        finally:
            for world in (empty, filled):
                with contextlib.suppress(Exception):
                    world.stop()
            for key in ("BRIDGE_STATE_DIR", "BRIDGE_DATABASE_PORT"):
                os.environ.pop(key, None)
            os.environ.update(before)
            get_settings.cache_clear()
    found = []
    for measure, (title, reach) in MEASURES.items():
        ratios = [full / none for none, full in pairs[measure]]
        found.append(Figure(title, f"× ({_ms(pairs[measure])})", ratios, reach, at_most=True))
    return found


def _pairs(empty: World, filled: World, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """(empty, filled) of each measure and round; a first round warms things up. Who begins changes from round to
    round."""
    pairs: dict[str, list[tuple[float, float]]] = {measure: [] for measure in MEASURES}
    for number in range(rounds + 1):
        order = (empty, filled) if number % 2 else (filled, empty)
        for measure in MEASURES:
            took = {world: getattr(world, measure)() for world in order}
            if number:
                pairs[measure].append((took[empty], took[filled]))
    return pairs


def _ms(pairs: list[tuple[float, float]]) -> str:
    none, full = (statistics.median(side) * 1000 for side in zip(*pairs, strict=True))
    return f"{full:.0f} to {none:.0f} ms"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=COUNT)
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    print_table(f"{given.count:,} settled messages beside none", figures(given.rounds, given.count))


if __name__ == "__main__":
    main()
