"""`bridge quota`: what organizations may have and use."""

from __future__ import annotations

import click

from continuitybridge.cli import options

_INTRODUCTION = """\
# Quotas

Made by `bridge quota tiers --markdown` from the table that the database enforces.

Every organization has a tier (`bridge organization create --tier`, `bridge quota set-tier`); single limits can
be agreed upon (`bridge quota agree`). Whatever would go beyond a limit is refused where it would be made, with
the resource, the limit and the use (403, `quota-exceeded`). What an organization has already stays when its
tier changes.

Runs and messages are counted by the hour and by the day (UTC). A message beyond is refused before it is
accepted (429, `allowance-exhausted`, with `Retry-After`); what was accepted is delivered. Messages of flows in
batches wait when the runs are used up, and go on in the next hour; a run that somebody starts himself fails and
says why. A process that takes webhooks counts messages in blocks, so that a little less than the limit may be
accepted in an hour, never more; a message sent again under its idempotency key is refused too while nothing is
left.

Storage is counted when a message is accepted, and measured anew each night after retention removed what is over
(`bridge quota measure` does it at once): payloads and headers in the inbox, settled or not, dead letters too, and
the objects of the payload store, as encrypted. A message for which there is no room is refused in the same way,
with `storage_mb` and a `Retry-After` of ten minutes; what flows make of accepted messages is never refused, and
counts from the next measurement on. A process that takes webhooks counts room in blocks of at most 8 MB, and of at
most an eighth of what is left, so that a message may be refused a little before the limit.

`concurrent_runs` limits DAG runs, and with them batches. Messages of stream flows make no DAG run: how many of
them run at once is each worker's to share out evenly (see [streams.md](streams.md)), and their number is limited
by the allowance of messages.

An account (`bridge account set`) limits how many organizations belong to it, and how many ecosystems and systems
all of them together have; `bridge person limit` limits how many organizations are assigned to a consultant. Beyond
it the assignment, the ecosystem or the system is refused in the same way, with `organizations`,
`account_ecosystems`, `account_systems` or `assigned_organizations`. The trail of each organization concerned tells
of a changed limit; one that was tampered with keeps no limit from being set, and the log says so.

"""


@click.group("quota")
def group() -> None:
    """What organizations may have and use."""


@group.command("tiers")
@click.option("--markdown", is_flag=True, help="Print the reference page.")
def tiers(markdown: bool) -> None:
    """The tiers and their limits."""
    from continuitybridge.organizations.tiers import LIMITS, MEANING, Tier

    headings = ("resource", "what", *Tier)
    rows = [
        (resource.value, MEANING[resource], *("unlimited" if each is None else f"{each:,}" for each in allowed))
        for resource, allowed in LIMITS.items()
    ]
    if markdown:
        lines = [" | ".join(headings), " | ".join("---" for _ in headings)]
        lines += [" | ".join((f"`{row[0]}`", *row[1:])) for row in rows]
        click.echo(_INTRODUCTION + "\n".join(f"| {line} |" for line in lines))
    else:
        options.print_table(headings, rows)


@group.command("list")
@options.organization
@options.json_output
def list_(organization: str, as_json: bool) -> None:
    """What an organization may have, and has."""
    from continuitybridge.organizations import quotas

    found = quotas.quotas(options.organization_id(organization))
    if as_json:
        options.print_json(found)
    else:
        options.print_table(
            ("resource", "used", "allowed", "agreed"),
            [
                (each.resource, each.used, "unlimited" if each.allowed is None else each.allowed, each.agreed)
                for each in found
            ],
        )


@group.command("set-tier")
@options.organization
@click.argument("tier")
def set_tier(organization: str, tier: str) -> None:
    """Give an organization another TIER. What was agreed upon stays."""
    from continuitybridge.organizations import quotas

    quotas.set_tier(options.organization_id(organization), tier)
    click.echo(f"{organization} is {tier}")


@group.command("agree")
@options.organization
@click.argument("resource")
@click.argument("allowed")
def agree(organization: str, resource: str, allowed: str) -> None:
    """Limit RESOURCE to ALLOWED, a number or `unlimited`, whatever the tier says."""
    from continuitybridge.errors import ConfigurationError
    from continuitybridge.organizations import quotas

    if allowed != "unlimited" and not allowed.isdecimal():
        raise ConfigurationError(
            f"{allowed!r} is neither a number nor `unlimited`", field="allowed", value=allowed
        )
    limit = None if allowed == "unlimited" else int(allowed)
    quotas.agree(options.organization_id(organization), resource, limit)
    click.echo(f"{organization}: {resource} {allowed}")


@group.command("reset")
@options.organization
def reset(organization: str) -> None:
    """End what was agreed upon: every limit is the tier's again."""
    from continuitybridge.organizations import quotas

    quotas.as_tier(options.organization_id(organization))
    click.echo(f"{organization} has its tier's quotas")


@group.command("measure")
@options.organization
def measure(organization: str) -> None:
    """Measure now what the organization's storage holds, as is done each night after retention."""
    from continuitybridge.inbox import storage

    held = storage.measure(options.organization_id(organization))
    click.echo(f"{organization} holds {held} bytes")
