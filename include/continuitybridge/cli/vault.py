"""`bridge vault`: the keys under which everything is encrypted."""

from __future__ import annotations

import sys

import click

from continuitybridge.cli import options


@click.group("vault")
def group() -> None:
    """The master key and the organizations' data keys."""


@group.command("keys")
@options.json_output
def keys(as_json: bool) -> None:
    """List data keys, and whether each opens. Exit status 1 when one does not."""
    from continuitybridge.vault import rotation

    found = rotation.check()
    if as_json:
        options.print_json(found)
    else:
        options.print_table(
            ("organization", "version", "master key", "opens"),
            [(each.organization, each.version, each.master_key_id, each.problem or "yes") for each in found],
        )
    if any(each.problem for each in found):
        sys.exit(1)


@group.command("rotate-master-key")
def rotate_master_key() -> None:
    """Make a new master key and wrap every data key by it, while everything runs.

    Interrupted, it goes on when it is called again. Exit status 1 names data keys that did not open before either.
    """
    from continuitybridge.vault import rotation

    done = rotation.rotate_master_key()
    click.echo(f"master key {done.key_id}: the data keys of {done.rewrapped} organizations were wrapped anew")
    if done.former:
        click.echo(f"backups made before need {', '.join(done.former)}: keep a copy of the file as it was")
    for each in done.broken:
        click.echo(f"{each.organization}, version {each.version}: {each.problem}", err=True)
    if done.broken:
        sys.exit(1)


@group.command("rotate-data-key")
@options.organization
def rotate_data_key(organization: str) -> None:
    """Give the organization a new version of its data key. What was encrypted before stays readable."""
    from continuitybridge.vault import rotation

    version = rotation.rotate_data_key(options.organization_id(organization), by=options.operator())
    click.echo(f"{organization} encrypts under version {version} from now on, every process within a minute")
