"""Options and output that several commands share."""

from __future__ import annotations

import getpass
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar
from uuid import UUID

import click
import orjson

F = TypeVar("F", bound=Callable[..., Any])


def place(function: F) -> F:
    """`--organization` and `--environment`: where the command acts."""
    function = click.option(
        "--environment", "-e", required=True, envvar="BRIDGE_ENVIRONMENT", help="dev, test, staging or prod."
    )(function)
    return organization(function)


def organization(function: F) -> F:
    """`--organization`: whose things the command acts on."""
    return click.option(
        "--organization", "-o", required=True, envvar="BRIDGE_ORGANIZATION", help="The organization's slug."
    )(function)


def only_environment(function: F) -> F:
    """`--environment`: of all that the organization has, only this one's."""
    return click.option("--environment", "-e", envvar="BRIDGE_ENVIRONMENT", help="Only this environment.")(
        function
    )


def json_output(function: F) -> F:
    """`--json`: one JSON document instead of a table."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")(function)


def organization_id(slug: str) -> UUID:
    """The id behind a slug; raises `NotFound`."""
    from continuitybridge import organizations

    return organizations.by_slug(slug).organization_id


def operator() -> str:
    """Who acts: the operating system's user, as records name him."""
    try:
        return f"cli:{getpass.getuser()}"
    except (KeyError, OSError):
        return "cli"


def plain(text: str) -> str:
    """A text as a terminal may show it: what messages, senders and members wrote may hold characters that command
    it, or turn the order of others around. They stand escaped, as in JSON; ends of lines stay."""
    return "".join(each if each.isprintable() or each == "\n" else json.dumps(each)[1:-1] for each in text)


def print_json(value: Any) -> None:
    """Print a value (dataclasses, UUIDs and times included) as indented JSON."""
    click.echo(plain(orjson.dumps(value, default=str, option=orjson.OPT_INDENT_2).decode()))


def print_table(headings: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print rows in aligned columns; nothing but the headings when there are none."""
    texts = [[_text(cell) for cell in row] for row in rows]
    widths = [max(len(heading), *(len(row[i]) for row in texts), 0) for i, heading in enumerate(headings)]
    for row in [[heading.upper() for heading in headings], *texts]:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _text(cell: Any) -> str:
    if cell is None:
        return "-"
    if hasattr(cell, "strftime"):
        return str(cell.strftime("%Y-%m-%d %H:%M:%S"))
    text = ", ".join(map(str, cell)) or "-" if isinstance(cell, list | tuple) else str(cell)
    return plain(text).replace("\n", "\\n")
