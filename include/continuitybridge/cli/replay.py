"""`bridge replay`: running many messages again, at a rate."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

from continuitybridge.cli import options
from continuitybridge.errors import NotFound

if TYPE_CHECKING:
    from continuitybridge.inbox.replays import Job, Previewed, Query

F = TypeVar("F", bound=Callable[..., Any])

_TIME = click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M:%S%z", "%Y-%m-%d %H:%M:%S"])


def _query(function: F) -> F:
    """Options that say which messages."""
    for option in reversed(
        (
            click.argument("messages", nargs=-1),
            options.organization,
            options.only_environment,
            click.option("--flow", help="Only this flow."),
            click.option(
                "--state",
                "states",
                multiple=True,
                type=click.Choice(["dead", "done", "skipped", "discarded"]),
                help="What they are; may be repeated. Without it dead letters (with ids: whatever they are).",
            ),
            click.option("--node", help="Only what failed at this node."),
            click.option("--code", help="Only what failed for this reason, for example delivery-failed."),
            click.option("--since", type=_TIME, help="Accepted at or after (UTC unless it says otherwise)."),
            click.option("--until", type=_TIME, help="Accepted before."),
            click.option("--key", "keys", multiple=True, help="A search key: name=value; may be repeated."),
            click.option(
                "--from",
                "start",
                type=click.Choice(["beginning", "failure"]),
                default="beginning",
                show_default=True,
                help="Where each begins: `failure` runs on at the node that failed.",
            ),
            click.option(
                "--version",
                default="original",
                show_default=True,
                help="The flow version to run on: original, newest, or a number.",
            ),
        )
    ):
        function = option(function)
    return function


@click.group("replay")
def group() -> None:
    """Run many messages again: what would happen, and jobs that do it."""


@group.command("preview")
@_query
@options.json_output
def preview(start: Literal["beginning", "failure"], version: str, as_json: bool, **given: Any) -> None:
    """Show what a replay of MESSAGES (ids), or of what the options find, would do. Changes nothing."""
    from continuitybridge.inbox import replays

    found = replays.preview(
        options.organization_id(given["organization"]), _read(**given), start=start, version=version
    )
    if as_json:
        options.print_json(found)
        return
    click.echo(f"{'at least ' if found.capped else ''}{found.matched} messages")
    if not found.matched:
        return
    options.print_table(
        ("environment", "flow", "began on", "would run on", "messages"),
        [(g.environment, g.flow, g.from_version, g.version, g.messages) for g in found.groups],
    )
    click.echo(f"\nof these, the first {len(found.sample)}:")
    options.print_table(
        ("message", "is", "would begin at", "Idempotency-Key", "delivers again"),
        [
            (
                m.message_id,
                m.state,
                "-" if m.refused else (m.starts_at or "beginning"),
                _generation(m),
                (m.refused and f"refused: {m.refused}") or m.repeats,
            )
            for m in found.sample
        ],
    )


@group.command("start")
@_query
@click.option("--rate", type=click.FloatRange(0.001, 5_000), help="Messages a second at most (default 50).")
@click.option("--wait", is_flag=True, help="Return when the job has ended; exit status 1 unless it is done.")
def start(
    start: Literal["beginning", "failure"], version: str, rate: float | None, wait: bool, **given: Any
) -> None:
    """Run MESSAGES (ids), or what the options find, again under their ids. A job does it; it survives restarts."""
    from continuitybridge.inbox import replays
    from continuitybridge.inbox.replays.jobs import DEFAULT_RATE_PER_S

    organization_id = options.organization_id(given["organization"])
    job = replays.start(
        organization_id,
        _read(**given),
        by=options.operator(),
        start=start,
        version=version,
        rate_per_s=rate or DEFAULT_RATE_PER_S,
    )
    click.echo(f"replay job {job.job_id}: {job.matched} messages, {job.rate_per_s:g} a second")
    if wait:
        while job.status in ("queued", "running"):
            time.sleep(1.0)
            job = replays.show(organization_id, job.job_id)
        _say(job)
        if job.status != "done":
            sys.exit(1)


@group.command("list")
@options.organization
@options.json_output
def list_(organization: str, as_json: bool) -> None:
    """List replay jobs, newest first."""
    from continuitybridge.inbox import replays

    found = replays.list_jobs(options.organization_id(organization))
    if as_json:
        options.print_json(found)
    else:
        options.print_table(
            ("job", "status", "matched", "replayed", "refused", "per second", "made", "by", "ended"),
            [
                (
                    j.job_id,
                    j.status,
                    j.matched,
                    j.replayed,
                    j.refused,
                    f"{j.rate_per_s:g}",
                    j.created_at,
                    j.created_by,
                    j.ended_at,
                )
                for j in found
            ],
        )


@group.command("show")
@click.argument("job", type=click.UUID)
@options.organization
@options.json_output
def show(job: Any, organization: str, as_json: bool) -> None:
    """Show how far JOB is, and what it left as it was."""
    from continuitybridge.inbox import replays

    found = replays.show(options.organization_id(organization), job)
    if as_json:
        options.print_json(found)
    else:
        _say(found)


@group.command("cancel")
@click.argument("job", type=click.UUID)
@options.organization
def cancel(job: Any, organization: str) -> None:
    """End JOB before its end; what it has replayed is replayed."""
    from continuitybridge.inbox import replays

    _say(replays.cancel(options.organization_id(organization), job, by=options.operator()))


def _read(
    messages: tuple[str, ...],
    organization: str,
    environment: str | None,
    flow: str | None,
    states: tuple[str, ...],
    node: str | None,
    code: str | None,
    since: datetime | None,
    until: datetime | None,
    keys: tuple[str, ...],
) -> Query:
    from datetime import UTC

    from continuitybridge.inbox.replays.query import STATES, Query

    if not (messages or environment or flow or code or node or keys or since or until):
        raise NotFound("say which messages: ids, or an option such as --flow")

    def aware(time: datetime | None) -> datetime | None:
        return time if time is None or time.tzinfo else time.replace(tzinfo=UTC)

    return Query(
        environment=environment,
        flow=flow,
        states=states or (STATES if messages else ("dead",)),
        node=node,
        code=code,
        since=aware(since),
        until=aware(until),
        keys=dict(_pair(key) for key in keys),
        message_ids=messages,
    )


def _generation(message: Previewed) -> str:
    if message.refused:
        return "-"
    return "a new one" if message.new_generation else "the same"


def _say(job: Job) -> None:
    click.echo(f"replay job {job.job_id} {job.status}: {job.replayed} replayed, {job.refused} refused")
    for refusal in job.refusals:
        click.echo(f"  {refusal['id']}: {refusal['detail']}")
    if job.error:
        click.echo(f"  {job.error}")


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise click.BadParameter(f"{text!r} is not name=value", param_hint="--key")
    return name, value
