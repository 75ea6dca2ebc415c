"""`bridge approvals`: what waits for a person, and the decision."""

from __future__ import annotations

from typing import Any, Literal

import click

from continuitybridge.cli import options

_comment = click.option("--comment", "-m", default="", help="Kept with the decision in the message's trace.")


@click.group("approvals")
def group() -> None:
    """Messages that wait for the decision of a person."""


@group.command("list")
@options.organization
@options.only_environment
@click.option("--flow", help="Only this flow.")
@click.option("--limit", type=click.IntRange(1, 1_000), default=100, show_default=True, help="At most so many.")
@click.option("--after", type=click.UUID, help="Only those behind this approval, the last of the page before.")
@options.json_output
def list_(
    organization: str, environment: str | None, flow: str | None, limit: int, after: Any, as_json: bool
) -> None:
    """List what waits for a decision, the longest first."""
    from continuitybridge.inbox import waits
    from continuitybridge.vault.keyring import Keyring

    found = waits.list_approvals(
        options.organization_id(organization),
        keys=Keyring.open(),
        environment=environment,
        flow=flow,
        after=after,
        limit=limit,
    )
    if as_json:
        options.print_json(found)
    else:
        options.print_table(
            ("approval", "environment", "flow", "step", "message", "title", "waits since", "until"),
            [
                (a.approval_id, a.environment, a.flow, a.node_id, a.part_id, a.title, a.waits_since, a.until)
                for a in found
            ],
        )


@group.command("show")
@click.argument("approval", type=click.UUID)
@options.organization
def show(approval: Any, organization: str) -> None:
    """Show what is to be known for deciding on APPROVAL, as JSON."""
    from continuitybridge.inbox import waits
    from continuitybridge.vault.keyring import Keyring

    options.print_json(waits.get_approval(options.organization_id(organization), approval, keys=Keyring.open()))


@group.command("approve")
@click.argument("approvals", type=click.UUID, nargs=-1, required=True)
@options.organization
@_comment
def approve(approvals: tuple[Any, ...], organization: str, comment: str) -> None:
    """Approve APPROVALS. The first decision on each holds."""
    _decide(approvals, organization, "approved", comment)


@group.command("reject")
@click.argument("approvals", type=click.UUID, nargs=-1, required=True)
@options.organization
@_comment
def reject(approvals: tuple[Any, ...], organization: str, comment: str) -> None:
    """Reject APPROVALS. The first decision on each holds."""
    _decide(approvals, organization, "rejected", comment)


def _decide(
    approvals: tuple[Any, ...], organization: str, decision: Literal["approved", "rejected"], comment: str
) -> None:
    import sys

    from continuitybridge.errors import NotFound
    from continuitybridge.inbox import waits

    organization_id = options.organization_id(organization)
    missing = False
    for approval_id in approvals:
        try:
            message_id = waits.decide(
                organization_id, approval_id, decision, by=options.operator(), comment=comment
            )
        except NotFound as error:
            missing = True
            click.echo(error.detail, err=True)
        else:
            click.echo(f"{message_id} {decision}")
    if missing:
        sys.exit(1)
