"""`bridge destination`: pausing and draining where flows deliver, calls at once, circuits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from continuitybridge.cli import options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from continuitybridge.destinations import Destination

_reason = click.option("--reason", default="", help="Why; shown with the destination.")


@click.group("destination")
def group() -> None:
    """Destinations: connections by name, other addresses by host."""


@group.command("list")
@options.organization
@options.only_environment
@options.json_output
def list_(organization: str, environment: str | None, as_json: bool) -> None:
    """List destinations, what holds for them, and how much waits for them."""
    from continuitybridge import destinations

    found = destinations.list_destinations(options.organization_id(organization), environment)
    if as_json:
        options.print_json(found)
    else:
        _print(found)


@group.command("pause")
@click.argument("name")
@options.place
@_reason
def pause(name: str, organization: str, environment: str, reason: str) -> None:
    """Send nothing to NAME until it is resumed. Messages wait, and no attempt is counted."""
    from continuitybridge import destinations

    organization_id = options.organization_id(organization)
    _print([destinations.pause(organization_id, environment, name, by=options.operator(), reason=reason)])


@group.command("drain")
@click.argument("name")
@options.place
@_reason
def drain(name: str, organization: str, environment: str, reason: str) -> None:
    """Deliver to NAME what was accepted; the flows that deliver there take nothing new."""
    from continuitybridge import destinations

    organization_id = options.organization_id(organization)
    _print([destinations.drain(organization_id, environment, name, by=options.operator(), reason=reason)])


@group.command("resume")
@click.argument("name")
@options.place
def resume(name: str, organization: str, environment: str) -> None:
    """End pause and drain of NAME, close its circuit, and let what waits go on at once."""
    from continuitybridge import destinations

    organization_id = options.organization_id(organization)
    _print([destinations.resume(organization_id, environment, name, by=options.operator())])


@group.command("cancel")
@click.argument("name")
@options.place
@_reason
@click.option("--yes", is_flag=True, help="Do not ask.")
def cancel(name: str, organization: str, environment: str, reason: str, yes: bool) -> None:
    """Settle as skipped what waits for NAME now. Pause it first, so that nothing is delivered meanwhile."""
    from continuitybridge import destinations

    if not yes:
        click.confirm(f"skip everything that waits for {name} in {organization}/{environment}?", abort=True)
    organization_id = options.organization_id(organization)
    skipped = destinations.cancel(organization_id, environment, name, by=options.operator(), reason=reason)
    click.echo(f"{skipped} parts of messages that waited for {name} settled as skipped")


@group.command("set")
@click.argument("name")
@options.place
@click.option("--max-concurrency", type=click.IntRange(1), help="Most calls at once, in each process.")
@click.option("--failures", type=click.IntRange(0), help="Failures in a row that open the circuit; 0: never.")
@click.option("--wait-s", type=click.FloatRange(0.1), help="How long it is left alone at first, in seconds.")
@click.option("--max-wait-s", type=click.FloatRange(0.1), help="Longest time it is left alone, in seconds.")
@click.option("--defaults", is_flag=True, help="Forget what was set before.")
def set_(
    name: str,
    organization: str,
    environment: str,
    max_concurrency: int | None,
    failures: int | None,
    wait_s: float | None,
    max_wait_s: float | None,
    defaults: bool,
) -> None:
    """Set what holds for NAME alone; what is not given stays."""
    from continuitybridge import destinations

    given: dict[str, int | float | None] = {
        "max_concurrency": max_concurrency,
        "circuit_failures": failures,
        "circuit_wait_s": wait_s,
        "circuit_max_wait_s": max_wait_s,
    }
    changes = given if defaults else {key: value for key, value in given.items() if value is not None}
    if not changes:
        raise click.UsageError("nothing to set: give an option")
    _print([destinations.configure(options.organization_id(organization), environment, name, changes)])


def _print(found: Sequence[Destination]) -> None:
    options.print_table(
        (
            "environment",
            "destination",
            "status",
            "since",
            "by",
            "reason",
            "circuit",
            "until",
            "at once",
            "waiting",
        ),
        [
            (
                d.environment,
                d.name,
                d.status,
                d.status_since,
                d.status_by,
                d.reason,
                d.circuit,
                d.opened_until,
                d.max_concurrency,
                d.waiting,
            )
            for d in found
        ],
    )
