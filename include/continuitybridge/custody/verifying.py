"""Proving that everything encrypted opens: every row of every encrypted column, in its place, under keys that are
there."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal
from uuid import UUID

from continuitybridge.custody import walking
from continuitybridge.custody.registry import COLUMNS, Column
from continuitybridge.errors import BridgeError, Unavailable
from continuitybridge.vault.columns import Row, Skipped
from continuitybridge.vault.keyring import Cipher

SAMPLED = 0.05
"""Which part of the objects of the payload store is opened with `sample`."""

Objects = Literal["none", "sample", "all"]


@dataclass(frozen=True, slots=True)
class Bad:
    """The first row of a column that does not open, and why."""

    key: str
    problem: str


@dataclass(frozen=True, slots=True)
class Verified:
    """A column of one organization: `opened` rows, `objects` of the payload store among them; `broken` rows did
    not open, `first` is the first of these. What names a person who was erased from the trail is not counted."""

    table: str
    column: str
    opened: int
    objects: int
    broken: int
    first: Bad | None


def verify(
    organization_id: UUID,
    keys: Cipher,
    *,
    objects: Objects = "sample",
    columns: Iterable[Column] = COLUMNS,
    told: Callable[[Verified], None] = lambda _: None,
) -> list[Verified]:
    """Open every row of the organization's encrypted columns. Every reference into the payload store is opened,
    of the objects themselves none, a part (`SAMPLED`) or all. `told` hears of each column when it is through.

    What is there when it begins and stays was opened when it returns; what is written meanwhile may be left out.
    Nothing is changed. Raises `Unavailable` when the database or the payload store does not answer.
    """
    found = []
    for column in columns:
        done = _column(column, organization_id, keys, objects)
        told(done)
        found.append(done)
    return found


def _column(column: Column, organization_id: UUID, keys: Cipher, objects: Objects) -> Verified:
    opened = with_object = broken = 0
    first: Bad | None = None
    for batch in walking.batches(column, organization_id):
        for row in batch:
            try:
                with_object += _open(column, organization_id, keys, row, objects)
                opened += 1
            except Skipped:
                continue
            except Unavailable:
                raise
            except Exception as error:
                broken += 1
                detail = error.detail if isinstance(error, BridgeError) else f"{type(error).__name__}: {error}"
                first = first or Bad(walking.key_text(column, row), detail)
    return Verified(column.table, column.column, opened, with_object, broken, first)


def _open(column: Column, organization_id: UUID, keys: Cipher, row: Row, objects: Objects) -> bool:
    whole = objects == "all" or (objects == "sample" and random.random() < SAMPLED)  # noqa: S311
    try:
        return column.open(keys, organization_id, row, objects=whole)
    except (Skipped, Unavailable):
        raise
    except Exception:
        # It may have been removed, with its object, or written anew since it was read.
        now = walking.again(column, organization_id, row)
        if now is None:
            raise Skipped from None
        return column.open(keys, organization_id, now, objects=whole)
