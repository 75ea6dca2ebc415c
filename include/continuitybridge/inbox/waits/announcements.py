"""What waits for a person, for those who show it elsewhere. As the relay role: across organizations."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from continuitybridge import database

CHUNK = 50
MAX_KEYS = 10


@dataclass(frozen=True, slots=True)
class Unannounced:
    """An approval that has not been shown yet. `subject` and `body` (Markdown) hold nothing of the message but its
    id and its search keys, which are kept in clear anyway."""

    organization_id: UUID
    organization: str
    environment: str
    approval_id: UUID
    subject: str
    body: str


_UNANNOUNCED = """
WITH full_up AS MATERIALIZED (
    SELECT organization_id, environment FROM bridge.waits WHERE kind = 'person' AND announced_at IS NOT NULL
    GROUP BY organization_id, environment HAVING count(*) >= %(most)s
)
SELECT w.organization_id, o.slug, w.environment, w.hand_over_id, w.flow, h.version, w.node_id,
       (SELECT coalesce(nullif(n ->> 'label', ''), w.node_id)
        FROM bridge.flow_versions v, json_array_elements(v.plan -> 'nodes') AS n
        WHERE v.organization_id = w.organization_id AND v.flow = w.flow AND v.version = h.version
          AND n ->> 'id' = w.node_id),
       h.child_id, m.keys, m.accepted_at, w.until
FROM bridge.waits w
JOIN bridge.organizations o USING (organization_id)
JOIN bridge.hand_overs h USING (organization_id, hand_over_id)
JOIN bridge.messages m ON m.organization_id = w.organization_id AND m.message_id = w.message_id
WHERE w.kind = 'person' AND w.announced_at IS NULL AND o.slug || '.' || w.environment <> ALL(%(absent)s::text[])
  AND (w.organization_id, w.environment) NOT IN (SELECT organization_id, environment FROM full_up)
ORDER BY w.created_at LIMIT %(limit)s
"""


def unannounced(most: int, *, except_in: Collection[str] = ()) -> list[Unannounced]:
    """Some of them, the longest waiting first; none of an environment where `most` are shown already, nor of those
    named in `except_in` (`organization.environment`)."""
    with database.relay() as connection:
        rows = connection.execute(
            _UNANNOUNCED, {"absent": list(except_in), "most": most, "limit": CHUNK}
        ).fetchall()
    return [_described(row) for row in rows]


def mark_announced(approvals: Iterable[Unannounced]) -> None:
    """They have been shown. A crash before this shows them once more, under the same name."""
    found = list(approvals)
    with database.relay() as connection:
        connection.execute(
            "UPDATE bridge.waits w SET announced_at = now() FROM unnest(%s::uuid[], %s::uuid[])"
            " AS t (organization_id, id) WHERE w.organization_id = t.organization_id AND w.hand_over_id = t.id",
            ([each.organization_id for each in found], [each.approval_id for each in found]),
        )


def still_waiting(approval_ids: Collection[UUID]) -> set[UUID]:
    """Those that nobody has decided and whose time is not over."""
    with database.relay() as connection:
        rows = connection.execute(
            "SELECT hand_over_id FROM bridge.waits WHERE hand_over_id = ANY(%s) AND kind = 'person'",
            (list(approval_ids),),
        )
        return {row[0] for row in rows}


def _described(row: tuple[Any, ...]) -> Unannounced:
    organization_id, organization, environment, approval_id, flow, version, node_id, label, part, keys, *times = (
        row
    )
    accepted_at, until = times
    facts = {
        "Flow": f"{flow} {version} in {environment}",
        "Step": label if label == node_id else f"{label} ({node_id})",
        "Message": part,
        "Accepted": accepted_at.isoformat(timespec="seconds"),
        "Until": until.isoformat(timespec="seconds") if until is not None else "somebody decides",
        **{str(name): value for name, value in list(keys.items())[:MAX_KEYS]},
    }
    lines = [f"- {_plain(name)}: `{_plain(value)}`" for name, value in facts.items()]
    more = (
        "What is to be decided on is shown by `bridge approvals show "
        f"{approval_id} -o {organization}` and `GET /bridge/approvals/{approval_id}`."
    )
    return Unannounced(
        *(organization_id, organization, environment, approval_id),
        f"{flow}: {_plain(label)}",
        "\n".join([*lines, "", more]),
    )


def _plain(value: object) -> str:
    """Text that neither ends its code span nor its line."""
    return " ".join(str(value)[:500].replace("`", "'").split())
