"""`bridge flow deploy | versions | diff | rollback | deployments | disable | enable | remove`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from continuitybridge.cli import options
from continuitybridge.errors import Conflict

if TYPE_CHECKING:
    from continuitybridge.deployments import Deployment


@click.command("deploy")
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@options.place
def deploy(files: tuple[Path, ...], organization: str, environment: str) -> None:
    """Deploy the flow in each of FILES. It runs, and its webhook answers, without a restart."""
    from continuitybridge import deployments
    from continuitybridge.flows.load import load_flow

    organization_id = options.organization_id(organization)
    for file in files:
        try:
            done = deployments.deploy(organization_id, environment, load_flow(file), options.operator())
        except Conflict as refused:
            if refused.facts.get("diff"):
                click.echo(refused.facts["diff"])
            raise
        _say(organization, done)


@click.command("versions")
@click.argument("flow")
@options.organization
@options.json_output
def versions(flow: str, organization: str, as_json: bool) -> None:
    """List the versions of FLOW, newest first, and where each is deployed."""
    from continuitybridge import deployments

    found = deployments.versions(options.organization_id(organization), flow)
    if as_json:
        options.print_json(found)
    else:
        options.print_table(
            ("version", "deployed in", "created", "by", "description"),
            [(v.version, v.environments, v.created_at, v.created_by, v.description) for v in found],
        )


@click.command("diff")
@click.argument("flow")
@click.argument("old")
@click.argument("new")
@options.organization
def diff(flow: str, old: str, new: str, organization: str) -> None:
    """Show what changed in FLOW from version OLD to version NEW."""
    from continuitybridge import deployments

    click.echo(deployments.diff(options.organization_id(organization), flow, old, new) or "no difference")


@click.command("rollback")
@click.argument("flow")
@options.place
@click.option("--to", help="The version to go back to; without it the one deployed before.")
def rollback(flow: str, organization: str, environment: str, to: str | None) -> None:
    """Run an earlier version of FLOW again. Messages under way finish on the version they began on."""
    from continuitybridge import deployments

    done = deployments.rollback(
        options.organization_id(organization), environment, flow, options.operator(), to=to
    )
    _say(organization, done)


@click.command("deployments")
@options.organization
@options.only_environment
@options.json_output
def list_(organization: str, environment: str | None, as_json: bool) -> None:
    """List what is deployed."""
    from continuitybridge import deployments

    found = deployments.list_deployments(options.organization_id(organization), environment)
    if as_json:
        options.print_json(found)
    else:
        options.print_table(
            ("environment", "flow", "version", "status", "deployed", "by"),
            [(d.environment, d.flow, d.version, d.status, d.deployed_at, d.deployed_by) for d in found],
        )


@click.command("disable")
@click.argument("flow")
@options.place
def disable(**given: Any) -> None:
    """Stop FLOW: its webhooks answer 410, accepted messages wait until it is enabled."""
    _set_status("disable", **given)


@click.command("enable")
@click.argument("flow")
@options.place
def enable(**given: Any) -> None:
    """Let a disabled FLOW run again."""
    _set_status("enable", **given)


@click.command("remove")
@click.argument("flow")
@options.place
def remove(**given: Any) -> None:
    """Take FLOW out of the environment. Its versions stay."""
    _set_status("remove", **given)


COMMANDS = (deploy, versions, diff, rollback, list_, disable, enable, remove)


def _set_status(
    action: Literal["disable", "enable", "remove"], flow: str, organization: str, environment: str
) -> None:
    from continuitybridge import deployments

    done = deployments.set_status(
        options.organization_id(organization), environment, flow, action, options.operator()
    )
    _say(organization, done)


def _say(organization: str, done: Deployment) -> None:
    unchanged = "" if done.changed else " (already so)"
    click.echo(f"{organization}.{done.environment}.{done.flow} {done.version} {done.status}{unchanged}")
    for slug, secret in done.new_secrets.items():
        click.echo(f"  webhook {slug}: secret {secret} (shown once; keep it)")
    for slug in done.awaiting_secrets:
        click.echo(
            f"  webhook {slug}: give the provider's secret with: bridge endpoint rotate-secret {slug}"
            f" -o {organization} -e {done.environment} --secret-file FILE"
        )
