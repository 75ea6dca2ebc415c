"""`bridge mail`: whether mails go out."""

from __future__ import annotations

import click

from continuitybridge.cli import options


@click.group("mail")
def group() -> None:
    """Mails to people: what waits, what was given up, and whether the mail server takes any."""


@group.command("list")
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1, 1000), help="Most mails to list.")
@options.json_output
def list_(limit: int, as_json: bool) -> None:
    """List the newest mails: of what kind and how far they are, not whom to."""
    from continuitybridge import mail

    found = mail.listing(limit)
    if as_json:
        options.print_json(found)
    else:
        options.print_table(
            ("made", "kind", "status", "tries", "problem", "id"),
            [
                (each.created_at, each.kind, each.status, each.tries, each.problem or "", each.mail_id)
                for each in found
            ],
        )


@group.command("test")
@click.argument("address")
def test(address: str) -> None:
    """Send a mail to ADDRESS now, by the mail server of the settings; say why when it is not taken."""
    from continuitybridge import mail

    mail.send_now(
        mail.Letter(
            kind="test",
            to=address,
            subject="A mail to try the settings",
            paragraphs=("ContinuityBridge can send mails by this mail server.",),
        )
    )
    click.echo("the mail server took it")
