"""`bridge vault`: the keys under which everything is encrypted."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import IO, TYPE_CHECKING, Any, Literal, TypeVar
from uuid import UUID

import click

from continuitybridge.cli import options

if TYPE_CHECKING:
    from continuitybridge.custody import Verified


@click.group("vault")
def group() -> None:
    """The master key and the organizations' data keys."""


_passphrase_file = click.option(
    "--passphrase-file",
    type=click.File(),
    help="File whose first line is the passphrase; - is standard input. Without it, it is asked for.",
)


F = TypeVar("F", bound=Callable[..., Any])


def _whose(function: F) -> F:
    """Whose data key: an organization's, or the platform's own."""
    platform = click.option(
        "--platform",
        is_flag=True,
        help="The platform's own: second factors, and mails to people of no organization.",
    )
    organization = click.option(
        "--organization", "-o", envvar="BRIDGE_ORGANIZATION", help="The organization's slug."
    )
    return organization(platform(function))


def _owner(organization: str | None, platform: bool) -> tuple[str, UUID]:
    from continuitybridge.vault import PLATFORM

    if platform:
        return "the platform", PLATFORM
    if organization is None:
        raise click.UsageError("name an organization by -o, or say --platform")
    return organization, options.organization_id(organization)


def _passphrase(file: IO[str] | None, *, new: bool = False) -> str:
    if file is not None:
        return file.readline().rstrip("\n")
    return str(click.prompt("Passphrase", hide_input=True, confirmation_prompt=new, err=True))


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
@click.option(
    "--to",
    metavar="WHERE",
    help="file: a key in the master key's file. passphrase: one there that a passphrase seals. aws:… or "
    "transit:…: a key of a key management service. Without it, the kind that there is.",
)
@_passphrase_file
def rotate_master_key(to: str | None, passphrase_file: IO[str] | None) -> None:
    """Wrap every data key by another master key, while everything runs.

    A key of a key management service stays without --to: everything is wrapped by its newest version. Interrupted,
    it goes on when it is called again. Exit status 1 names data keys that did not open before either, and former
    master keys that data keys still need.
    """
    from continuitybridge.settings import get_settings
    from continuitybridge.vault import kms, master, rotation, sealing

    settings = get_settings()
    key: kms.KmsKey | master.MasterKey | sealing.SealedKey | None = None
    if to == "passphrase":
        passphrase = _passphrase(passphrase_file, new=True)
        key = sealing.sealed_by(passphrase, settings.master_key_path)
    elif to == "file":
        key = master.MasterKey.new()
    elif to is not None:
        kms.service(to)
        key = kms.KmsKey(to)
    done = rotation.rotate_master_key(settings, to=key)
    click.echo(f"master key {done.key_id}: the data keys of {done.rewrapped} organizations were wrapped anew")
    if done.former:
        click.echo(f"backups made before need {', '.join(done.former)}: keep a copy of the file as it was")
    for each in done.broken:
        click.echo(f"{each.organization}, version {each.version}: {each.problem}", err=True)
    if done.remaining:
        click.echo(f"data keys still need {', '.join(done.remaining)}: it stays in the file", err=True)
    if done.broken or done.remaining:
        sys.exit(1)


@group.command("unseal")
@_passphrase_file
def unseal(passphrase_file: IO[str] | None) -> None:
    """Open the sealed master key by its passphrase, for all of the platform's processes on this machine, until it
    is started again or the key is sealed."""
    from continuitybridge.settings import get_settings
    from continuitybridge.vault import sealing

    opened = sealing.unseal(get_settings().master_key_path, _passphrase(passphrase_file))
    click.echo(f"unsealed: master key {', '.join(opened)}")


@group.command("seal")
def seal() -> None:
    """Forget the unsealed master key. What runs ends within minutes, when it needs its data keys again."""
    from continuitybridge.settings import get_settings
    from continuitybridge.vault import sealing

    sealing.seal(get_settings().master_key_path)
    click.echo("sealed")


@group.command("rotate-data-key")
@_whose
def rotate_data_key(organization: str | None, platform: bool) -> None:
    """Give the organization a new version of its data key. What was encrypted before stays readable."""
    from continuitybridge.vault import rotation

    name, owner = _owner(organization, platform)
    version = rotation.rotate_data_key(owner, by=options.operator())
    click.echo(f"{name} encrypts under version {version} from now on, every process within a minute")


@group.command("verify")
@click.option("--organization", "-o", envvar="BRIDGE_ORGANIZATION", help="Only this organization's.")
@click.option(
    "--objects",
    type=click.Choice(["none", "sample", "all"]),
    default="sample",
    show_default=True,
    help="How many of the large payloads, which stand in the payload store, are opened.",
)
@options.json_output
def verify(organization: str | None, objects: Literal["none", "sample", "all"], as_json: bool) -> None:
    """Open every row of every encrypted column, while everything runs. Exit status 1 when one does not open: the
    first of its column is named."""
    from continuitybridge import custody, organizations
    from continuitybridge.vault import PLATFORM, Keyring, rotation

    chosen = [organizations.by_slug(organization)] if organization else organizations.list_all()
    places = {each.slug: each.organization_id for each in chosen}
    if organization is None:
        places["(platform)"] = PLATFORM
    broken_keys = [each for each in rotation.check() if each.problem and each.organization in places]
    found: dict[str, list[Verified]] = {}
    for slug, organization_id in places.items():
        found[slug] = custody.verify(organization_id, Keyring.open(), objects=objects)
    if as_json:
        options.print_json({"data_keys": broken_keys, "organizations": found})
    else:
        for key in broken_keys:
            click.echo(f"{key.organization}: data key {key.version} does not open: {key.problem}", err=True)
        options.print_table(
            ("organization", "table", "column", "opened", "objects", "broken"),
            [
                (slug, each.table, each.column, each.opened, each.objects, each.broken)
                for slug, columns in found.items()
                for each in columns
                if each.opened or each.broken
            ],
        )
        for slug, columns in found.items():
            for done in columns:
                if done.first is not None:
                    click.echo(
                        f"{slug}: {done.table}.{done.column} {done.first.key}: {done.first.problem}", err=True
                    )
    if broken_keys or any(each.broken for columns in found.values() for each in columns):
        sys.exit(1)


@group.command("reencrypt")
@_whose
def reencrypt(organization: str | None, platform: bool) -> None:
    """Bring everything of the organization to its current data key, while everything runs.

    Interrupted, it goes on when it is called again. Exit status 1 when something still names another key.
    """
    from continuitybridge import custody

    name, owner = _owner(organization, platform)
    done = custody.reencrypt(owner, by=options.operator())
    click.echo(f"{name}: {done.rows} rows were brought to version {done.version} of the data key")
    if done.left:
        click.echo(
            f"{done.left} rows name another version: call it again in a minute, and `bridge vault verify`",
            err=True,
        )
        sys.exit(1)


@group.command("retire-keys")
@_whose
def retire_keys(organization: str | None, platform: bool) -> None:
    """Delete data keys that nothing needs any more: everything is opened without them first.

    Exit status 1 names the versions that are kept, and why.
    """
    from continuitybridge import custody

    name, owner = _owner(organization, platform)
    done = custody.retire(owner, by=options.operator())
    click.echo(f"{name}: retired {', '.join(map(str, done.versions)) or 'none'}")
    for version, reason in done.kept.items():
        click.echo(f"version {version} is kept: {reason}", err=True)
    if done.kept:
        sys.exit(1)
