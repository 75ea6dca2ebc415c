"""The `bridge` command itself: what it imports, what it says when something is wrong."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from continuitybridge import cli
from continuitybridge.cli import bridge
from continuitybridge.errors import ConfigurationError

HEAVY = (
    *("airflow", "fastapi", "sqlalchemy", "alembic", "psycopg", "cryptography", "redis", "httpx"),
    *("pydantic", "jinja2", "lxml", "jq", "jsonschema_rs", "yaml", "rich", "psutil", "supervisor"),
)


def commands(group: click.Group, context: click.Context) -> Iterator[click.Command]:
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield command
        if isinstance(command, click.Group):
            yield from commands(command, context)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["flow", "--help"], ["flow", "run", "--help"], ["node", "--help"]]
)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys; from continuitybridge.cli import bridge\n"
        f"try: bridge({arguments!r}, prog_name='bridge')\n"
        "except SystemExit as exit: assert exit.code == 0, exit.code\n"
        f"sys.exit(', '.join(m for m in {HEAVY!r} if m in sys.modules) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "Usage: bridge" in result.stdout


def test_every_command_has_a_line_of_help() -> None:
    for command in commands(bridge, click.Context(bridge)):
        assert command.get_short_help_str(), command.name


def test_every_command_that_a_module_defines_can_be_called() -> None:
    reachable = set(map(id, commands(bridge, click.Context(bridge))))
    for info in pkgutil.iter_modules(cli.__path__):
        module = importlib.import_module(f"continuitybridge.cli.{info.name}")
        defined = [v for v in vars(module).values() if isinstance(v, click.Command)]
        lost = [c.name for c in defined if id(c) not in reachable]
        assert not lost, f"{info.name}: {lost} are not registered in cli/__init__.py"


def test_a_misspelt_command_is_answered_with_the_nearest() -> None:
    result = CliRunner().invoke(bridge, ["flow", "lnit"])
    assert result.exit_code == 2
    assert "lint" in result.output


@click.command("fail")
def fail() -> None:
    problems = [
        {"file": "a.yaml", "line": 3, "column": 5, "field": "slug", "message": "is required", "valid": "text"},
        {"field": "cron", "message": "never comes"},
    ]
    raise ConfigurationError("two things are wrong", problems=problems)


def test_an_error_is_one_line_and_its_problems_and_no_traceback() -> None:
    group = cli.Root("test", modules={}, commands={"fail": fail}, params=bridge.params)
    result = CliRunner().invoke(group, ["fail"])
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        "bridge: The configuration is not valid",
        "  a.yaml:3:5: slug: is required (valid: text)",
        "  cron: never comes",
    ]
    assert "Traceback" in CliRunner().invoke(group, ["--debug", "fail"]).stderr


def test_the_version_is_told() -> None:
    result = CliRunner().invoke(bridge, ["--version"])
    assert result.exit_code == 0
    assert result.output.startswith("bridge")
