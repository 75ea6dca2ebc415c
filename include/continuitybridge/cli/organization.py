"""`bridge organization`: onboard organizations and say who belongs to them."""

from __future__ import annotations

from pathlib import Path

import click

from continuitybridge.cli import options, people

_INVITE = "; somebody new is invited: `bridge invitation create ADDRESS -o {organization}`"


@click.group("organization")
def group() -> None:
    """Organizations (tenants) and their members."""


@group.command("create")
@click.argument("slug")
@click.option("--name", required=True, help="The name people read.")
@click.option(
    "--environment",
    "-e",
    "environments",
    multiple=True,
    help="An environment to make; may be repeated. Without it: dev, test, staging and prod.",
)
@click.option(
    "--tier", default="professional", show_default=True, help="What it may have: see `bridge quota tiers`."
)
def create(slug: str, name: str, environments: tuple[str, ...], tier: str) -> None:
    """Make the organization SLUG (its name in addresses and DAG ids; it never changes)."""
    from continuitybridge import organizations

    made = organizations.create(slug, name, environments=environments or organizations.ENVIRONMENTS, tier=tier)
    click.echo(f"organization {made.slug} ({made.organization_id})")


@group.command("onboard")
@click.argument("slug")
@click.option("--name", required=True, help="The name people read.")
@click.option("--admin-email", required=True, help="Who is invited as its first administrator.")
@click.option(
    "--environment",
    "-e",
    "environments",
    multiple=True,
    help="An environment to make; may be repeated. Without it: dev, test, staging and prod.",
)
@click.option(
    "--tier", default="professional", show_default=True, help="What it may have: see `bridge quota tiers`."
)
@click.option("--days", type=int, default=7, show_default=True, help="How long the invitation holds.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with the invitation's token.")
def onboard(
    slug: str,
    name: str,
    admin_email: str,
    environments: tuple[str, ...],
    tier: str,
    days: int,
    as_json: bool,
) -> None:
    """Make the organization SLUG with all that it needs, and print its first administrator's invitation, this
    once."""
    from continuitybridge import lifecycle, organizations

    done = lifecycle.onboard(
        slug,
        name,
        admin_email=admin_email,
        environments=environments or organizations.ENVIRONMENTS,
        tier=tier,
        by=options.operator(),
        days=days,
    )
    if as_json:
        options.print_json(done)
        return
    click.echo(done.invitation.token)
    click.echo(f"accept it at {done.invitation.address}", err=True)
    shown = done.invitation.shown
    until = f"{shown.expires_at:%Y-%m-%d %H:%M}"
    click.echo(f"(shown this once; the invitation of {shown.email}, holds until {until})", err=True)
    made = ", ".join(done.environments)
    click.echo(f"organization {slug} ({done.organization.organization_id}): {made}", err=True)


@group.command("list")
@options.json_output
def list_(as_json: bool) -> None:
    """List all organizations."""
    from continuitybridge import organizations

    found = organizations.list_all()
    if as_json:
        options.print_json(found)
    else:
        options.print_table(
            ("slug", "name", "status", "tier", "id"),
            [(o.slug, o.name, o.status, o.tier, o.organization_id) for o in found],
        )


@group.command("require-second-factor")
@click.argument("slug")
@click.option("--off", is_flag=True, help="Require none any more.")
def require_second_factor(slug: str, off: bool) -> None:
    """Let members of the organization SLUG sign in with a second factor only. Who has none is signed out, and led
    to set one up when he signs in; API keys go on."""
    from continuitybridge.organizations import membership

    ended = membership.require_second_factor(options.organization_id(slug), not off, by=options.operator())
    click.echo(
        f"members of {slug} need no second factor"
        if off
        else f"members of {slug} need a second factor; {ended} who have none are signed out"
    )


@group.command("suspend")
@click.argument("slug")
@click.option("--reason", default="", help="Why; it stands in the audit trail.")
def suspend(slug: str, reason: str) -> None:
    """Have the organization SLUG take no messages and run nothing; its members read only. Nothing is lost."""
    from continuitybridge import deployments

    new = deployments.suspend(options.organization_id(slug), by="cli", reason=reason)
    click.echo(f"{slug} is suspended" if new else f"{slug} was suspended before")


@group.command("resume")
@click.argument("slug")
def resume(slug: str) -> None:
    """End the suspension of the organization SLUG: what was accepted before goes on."""
    from continuitybridge import deployments

    new = deployments.resume(options.organization_id(slug), by="cli")
    click.echo(f"{slug} goes on" if new else f"{slug} was not suspended")


@group.command("export")
@click.argument("slug")
@click.option(
    "--output",
    "directory",
    type=click.Path(path_type=Path, file_okay=False),
    help="Directory to write to. Without it: BRIDGE_EXPORT_DIR.",
)
def export(slug: str, directory: Path | None) -> None:
    """Write everything that is stored of the organization SLUG into an archive: payloads in the clear, credentials
    never."""
    from continuitybridge import lifecycle, organizations

    done = lifecycle.export(organizations.by_slug(slug), directory or lifecycle.export_directory(), record_it=True)
    _told(done.file, done.sha256, done.unreadable)


@group.command("delete")
@click.argument("slug")
@click.option("--export/--no-export", "with_export", default=None, help="Whether an archive is written first.")
@click.option(
    "--output",
    "directory",
    type=click.Path(path_type=Path, file_okay=False),
    help="Directory of the archive. Without it: BRIDGE_EXPORT_DIR.",
)
@click.option("--confirm", help="The slug once more. Without it you are asked.")
def delete(slug: str, with_export: bool | None, directory: Path | None, confirm: str | None) -> None:
    """Delete the organization SLUG and everything of it, for ever; killed in the middle, the same call goes on."""
    from continuitybridge import lifecycle

    if with_export is None:
        raise click.UsageError("say --export or --no-export")
    if confirm is None:
        confirm = click.prompt(f"everything of {slug} is deleted, for ever. Its slug, to confirm")
    lifecycle.request_deletion(slug, confirm=confirm, with_export=with_export, by=options.operator())

    def step(table: str, rows: int) -> None:
        click.echo(f"{table}: {rows} rows removed", err=True)

    done = lifecycle.work(slug, directory=directory, step=step)
    if done.export_file is not None and done.export_sha256 is not None:
        _told(Path(done.export_file), done.export_sha256, 0)
    click.echo(f"{slug} is deleted")


@group.command("deletions")
@options.json_output
def deletions(as_json: bool) -> None:
    """List the organizations that were, or are being, deleted."""
    from continuitybridge import lifecycle

    found = lifecycle.deletions()
    if as_json:
        options.print_json(found)
        return
    options.print_table(
        ("slug", "requested", "by", "exported", "sha-256", "finished"),
        [
            (
                each.slug,
                each.requested_at,
                each.requested_by,
                each.export_file,
                each.export_sha256,
                each.finished_at,
            )
            for each in found
        ],
    )  # fmt: skip


def _told(file: Path, digest: str, unreadable: int) -> None:
    click.echo(f"{file} (SHA-256 {digest})")
    if unreadable:
        click.echo(f"{unreadable} payloads could not be opened: the archive's manifest names them", err=True)


@group.group("member")
def member() -> None:
    """Who belongs to an organization."""


@member.command("add")
@options.organization
@click.argument("user_name")
@click.option(
    "--role",
    type=click.Choice(["consultant", "customer_admin", "customer_user"]),
    default="customer_user",
    show_default=True,
)
def add(organization: str, user_name: str, role: str) -> None:
    """Make USER_NAME (an Airflow user, by his name or address) a member, or change the member's role. Who is none
    yet is invited: `bridge invitation create`."""
    from continuitybridge import organizations

    owner = options.organization_id(organization)
    user_name = people.known(user_name, otherwise=_INVITE.format(organization=organization))
    organizations.add_member(owner, user_name, role)
    click.echo(f"{user_name} is {role} of {organization}")


@member.command("remove")
@options.organization
@click.argument("user_name")
def remove(organization: str, user_name: str) -> None:
    """End a membership."""
    from continuitybridge import organizations

    organizations.remove_member(options.organization_id(organization), user_name)
    click.echo(f"{user_name} is no member of {organization} any more")


@member.command("list")
@options.organization
@options.json_output
def members(organization: str, as_json: bool) -> None:
    """List an organization's members."""
    from continuitybridge import organizations

    found = organizations.members(options.organization_id(organization))
    if as_json:
        options.print_json(found)
    else:
        options.print_table(("user", "role"), [(m.user_name, m.role.value) for m in found])
