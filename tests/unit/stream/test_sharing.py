"""Who floods, and who is to be spared it, as one worker learns it from its claims."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest

from continuitybridge.inbox import neighbours
from continuitybridge.inbox.neighbours import SHARE
from continuitybridge.inbox.stream import Wanted
from continuitybridge.stream.sharing import Sharing

LOUD, QUIET = uuid4(), uuid4()
ALLOWED = 100


@pytest.fixture(autouse=True)
def felt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits at all feels the others' floods, fully and for long."""
    for name, value in (("WAIT_S", 0.0), ("FLOORS", 0.0), ("STEP", 1.0), ("FADES_S", 1e9)):
        monkeypatch.setattr(neighbours, name, value)


def claim(
    sharing: Sharing, got: dict[UUID, int], *, concurrency: int | None = None, ordered: bool = False
) -> None:
    """A claim that asks for as much of each as it may, and gets so much; `concurrency` and `ordered` are the quiet
    one's."""
    sharing.begin()
    wanted = [
        Wanted(each, "prod", "f", sharing.most(each, ALLOWED), concurrency if each == QUIET else None)
        for each in got
    ]
    sharing.asking(wanted)
    units: list[Any] = [
        SimpleNamespace(organization_id=each, ordered=ordered and each == QUIET)
        for each, count in got.items()
        for _ in range(min(count, next(w.most for w in wanted if w.organization_id == each)))
    ]
    sharing.claimed(wanted, units)


def test_a_flood_beside_one_that_had_little_gets_its_share_and_rests_until_another_comes() -> None:
    sharing = Sharing()
    claim(sharing, {LOUD: ALLOWED, QUIET: 1})
    claim(sharing, {LOUD: ALLOWED})
    assert sharing.most(LOUD, ALLOWED) == SHARE
    assert sharing.holds_back
    assert sharing.rest_s(0.001) > 0
    assert not sharing.noticed(LOUD)
    assert sharing.noticed(QUIET)


def test_one_that_got_less_than_its_share_is_not_held_back() -> None:
    sharing = Sharing()
    claim(sharing, {LOUD: ALLOWED, QUIET: 1})
    claim(sharing, {LOUD: SHARE - 1})
    assert not sharing.holds_back


@pytest.mark.parametrize("kind", [{"concurrency": 1}, {"ordered": True}])
def test_of_what_may_not_begin_all_at_once_nobody_knows_whether_it_is_little(kind: dict[str, Any]) -> None:
    sharing = Sharing()
    claim(sharing, {LOUD: ALLOWED, QUIET: 1}, **kind)
    assert sharing.most(LOUD, ALLOWED) == ALLOWED


def test_floods_beside_each_other_are_not_held_back() -> None:
    sharing = Sharing()
    claim(sharing, {LOUD: ALLOWED, QUIET: 1})
    claim(sharing, {LOUD: ALLOWED, QUIET: ALLOWED})
    assert sharing.most(LOUD, ALLOWED) == sharing.most(QUIET, ALLOWED) == ALLOWED
