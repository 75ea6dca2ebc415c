"""Approvals: what waits for a person, and the decision. As the application role of one organization."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal
from uuid import UUID

from psycopg.types.json import Jsonb

from continuitybridge import database
from continuitybridge.audit import record
from continuitybridge.errors import ConfigurationError, NotFound
from continuitybridge.inbox import units
from continuitybridge.inbox.accept import CHANNEL
from continuitybridge.inbox.waits import parking
from continuitybridge.vault.keyring import Cipher

Decision = Literal["approved", "rejected"]
MAX_COMMENT_CHARACTERS = 2_000


@dataclass(frozen=True, slots=True)
class Approval:
    """A message (or a part of one: `part_id`) that waits for a decision at step `node_id`. `title` and `details`
    are what the step shows of it; `until` is when its time is over, if ever."""

    approval_id: UUID
    message_id: str
    part_id: str
    environment: str
    flow: str
    version: str
    node_id: str
    title: str
    details: Any
    keys: dict[str, Any]
    accepted_at: datetime
    waits_since: datetime
    until: datetime | None


_LIST = """
SELECT w.hand_over_id, w.message_id, h.child_id, w.environment, w.flow, h.version, w.node_id, m.keys,
       m.accepted_at, w.created_at, w.until, w.summary
FROM bridge.waits w
JOIN bridge.hand_overs h USING (organization_id, hand_over_id)
JOIN bridge.messages m ON m.organization_id = w.organization_id AND m.message_id = w.message_id
WHERE w.organization_id = %(organization)s AND w.kind = 'person' AND (w.until IS NULL OR w.until > now())
  AND (%(approval)s::uuid IS NULL OR w.hand_over_id = %(approval)s)
  AND (%(environment)s::text IS NULL OR w.environment = %(environment)s)
  AND (%(flow)s::text IS NULL OR w.flow = %(flow)s)
  AND (%(after)s::uuid IS NULL OR w.hand_over_id > %(after)s)
ORDER BY w.hand_over_id LIMIT %(limit)s
"""


def list_approvals(
    organization_id: UUID,
    *,
    keys: Cipher,
    environment: str | None = None,
    flow: str | None = None,
    after: UUID | None = None,
    limit: int = 100,
) -> list[Approval]:
    """What waits for a decision, the longest first; `after` goes on behind the approval with that id, where a page
    ended. (Ids begin with their time; of a split, many began to wait at one moment.)"""
    return _read(organization_id, keys, environment=environment, flow=flow, after=after, limit=limit)


def get_approval(organization_id: UUID, approval_id: UUID, *, keys: Cipher) -> Approval:
    """One of them; raises `NotFound` where it does not wait (any more)."""
    found = _read(organization_id, keys, approval=approval_id)
    if not found:
        raise _gone(approval_id)
    return found[0]


def decide(
    organization_id: UUID,
    approval_id: UUID,
    decision: Decision,
    *,
    by: str,
    comment: str = "",
    keys: Cipher | None = None,
) -> str:
    """Let the message go on as decided; gives its id. Who decided, when and with which comment is kept in its
    trace. When this returns, the decision is on disk, and the message will go on by it whatever is killed.

    Of several decisions the first holds: the others, and those that come after the time was over, raise
    `NotFound`, as for an approval of another organization. Raises `ConfigurationError` for a comment that is too
    long. `keys` of the organization, where the process has no master key.
    """
    if len(comment) > MAX_COMMENT_CHARACTERS:
        raise ConfigurationError(f"a comment has at most {MAX_COMMENT_CHARACTERS} characters", field="comment")
    place = {"organization": organization_id, "approval": approval_id}
    with database.tenant(organization_id) as connection:
        row = connection.execute(
            "SELECT message_id FROM bridge.waits WHERE organization_id = %(organization)s"
            " AND hand_over_id = %(approval)s AND kind = 'person' AND (until IS NULL OR until > now())",
            place,
        ).fetchone()
        # The message first, as everybody locks; then whether it still waits.
        if row is None or not units.lock(connection, organization_id, row[0]):
            raise _gone(approval_id)
        gone = connection.execute(
            "DELETE FROM bridge.waits WHERE organization_id = %(organization)s AND hand_over_id = %(approval)s"
            " AND (until IS NULL OR until > now()) RETURNING node_id, environment, flow",
            place,
        ).fetchone()
        if gone is None:
            raise _gone(approval_id)
        node_id, environment, flow = gone
        at = datetime.now(UTC).isoformat(timespec="seconds")
        facts = {"by": by, "comment": comment, "at": at}
        connection.execute(
            "UPDATE bridge.hand_overs SET state = 'available', resume = %(resume)s, available_at = now(),"
            " batch_id = NULL WHERE organization_id = %(organization)s AND hand_over_id = %(approval)s",
            {**place, "resume": json.dumps({"how": decision, **facts})},
        )
        connection.execute(
            "UPDATE bridge.messages SET trace = trace || %s, dead_at = NULL, state = 'handed_over'"
            " WHERE organization_id = %s AND message_id = %s",
            (Jsonb([{"decided_at": node_id, "decision": decision, **facts}]), organization_id, row[0]),
        )
        connection.execute("SELECT pg_notify(%s, %s)", (CHANNEL, f"{organization_id}/{environment}/{flow}"))
        record(
            connection,
            organization_id,
            f"approval.{decision}",
            str(approval_id),
            environment=environment,
            details={"message_id": row[0], "flow": flow, "node": node_id},
            by=by,
            keys=keys,
        )
    return str(row[0])


def _read(
    organization_id: UUID,
    keys: Cipher,
    *,
    approval: UUID | None = None,
    environment: str | None = None,
    flow: str | None = None,
    after: UUID | None = None,
    limit: int = 1,
) -> list[Approval]:
    with database.tenant(organization_id) as connection:
        rows = connection.execute(
            _LIST,
            {
                "organization": organization_id,
                "approval": approval,
                "environment": environment,
                "flow": flow,
                "after": after,
                "limit": limit,
            },
        ).fetchall()
    found = []
    for approval_id, message_id, part_id, environment_, flow_, version, node_id, search, *times, summary in rows:
        shown = parking.read_summary(keys, organization_id, approval_id, summary)
        found.append(
            Approval(
                *(approval_id, message_id, part_id, environment_, flow_, version, node_id),
                *(shown["title"], shown["details"], search, *times),
            )
        )
    return found


def _gone(approval_id: UUID) -> NotFound:
    return NotFound(f"nothing waits for a decision under {approval_id} (any more)", field="approval_id")
