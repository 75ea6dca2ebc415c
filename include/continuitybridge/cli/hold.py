"""`bridge flow pause | drain | resume | cancel | holds`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import click

from continuitybridge.cli import options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from continuitybridge.inbox.holds import Hold

_reason = click.option("--reason", default="", help="Why; shown with the hold and kept with what is cancelled.")


@click.command("pause")
@click.argument("flow")
@options.place
@_reason
def pause(flow: str, organization: str, environment: str, reason: str) -> None:
    """Run no message of FLOW until it is resumed. It goes on accepting them."""
    _hold("pause", flow, organization, environment, reason)


@click.command("drain")
@click.argument("flow")
@options.place
@_reason
def drain(flow: str, organization: str, environment: str, reason: str) -> None:
    """Take no new message of FLOW and finish what is there. Webhooks answer 503 with Retry-After."""
    _hold("drain", flow, organization, environment, reason)


@click.command("resume")
@click.argument("flow")
@options.place
def resume(flow: str, organization: str, environment: str) -> None:
    """End the pause or drain of FLOW."""
    from continuitybridge.inbox import holds

    left = holds.resume(options.organization_id(organization), environment, flow)
    click.echo(f"{organization}.{environment}.{flow} resumed")
    for hold in left:
        click.echo(f"  still held: {hold.reason} (by {hold.by})")


@click.command("cancel")
@click.argument("flow")
@options.place
@_reason
@click.option("--yes", is_flag=True, help="Do not ask.")
def cancel(flow: str, organization: str, environment: str, reason: str, yes: bool) -> None:
    """Settle as skipped what FLOW has not settled. Dead letters stay, and so does what comes later."""
    from continuitybridge.inbox import holds

    if not yes:
        click.confirm(f"cancel every unsettled message of {organization}.{environment}.{flow}?", abort=True)
    organization_id = options.organization_id(organization)
    cancelled = 0
    while True:
        done = holds.cancel(organization_id, environment, flow, by=options.operator(), reason=reason)
        cancelled += done.messages
        if not done.left:
            break
    click.echo(f"{cancelled} messages of {organization}.{environment}.{flow} settled as skipped")


@click.command("holds")
@options.organization
@options.only_environment
@options.json_output
def list_(organization: str, environment: str | None, as_json: bool) -> None:
    """List the flows that are paused or draining, and how many messages of theirs are unsettled."""
    from continuitybridge.inbox import holds

    found = holds.list_holds(options.organization_id(organization), environment)
    if as_json:
        options.print_json(found)
    else:
        _print(found)


COMMANDS = (pause, drain, resume, cancel, list_)


def _hold(kind: Literal["pause", "drain"], flow: str, organization: str, environment: str, reason: str) -> None:
    from continuitybridge.inbox import holds

    organization_id = options.organization_id(organization)
    _print(holds.hold(organization_id, environment, flow, kind, by=options.operator(), reason=reason))


def _print(found: Sequence[Hold]) -> None:
    options.print_table(
        ("environment", "flow", "hold", "since", "by", "reason", "unsettled"),
        [(h.environment, h.flow, h.kind, h.since, h.by, h.reason, h.unsettled) for h in found],
    )
