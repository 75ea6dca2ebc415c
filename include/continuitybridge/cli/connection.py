"""`bridge connection`: where flows deliver, and with what credentials."""

from __future__ import annotations

from typing import IO, Any

import click

from continuitybridge.cli import options


@click.group("connection")
def group() -> None:
    """Named connections that nodes deliver by."""


@group.command("set")
@click.argument("name")
@options.place
@click.option("--base-url", required=True, help="For example https://warehouse.example/api")
@click.option(
    "--auth", type=click.Choice(["none", "basic", "bearer", "api_key"]), default="none", show_default=True
)
@click.option("--username", help="For basic.")
@click.option("--header", help="For api_key: the header that carries it (default X-API-Key).")
@click.option(
    "--secret-file", type=click.File(), help="File with the password, token or key; - is standard input."
)
@click.option(
    "--auth-file",
    type=click.File(),
    help="YAML or JSON file with the whole of `auth`, for oauth2, jwt and cookie; - is standard input.",
)
@click.option(
    "--with-header", "headers", multiple=True, help="'Name: value' sent with every request; may be repeated."
)
def set_(
    name: str,
    organization: str,
    environment: str,
    base_url: str,
    auth: str,
    username: str | None,
    header: str | None,
    secret_file: IO[str] | None,
    auth_file: IO[str] | None,
    headers: tuple[str, ...],
) -> None:
    """Create or replace the connection NAME. The secret is read from a file or typed, never an argument."""
    from continuitybridge import connections

    auth_settings: dict[str, Any] = {"type": auth}
    if auth_file is not None:
        auth_settings = _mapping(auth_file)
    elif auth != "none":
        secret = secret_file.read().strip() if secret_file else click.prompt("secret", hide_input=True)
        auth_settings[{"basic": "password", "bearer": "token", "api_key": "value"}[auth]] = secret
    if username is not None:
        auth_settings["username"] = username
    if header is not None:
        auth_settings["header"] = header
    pairs = dict(_pair(text) for text in headers)
    stored = connections.put(
        options.organization_id(organization),
        environment,
        name,
        {"base_url": base_url, "headers": pairs, "auth": auth_settings},
        options.operator(),
    )
    click.echo(f"connection {stored.name} in {organization}/{environment}, revision {stored.revision}")


@group.command("list")
@options.organization
@options.only_environment
@options.json_output
def list_(organization: str, environment: str | None, as_json: bool) -> None:
    """List connections; credentials are never shown."""
    from continuitybridge import connections

    found = connections.list_connections(options.organization_id(organization), environment)
    if as_json:
        options.print_json(found)
    else:
        options.print_table(
            ("environment", "name", "base URL", "auth", "revision", "updated", "by"),
            [
                (
                    c.environment,
                    c.name,
                    c.settings["base_url"],
                    c.settings["auth"],
                    c.revision,
                    c.updated_at,
                    c.updated_by,
                )
                for c in found
            ],
        )


@group.command("remove")
@click.argument("name")
@options.place
def remove(name: str, organization: str, environment: str) -> None:
    """Delete the connection NAME."""
    from continuitybridge import connections

    connections.remove(options.organization_id(organization), environment, name)
    click.echo(f"connection {name} removed from {organization}/{environment}")


@group.command("connect")
@click.argument("name")
@options.place
@click.option(
    "--user", required=True, help="Who opens the address: a user of the platform who is signed in there."
)
@click.option("--wait/--no-wait", default=True, help="Wait until the account is connected.")
def connect(name: str, organization: str, environment: str, user: str, wait: bool) -> None:
    """Connect the account of the connection NAME: print the address to open, and wait for it."""
    import time

    from continuitybridge.tokens import Place, connect

    organization_id = options.organization_id(organization)
    begun = connect.begin(Place(organization_id, environment, name), user)
    click.echo(f"open {begun.address}")
    if begun.user_code is not None:
        click.echo(f"and type {begun.user_code}")
    click.echo(f"as {user}, before {begun.expires_at:%H:%M:%S %Z}", err=True)
    while wait:
        stands = connect.poll(organization_id, begun.connect_id, user)
        if stands.status != "pending":
            click.echo(f"{name} in {organization}/{environment}: {stands.status}")
            if stands.status != "connected":
                raise SystemExit(1)
            return
        time.sleep(1.0)


def _mapping(file: IO[str]) -> dict[str, Any]:
    import yaml

    try:
        declared = yaml.safe_load(file.read())
    except (yaml.YAMLError, RecursionError, ValueError):
        raise click.BadParameter("it is no YAML or JSON", param_hint="--auth-file") from None
    if not isinstance(declared, dict):
        raise click.BadParameter("it holds no mapping", param_hint="--auth-file")
    return {str(key): value for key, value in declared.items()}


def _pair(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise click.BadParameter(f"{text!r} is not 'Name: value'", param_hint="--with-header")
    return name.strip(), value.strip()
