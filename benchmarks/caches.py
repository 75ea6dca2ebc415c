"""What is kept in memory, and what that saves: the same question asked of memory and of the tables.

`python -m benchmarks caches`: a webhook's endpoint, an organization's data key and a flow's plan, each with a warm
cache and with none, on the embedded PostgreSQL; and what it costs to ask for what is not kept, because it must be
right at each request: an API key, and where its user belongs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from benchmarks.figures import Figure
from benchmarks.load.platform import ENVIRONMENT, running

TITLE = "What is kept in memory"
FLOW = """
flow: orders
version: 1.0.0
triggers:
  - {id: in, type: webhook_trigger, config: {slug: orders, verification: api_key}}
steps:
  - {id: parse, type: json_parser}
  - {id: reshape, type: jq, config: {program: ".lines | map(.sku)"}}
  - {id: note, type: logger, config: {message: "{{ message.id }}"}}
"""
HITS, MISSES, QUESTIONS = 5_000, 60, 300
LEAST_GAIN = 20
"""How many times faster an answer from memory is to be: with less, a cache were not worth being wrong at times."""
MOST_US = 1_000
"""What a question that is asked at each request may cost: a tenth of what Airflow takes for a list."""


def _microseconds(times: int, ask: Callable[[], object]) -> float:
    began = time.perf_counter()
    for _ in range(times):
        ask()
    return (time.perf_counter() - began) / times * 1e6


async def _microseconds_async(times: int, ask: Callable[[], Awaitable[object]]) -> float:
    began = time.perf_counter()
    for _ in range(times):
        await ask()
    return (time.perf_counter() - began) / times * 1e6


def figures(rounds: int = 5) -> list[Figure]:
    """The gain of each cache: the time without it by the time with it; and the time of each question."""
    from continuitybridge import api_keys, organizations
    from continuitybridge.database import aio
    from continuitybridge.stream.plans import Plans
    from continuitybridge.vault import keyring as keyrings
    from continuitybridge.vault.keyring import Keyring
    from continuitybridge.webhooks.directory import Directory

    gains: dict[str, list[float]] = {}
    hits: dict[str, list[float]] = {}
    asked: dict[str, list[float]] = {"an API key": [], "a user's memberships": []}

    def note(name: str, hit: float, miss: float) -> None:
        hits.setdefault(name, []).append(hit)
        gains.setdefault(name, []).append(miss / hit)

    with running(stream_workers=0) as place:
        organization = place.organization()
        place.deploy(organization, FLOW, "https://sink.example")
        owner, slug = organization.organization_id, organization.slug
        key = api_keys.create(owner, "bench", user_name="bench", by="bench").key
        organizations.add_member(owner, "bench", "customer_admin")
        sealed = Keyring.open().encrypt(owner, "bench", "1", b"x")

        async def endpoints_and_plans() -> None:
            directory = Directory(Keyring.open())
            directory.start()
            try:
                assert await directory.wait_loaded(30)
                address = f"{slug}/{ENVIRONMENT}/orders"
                assert directory.find(address) is not None
                hit = _microseconds(HITS, lambda: directory.find(address))
                async with aio.relay() as connection:
                    identity = [f"{owner}/{ENVIRONMENT}/orders"]
                    miss = await _microseconds_async(MISSES, lambda: directory._load(connection, identity))
                note("a webhook's endpoint", hit, miss)
                plans = Plans()
                await plans.get(owner, "orders", "1.0.0")
                hit = await _microseconds_async(HITS, lambda: plans.get(owner, "orders", "1.0.0"))
                miss = await _microseconds_async(MISSES, lambda: Plans().get(owner, "orders", "1.0.0"))
                note("a flow's plan", hit, miss)
            finally:
                await directory.stop()
                await aio.close_pools()

        def open_anew() -> None:
            keyrings._opened.clear()
            Keyring.open().decrypt(owner, "bench", "1", sealed)

        ring = Keyring.open()
        for _ in range(rounds):
            asyncio.run(endpoints_and_plans())
            asked["an API key"].append(_microseconds(QUESTIONS, lambda: api_keys.verify(key)))
            asked["a user's memberships"].append(
                _microseconds(QUESTIONS, lambda: organizations.memberships("bench"))
            )
            note("an organization's data key",
                 _microseconds(HITS, lambda: ring.decrypt(owner, "bench", "1", sealed)),
                 _microseconds(MISSES, open_anew))  # fmt: skip
    return [
        *(Figure(f"{name}: asked for", "µs", asked[name], MOST_US, at_most=True) for name in asked),
        *(
            figure
            for name in gains
            for figure in (
                Figure(f"{name}: from memory", "µs", hits[name]),
                Figure(f"{name}: gain", "times faster", gains[name], LEAST_GAIN),
            )
        ),
    ]
