"""`bridge person`: people who sign in, as the operator helps them."""

from __future__ import annotations

import click

from continuitybridge.cli import people


@click.group("person")
def group() -> None:
    """Sessions, second factors, identities and limits of people. Airflow makes and removes people:
    `airflow users`."""


@group.command("end-sessions")
@click.argument("user")
def end_sessions(user: str) -> None:
    """Sign USER out everywhere: every session and token ends at its next request."""
    from continuitybridge.cli.options import operator
    from continuitybridge.sign_in import verbs

    user = people.known(user)
    verbs.end_sessions(user, by=operator())
    click.echo(f"{user} is signed out everywhere")


@group.command("remove-second-factor")
@click.argument("user")
def remove_second_factor(user: str) -> None:
    """Let USER, who has lost it, sign in without the second factor. Make sure that it is he who asks."""
    from continuitybridge.cli.options import operator
    from continuitybridge.sign_in import second_factor

    user = people.known(user)
    removed = second_factor.remove(user, by=operator())
    click.echo(f"{user} signs in without it now" if removed else f"{user} had no second factor")


@group.command("unlink")
@click.argument("user")
def unlink(user: str) -> None:
    """Forget whom USER is to identity providers: his verified address links him anew at the next sign-in."""
    from continuitybridge.cli.options import operator
    from continuitybridge.sign_in import identities

    user = people.known(user)
    count = identities.unlink(user, by=operator())
    click.echo(f"{user} is linked no more" if count else f"{user} was not linked")


@group.command("limit")
@click.argument("user")
@click.option(
    "--max-organizations",
    type=click.IntRange(0),
    help="How many may be assigned to him as a consultant. Without it: any number.",
)
def limit(user: str, max_organizations: int | None) -> None:
    """Say how many organizations may be assigned to USER as a consultant; those that are stay."""
    from continuitybridge.organizations import membership

    user = people.known(user)
    membership.limit_assigned(user, max_organizations)
    click.echo(
        f"{user} may have {'any number of' if max_organizations is None else max_organizations} organizations"
    )
