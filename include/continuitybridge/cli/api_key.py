"""`bridge api-key`: how programs sign in."""

from __future__ import annotations

from typing import Literal
from uuid import UUID

import click

from continuitybridge.cli import options, people


@click.group("api-key")
def group() -> None:
    """API keys: programs send them as `Authorization: Bearer` or `X-API-Key`."""


@group.command("create")
@click.argument("name")
@options.organization
@click.option("--user", required=True, help="The user as whom the key acts; his rights end its rights.")
@click.option(
    "--scope", type=click.Choice(["read", "write"]), default="read", show_default=True, help="What it may do."
)
@click.option("--days", type=int, default=365, show_default=True, help="How long it holds.")
def create(name: str, organization: str, user: str, scope: Literal["read", "write"], days: int) -> None:
    """Make a key NAME and print it, this once."""
    from continuitybridge import api_keys

    owner, user = options.organization_id(organization), people.known(user)
    made = api_keys.create(owner, name, user_name=user, scope=scope, days=days, by=options.operator())
    click.echo(made.key)
    click.echo(f"(shown this once; {made.shown.key_id}, until {made.shown.expires_at:%Y-%m-%d})", err=True)


@group.command("list")
@options.organization
@options.json_output
def list_(organization: str, as_json: bool) -> None:
    """List keys, newest first, those that are over too."""
    from continuitybridge import api_keys

    found = api_keys.list_keys(options.organization_id(organization))
    if as_json:
        options.print_json(found)
        return
    options.print_table(
        ("id", "name", "key", "user", "scope", "expires", "last used", "revoked"),
        [
            (
                *(each.key_id, each.name, f"{each.beginning}…", each.user_name, each.scope, each.expires_at),
                *(each.last_used_at, each.revoked_at),
            )
            for each in found
        ],
    )


@group.command("revoke")
@click.argument("key_id", type=click.UUID)
@options.organization
def revoke(key_id: UUID, organization: str) -> None:
    """End the key KEY_ID at once."""
    from continuitybridge import api_keys

    revoked = api_keys.revoke(options.organization_id(organization), key_id, by=options.operator())
    click.echo(f"{revoked.name} is revoked")
