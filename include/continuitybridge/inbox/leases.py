"""Who holds what, for those who decide what a holder may have."""

from __future__ import annotations

from uuid import UUID

from continuitybridge import database

_HELD = " UNION ".join(
    f"SELECT organization_id, environment FROM bridge.{table}"  # noqa: S608  (our own names)
    " WHERE state = 'claimed' AND starts_with(lease_owner, %(owner)s) AND lease_until > now()"
    " AND (%(organization)s::uuid IS NULL OR organization_id = %(organization)s)"
    for table in ("messages", "hand_overs")
)


def leased_to(owner: str, organization_id: UUID | None = None) -> set[tuple[UUID, str]]:
    """Organizations and environments of which a message is leased now to an owner whose name begins so; of one
    organization, if it is given."""
    with database.relay() as connection:
        rows = connection.execute(_HELD, {"owner": owner, "organization": organization_id})
        return {(row[0], row[1]) for row in rows}
