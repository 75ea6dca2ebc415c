"""`bridge token`: how the tokens of connections stand."""

from __future__ import annotations

import click

from continuitybridge.cli import options


@click.group("token")
def group() -> None:
    """Tokens that connections authenticate with. A token itself is never shown."""


@group.command("list")
@options.organization
@options.only_environment
@options.json_output
def list_(organization: str, environment: str | None, as_json: bool) -> None:
    """List connections that need tokens; `reconnect` says that somebody has to do something."""
    from continuitybridge import tokens

    found = tokens.list_tokens(options.organization_id(organization), environment)
    if as_json:
        options.print_json(found)
        return
    options.print_table(
        ("environment", "connection", "type", "grant", "state", "obtained", "expires", "problem"),
        [
            (t.environment, t.connection, t.type, t.grant, t.state, t.obtained_at, t.expires_at, t.problem)
            for t in found
        ],
    )


@group.command("refresh")
@click.argument("connection")
@options.place
def refresh(connection: str, organization: str, environment: str) -> None:
    """Obtain another token for CONNECTION now."""
    from continuitybridge import tokens

    found = tokens.refresh(options.organization_id(organization), environment, connection)
    until = f" until {found.expires_at:%Y-%m-%d %H:%M:%S}" if found.expires_at else ""
    click.echo(f"the token of {connection} in {organization}/{environment} is {found.state}{until}")


@group.command("revoke")
@click.argument("connection")
@options.place
def revoke(connection: str, organization: str, environment: str) -> None:
    """Forget the token of CONNECTION, and revoke it at its authorization server where that takes it."""
    from continuitybridge import tokens

    found = tokens.revoke(options.organization_id(organization), environment, connection)
    click.echo(f"the token of {connection} in {organization}/{environment} is forgotten; it is {found.state}")
