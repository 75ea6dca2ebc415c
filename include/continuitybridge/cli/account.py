"""`bridge account`: organizations of one customer or consultancy together."""

from __future__ import annotations

import click

from continuitybridge.cli import options


@click.group("account")
def group() -> None:
    """Accounts: organizations of one customer or consultancy, and how many they may be."""


@group.command("set")
@click.argument("account")
@click.option("--name", required=True, help="The name people read.")
@click.option(
    "--max-organizations", type=click.IntRange(0), help="How many may belong to it. Without it: any number."
)
@click.option(
    "--max-ecosystems", type=click.IntRange(0), help="Ecosystems of all of them together. Without it: any number."
)
@click.option(
    "--max-systems",
    type=click.IntRange(0),
    help="Systems of all of them together, each counted in each environment. Without it: any number.",
)
def set_(
    account: str, name: str, max_organizations: int | None, max_ecosystems: int | None, max_systems: int | None
) -> None:
    """Make the account ACCOUNT, or change it."""
    from continuitybridge.organizations import accounts

    accounts.put(
        account,
        name,
        max_organizations=max_organizations,
        max_ecosystems=max_ecosystems,
        max_systems=max_systems,
    )
    click.echo(f"account {account}")


@group.command("list")
@options.json_output
def list_(as_json: bool) -> None:
    """List accounts and their organizations."""
    from continuitybridge.organizations import accounts

    found = accounts.accounts()
    if as_json:
        options.print_json(found)
        return
    options.print_table(
        ("account", "name", "most", "ecosystems", "systems", "organizations"),
        [
            (
                *(each.account, each.name, each.max_organizations, each.max_ecosystems, each.max_systems),
                each.organizations,
            )
            for each in found
        ],
    )


@group.command("assign")
@options.organization
@click.argument("account", required=False)
def assign(organization: str, account: str | None) -> None:
    """Have an organization belong to ACCOUNT; without it, to none."""
    from continuitybridge.organizations import accounts

    accounts.assign(options.organization_id(organization), account)
    click.echo(f"{organization} belongs to {account}" if account else f"{organization} belongs to no account")


@group.command("remove")
@click.argument("account")
def remove(account: str) -> None:
    """Remove an account without organizations."""
    from continuitybridge.organizations import accounts

    accounts.remove(account)
    click.echo(f"account {account} is removed")
