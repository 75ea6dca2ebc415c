"""`bridge inbox reconcile`: does the store agree with itself, and with the ledgers of senders and destinations?"""

from __future__ import annotations

import sys
from typing import IO, TYPE_CHECKING

import click

from continuitybridge.cli import options

if TYPE_CHECKING:
    from continuitybridge.inbox.ledgers import Books

SHOWN = 20
"""So many ids of each kind are printed; `--json` has all."""


@click.command("reconcile")
@click.option("--organization", "-o", envvar="BRIDGE_ORGANIZATION", help="Only this organization.")
@click.option(
    "--ids", type=click.File(), help="A sender's ledger: the id of each message that got a 202, one a line."
)
@click.option(
    "--deliveries",
    type=click.File(),
    help="A destination's ledger: the Idempotency-Key of each delivery, one a line, as often as it came.",
)
@options.json_output
def reconcile(organization: str | None, ids: IO[str] | None, deliveries: IO[str] | None, as_json: bool) -> None:
    """Count messages by what became of them, check the store's rules, and hold ledgers against it.

    A line of a ledger may also be a JSON array that begins with the id or key, or an object with `id` or `key`.
    Exit status 1 when a rule is broken, or a message of the ledgers is lost, invented, or came to a node under
    several keys. What is in triage or under way, or ended without coming to a step that delivers, is named, and is
    no error.
    """
    from continuitybridge.inbox import ledgers
    from continuitybridge.inbox import reconcile as store

    if ids is None and deliveries is not None:
        raise click.UsageError("--deliveries needs --ids: what came is compared with what was sent")
    if ids is not None and organization is None:
        raise click.UsageError("--ids needs --organization: the ids are one organization's")
    organization_id = None if organization is None else options.organization_id(organization)
    counts = store.counts(organization_id)
    broken = store.violations(organization_id)
    books = None
    if ids is not None and organization_id is not None:
        came = None if deliveries is None else ledgers.read(deliveries)
        books = ledgers.compare(organization_id, ledgers.read(ids), came)
    if as_json:
        options.print_json({"counts": counts, "violations": broken, "ledger": books})
    else:
        options.print_table(
            ("organization", "accepted", "unsettled", "dead", "done", "skipped", "discarded"),
            [(c.organization, c.accepted, c.unsettled, c.dead, c.done, c.skipped, c.discarded) for c in counts],
        )
        for violation in broken:
            click.echo(f"{violation.message_id}: {violation.rule}", err=True)
        if books is not None:
            _say(books)
    if broken or (books is not None and not books.agree):
        sys.exit(1)


def _say(books: Books) -> None:
    click.echo(
        f"of {books.accepted} messages of the sender: {books.delivered} delivered,"
        f" {len(books.in_triage)} in triage, {len(books.under_way)} under way,"
        f" {len(books.skipped)} skipped, {len(books.undelivered)} ended without a delivery,"
        f" {len(books.lost)} lost"
    )
    if books.deliveries:
        click.echo(
            f"of {books.deliveries} deliveries: {books.repeated} repeated with the same key,"
            f" {len(books.rekeyed)} with another, {len(books.invented)} invented;"
            f" {len(books.unanswered)} messages whose 202 nobody read"
        )
    for title, names in (
        ("lost", books.lost),
        ("invented", books.invented),
        ("came under several keys", books.rekeyed),
        ("in triage", books.in_triage),
        ("under way", books.under_way),
        ("ended without a delivery", books.undelivered),
    ):
        for name in names[:SHOWN]:
            click.echo(f"{name}: {title}", err=True)
        if len(names) > SHOWN:
            click.echo(f"and {len(names) - SHOWN} more: {title}", err=True)
