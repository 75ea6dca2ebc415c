"""`bridge secret`: passwords, keys and clients that flows call with."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import IO, Any, TypeVar

import click
import orjson

from continuitybridge.cli import options

F = TypeVar("F", bound=Callable[..., Any])


@click.group("secret")
def group() -> None:
    """Typed secrets of an environment; no command shows a value."""


def _where(backend: str) -> Callable[[F], F]:
    """Which store, and where in it."""

    def add(function: F) -> F:
        for each in (
            click.option(
                "--fields", "more", default="{}", help="JSON object of fields that are no secret and not there."
            ),
            click.option("--field", help="The field that the text there is; without it, all as a JSON object."),
            click.option("--path", required=True, help="Where in the store, behind the organization's prefix."),
            click.option(backend, "backend", required=True, help="See `bridge secret stores`."),
        ):
            function = each(function)
        return function

    return add


@group.command("types")
def types() -> None:
    """List the types and their fields; those marked * are needed."""
    from continuitybridge.secrets import TYPES

    rows = []
    for name, model in TYPES.items():
        fields = [f"{each}{'*' if info.is_required() else ''}" for each, info in model.model_fields.items()]
        rows.append((name, ", ".join(fields) or "any", (model.__doc__ or "").split(".", 1)[0].replace("\n", " ")))
    options.print_table(("type", "fields", "what"), rows)


@group.command("set")
@click.argument("name")
@options.place
@click.option("--type", "type_", required=True, help="See `bridge secret types`.")
@click.option(
    "--from-file",
    "file",
    type=click.File(),
    required=True,
    help="JSON object with the type's fields; - is standard input.",
)
@click.option(
    "--expires-at",
    type=click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]),
    help="UTC; it is given to nobody from then on.",
)
@click.option("--rotate-every", "days", type=int, metavar="DAYS", help="Remind so long after each new version.")
@click.option("--description", help="For people.")
def set_(
    name: str,
    organization: str,
    environment: str,
    type_: str,
    file: IO[str],
    expires_at: datetime | None,
    days: int | None,
    description: str | None,
) -> None:
    """Make the secret NAME, or a new version of it. The value is read from a file, never an argument."""
    from continuitybridge import secrets

    stored = secrets.put(
        options.organization_id(organization),
        environment,
        name,
        type_,
        _object(file.read()),
        options.operator(),
        expires_at=None if expires_at is None else expires_at.replace(tzinfo=UTC),
        rotate_every_days=days,
        description=description,
    )
    click.echo(f"secret {stored.name} in {organization}/{environment}, version {stored.version}")


@group.command("refer")
@click.argument("name")
@options.place
@click.option("--type", "type_", required=True, help="See `bridge secret types`.")
@_where("--backend")
def refer(
    name: str,
    organization: str,
    environment: str,
    type_: str,
    backend: str,
    path: str,
    field: str | None,
    more: str,
) -> None:
    """Make the secret NAME, or a new version of it, whose value stays in a secret store outside.

    The path begins behind the organization's prefix there. Without --field the store holds a JSON object with the
    type's fields.
    """
    from continuitybridge import secrets
    from continuitybridge.secrets import references

    given = {"backend": backend, "path": path, "fields": _object(more), **({"field": field} if field else {})}
    referred = references.parse(type_, given)
    owner = options.organization_id(organization)
    stored = secrets.put(owner, environment, name, type_, referred, options.operator())
    click.echo(f"secret {stored.name} in {organization}/{environment}, version {stored.version}")


@group.command("import")
@click.argument("name")
@options.place
@click.option("--type", "type_", required=True, help="See `bridge secret types`.")
@_where("--from")
@click.option(
    "--anywhere", is_flag=True, help="PATH is the whole of it, and may lie outside the organization's prefix."
)
def import_(
    name: str,
    organization: str,
    environment: str,
    type_: str,
    backend: str,
    path: str,
    field: str | None,
    more: str,
    anywhere: bool,
) -> None:
    """Copy what a secret store outside holds now into the secret NAME."""
    from continuitybridge import secrets
    from continuitybridge.secrets import references

    owner = options.organization_id(organization)
    reference = references.Reference(backend=backend, path=path, field=field, fields=_object(more))
    text = references.fetch(owner, environment, backend, path, name=name, within=not anywhere)
    value = references.typed(type_, text, reference)
    stored = secrets.put(owner, environment, name, type_, value, options.operator())
    click.echo(f"secret {stored.name} in {organization}/{environment}, version {stored.version}")


@group.command("stores")
def stores() -> None:
    """List the secret stores outside that secrets may refer to, or say what is wrong with the file of them."""
    from continuitybridge.secrets import backends

    backends.check()
    options.print_table(
        ("store", "class", "prefix"),
        [(each, *backends.get(each).declared.described) for each in backends.names()],
    )


@group.command("list")
@options.organization
@options.only_environment
@options.json_output
def list_(organization: str, environment: str | None, as_json: bool) -> None:
    """List secrets, without their values."""
    from continuitybridge import secrets

    found = secrets.list_secrets(options.organization_id(organization), environment)
    if as_json:
        options.print_json(found)
    else:
        options.print_table(
            ("environment", "name", "type", "version", "enabled", "expires", "rotation due", "updated", "by"),
            [
                (
                    *(each.environment, each.name, each.type, each.version, "yes" if each.enabled else "no"),
                    *(each.expires_at, each.rotation_due_at, each.updated_at, each.updated_by),
                )
                for each in found
            ],
        )


@group.command("show")
@click.argument("name")
@options.place
def show(name: str, organization: str, environment: str) -> None:
    """Show the fields of the secret NAME that are no secret, and of the others that they are set."""
    from continuitybridge import secrets
    from continuitybridge.vault import Keyring

    found = secrets.show(options.organization_id(organization), environment, name, Keyring.open())
    options.print_table(("field", "value"), [("type", found.TYPE), *found.shown().items()])


@group.command("versions")
@click.argument("name")
@options.place
@options.json_output
def versions(name: str, organization: str, environment: str, as_json: bool) -> None:
    """List the versions of the secret NAME that are kept."""
    from continuitybridge import secrets

    found = secrets.versions(options.organization_id(organization), environment, name)
    if as_json:
        options.print_json(found)
    else:
        options.print_table(
            ("version", "current", "expires", "made", "by"),
            [
                (each.version, "yes" if each.current else "", each.expires_at, each.created_at, each.created_by)
                for each in found
            ],
        )


@group.command("rollback")
@click.argument("name")
@options.place
@click.option("--to", "version", type=int, required=True, help="The version to go back to.")
def rollback(name: str, organization: str, environment: str, version: int) -> None:
    """Make an older version of the secret NAME the current one."""
    from continuitybridge import secrets

    owner = options.organization_id(organization)
    stored = secrets.roll_back(owner, environment, name, version, options.operator())
    click.echo(f"secret {stored.name} in {organization}/{environment} is at version {stored.version}")


@group.command("disable")
@click.argument("name")
@options.place
def disable(name: str, organization: str, environment: str) -> None:
    """Give the secret NAME to nobody."""
    _switch(name, organization, environment, enabled=False)


@group.command("enable")
@click.argument("name")
@options.place
def enable(name: str, organization: str, environment: str) -> None:
    """Switch the secret NAME on again."""
    _switch(name, organization, environment, enabled=True)


@group.command("test")
@click.argument("name")
@options.place
def test(name: str, organization: str, environment: str) -> None:
    """Sign in with the secret NAME where it belongs. Exit status 1 when that fails."""
    from continuitybridge.secrets.trying import try_secret

    tried = try_secret(options.organization_id(organization), environment, name, options.operator())
    click.echo(f"{ {True: 'ok', False: 'failed', None: 'not tried'}[tried.ok] }: {tried.detail}")
    if tried.ok is False:
        sys.exit(1)


@group.command("remove")
@click.argument("name")
@options.place
def remove(name: str, organization: str, environment: str) -> None:
    """Delete the secret NAME with all its versions."""
    from continuitybridge import secrets

    secrets.remove(options.organization_id(organization), environment, name, options.operator())
    click.echo(f"secret {name} removed from {organization}/{environment}")


@group.command("due")
@options.organization
@options.json_output
def due(organization: str, as_json: bool) -> None:
    """List secrets that are over, soon over, or to be rotated. Exit status 1 when there are any."""
    from continuitybridge import secrets

    found = secrets.due(options.organization_id(organization))
    if as_json:
        options.print_json(found)
    else:
        options.print_table(
            ("environment", "name", "type", "version", "reason", "at"),
            [(e.environment, e.name, e.type, e.version, e.reason.replace("_", " "), e.at) for e in found],
        )
    if found:
        sys.exit(1)


def _switch(name: str, organization: str, environment: str, *, enabled: bool) -> None:
    from continuitybridge import secrets

    owner = options.organization_id(organization)
    secrets.switch(owner, environment, name, options.operator(), enabled=enabled)
    click.echo(f"secret {name} in {organization}/{environment} is {'enabled' if enabled else 'disabled'}")


def _object(text: str) -> dict[str, Any]:
    try:
        found = orjson.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        # Nothing of what was read is repeated: it may be the secret.
        raise click.BadParameter("a JSON object with fields of the type is needed")
    return found
