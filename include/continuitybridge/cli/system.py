"""`bridge ecosystem` and `bridge system`: what an organization works with."""

from __future__ import annotations

import click

from continuitybridge.cli import options

_KINDS = ("erp", "marketplace", "wms", "tms", "3pl", "last_mile", "custom")


@click.group("ecosystem")
def ecosystem() -> None:
    """What an organization works with: its ERP, a marketplace, a carrier."""


@ecosystem.command("set")
@click.argument("ecosystem_name", metavar="ECOSYSTEM")
@options.organization
@click.option("--kind", type=click.Choice(_KINDS), required=True)
@click.option("--name", required=True, help="The name people read.")
def set_ecosystem(ecosystem_name: str, organization: str, kind: str, name: str) -> None:
    """Name the ecosystem ECOSYSTEM, or change it."""
    from continuitybridge import systems

    systems.put_ecosystem(
        options.organization_id(organization), ecosystem_name, kind=kind, name=name, by=options.operator()
    )
    click.echo(f"{ecosystem_name} is a {kind} of {organization}")


@ecosystem.command("list")
@options.organization
@options.json_output
def list_ecosystems(organization: str, as_json: bool) -> None:
    """List an organization's ecosystems."""
    from continuitybridge import systems

    found = systems.ecosystems(options.organization_id(organization))
    if as_json:
        options.print_json(found)
        return
    options.print_table(
        ("ecosystem", "kind", "name", "systems"),
        [(each.ecosystem, each.kind, each.name, each.systems) for each in found],
    )


@ecosystem.command("remove")
@click.argument("ecosystem_name", metavar="ECOSYSTEM")
@options.organization
def remove_ecosystem(ecosystem_name: str, organization: str) -> None:
    """Remove the ecosystem ECOSYSTEM, which has no systems."""
    from continuitybridge import systems

    systems.remove_ecosystem(options.organization_id(organization), ecosystem_name, by=options.operator())
    click.echo(f"{ecosystem_name} is removed")


@click.group("system")
def system() -> None:
    """The systems of an ecosystem, each in one environment."""


@system.command("set")
@click.argument("system_name", metavar="SYSTEM")
@options.place
@click.option("--ecosystem", "ecosystem_name", required=True, help="The ecosystem that it belongs to.")
@click.option("--name", required=True, help="The name people read.")
def set_system(system_name: str, organization: str, environment: str, ecosystem_name: str, name: str) -> None:
    """Name the system SYSTEM, or change it."""
    from continuitybridge import systems

    systems.put_system(
        options.organization_id(organization),
        environment,
        system_name,
        ecosystem=ecosystem_name,
        name=name,
        by=options.operator(),
    )
    click.echo(f"{system_name} is a system of {ecosystem_name} in {environment}")


@system.command("list")
@options.organization
@options.json_output
def list_systems(organization: str, as_json: bool) -> None:
    """List an organization's systems."""
    from continuitybridge import systems

    found = systems.systems(options.organization_id(organization))
    if as_json:
        options.print_json(found)
        return
    options.print_table(
        ("environment", "system", "ecosystem", "kind", "name", "connections"),
        [
            (each.environment, each.system, each.ecosystem, each.kind, each.name, each.connections)
            for each in found
        ],
    )


@system.command("connect")
@click.argument("connection")
@click.argument("system_name", metavar="[SYSTEM]", required=False)
@options.place
def connect(connection: str, system_name: str | None, organization: str, environment: str) -> None:
    """Say that CONNECTION leads to SYSTEM; without it, to none in particular."""
    from continuitybridge import systems

    systems.connect(
        options.organization_id(organization), environment, connection, system_name, by=options.operator()
    )
    click.echo(f"{connection} leads to {system_name}" if system_name else f"{connection} leads to no named system")


@system.command("remove")
@click.argument("system_name", metavar="SYSTEM")
@options.place
def remove_system(system_name: str, organization: str, environment: str) -> None:
    """Remove the system SYSTEM, which no connection leads to."""
    from continuitybridge import systems

    systems.remove_system(options.organization_id(organization), environment, system_name, by=options.operator())
    click.echo(f"{system_name} is removed")
