"""`bridge flow lint | convert | plan`, as a person types them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from continuitybridge.cli import bridge
from continuitybridge.flows.load import load_flow
from continuitybridge.flows.plan import Plan

GOOD = """\
flow: orders # as the warehouse calls them
version: 1.0.0
triggers: [{id: begin, type: manual_trigger}]
steps:
  - {id: parse, type: json_parser}
  - id: large
    type: conditional
    config: {branches: {large: .total > 1000}}
    next: {large: note, otherwise: end}
  - {id: note, type: logger, isolate: true}
on_error: note
"""


@pytest.fixture
def good(tmp_path: Path) -> Path:
    file = tmp_path / "orders.flow.yaml"
    file.write_text(GOOD)
    return file


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    file = tmp_path / "bad.flow.yaml"
    file.write_text(GOOD.replace("json_parser", "json_parsr").replace("version: 1.0.0", "version: one"))
    return file


def run(*arguments: object, given: str | None = None) -> Result:
    return CliRunner().invoke(bridge, ["flow", *map(str, arguments)], input=given, catch_exceptions=False)


def test_lint_of_sound_flows_says_what_they_are_and_ends_with_0(good: Path) -> None:
    result = run("lint", good)
    assert result.exit_code == 0
    assert result.stdout == f"{good}: orders 1.0.0 (yaml): no problems\n"


def test_lint_tells_the_problems_of_all_files_and_ends_with_1(good: Path, bad: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.json"
    broken.write_text('{"nodes": [}')
    result = run("lint", good, bad, broken)
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert lines[1].startswith(f"{bad}:2:1: error: version: 'one' is not a semantic version")
    assert lines[2].startswith(f"{bad}:5:17: error: steps[0].type: unknown node type 'json_parsr'")
    assert "did you mean 'json_parser'?" in lines[2]
    assert lines[3] == f"{broken}:1:12: error: not JSON: a value must stand here"


def test_lint_gives_the_problems_as_json(bad: Path) -> None:
    result = run("lint", bad, "--json")
    assert result.exit_code == 1
    first, second = json.loads(result.stdout)
    assert (first["line"], first["field"], first["value"]) == (2, "version", "one")
    assert (second["nearest"], second["severity"]) == ("json_parser", "error")


def test_lint_with_warnings_alone_ends_with_0(tmp_path: Path) -> None:
    file = tmp_path / "old.json"
    file.write_text(
        '{"name": "old", "enabled": false, "edges": [{"id": "e", "source": "t", "target": "a"}],'
        '"nodes": [{"id": "t", "type": "manual_trigger"}, {"id": "a", "type": "logger"}]}'
    )
    result = run("lint", file)
    assert result.exit_code == 0
    assert "warning: enabled" in result.stdout


def test_lint_reads_standard_input() -> None:
    result = run("lint", "-", given=GOOD)
    assert (result.exit_code, result.stdout) == (0, "-: orders 1.0.0 (yaml): no problems\n")


def test_a_file_that_is_not_there_is_a_wrong_call(tmp_path: Path) -> None:
    assert run("lint", tmp_path / "gone.yaml").exit_code == 2


def test_convert_prints_the_flow_in_the_other_format(good: Path) -> None:
    result = run("convert", good, "--to", "canvas")
    assert result.exit_code == 0
    assert load_flow(result.stdout).flow == load_flow(good).flow


def test_convert_writes_a_file(good: Path, tmp_path: Path) -> None:
    target = tmp_path / "orders.canvas.json"
    result = run("convert", good, "--to", "canvas", "--output", target)
    assert (result.exit_code, result.stdout) == (0, "")
    assert load_flow(target).flow == load_flow(good).flow


def test_convert_refuses_what_the_target_cannot_express_naming_the_edge(good: Path) -> None:
    result = run("convert", good, "--to", "dsl")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "large --large--> note" in result.stderr


def test_convert_tells_what_could_not_be_carried_over(tmp_path: Path) -> None:
    file = tmp_path / "old.json"
    node = {"id": "a", "type": "conditional", "data": {"config": {"condition": "a.map(x => x)"}}}
    file.write_text(json.dumps({"name": "old", "nodes": [node], "edges": []}))
    result = run("convert", file, "--to", "yaml")
    assert result.exit_code == 0
    assert "a.map(x => x)" in result.stdout
    assert "cannot be carried over" in result.stderr


def test_convert_refuses_what_it_would_lose(tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(GOOD.replace("on_error: note", "on_eror: note"))
    result = run("convert", file, "--to", "canvas")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "on_eror" in result.stderr


def test_plan_shows_stages_nodes_and_routes(good: Path) -> None:
    result = run("plan", good)
    assert result.exit_code == 0
    lines = [line.split() for line in result.stdout.splitlines()]
    assert lines[0][:2] == ["orders", "1.0.0"]
    assert ["parse", "-", "begin", "manual_trigger", "parse"] in lines
    assert ["note", "parse", "note", "logger", "end"] in lines
    assert "large: note, otherwise: end, error: note" in result.stdout


def test_plan_prints_the_plan_as_json(good: Path) -> None:
    plan = Plan.from_json(run("plan", good, "--json").stdout)
    assert [stage.id for stage in plan.stages] == ["parse", "note"]


def test_plan_of_a_flow_with_problems_is_refused_with_all_of_them(bad: Path) -> None:
    result = run("plan", bad)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "version" in result.stderr
    assert "json_parsr" in result.stderr
