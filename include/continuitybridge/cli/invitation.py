"""`bridge invitation`: how somebody becomes a member who is none yet."""

from __future__ import annotations

from uuid import UUID

import click

from continuitybridge.cli import options


@click.group("invitation")
def group() -> None:
    """Invitations into an organization."""


@group.command("create")
@click.argument("email")
@options.organization
@click.option(
    "--role",
    type=click.Choice(["consultant", "customer_admin", "customer_user"]),
    default="customer_user",
    show_default=True,
    help="What the member will be.",
)
@click.option("--days", type=int, default=7, show_default=True, help="How long it holds.")
def create(email: str, organization: str, role: str, days: int) -> None:
    """Invite whoever reads mail at EMAIL, and print the invitation's token, this once. It ends an open one of the
    same address."""
    from continuitybridge import invitations

    made = invitations.invite(options.organization_id(organization), email, role, by=options.operator(), days=days)
    click.echo(made.token)
    click.echo(f"accept it at {made.address}", err=True)
    shown = made.shown
    click.echo(
        f"(shown this once; {shown.invitation_id}, holds until {shown.expires_at:%Y-%m-%d %H:%M})", err=True
    )


@group.command("list")
@options.organization
@options.json_output
def list_(organization: str, as_json: bool) -> None:
    """List invitations, newest first, those that are over too."""
    from continuitybridge import invitations

    found = invitations.list_invitations(options.organization_id(organization))
    if as_json:
        options.print_json(found)
        return
    options.print_table(
        ("id", "email", "role", "state", "expires", "invited by", "accepted by"),
        [
            (each.invitation_id, each.email, each.role.value, each.state, each.expires_at, each.created_by,
             each.accepted_by)
            for each in found
        ],
    )  # fmt: skip


@group.command("revoke")
@click.argument("invitation_id", type=click.UUID)
@options.organization
def revoke(invitation_id: UUID, organization: str) -> None:
    """End the invitation INVITATION_ID at once."""
    from continuitybridge import invitations

    ended = invitations.revoke(options.organization_id(organization), invitation_id, by=options.operator())
    click.echo(f"the invitation of {ended.email} is revoked")
