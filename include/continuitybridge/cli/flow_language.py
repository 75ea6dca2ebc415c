"""`bridge flow lint | convert | plan`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from continuitybridge.cli import options
from continuitybridge.errors import ConfigurationError

if TYPE_CHECKING:
    from continuitybridge.flows.load import LoadedFlow
    from continuitybridge.flows.plan import Plan

_SOURCE = click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path)
_STDIN = Path("-")


@click.command("lint")
@click.argument("files", nargs=-1, required=True, type=_SOURCE)
@options.json_output
@click.pass_context
def lint(ctx: click.Context, files: tuple[Path, ...], as_json: bool) -> None:
    """Find everything that is wrong with the flow in each of FILES (`-` is standard input).

    Exit status 1 when there is an error; warnings alone are 0.
    """
    problems = []
    for file in files:
        found, about = _lint(file)
        problems += found
        if not as_json:
            for problem in found:
                click.echo(problem["text"])
            if not found:
                click.echo(f"{file}: {about}: no problems")
    if as_json:
        options.print_json([{key: value for key, value in p.items() if key != "text"} for p in problems])
    if any(problem["severity"] == "error" for problem in problems):
        ctx.exit(1)


@click.command("convert")
@click.argument("file", type=_SOURCE)
@click.option(
    "--to",
    "target",
    required=True,
    type=click.Choice(["yaml", "canvas", "dsl"]),
    help="yaml: our flow language; canvas: nodes and edges as JSON; dsl: triggers and steps.",
)
@click.option("--output", "-o", type=click.Path(dir_okay=False, path_type=Path), help="Instead of printing it.")
def convert(file: Path, target: Literal["yaml", "canvas", "dsl"], output: Path | None) -> None:
    """Write the flow in FILE, in whichever format it is, in another, without loss.

    What the target cannot express is refused, naming the edge.
    """
    from continuitybridge.flows.convert import convert as convert_flow

    loaded = _load(file)
    text = convert_flow(loaded, target)
    for remark in loaded.remarks:
        click.echo(str(remark), err=True)
    if output is None:
        click.echo(text, nl=False)
    else:
        output.write_text(text, encoding="utf-8")
        click.echo(f"{output}: {loaded.flow.name} {loaded.flow.version}, {target}", err=True)


@click.command("plan")
@click.argument("file", type=_SOURCE)
@options.json_output
def plan(file: Path, as_json: bool) -> None:
    """Show what the flow in FILE compiles to: its stages, their nodes and where each leads."""
    from continuitybridge.flows.lint import check
    from continuitybridge.flows.plan import compile_flow

    loaded = _load(file)
    check(loaded)
    compiled = compile_flow(loaded.flow)
    if as_json:
        click.echo(compiled.to_json())
        return
    click.echo(f"{compiled.flow} {compiled.version}  {compiled.digest}")
    options.print_table(
        ("stage", "after", "node", "type", "leads to"),
        [
            (stage.id, stage.upstream, node_id, compiled.nodes[node_id].type, _routes(compiled, node_id))
            for stage in compiled.stages
            for node_id in stage.nodes
        ],
    )


def _routes(compiled: Plan, node_id: str) -> list[str]:
    node = compiled.nodes[node_id]
    routes = [
        target if port == "out" else f"{port}: {target}"
        for port, targets in node.next.items()
        for target in targets or ("end",)
    ]
    return [*routes, *([f"error: {node.on_error}"] if node.on_error else [])]


def _load(file: Path) -> LoadedFlow:
    from continuitybridge.flows.load import load_flow

    if file == _STDIN:
        return load_flow(sys.stdin.read(), name="-")
    return load_flow(file)


def _lint(file: Path) -> tuple[list[dict[str, object]], str]:
    """The problems as facts, each with the line a person reads, and what the flow is."""
    from continuitybridge.flows.lint import lint as lint_flow
    from continuitybridge.flows.problems import Problem

    problems: list[Problem]
    try:
        loaded = _load(file)
    except ConfigurationError as error:
        problems = [Problem(**facts) for facts in error.facts["problems"]]
        about = ""
    else:
        problems = lint_flow(loaded)
        about = f"{loaded.flow.name} {loaded.flow.version} ({loaded.format})"
    return [{**problem.to_dict(), "text": str(problem)} for problem in problems], about
