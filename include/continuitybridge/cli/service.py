"""`bridge up | down | status | logs | demo | airflow | service`: the platform's processes on this machine."""

from __future__ import annotations

import click

from continuitybridge.cli import options


@click.command("up")
def up() -> None:
    """Start the platform, or what of it does not run; returns when all of it is ready."""
    from continuitybridge.runtime import platform
    from continuitybridge.runtime.progress import Progress

    progress = Progress()
    started = platform.up(progress)
    progress.say(f"The platform runs at {started.settings.base_url} ({progress.elapsed_s:.0f} s).")
    for line in started.superadmin():
        progress.say(line)


@click.command("down")
def down() -> None:
    """Stop every process of the platform. Nothing accepted is lost: it goes on at the next start."""
    from continuitybridge.runtime import platform
    from continuitybridge.runtime.progress import Progress

    if not platform.down(Progress()):
        click.echo("the platform does not run")


@click.command("status")
@options.json_output
@click.pass_context
def status(ctx: click.Context, as_json: bool) -> None:
    """Show each process. Exit status 0 when all run, 1 when any does not."""
    from continuitybridge.runtime import platform
    from continuitybridge.settings import get_settings

    rows = platform.status(get_settings())
    if as_json:
        options.print_json(rows)
    else:
        shown = ("name", "state", "pid", "uptime_s", "memory_mb", "address")
        options.print_table(
            ("process", "state", "pid", "uptime s", "memory MB", "address"),
            [[row[key] for key in shown] for row in rows],
        )
    ctx.exit(0 if all(row["state"] == "running" or row["demo"] for row in rows) else 1)


@click.command("logs")
@click.argument("names", nargs=-1, metavar="[PROCESS]...")
@click.option("--lines", "-n", type=click.IntRange(1), default=20, show_default=True, help="Lines of each.")
@click.option("--follow", "-f", is_flag=True, help="Go on as lines are written, until interrupted.")
def logs(names: tuple[str, ...], lines: int, follow: bool) -> None:
    """Show the last lines of the processes' logs (all of them without PROCESS)."""
    from continuitybridge.runtime import logs as log_files
    from continuitybridge.settings import get_settings

    try:
        for line in log_files.read(get_settings(), names, lines, follow=follow):
            click.echo(line)
    except KeyboardInterrupt:
        return


@click.command("demo")
def demo() -> None:
    """Start the platform with two demo organizations and let two real orders travel."""
    from continuitybridge.runtime.demo import run
    from continuitybridge.runtime.progress import Progress

    run(Progress())


@click.command("airflow", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def airflow(arguments: tuple[str, ...]) -> None:
    """Run Airflow's own command line against this installation, for example: bridge airflow dags list"""
    import os
    import sys

    from continuitybridge.runtime import process_environment
    from continuitybridge.settings import get_settings

    argv = [sys.executable, "-m", "airflow", *arguments]
    os.execve(argv[0], argv, process_environment(get_settings()))  # noqa: S606  (what the user asked for)


@click.group("service")
def service() -> None:
    """Let the system start the platform."""


@service.command("install")
@click.option("--user", "scope", flag_value="user", help="For this user (the default unless root).")
@click.option("--system", "scope", flag_value="system", help="For the machine; needs root.")
@click.option("--print", "only_print", is_flag=True, help="Print the unit and change nothing.")
def install(scope: str | None, only_print: bool) -> None:
    """Write a systemd unit that starts the platform with the machine, and say how to enable it."""
    from continuitybridge.runtime import systemd
    from continuitybridge.settings import get_settings

    unit = systemd.unit(get_settings(), systemd.scope(scope))
    if only_print:
        click.echo(unit.text, nl=False)
        return
    systemd.install(unit)
    click.echo(f"wrote {unit.path}\nenable and start it with:")
    for command in unit.next_commands:
        click.echo(f"  {command}")
