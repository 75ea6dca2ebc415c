"""`bridge endpoint`: where messages of others come in, and the secrets they sign with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TextIO

import click

from continuitybridge.cli import options

if TYPE_CHECKING:
    from continuitybridge.webhooks.endpoints import Endpoint


@click.group("endpoint")
def group() -> None:
    """Webhook endpoints of deployed flows."""


@group.command("list")
@options.organization
@options.only_environment
@options.json_output
def list_(organization: str, environment: str | None, as_json: bool) -> None:
    """List endpoints; secrets are never shown."""
    from continuitybridge.webhooks import endpoints

    found = endpoints.list_endpoints(options.organization_id(organization), environment)
    if as_json:
        options.print_json([_shown(organization, endpoint) for endpoint in found])
    else:
        options.print_table(
            ("environment", "slug", "flow", "verification", "status", "secrets", "address"),
            [
                (e.environment, e.slug, e.flow, e.verification, _status(e), len(e.secrets), _url(organization, e))
                for e in found
            ],
        )


@group.command("show")
@click.argument("slug")
@options.place
@options.json_output
def show(slug: str, organization: str, environment: str, as_json: bool) -> None:
    """Show the endpoint SLUG: its address, what it takes, when its secrets end."""
    from continuitybridge.webhooks import endpoints

    endpoint = endpoints.get(options.organization_id(organization), environment, slug)
    if as_json:
        options.print_json(_shown(organization, endpoint))
        return
    rows: list[tuple[str, Any]] = [
        ("address", _url(organization, endpoint)),
        ("flow", endpoint.flow),
        ("trigger", endpoint.trigger_id),
        ("status", _status(endpoint)),
        ("verification", endpoint.verification),
        *((name, value) for name, value in endpoint.settings.items()),
    ]
    for secret in endpoint.secrets:
        until = f"until {secret.expires_at:%Y-%m-%d %H:%M:%S}" if secret.expires_at else "current"
        rows.append(("secret", f"{secret.secret_id} of {secret.created_at:%Y-%m-%d %H:%M:%S}, {until}"))
    options.print_table(("field", "value"), rows)


@group.command("rotate-secret")
@click.argument("slug")
@options.place
@click.option(
    "--overlap-s",
    type=click.FloatRange(min=0),
    default=24 * 3600,
    show_default=True,
    help="Seconds for which the secrets before are still accepted.",
)
@click.option(
    "--secret-file",
    type=click.File(),
    help="File with the secret to use (- is standard input); without it one is generated.",
)
@options.json_output
def rotate_secret(
    slug: str,
    organization: str,
    environment: str,
    overlap_s: float,
    secret_file: TextIO | None,
    as_json: bool,
) -> None:
    """Give the endpoint SLUG a new secret and show it, once."""
    from continuitybridge.webhooks import endpoints

    given = secret_file.read().strip() if secret_file else None
    new = endpoints.rotate_secret(
        options.organization_id(organization), environment, slug, secret=given, overlap_s=overlap_s
    )
    if new.warning is not None:
        click.echo(f"warning: {new.warning}", err=True)
    if as_json:
        options.print_json({"slug": slug, "secret": new.secret, "warning": new.warning})
    elif given is not None:
        click.echo("the endpoint takes the given secret from now on")
    else:
        click.echo(f"secret {new.secret} (shown once; keep it)")


@group.command("verification")
@click.argument("name", required=False)
@click.option("--markdown", is_flag=True, help="Print the reference page of all ways.")
def verification(name: str | None, markdown: bool) -> None:
    """List the ways in which senders prove who they are, or print all about NAME."""
    from continuitybridge.errors import NotFound
    from continuitybridge.webhooks.verification import VERIFIERS, _reference

    if markdown:
        click.echo(_reference.reference(), nl=False)
    elif name is None:
        options.print_table(
            ("verification", "secret", "what is proved, and how"),
            [(way.name, way.origin, way.summary) for way in VERIFIERS.values()],
        )
    elif name in VERIFIERS:
        click.echo(_reference.page(VERIFIERS[name]))
    else:
        raise NotFound(f"no verification {name!r}; there are {', '.join(VERIFIERS)}", field="name", value=name)


@group.command("disable")
@click.argument("slug")
@options.place
def disable(slug: str, organization: str, environment: str) -> None:
    """Make the endpoint SLUG answer 410."""
    from continuitybridge.webhooks import endpoints

    endpoint = endpoints.set_status(options.organization_id(organization), environment, slug, "disabled")
    click.echo(f"endpoint {slug} in {organization}/{environment}: {_status(endpoint)}")


@group.command("enable")
@click.argument("slug")
@options.place
def enable(slug: str, organization: str, environment: str) -> None:
    """Let the endpoint SLUG take messages again."""
    from continuitybridge.webhooks import endpoints

    endpoint = endpoints.set_status(options.organization_id(organization), environment, slug, "active")
    click.echo(f"endpoint {slug} in {organization}/{environment}: {_status(endpoint)}")


def _shown(organization: str, endpoint: Endpoint) -> dict[str, Any]:
    from dataclasses import asdict

    return {**asdict(endpoint), "organization": organization, "url": _url(organization, endpoint)}


def _url(organization: str, endpoint: Endpoint) -> str:
    from continuitybridge.settings import get_settings

    place = f"{organization}/{endpoint.environment}/{endpoint.slug}"
    return f"{get_settings().external_url}/bridge/hooks/{place}"


def _status(endpoint: Endpoint) -> str:
    if endpoint.flow_status != "active":
        return f"disabled (flow is {endpoint.flow_status})"
    return endpoint.status
