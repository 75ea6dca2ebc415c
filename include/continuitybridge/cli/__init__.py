"""The `bridge` command. Each subcommand stands in a module beside this one and is imported when it is called,
or listed; those modules import what they work with inside their functions, so that `bridge` starts at once.

Exit status: 0 done, 1 the command's own "no" (lint found problems, a message failed), 2 a wrong call,
configuration or request, 70 a defect of the platform.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import click

from continuitybridge.actor import Actor, acting
from continuitybridge.cli.options import operator, plain
from continuitybridge.errors import BridgeError

USAGE_STATUS = 2
DEFECT_STATUS = 70


class LazyGroup(click.Group):
    """A group whose commands are named with their modules: `{"list": "continuitybridge.cli.node"}`."""

    def __init__(self, *args: Any, modules: Mapping[str, str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.modules = modules

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*self.modules, *super().list_commands(ctx)})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.modules:
            return super().get_command(ctx, cmd_name)
        module = import_module(self.modules[cmd_name])
        for value in vars(module).values():
            if isinstance(value, click.Command) and value.name == cmd_name:
                return value
        raise RuntimeError(f"{module.__name__} defines no command {cmd_name!r}")

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.NoSuchCommand as error:
            # click proposes names from the commands it has imported, and those are none.
            raise click.NoSuchCommand(args[0], possibilities=self.list_commands(ctx), ctx=ctx) from error


class Root(LazyGroup):
    """Where errors end: a `BridgeError` is one line on standard error and its problems, one per line."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with acting(Actor("command", operator())):
                return super().invoke(ctx)
        except BridgeError as error:
            if ctx.params.get("debug"):
                traceback.print_exc()
            report(error)
            ctx.exit(USAGE_STATUS)


def report(error: BridgeError) -> None:
    """Print an error for a person: what was wrong, then each problem with where it stands and what is valid."""
    problems = error.facts.get("problems") or ()
    if not problems:
        click.echo(plain(f"bridge: {error.detail}"), err=True)
        return
    click.echo(f"bridge: {error.title}", err=True)
    for problem in problems:
        click.echo(plain(f"  {_problem_line(problem)}"), err=True)


def _problem_line(problem: Any) -> str:
    def fact(name: str) -> Any:
        return problem.get(name) if isinstance(problem, Mapping) else getattr(problem, name, None)

    place = ":".join(str(part) for part in (fact("file"), fact("line"), fact("column")) if part)
    text = ": ".join(str(part) for part in (place, fact("field"), fact("message")) if part)
    return f"{text} (valid: {fact('valid')})" if fact("valid") else text


_HERE = "continuitybridge.cli"

flow = LazyGroup(
    "flow",
    help="Write, check, run and deploy flows.",
    modules={
        "lint": f"{_HERE}.flow_language",
        "convert": f"{_HERE}.flow_language",
        "plan": f"{_HERE}.flow_language",
        "run": f"{_HERE}.flow_run",
        "deploy": f"{_HERE}.deployment",
        "versions": f"{_HERE}.deployment",
        "diff": f"{_HERE}.deployment",
        "rollback": f"{_HERE}.deployment",
        "deployments": f"{_HERE}.deployment",
        "disable": f"{_HERE}.deployment",
        "enable": f"{_HERE}.deployment",
        "remove": f"{_HERE}.deployment",
        "pause": f"{_HERE}.hold",
        "drain": f"{_HERE}.hold",
        "resume": f"{_HERE}.hold",
        "cancel": f"{_HERE}.hold",
        "holds": f"{_HERE}.hold",
    },
)


@click.command(
    cls=Root,
    name="bridge",
    context_settings={"help_option_names": ["-h", "--help"]},
    modules={
        "node": f"{_HERE}.node",
        "inbox": f"{_HERE}.inbox",
        "replay": f"{_HERE}.replay",
        "role": f"{_HERE}.role",
        "quota": f"{_HERE}.quota",
        "approvals": f"{_HERE}.approvals",
        "guard": f"{_HERE}.guard",
        "api-key": f"{_HERE}.api_key",
        "audit": f"{_HERE}.audit",
        "invitation": f"{_HERE}.invitation",
        "vault": f"{_HERE}.vault",
        "mail": f"{_HERE}.mail",
        "person": f"{_HERE}.person",
        "account": f"{_HERE}.account",
        "ecosystem": f"{_HERE}.system",
        "system": f"{_HERE}.system",
        "organization": f"{_HERE}.organization",
        "connection": f"{_HERE}.connection",
        "secret": f"{_HERE}.secret",
        "destination": f"{_HERE}.destination",
        "dispatch": f"{_HERE}.dispatch",
        "stream": f"{_HERE}.stream",
        "up": f"{_HERE}.service",
        "down": f"{_HERE}.service",
        "status": f"{_HERE}.service",
        "logs": f"{_HERE}.service",
        "demo": f"{_HERE}.service",
        "airflow": f"{_HERE}.service",
        "service": f"{_HERE}.service",
        "endpoint": f"{_HERE}.endpoint",
        "intake": f"{_HERE}.intake",
        "settings": f"{_HERE}.settings",
        "token": f"{_HERE}.token",
    },
)
@click.version_option(package_name="continuitybridge", prog_name="bridge")
@click.option("--debug", is_flag=True, help="Print the traceback of an error too.")
def bridge(debug: bool) -> None:
    """ContinuityBridge: flows that carry messages between organizations' systems."""


bridge.add_command(flow)


def main() -> None:
    """The console script."""
    try:
        bridge(prog_name="bridge")
    except Exception as error:
        if "--debug" in sys.argv[1:]:
            raise
        click.echo(
            f"bridge: a defect of the platform: {type(error).__name__}: {error} (--debug shows where)", err=True
        )
        sys.exit(DEFECT_STATUS)
