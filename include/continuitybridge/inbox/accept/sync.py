"""Accepting one message, or the messages of one batch, in one transaction of one organization."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

import psycopg

from continuitybridge import database
from continuitybridge.errors import Conflict, Unavailable
from continuitybridge.inbox import allowance
from continuitybridge.inbox.accept import rows as _rows
from continuitybridge.inbox.accept.rows import Acceptance, Accepted, Row
from continuitybridge.vault.keyring import Cipher


def accept(acceptance: Acceptance, keys: Cipher) -> Accepted:
    """Accept one message, as the application role confined to its organization.

    When this returns, message and idempotency key are on disk, in one transaction: the message will be run to
    done, skipped or a dead letter, whatever is killed. When it raises, nothing was accepted, but for
    `Unavailable`: if the connection broke during the commit nobody can know, and the caller repeats the call with
    the same idempotency key (or message id) to be sure; without one, a repeat may make a second message.

    A key that was used before with the same body gives the first message's id (`duplicate`); with another body
    it raises `Conflict`. Of any number of concurrent copies exactly one becomes a message. Raises `LimitExceeded`
    for a body above `BRIDGE_MAX_MESSAGE_BYTES`, `AllowanceExhausted` when the organization has sent or holds as
    much as it may, `NotFound` when it has no data key.
    """
    row = _rows.prepare(acceptance, keys)
    with database.tenant(acceptance.organization_id) as connection:
        [result] = _write(connection, [row], keys, None)
        if not result.duplicate:
            connection.execute(_rows.NOTIFY, (_rows.CHANNEL, _rows.notifications([row])))
    return result


def accept_into(
    connection: psycopg.Connection[Any],
    organization_id: UUID,
    batch_id: str,
    acceptances: Sequence[Acceptance],
    keys: Cipher,
) -> list[Accepted]:
    """Accept messages that belong to a batch from the start, in the caller's transaction. Guarantees as
    `accept`, from the caller's commit on; a `Conflict` of one fails all."""
    prepared = [_rows.prepare(acceptance, keys) for acceptance in acceptances]
    return _write(connection, prepared, keys, batch_id) if prepared else []


def _write(
    connection: psycopg.Connection[Any], rows: Sequence[Row], keys: Cipher, batch_id: str | None
) -> list[Accepted]:
    results: dict[int, Accepted] = {}
    open_positions = list(range(len(rows)))
    for _ in range(_rows.TRIES):
        leaders = _rows.leaders([rows[position] for position in open_positions])
        [(lost, _)] = connection.execute(*_rows.insertion(leaders, batch_id)).fetchall()
        fresh, _ = _rows.written(leaders, lost)
        losers = [position for position in open_positions if id(rows[position]) not in fresh]
        for position in open_positions:
            if id(rows[position]) in fresh:
                results[position] = Accepted(rows[position].message_id, duplicate=False)
        known: dict[_rows.Key, tuple[str, bytes]] = {}
        if losers:
            found = connection.execute(
                _rows.LOOK_UP_KEYS, _rows.key_parameters(rows[position] for position in losers)
            )
            known = {(o, e, p, h): (message_id, body_hash) for o, e, p, h, message_id, body_hash in found}
        open_positions = []
        for position in losers:
            row = rows[position]
            if row.key not in known:
                open_positions.append(position)
                continue
            outcome = _rows.repeated(keys, row, *known[row.key])
            if isinstance(outcome, Conflict):
                raise outcome
            results[position] = outcome
        if not open_positions:
            done = [results[position] for position in range(len(rows))]
            # Of one organization: that of the transaction, or of the batch.
            new = [row.acceptance for row, each in zip(rows, done, strict=True) if not each.duplicate]
            organization_id = rows[0].acceptance.organization_id
            allowance.take(connection, organization_id, "messages", len(new))
            allowance.take_room(connection, organization_id, sum(len(each.body) for each in new))
            return done
    raise Unavailable("the idempotency key expired while it was looked up; send it again", retry_after_s=1)
