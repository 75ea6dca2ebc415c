"""`bridge node`: the node types, read from the classes that define them."""

from __future__ import annotations

from pathlib import Path

import click

from continuitybridge.cli import options


@click.group("node")
def group() -> None:
    """Node types: what there is, what they do, how they are configured."""


@group.command("list")
@options.json_output
def list_(as_json: bool) -> None:
    """List all node types."""
    from continuitybridge.nodes import registry

    rows = [(node.type, node.category, node.summary) for node in registry.node_types().values()]
    if as_json:
        keys = ("type", "category", "summary")
        options.print_json([dict(zip(keys, row, strict=True)) for row in rows])
    else:
        options.print_table(("type", "category", "what it does"), rows)


@group.command("show")
@click.argument("node_type", metavar="TYPE")
def show(node_type: str) -> None:
    """Print the reference page of TYPE: what it does, its configuration, examples."""
    from continuitybridge.nodes import describe, registry

    click.echo(describe.page(registry.get(registry.canonical_name(node_type) or node_type)), nl=False)


@group.command("schema")
@click.argument("node_type", metavar="TYPE")
@click.option("--form", is_flag=True, help="Print the description that editors draw a form from.")
def schema(node_type: str, form: bool) -> None:
    """Print the JSON Schema (2020-12) of TYPE's configuration."""
    from continuitybridge.nodes import describe, registry

    node = registry.get(registry.canonical_name(node_type) or node_type)
    options.print_json(describe.form(node) if form else describe.schema(node))


@group.command("docs")
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
@click.option("--check", is_flag=True, help="Write nothing; fail when a page is missing, stale or left over.")
def docs(directory: Path, check: bool) -> None:
    """Write the reference pages of all node types into DIRECTORY, replacing what stands there."""
    from continuitybridge.nodes import describe, registry

    pages = describe.pages(registry.node_types())
    present = {path.name: path.read_text("utf-8") for path in directory.glob("*.md")} if directory.is_dir() else {}
    stale = sorted(name for name in pages.keys() | present.keys() if pages.get(name) != present.get(name))
    if check:
        for name in stale:
            click.echo(f"{directory / name} is not what the node's class says; run: bridge node docs {directory}")
        raise click.exceptions.Exit(1 if stale else 0)
    directory.mkdir(parents=True, exist_ok=True)
    for name in stale:
        if name in pages:
            (directory / name).write_text(pages[name], "utf-8", newline="\n")
        else:
            (directory / name).unlink()
    click.echo(f"{len(pages)} pages in {directory}, {len(stale)} changed")
