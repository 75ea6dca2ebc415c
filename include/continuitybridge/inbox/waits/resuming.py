"""What a claimed hand-over that waited goes on with."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from uuid import UUID

from continuitybridge.engine.groups import order
from continuitybridge.engine.message import TOO_LARGE, Message, Resume
from continuitybridge.inbox import offload, payloads
from continuitybridge.settings import get_settings
from continuitybridge.vault.keyring import Cipher

LOAD_PARTS = """
SELECT p.organization_id, p.wait_id, p.part_id, p.message_id, p.child_id, p.member, p.position, p.place, p.payload
FROM unnest(%b::uuid[], %b::uuid[], %b::int8[]) AS t (organization_id, wait_id, most_bytes)
CROSS JOIN LATERAL (
    SELECT sum(octet_length(s.payload)) AS bytes FROM bridge.wait_parts s
    WHERE s.organization_id = t.organization_id AND s.wait_id = t.wait_id) AS size
JOIN bridge.wait_parts p ON p.organization_id = t.organization_id AND p.wait_id = t.wait_id
WHERE size.bytes <= t.most_bytes
"""
"""The parts of several waits; none of one whose parts together are too large to be held in memory."""

Parts = Mapping[tuple[UUID, UUID], Sequence[Any]]
"""(organization, wait id) → rows of `LOAD_PARTS`."""


def most_bytes() -> int:
    """What the parts of one wait may have together: as much as one message's outcome."""
    return 8 * get_settings().max_message_bytes


def load_parameters(waits: Iterable[tuple[UUID, Mapping[str, Any] | None]]) -> tuple[Any, ...] | None:
    """The parameters of `LOAD_PARTS` for hand-overs of these organizations with these `resume`; None when none of
    them has parts."""
    found = [(organization_id, wait_id_of(resume)) for organization_id, resume in waits]
    wanted = [(organization_id, wait_id) for organization_id, wait_id in found if wait_id is not None]
    if not wanted:
        return None
    return [each[0] for each in wanted], [each[1] for each in wanted], [most_bytes()] * len(wanted)


def wait_id_of(resume: Mapping[str, Any] | None) -> UUID | None:
    """The wait whose parts belong to a hand-over with this `resume`."""
    text = (resume or {}).get("parts")
    return None if text is None else UUID(text)


def by_wait(rows: Iterable[Sequence[Any]]) -> Parts:
    """Rows of `LOAD_PARTS` by their wait."""
    found: dict[tuple[UUID, UUID], list[Any]] = defaultdict(list)
    for row in rows:
        found[row[0], row[1]].append(row)
    return found


def resumed(
    message: Message,
    child_id: str,
    resume: Mapping[str, Any] | None,
    parts: Parts,
    keys: Cipher,
    organization_id: UUID,
) -> Message:
    """`message` as its node is to resume it; unchanged where the hand-over never waited. Raises as
    `offload.unseal` for its parts."""
    if resume is None:
        return message
    facts = {name: value for name, value in resume.items() if name not in ("how", "parts", "count", "group")}
    how = str(resume["how"])
    wait_id = wait_id_of(resume)
    if wait_id is not None:
        rows = _ordered(parts.get((organization_id, wait_id), ()), resume)
        bodies = _bodies(rows, keys, organization_id)
        if len(bodies) < resume.get("count", 0):
            how = TOO_LARGE
        elif resume.get("group"):
            facts["members"] = [{"id": row[4], "member": row[5]} for row in rows]
            message.body = bodies
        else:
            facts["results"] = bodies
    message.id = child_id
    message.resume = Resume(how, facts)
    return message


def _ordered(rows: Sequence[Any], resume: Mapping[str, Any]) -> list[Any]:
    if resume.get("group") == "across":
        # By time of arrival, which is in the part's id (UUIDv7): positions first, where members have some.
        return sorted(rows, key=lambda row: (row[6], row[2].bytes))
    return sorted(rows, key=lambda row: order(row[6], row[4]))


def _bodies(rows: Sequence[Any], keys: Cipher, organization_id: UUID) -> list[Any]:
    """The bodies; fewer when they are too much together (those that stand in the payload store count here)."""
    bodies: list[Any] = []
    left = most_bytes()
    for row in rows:
        content = offload.unseal(keys, organization_id, payloads.HAND_OVER, row[7], row[8])
        left -= len(content)
        if left < 0:
            return []
        bodies.append(payloads.read_message(content).body)
    return bodies
