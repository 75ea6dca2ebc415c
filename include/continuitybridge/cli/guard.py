"""`bridge guard`: blocked addresses, and how the guard stands before an organization's webhooks."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID

import click

from continuitybridge.cli import options

_organization = click.option(
    "--organization",
    "-o",
    envvar="BRIDGE_ORGANIZATION",
    help="Only at this organization's webhooks; else everywhere.",
)


@click.group("guard")
def group() -> None:
    """The guard in front of everything."""


@group.group("block")
def block() -> None:
    """Addresses that are refused."""


@block.command("list")
@_organization
@options.json_output
def list_(organization: str | None, as_json: bool) -> None:
    """List blocks, newest first, those of the last week that are over too."""
    from continuitybridge.guard import verbs

    found = verbs.list_blocks(_whose(organization))
    if as_json:
        options.print_json(found)
        return
    options.print_table(
        ("address", "until", "times", "reason", "since", "by"),
        [
            (each.address, each.until or "it is lifted", each.times, each.reason, each.blocked_at, each.blocked_by)
            for each in found
        ],
    )


@block.command("add")
@click.argument("address")
@_organization
@click.option("--minutes", type=click.IntRange(min=1), help="For how long; until it is lifted without.")
@click.option("--reason", default="", help="Why, for those who look.")
def add(address: str, organization: str | None, minutes: int | None, reason: str) -> None:
    """Refuse ADDRESS (of IPv6: its network of 64 bits)."""
    from continuitybridge.guard import verbs

    for_ = None if minutes is None else timedelta(minutes=minutes)
    made = verbs.block(_whose(organization), address, reason=reason, for_=for_, by=options.operator())
    click.echo(f"{made.address} is blocked until {made.until or 'it is lifted'}")


@block.command("lift")
@click.argument("address")
@_organization
def lift(address: str, organization: str | None) -> None:
    """Let ADDRESS in again, within two seconds, as if it had never been blocked."""
    from continuitybridge.guard import verbs

    verbs.lift(_whose(organization), address, by=options.operator())
    click.echo(f"{address} is let in again")


@group.group("policy")
def policy() -> None:
    """How the guard stands before an organization's webhooks, and its limits."""


@policy.command("show")
@options.organization
@options.json_output
def show(organization: str, as_json: bool) -> None:
    """Show it; - is as the platform's settings say."""
    from continuitybridge.guard import verbs

    _print(verbs.policy(options.organization_id(organization)), as_json)


@policy.command("set")
@options.organization
@click.option(
    "--mode", type=click.Choice(["enforce", "detect", "off", "default"]), help="detect: log, and let pass."
)
@click.option("--bots", type=click.Choice(["refuse", "admit", "default"]), help="What names itself a scanner.")
@click.option(
    "--allow", multiple=True, help="Address or network that may always send; replaces the list. '': none."
)
@click.option("--webhooks-limit", help="Such as '600/minute; 20000/hour'; default: the platform's.")
@click.option("--api-limit", help="The same for requests to the API.")
@options.json_output
def set_(
    organization: str,
    mode: str | None,
    bots: str | None,
    allow: tuple[str, ...],
    webhooks_limit: str | None,
    api_limit: str | None,
    as_json: bool,
) -> None:
    """Change what is given and leave the rest."""
    from continuitybridge.guard import verbs

    organization_id, by = options.organization_id(organization), options.operator()
    now = verbs.policy(organization_id)
    if mode or bots or allow:
        modes = {None: now.mode, "default": None, "enforce": "enforce", "detect": "detect", "off": "off"}
        now = verbs.set_policy(
            organization_id,
            mode=modes[mode],
            block_bots={None: now.block_bots, "default": None, "refuse": True, "admit": False}[bots],
            allowed=[each for each in allow if each] if allow else now.allowed,
            by=by,
        )
    if webhooks_limit is not None or api_limit is not None:
        now = verbs.set_limits(
            organization_id,
            webhooks=now.webhooks_limit if webhooks_limit is None else _limit(webhooks_limit),
            api=now.api_limit if api_limit is None else _limit(api_limit),
            by=by,
        )
    _print(now, as_json)


def _limit(given: str) -> str | None:
    return None if given == "default" else given


def _print(found: Any, as_json: bool) -> None:
    from dataclasses import asdict

    values = asdict(found)
    if as_json:
        options.print_json(values)
    else:
        options.print_table(
            ("setting", "value"), [(name.replace("_", " "), each) for name, each in values.items()]
        )


def _whose(organization: str | None) -> UUID | None:
    return None if organization is None else options.organization_id(organization)
