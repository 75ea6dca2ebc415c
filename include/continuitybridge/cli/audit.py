"""`bridge audit`: who did what, whether the trail holds, checkpoints, erasing a person."""

from __future__ import annotations

import sys
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

import click

from continuitybridge.cli import options

if TYPE_CHECKING:
    from continuitybridge.audit.reading import Filter

_TIMES = ["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M:%S"]


def _filters(function: options.F) -> options.F:
    for option in (
        click.option("--until", type=click.DateTime(_TIMES), help="Before this time (UTC)."),
        click.option("--since", type=click.DateTime(_TIMES), help="From this time on (UTC)."),
        click.option("--actor", help="Only what this user did."),
        click.option("--environment", "-e", help="Only this environment."),
        click.option("--target", help="Only what was done to this."),
        click.option("--action", help="Only this action (connection.changed), or all of a kind (connection)."),
    ):
        function = option(function)
    return function


@click.group("audit")
def group() -> None:
    """The audit trail: who did what. Chained by hashes per organization, so that a change shows."""


@group.command("list")
@options.organization
@_filters
@click.option("--limit", type=click.IntRange(1, 1_000), default=50, show_default=True, help="Most events.")
@options.json_output
def list_(organization: str, limit: int, as_json: bool, **given: Any) -> None:
    """List events, newest first."""
    from continuitybridge.audit import reading
    from continuitybridge.vault.keyring import Keyring

    organization_id = options.organization_id(organization)
    found = reading.search(organization_id, _filter(given), keys=Keyring.open(), limit=limit)
    if as_json:
        options.print_json(found)
        return
    options.print_table(
        ("seq", "at", "actor", "action", "target", "environment"),
        [
            (each.seq, each.at, each.actor or ("(erased)" if each.erased else each.actor_kind), each.action,
             each.target, each.environment)
            for each in found
        ],
    )  # fmt: skip


@group.command("export")
@options.organization
@_filters
@click.option("--format", "form", type=click.Choice(["csv", "jsonl"]), default="csv", show_default=True)
@click.option("--output", type=click.File("wb"), default="-", help="File to write; standard output by default.")
def export(organization: str, form: Literal["csv", "jsonl"], output: Any, **given: Any) -> None:
    """Write events to a file, newest first."""
    from continuitybridge import audit, database
    from continuitybridge.audit import exporting, reading
    from continuitybridge.vault.keyring import Keyring

    organization_id = options.organization_id(organization)
    # A trail that was tampered with takes no event, and is what somebody needs to see then.
    with suppress(audit.TrailDamaged), database.tenant(organization_id) as connection:
        audit.record(connection, organization_id, "audit.exported", organization, details={"format": form})
    for piece in exporting.written(reading.every(organization_id, _filter(given), keys=Keyring.open()), form):
        output.write(piece)


@group.command("verify")
@click.option("--organization", "-o", envvar="BRIDGE_ORGANIZATION", help="Only this organization's trail.")
@options.json_output
def verify(organization: str | None, as_json: bool) -> None:
    """Check that nothing in the trail was changed, removed, put in between, put in another order or cut off.

    Against its hashes and the signed checkpoints. Exit status 1 names the first event of each trail that is wrong,
    lines of the checkpoints that we did not sign or that are missed, and organizations that had a trail and are
    gone without having been deleted. One that is being deleted is left out.
    """
    from continuitybridge import lifecycle, organizations
    from continuitybridge.audit import chain, checkpoints

    known = checkpoints.read()
    of = organizations.list_all() if organization is None else [organizations.by_slug(organization)]
    there = {each.organization_id for each in of} if organization is None else None
    done = [
        (each.slug, chain.verify(each.organization_id, known.marks.get(each.organization_id, ())))
        for each in of
        if each.status != "deleting"
    ]
    deleted = [] if there is None else [each for each in lifecycle.deletions() if each.finished_at is not None]
    wrong = list(
        checkpoints.faults(there, deleted={each.organization_id: each.trail_events or 0 for each in deleted})
    )
    if as_json:
        options.print_json(
            {
                "trails": [
                    {"organization": slug, "events": each.events, "hash": each.hash.hex(), "fault": each.fault}
                    for slug, each in done
                ],
                "deleted": deleted,
                "checkpoints": {"file": str(checkpoints.path()), "faults": wrong},
            }
        )
    else:
        options.print_table(
            ("organization", "events that hold", "last hash"),
            [(slug, each.events, each.hash.hex()[:16]) for slug, each in done],
        )
        for gone in deleted:
            click.echo(
                f"{gone.slug}: deleted {gone.finished_at:%Y-%m-%d %H:%M} by {gone.requested_by}; its trail had"
                f" {gone.trail_events} events"
            )
    for slug, each in done:
        if each.fault is not None:
            event = "" if each.fault.event_id is None else f" ({each.fault.event_id})"
            click.echo(f"{slug}: event {each.fault.seq}{event}: {each.fault.problem}", err=True)
    for fault in wrong:
        click.echo(f"checkpoints: {fault.problem}", err=True)
    if wrong or any(each.fault is not None for _, each in done):
        sys.exit(1)


@group.command("checkpoint")
def checkpoint() -> None:
    """Sign what each trail is now and append it to the file of checkpoints. The platform does so every hour."""
    from continuitybridge import organizations
    from continuitybridge.audit import checkpoints

    written = checkpoints.write([each.organization_id for each in organizations.list_all()])
    click.echo(f"{written} trails have grown: {checkpoints.path()}")


@group.command("new-signing-key")
@click.option("--yes", is_flag=True, help="Do not ask.")
def new_signing_key(yes: bool) -> None:
    """Sign checkpoints with a new key from now on: where the former is lost, or may be known to others.

    What the former signed is believed on, by its public key. Each organization's trail tells of the change.
    """
    from continuitybridge import audit, database, organizations
    from continuitybridge.audit import signing
    from continuitybridge.settings import get_settings

    if not yes:
        click.confirm("sign with a new key from now on?", abort=True)
    key_id = signing.replace(get_settings())
    for each in organizations.list_all():
        # A trail that was tampered with takes no event; the others are to know.
        with suppress(audit.TrailDamaged), database.tenant(each.organization_id) as connection:
            audit.record(connection, each.organization_id, "audit.signing_key_changed", key_id)
    click.echo(f"checkpoints are signed by {key_id} from now on; back it up: {signing.KEY_FILE}")


@group.command("erase")
@click.argument("user")
@options.organization
@click.option("--yes", is_flag=True, help="Do not ask.")
def erase(user: str, organization: str, yes: bool) -> None:
    """Make unreadable, for ever, who USER was in the trail, and take his name out of messages' traces and of what
    he made, changed or ended. What was done stays, and the hashes go on holding."""
    from continuitybridge import invitations, organizations
    from continuitybridge.audit import erase_person
    from continuitybridge.vault.keyring import Keyring

    if not yes:
        click.confirm(f"erase {user} from the trail of {organization}? Nothing brings it back", abort=True)
    organization_id = options.organization_id(organization)
    # Asked first: nothing says afterwards which addresses are his.
    invited = invitations.list_invitations(organization_id)
    addresses = {each.email for each in invited if each.accepted_by == user} | {user.lower()}
    erased = erase_person(organization_id, user, Keyring.open())
    click.echo("not in the trail" if not erased else f"{user} is erased from the trail of {organization}")
    if any(each.user_name == user for each in organizations.members(organization_id)):
        click.echo(
            f"{user} is a member: his membership and his API keys that open keep his name until he is removed"
        )
    for each in invited:
        if each.state == "open" and each.email in addresses:
            revoke = f"bridge invitation revoke {each.invitation_id} -o {organization}"
            click.echo(
                f"the invitation {each.invitation_id} is open and keeps the address {each.email}: end it by "
                f"`{revoke}`, and erase {each.email} as well"
            )


def _filter(given: dict[str, Any]) -> Filter:
    from continuitybridge.audit.reading import Filter

    def utc(at: datetime | None) -> datetime | None:
        return None if at is None else at.replace(tzinfo=UTC)

    return Filter(
        given["action"],
        given["target"],
        given["environment"],
        given["actor"],
        utc(given["since"]),
        utc(given["until"]),
    )
