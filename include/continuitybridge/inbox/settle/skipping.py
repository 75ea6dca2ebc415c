"""Settling as skipped: somebody decided that what is left of a batch is not run."""

from __future__ import annotations

from psycopg.types.json import Jsonb

from continuitybridge import database
from continuitybridge.inbox import units
from continuitybridge.inbox.batches import Batch
from continuitybridge.inbox.replies import Notices


def skip(batch: Batch, *, stage: str | None = None, by: str = "") -> int:
    """Settle as skipped what the batch (of one stage, or altogether) has not ended, whoever holds it; returns how
    many units. A holder's settlement is refused afterwards. A message whose hand-overs are partly done is settled
    as skipped when nothing of it is left. `by` is recorded in the message's trace."""
    skipped = 0
    place = {"organization": batch.organization_id, "batch": batch.batch_id, "stage": stage}
    note = Jsonb([{"skipped_by": by, "stage": stage}])
    notices = Notices()
    with database.relay(after=notices) as connection:
        if stage is None or batch.first_stage is None or stage == batch.first_stage:
            rows = connection.execute(
                "SELECT message_id FROM bridge.messages WHERE organization_id = %(organization)s"
                " AND batch_id = %(batch)s AND state IN ('accepted', 'claimed') ORDER BY message_id FOR UPDATE",
                place,
            ).fetchall()
            for (message_id,) in rows:
                units.append_trace(connection, batch.organization_id, message_id, note)
                units.move_to_settled(connection, batch.organization_id, message_id, "skipped", notices=notices)
            skipped += len(rows)
        affected = connection.execute(
            "SELECT DISTINCT message_id FROM bridge.hand_overs WHERE organization_id = %(organization)s"
            " AND batch_id = %(batch)s AND state IN ('available', 'claimed')"
            " AND (%(stage)s::text IS NULL OR stage = %(stage)s) ORDER BY message_id",
            place,
        ).fetchall()
        for (message_id,) in affected:
            if not units.lock(connection, batch.organization_id, message_id):
                continue
            skipped += connection.execute(
                "UPDATE bridge.hand_overs SET state = 'skipped', epoch = epoch + 1, lease_owner = NULL,"
                " lease_until = NULL WHERE organization_id = %(organization)s AND batch_id = %(batch)s"
                " AND message_id = %(message)s AND state IN ('available', 'claimed')"
                " AND (%(stage)s::text IS NULL OR stage = %(stage)s)",
                {**place, "message": message_id},
            ).rowcount
            units.append_trace(connection, batch.organization_id, message_id, note)
            units.conclude(connection, batch.organization_id, message_id, notices=notices)
    return skipped
