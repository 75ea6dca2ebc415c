"""Suspending an organization: it takes no messages and runs nothing, and its members read only. Nothing is lost:
what was accepted waits, and goes on when the organization is resumed."""

from __future__ import annotations

from uuid import UUID

from continuitybridge import database
from continuitybridge.audit import record
from continuitybridge.deployments.verbs import CHANNEL, DEPLOY_LOCK
from continuitybridge.errors import Conflict, NotFound
from continuitybridge.webhooks import endpoints


def suspend(organization_id: UUID, *, by: str, reason: str = "") -> bool:
    """Suspend; False when it was by now. Webhooks answer 403 some milliseconds later, nothing is claimed any more,
    and what is under way ends. Raises `NotFound`, `Conflict` for one that is being deleted."""
    return _set(organization_id, "suspended", by, reason)


def resume(organization_id: UUID, *, by: str) -> bool:
    """End a suspension; False when there was none. Raises as `suspend`."""
    return _set(organization_id, "active", by, "")


def _set(organization_id: UUID, status: str, by: str, reason: str) -> bool:
    with database.platform() as connection:
        row = connection.execute(
            "SELECT status, slug FROM bridge.organizations WHERE organization_id = %s FOR UPDATE",
            (organization_id,),
        ).fetchone()
        if row is None:
            raise NotFound("no such organization", field="organization", value=str(organization_id))
        before, slug = row
        if before == "deleting":
            raise Conflict(f"the organization {slug!r} is being deleted", field="organization", value=slug)
        if before != status:
            connection.execute(
                "UPDATE bridge.organizations SET status = %s WHERE organization_id = %s", (status, organization_id)
            )
            action = "organization.suspended" if status == "suspended" else "organization.resumed"
            record(connection, organization_id, action, slug, details={"reason": reason} if reason else {}, by=by)
    # Also where nothing changed: whoever was killed between the two calls again.
    tell(organization_id)
    return bool(before != status)


def tell(organization_id: UUID) -> None:
    """Have those who keep deployments and endpoints in memory read this organization's anew."""
    with database.tenant(organization_id) as connection:
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (DEPLOY_LOCK,))
        revisions = connection.execute(
            "UPDATE bridge.deployments SET revision = nextval('bridge.deployment_revision')"
            " WHERE organization_id = %s RETURNING revision",
            (organization_id,),
        ).fetchall()
        if revisions:
            connection.execute("SELECT pg_notify(%s, %s)", (CHANNEL, str(max(row[0] for row in revisions))))
        endpoints.changed(connection, organization_id)
