"""`bridge settings`: every setting, its default, what it is now; and the reference page made of them."""

from __future__ import annotations

from typing import Any

import click

from continuitybridge.cli import options


@click.command("settings")
@click.option("--markdown", is_flag=True, help="Print the reference page instead of this machine's values.")
@options.json_output
def settings(markdown: bool, as_json: bool) -> None:
    """Show every setting and its value here. Secrets are masked."""
    from continuitybridge.settings import Settings, get_settings, variable

    if markdown:
        click.echo(reference(), nl=False)
        return
    current = get_settings()
    values = {variable(name): _shown(getattr(current, name)) for name in Settings.model_fields}
    if as_json:
        options.print_json(values)
    else:
        options.print_table(("setting", "value"), values.items())


def reference() -> str:
    """The settings' reference page (Markdown): one section per setting, in the order they are declared."""
    from continuitybridge.settings import Settings, variable

    lines = [
        "# Settings",
        "",
        "Each is an environment variable; the file `bridge.env` in the state directory holds those that the first",
        "start generated, and the environment wins over it. A bad value stops the start with its name.",
        "Made by `bridge settings --markdown`.",
    ]
    for name, field in Settings.model_fields.items():
        default = "depends on the installation" if field.default_factory else _shown(field.default)
        bounds = ", ".join(
            f"{word} {getattr(item, key)}"
            for item in field.metadata
            for key, word in (("ge", "at least"), ("gt", "more than"), ("le", "at most"), ("lt", "less than"))
            if getattr(item, key, None) is not None
        )
        lines += [
            "",
            f"## `{variable(name)}`",
            "",
            field.description or "",
            "",
            f"Default: {f'`{default}`' if default is not None else 'none'}{f' ({bounds})' if bounds else ''}.",
        ]
    return "\n".join(lines) + "\n"


def _shown(value: Any) -> Any:
    from pydantic import SecretStr

    if isinstance(value, SecretStr):
        return "**********"
    return value if isinstance(value, int | float | type(None)) else str(value)
