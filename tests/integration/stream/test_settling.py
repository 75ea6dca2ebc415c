"""Outcomes that are written in groups: one that cannot be costs no other anything."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from stream_world import Flow, Working, wait_until

from continuitybridge.engine.message import Outcome
from continuitybridge.errors import ConfigurationError, NotFound
from continuitybridge.inbox import triage
from continuitybridge.inbox.claim import Claimed
from continuitybridge.inbox.replies import Notices
from continuitybridge.inbox.retry import RetryPolicy
from continuitybridge.inbox.settle.endings import Ending
from continuitybridge.inbox.settle.writing import Writing
from continuitybridge.inbox.stream import settling as settlements
from continuitybridge.stream import settling
from continuitybridge.stream.units import Held
from continuitybridge.vault.keyring import Cipher


def test_an_outcome_of_which_nothing_can_be_made_costs_its_own_message_only(
    make_flow: Callable[[], Flow], working: Callable[..., Working], monkeypatch: pytest.MonkeyPatch
) -> None:
    flow = make_flow()
    odd, others = flow.send(0)[0], flow.send(*range(1, 12))
    real = settling.ending_of

    def of(claimed: Claimed, outcome: Outcome, *more: Any) -> Ending:
        if outcome.message_id == odd and not outcome.failures:
            raise RuntimeError("what nobody expected")
        return real(claimed, outcome, *more)

    monkeypatch.setattr(settling, "ending_of", of)
    with working() as worker:
        worker._settler._policy = RetryPolicy(2, 0.01, 0.01)
        wait_until(lambda: flow.states() == {"done": len(others), "dead": 1}, within_s=20)
        assert worker.counts["stale"] == 0
    [dead] = triage.list_dead(flow.id)
    assert (dead.message_id, dead.code) == (odd, "internal-error")


def test_where_not_even_a_failure_can_be_made_each_outcome_is_told_of_once_all_the_same(
    make_flow: Callable[[], Flow], working: Callable[..., Working], monkeypatch: pytest.MonkeyPatch
) -> None:
    flow = make_flow()
    waiting: list[list[Any]] = []
    odd: list[str] = []
    real = settling.ending_of

    def of(claimed: Claimed, *more: Any) -> Ending:
        if waiting and not odd:
            odd.append(claimed.message_id)
        if claimed.message_id in odd:
            raise ConfigurationError("what nobody expected, of its failure as well")
        return real(claimed, *more)

    monkeypatch.setattr(settling, "ending_of", of)
    monkeypatch.setattr(settling, "KEYS_RETRY_S", 0.1)
    with working() as worker:
        flow.send(0)
        flow.await_done(1)
        keys = worker._access.keys

        async def away_at_first(organization_id: UUID) -> Cipher:
            if not waiting:
                # In one group with others that are written meanwhile.
                waiting.append(worker._settler._writing)
                raise NotFound("the key comes later")
            return await keys(organization_id)

        monkeypatch.setattr(worker._settler, "_access", SimpleNamespace(keys=away_at_first))
        worker._settler._pause_s = 1.0
        flow.send(*range(1, 12))
        wait_until(lambda: worker.counts["done"] + worker.counts["stale"] >= 12, within_s=15)
        wait_until(lambda: not worker._settler.waiting)
        assert len(waiting[0]) > 2
        assert (worker.counts["done"], worker.counts["stale"]) == (11, 1)
        # Its lease runs out.
        assert flow.states() == {"done": 11, "claimed": 1}


def test_an_ending_that_cannot_be_written_makes_no_other_stale(
    make_flow: Callable[[], Flow], working: Callable[..., Working], monkeypatch: pytest.MonkeyPatch
) -> None:
    flow = make_flow()
    real, groups, odd = settlements.write, [], None

    def write(endings: Sequence[Ending], notices: Notices) -> Writing:
        groups.append([each.claimed.message_id for each in endings])
        if odd in groups[-1]:
            raise RuntimeError("what nobody expected")
        return real(endings, notices)

    monkeypatch.setattr(settlements, "write", write)
    with working() as worker:
        flow.send(0)
        flow.await_done(1)
        # What comes meanwhile goes together.
        worker._settler._pause_s = 1.0
        [odd, *others] = flow.send(*range(1, 12))
        wait_until(lambda: flow.states()["done"] == 1 + len(others) and worker.counts["stale"] == 1, within_s=15)
    assert any(odd in group and len(group) > 1 for group in groups)
    # Its lease runs out.
    assert flow.states() == {"done": 1 + len(others), "claimed": 1}


def test_an_outcome_that_somebody_waits_for_is_written_at_once_and_those_that_rest_with_it(
    make_flow: Callable[[], Flow], working: Callable[..., Working], monkeypatch: pytest.MonkeyPatch
) -> None:
    flow = make_flow()
    real, is_urgent = settling.Settler.put, False

    def put(settler: settling.Settler, held: Held, outcome: Outcome) -> None:
        real(settler, held, outcome, urgent=is_urgent)

    monkeypatch.setattr(settling.Settler, "put", put)
    with working() as worker:
        flow.send(0)
        flow.await_done(1)
        worker._settler._pause_s = 60.0
        flow.send(1)
        wait_until(lambda: worker._settler.waiting == 1)
        assert flow.states() == {"done": 1, "claimed": 1}
        is_urgent = True
        flow.send(2)
        flow.await_done(3)
