"""Deleting an organization: from the request on nothing of it is accepted or run and its members see it no more;
then it is exported, its payloads are removed, its tables emptied, and one record stays.

Each step is committed before the next and may be repeated: whoever is killed in the middle is followed by another
call of `work`, by anybody. The dispatcher calls it for what was requested over HTTP; one works at a time.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from uuid import UUID

from psycopg.rows import class_row

from continuitybridge import database
from continuitybridge.audit import checkpoints, record
from continuitybridge.audit.recording import TrailDamaged
from continuitybridge.deployments import suspension
from continuitybridge.deployments.verbs import CHANNEL, DEPLOY_LOCK
from continuitybridge.errors import ConfigurationError, Conflict, NotFound, Unavailable
from continuitybridge.inbox.objects import open_store
from continuitybridge.inbox.offload import GRACE_S
from continuitybridge.lifecycle import removal
from continuitybridge.lifecycle.export import export
from continuitybridge.organizations import Organization, verbs
from continuitybridge.settings import get_settings
from continuitybridge.vault.cipher import DecryptionFailed

DRAIN_S = 30.0
"""How long is waited for messages that are being run, before their rows are taken away. What a worker then tries
to settle it does not find."""
WORK_LOCK = 4_201_917_016

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Deletion:
    """What is kept of an organization that was, or is being, deleted. `finished_at` None: it is under way."""

    organization_id: UUID
    slug: str
    requested_at: datetime
    requested_by: str
    with_export: bool
    export_file: str | None
    export_sha256: str | None
    exported_at: datetime | None
    trail_events: int | None
    trail_hash: str | None
    finished_at: datetime | None


_SELECT = """
SELECT organization_id, slug, requested_at, requested_by, with_export, export_file, export_sha256, exported_at,
       trail_events, trail_hash, finished_at
FROM bridge.deletions
"""


def request_deletion(slug: str, *, confirm: str, with_export: bool, by: str) -> Deletion:
    """Begin: from now on nothing of it is accepted or run. `confirm` repeats the slug. Asked again, it changes
    nothing and gives how far it has come. Raises `NotFound`; `ConfigurationError` when it is not confirmed."""
    if confirm != slug:
        raise ConfigurationError(
            f"deleting {slug!r} must be confirmed by its slug", field="confirm", value=confirm, valid=[slug]
        )
    with database.platform() as connection:
        row = connection.execute(
            "SELECT organization_id, status FROM bridge.organizations WHERE slug = %s FOR UPDATE", (slug,)
        ).fetchone()
        if row is not None:
            connection.execute(
                "UPDATE bridge.organizations SET status = 'deleting' WHERE organization_id = %s", (row[0],)
            )
            connection.execute(
                "INSERT INTO bridge.deletions (organization_id, slug, requested_by, with_export)"
                " VALUES (%s, %s, %s, %s) ON CONFLICT (organization_id) DO NOTHING",
                (row[0], slug, by, with_export),
            )
    found = deletion(slug)
    if found.trail_events is None and found.finished_at is None:
        _record(found)
        # Also where nothing changed: whoever was killed between the two asks again.
        suspension.tell(found.organization_id)
    return found


def deletion(slug: str) -> Deletion:
    """How far the deletion of that organization has come; raises `NotFound` when none was requested."""
    found = next((each for each in deletions() if each.slug == slug), None)
    if found is None:
        raise NotFound(f"no organization {slug!r}", field="organization", value=slug)
    return found


def deletions() -> list[Deletion]:
    """Every deletion, the latest first."""
    with database.platform() as connection, connection.cursor(row_factory=class_row(Deletion)) as cursor:
        cursor.execute(_SELECT + "ORDER BY requested_at DESC")
        return cursor.fetchall()


def work(slug: str, *, directory: Path | None = None, step: Callable[[str, int], None] | None = None) -> Deletion:
    """Do what is left of a requested deletion, and return when it is finished. `step` hears of each transaction
    that removed rows: table and how many.

    Raises `NotFound` when none was requested, `Conflict` when somebody else is at it, `ConfigurationError` when
    the export cannot be written (nothing is removed then), `Unavailable`.
    """
    found = deletion(slug)
    if found.finished_at is not None:
        return found
    # Held as long as this connection lives: who is killed holds up nobody.
    with database.platform() as lock:
        [(mine,)] = lock.execute(
            "SELECT pg_try_advisory_xact_lock(%s, hashtext(%s))", (WORK_LOCK % 2**31, slug)
        ).fetchall()
        if not mine:
            raise Conflict(f"the deletion of {slug!r} is under way", field="organization", value=slug)
        _work(deletion(slug), directory or export_directory(), step or _quiet)
    return deletion(slug)


def continue_deletions() -> int:
    """Go on with whatever was requested and is not finished; returns how many were finished. One that fails is
    logged, tried again at the next call, and holds up no other."""
    done = 0
    for found in deletions():
        if found.finished_at is not None:
            continue
        try:
            work(found.slug)
        except Conflict:
            continue
        except Exception:
            _log.exception("the deletion of %s could not go on", found.slug)
        else:
            _log.info("organization %s is deleted", found.slug)
            done += 1
    try:
        sweep()
    except Unavailable as error:
        _log.warning("what deleted organizations may have left is swept later: %s", error.detail)
    return done


def sweep(*, after: timedelta = timedelta(seconds=GRACE_S)) -> int:
    """Remove what is left in the payload store of organizations that were deleted so long ago: an object may have
    been on its way while they were. Once for each; returns how many objects. Raises `Unavailable`."""
    with database.platform() as connection:
        due = connection.execute(
            "SELECT organization_id FROM bridge.deletions WHERE finished_at < now() - %s AND swept_at IS NULL",
            (after,),
        ).fetchall()
    left = 0
    for (organization_id,) in due:
        left += open_store().clear(str(organization_id))
        with database.platform() as connection:
            connection.execute(
                "UPDATE bridge.deletions SET swept_at = now() WHERE organization_id = %s", (organization_id,)
            )
    return left


def unforgotten() -> list[Deletion]:
    """Organizations that are deleted, and of which nobody has yet said that Airflow has forgotten them too."""
    with database.platform() as connection, connection.cursor(row_factory=class_row(Deletion)) as cursor:
        cursor.execute(_SELECT + "WHERE finished_at IS NOT NULL AND forgotten_at IS NULL")
        return cursor.fetchall()


def forgotten(organization_id: UUID) -> None:
    """Airflow has forgotten it."""
    with database.platform() as connection:
        connection.execute(
            "UPDATE bridge.deletions SET forgotten_at = now() WHERE organization_id = %s", (organization_id,)
        )


def export_directory() -> Path:
    """Where exports are written unless it is said otherwise."""
    settings = get_settings()
    return settings.export_dir or settings.state_dir / "exports"


def _work(found: Deletion, directory: Path, step: Callable[[str, int], None]) -> None:
    if found.finished_at is not None:
        return
    organization = verbs.by_slug(found.slug)
    owner = organization.organization_id
    suspension.tell(owner)
    if found.trail_events is None:
        # Whoever requested it may have been killed before it was written down.
        _record(found)
        _drain(owner)
        _export(organization, found, directory)
    removal.remove_objects(owner, step)
    removal.remove_rows(owner, step)
    _finish(owner)


def _export(organization: Organization, found: Deletion, directory: Path) -> None:
    """Write the archive, if it is wanted, and note where it and the trail end; nothing is removed before that."""
    owner = organization.organization_id
    checkpoints.write([owner])
    done = export(organization, directory) if found.with_export else None
    with database.tenant(owner) as connection:
        end = connection.execute(
            "SELECT seq, encode(hash, 'hex') FROM bridge.audit_chains WHERE organization_id = %s", (owner,)
        ).fetchone() or (0, "")
    with database.platform() as connection:
        connection.execute(
            "UPDATE bridge.deletions SET trail_events = %s, trail_hash = %s, export_file = %s, export_sha256 = %s,"
            " exported_at = CASE WHEN %s THEN now() END WHERE organization_id = %s",
            (
                *end,
                None if done is None else str(done.file.resolve()),
                None if done is None else done.sha256,
                done is not None,
                owner,
            ),
        )


def _finish(organization_id: UUID) -> None:
    """Take the organization's own row away and note that it is done, in one transaction."""
    with database.platform() as connection:
        # Revisions become visible in their order: see `deployments.verbs`.
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (DEPLOY_LOCK,))
        # With it goes whatever was written since its table was emptied.
        connection.execute(
            "DELETE FROM bridge.organizations WHERE organization_id = %s AND status = 'deleting'",
            (organization_id,),
        )
        [(revision,)] = connection.execute(
            "UPDATE bridge.deletions SET finished_at = now(), revision = nextval('bridge.deployment_revision')"
            " WHERE organization_id = %s RETURNING revision",
            (organization_id,),
        ).fetchall()
        connection.execute("SELECT pg_notify(%s, %s)", (CHANNEL, str(revision)))


def _drain(organization_id: UUID) -> None:
    deadline = time.monotonic() + DRAIN_S
    while time.monotonic() < deadline:
        with database.relay() as connection:
            [(busy,)] = connection.execute(
                "SELECT EXISTS (SELECT FROM bridge.messages WHERE organization_id = %(o)s AND state = 'claimed'"
                " AND lease_until > now()) OR EXISTS (SELECT FROM bridge.hand_overs"
                " WHERE organization_id = %(o)s AND state = 'claimed' AND lease_until > now())",
                {"o": organization_id},
            ).fetchall()
        if not busy:
            return
        time.sleep(0.2)


def _record(found: Deletion) -> None:
    """In the trail, so that the export tells who ended it; once. A trail that was tampered with, or his key
    in it, takes no event: it must not keep anybody from deleting."""
    owner, action = found.organization_id, "organization.deletion_requested"
    try:
        with database.tenant(owner) as connection:
            known = connection.execute(
                "SELECT FROM bridge.audit_events WHERE organization_id = %s AND action = %s", (owner, action)
            ).fetchone()
            if known is None:
                details = {"export": found.with_export}
                record(connection, owner, action, found.slug, details=details, by=found.requested_by)
    except (TrailDamaged, DecryptionFailed, NotFound):
        _log.warning("the trail of %s was tampered with: it does not tell of the deletion", found.slug)


def _quiet(_: str, __: int) -> None:
    return None
