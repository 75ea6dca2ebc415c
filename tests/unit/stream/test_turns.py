"""Whose messages are taken next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from continuitybridge.stream.turns import Room, Turns

A, B, C = (UUID(int=n) for n in (1, 2, 3))
PLENTY: Callable[[UUID], int] = lambda organization_id: 1_000  # noqa: E731


def turns(*flows: tuple[UUID, str]) -> Turns:
    made = Turns()
    for organization_id, flow in flows:
        made.add((organization_id, "prod", flow))
    return made


def names(chosen: dict[tuple[UUID, str, str], int]) -> dict[str, int]:
    return {f"{organization_id.int}{flow}": most for (organization_id, _, flow), most in chosen.items()}


def test_every_organization_gets_its_share_and_within_it_every_flow() -> None:
    waiting = turns((A, "x"), (A, "y"), (A, "z"), (B, "x"))
    assert names(waiting.choose(12, PLENTY)) == {"1x": 2, "1y": 2, "1z": 2, "2x": 6}


def test_who_is_left_out_is_first_the_next_time() -> None:
    waiting = turns((A, "x"), (A, "y"), (B, "x"), (C, "x"))
    assert names(waiting.choose(1, PLENTY)) == {"1x": 1}
    assert names(waiting.choose(2, PLENTY)) == {"2x": 1, "3x": 1}
    assert names(waiting.choose(2, PLENTY)) == {"1y": 1, "2x": 1}


def test_an_organization_takes_no_more_than_it_is_allowed_and_the_others_take_the_rest() -> None:
    waiting = turns((A, "x"), (B, "x"))
    assert names(waiting.choose(10, lambda organization_id: 2 if organization_id == A else 20)) == {
        "1x": 2,
        "2x": 8,
    }
    assert names(waiting.choose(10, lambda organization_id: 0)) == {}


def test_what_has_nothing_to_do_is_passed_over() -> None:
    waiting = turns((A, "x"), (B, "x"))
    waiting.discard((A, "prod", "x"))
    waiting.discard((A, "prod", "x"))
    assert names(waiting.choose(3, PLENTY)) == {"2x": 3}
    waiting.drop(B)
    assert not waiting
    assert waiting.choose(3, PLENTY) == {}


@given(st.lists(st.tuples(st.sampled_from([A, B, C]), st.sampled_from("vwxyz")), max_size=12), st.integers(0, 40))
def test_no_organization_gets_a_second_before_each_has_its_first(flows: list[tuple[UUID, str]], room: int) -> None:
    chosen = turns(*flows).choose(room, PLENTY, most_flows=4)
    assert sum(chosen.values()) <= room
    assert len(chosen) <= 4
    of: Counter[UUID] = Counter()
    for flow, most in chosen.items():
        of[flow[0]] += most
    if flows and len({organization_id for organization_id, _ in flows}) <= 4:
        assert sum(of.values()) == room
        shares = [of[organization_id] for organization_id in {organization_id for organization_id, _ in flows}]
        assert max(shares) - min(shares) <= 1


def test_one_organization_fills_half_of_the_room_and_leaves_the_other_half_to_who_comes() -> None:
    room = Room(16, 1_000)

    def fill(organization_id: UUID) -> int:
        taken = 0
        while room.allowance(organization_id):
            room.take(organization_id, 1)
            taken += 1
        return taken

    assert fill(A) == 8
    assert fill(B) == 4
    assert fill(A) == 0
    assert fill(C) == 2
    for _ in range(8):
        room.give_back(A, 1)
    assert fill(C) > 0
    assert room.held <= 16


def test_there_is_no_room_beyond_the_bytes_whatever_the_number() -> None:
    room = Room(16, 1_000)
    room.take(A, 600)
    assert (room.free, room.free_size) == (15, 400)
    room.take(A, 600)
    assert (room.free, room.allowance(B), room.free_size) == (0, 0, 1)
    room.give_back(A, 600)
    assert room.free == 15
