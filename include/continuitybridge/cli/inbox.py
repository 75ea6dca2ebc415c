"""`bridge inbox`: where messages are, what failed, and running it again."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Any, Literal

import click

from continuitybridge.cli import options
from continuitybridge.cli.reconcile import reconcile

_flow = click.option("--flow", help="Only this flow.")
_limit = click.option(
    "--limit", type=click.IntRange(1, 200), default=50, show_default=True, help="At most so many."
)


@click.group("inbox")
def group() -> None:
    """Accepted messages: where they are, what failed, replay."""


@group.command("list")
@options.organization
@options.only_environment
@_flow
@click.option(
    "--state",
    type=click.Choice(["accepted", "claimed", "handed_over", "waiting", "dead", "done", "skipped", "discarded"]),
    help="Only messages in this state.",
)
@click.option("--key", "keys", multiple=True, help="A search key the flow declares: name=value; may be repeated.")
@click.option("--cursor", help="Where the page before ended.")
@_limit
@options.json_output
def list_(
    organization: str,
    environment: str | None,
    flow: str | None,
    state: str | None,
    keys: tuple[str, ...],
    cursor: str | None,
    limit: int,
    as_json: bool,
) -> None:
    """List messages, newest first."""
    from continuitybridge.inbox import listing

    page = listing.list_messages(
        options.organization_id(organization),
        environment=environment,
        flow=flow,
        state=state,
        keys=dict(_pair(key) for key in keys) or None,
        cursor=cursor,
        limit=limit,
    )
    if as_json:
        options.print_json({"messages": page.messages, "cursor": page.cursor})
        return
    options.print_table(
        ("message", "environment", "flow", "version", "state", "accepted", "keys"),
        [
            (
                m.message_id,
                m.environment,
                m.flow,
                m.version,
                m.state,
                m.accepted_at,
                [f"{name}={value}" for name, value in m.keys.items()],
            )
            for m in page.messages
        ],
    )
    if page.cursor:
        click.echo(f"more: --cursor {page.cursor}")


@group.command("status")
@click.argument("message")
@options.organization
@options.json_output
def status(message: str, organization: str, as_json: bool) -> None:
    """Show where MESSAGE is and what happened to it."""
    from continuitybridge.inbox.status import status as find

    found = find(options.organization_id(organization), message)
    if as_json:
        options.print_json(found)
        return
    facts = asdict(found)
    trace, parts, failures = facts.pop("trace"), found.parts, found.failures
    facts["keys"] = [f"{name}={value}" for name, value in found.keys.items()]
    options.print_table(("", ""), facts.items())
    nodes = [entry for entry in trace if "node_id" in entry]
    if nodes:
        click.echo()
        options.print_table(
            ("node", "received", "emitted", "failed", "microseconds"),
            [
                (n["node_id"], n.get("received"), n.get("emitted"), n.get("failed"), n.get("duration_us"))
                for n in nodes
            ],
        )
    for entry in trace:
        if "node_id" not in entry:
            click.echo(options.plain(", ".join(f"{name} {value}" for name, value in entry.items())))
    if parts:
        click.echo()
        options.print_table(
            ("part", "goes on at", "state", "attempts", "available", "waits for", "until"),
            [
                (
                    *(p.child_id, p.node_id, p.state, p.attempts, p.available_at),
                    *(p.called_id or p.waits_for, p.until),
                )
                for p in parts
            ],
        )
    if failures:
        click.echo()
        options.print_table(
            ("failed at", "reason", "verdict", "attempt", "final", "time"),
            [(f.node_id, f.code, f.verdict, f.attempt, f.final, f.at) for f in failures],
        )


@group.command("dead")
@options.organization
@options.only_environment
@_flow
@click.option("--code", help="Only this reason, for example validation-failed.")
@_limit
@options.json_output
def dead(
    organization: str, environment: str | None, flow: str | None, code: str | None, limit: int, as_json: bool
) -> None:
    """List dead letters, newest first."""
    from continuitybridge.inbox import triage

    found = triage.list_dead(
        options.organization_id(organization), environment=environment, flow=flow, code=code, limit=limit
    )
    if as_json:
        options.print_json(found)
    else:
        options.print_table(
            ("message", "environment", "flow", "version", "node", "reason", "attempts", "died", "failure"),
            [
                (
                    d.message_id,
                    d.environment,
                    d.flow,
                    d.version,
                    d.node_id,
                    d.code,
                    d.attempts,
                    d.dead_at,
                    d.failure_id,
                )
                for d in found
            ],
        )


@group.command("explain")
@click.argument("failure", type=click.UUID)
@options.organization
def explain(failure: Any, organization: str) -> None:
    """Show what was captured of FAILURE (its id stands in `dead` and `status`): detail, input, node."""
    from continuitybridge.inbox import triage
    from continuitybridge.vault.keyring import Keyring

    options.print_json(triage.context(options.organization_id(organization), failure, Keyring.open()))


@group.command("replay")
@click.argument("messages", nargs=-1, required=True)
@options.organization
@click.option(
    "--from",
    "start",
    type=click.Choice(["beginning", "failure"]),
    default="beginning",
    show_default=True,
    help="Where to begin: `failure` runs on at the node that failed.",
)
@click.option(
    "--version",
    default="original",
    show_default=True,
    help="The flow version to run on: original, newest, or a number.",
)
def replay(
    messages: tuple[str, ...], organization: str, start: Literal["beginning", "failure"], version: str
) -> None:
    """Run MESSAGES (ids) again under their ids. Exit status 1 when any was refused."""
    from continuitybridge.inbox.replay import replay as run_again

    results = run_again(
        options.organization_id(organization), messages, by=options.operator(), start=start, version=version
    )
    for done in results:
        if done.refused is None:
            click.echo(f"{done.message_id} runs again on {done.version}, generation {done.generation}")
        else:
            click.echo(f"{done.message_id} refused: {done.refused.detail}", err=True)
    if any(done.refused for done in results):
        sys.exit(1)


@group.command("discard")
@click.argument("messages", nargs=-1, required=True)
@options.organization
def discard(messages: tuple[str, ...], organization: str) -> None:
    """Decide that dead letters stay undelivered. Exit status 1 when any was none."""
    from continuitybridge.inbox import triage

    discarded = triage.discard(options.organization_id(organization), messages, by=options.operator())
    for message in messages:
        if message in discarded:
            click.echo(f"{message} discarded")
        else:
            click.echo(f"{message} is not a dead letter", err=True)
    if len(discarded) < len(set(messages)):
        sys.exit(1)


@group.command("sweep")
@options.json_output
def sweep(as_json: bool) -> None:
    """Take up what processes that died left lying. The dispatcher does it all the time; this does it once."""
    from continuitybridge.inbox.sweep import sweep as look

    swept = look()
    if as_json:
        options.print_json(swept)
    else:
        options.print_table(
            ("found", "number"), [(name.replace("_", " "), n) for name, n in asdict(swept).items()]
        )


group.add_command(reconcile)


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise click.BadParameter(f"{text!r} is not name=value", param_hint="--key")
    return name, value
