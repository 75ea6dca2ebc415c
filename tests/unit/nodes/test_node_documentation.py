"""Every node type documents itself: examples that hold, schemas that are valid, pages that are fresh."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from click.testing import CliRunner
from node_runs import run

from continuitybridge.cli import bridge
from continuitybridge.errors import NodeError
from continuitybridge.nodes import registry
from continuitybridge.nodes.base import Example

PAGES = Path(__file__).parents[3] / "docs" / "nodes"

EXAMPLES = [
    pytest.param(name, example, id=f"{name}-{example.title}")
    for name, node in registry.node_types().items()
    for example in node.examples
]


def bridge_json(*arguments: str) -> Any:
    result = CliRunner().invoke(bridge, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.output)


@pytest.mark.parametrize(("node_type", "example"), EXAMPLES)
def test_the_example_does_what_the_documentation_says(node_type: str, example: Example) -> None:
    if example.fails is not None:
        with pytest.raises(NodeError) as refused:
            run(node_type, example.config, example.input, headers=example.input_headers, resume=example.resume)
        assert refused.value.code == example.fails
        return
    emitted = run(node_type, example.config, example.input, headers=example.input_headers, resume=example.resume)
    if example.several:
        assert emitted == list(example.output)
    elif example.output is None and example.input is not None:
        assert emitted == []
    else:
        assert [body for _, body in emitted] == [example.output]


@pytest.mark.parametrize("node_type", registry.names())
def test_every_node_type_has_words_an_example_and_described_fields(node_type: str) -> None:
    node = registry.get(node_type)
    assert node.type == node_type
    assert node.label
    assert node.summary.endswith(".")
    assert node.__doc__
    assert node.examples
    for name, field in node.Config.model_fields.items():
        assert field.description, f"{node_type}.{name} has no description"


@pytest.mark.parametrize("node_type", registry.names())
def test_the_schema_is_valid_and_takes_the_examples(node_type: str) -> None:
    schema = bridge_json("node", "schema", node_type)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for example in registry.get(node_type).examples:
        validator.validate(example.config)


@pytest.mark.parametrize("node_type", registry.names())
def test_the_form_has_every_field_of_the_schema_with_a_control(node_type: str) -> None:
    schema = bridge_json("node", "schema", node_type)
    form = bridge_json("node", "schema", node_type, "--form")
    assert [field["name"] for field in form["fields"]] == list(schema.get("properties", {}))
    assert [f["name"] for f in form["fields"] if f["required"]] == [
        name for name in schema.get("properties", {}) if name in schema.get("required", [])
    ]
    for field in form["fields"]:
        assert field["label"]
        assert field["help"]
        assert field["kind"] in {
            *("text", "textarea", "code", "password", "number", "integer", "boolean"),
            *("select", "list", "map", "group", "rows", "variants", "json"),
        }


def test_the_form_knows_editors_choices_and_placeholders() -> None:
    jq = {field["name"]: field for field in bridge_json("node", "schema", "jq", "--form")["fields"]}
    assert (jq["program"]["kind"], jq["program"]["language"]) == ("code", "jq")
    csv = {field["name"]: field for field in bridge_json("node", "schema", "csv_parser", "--form")["fields"]}
    assert csv["output"]["options"] == ["list", "messages"]
    assert csv["columns"] == {
        "name": "columns",
        "label": "Columns",
        "required": False,
        "help": "Names of the columns, in place of those in the header.",
        "default": None,
        "nullable": True,
        "min_items": 1,
        "kind": "list",
        "item": {"kind": "text"},
    }


def test_the_reference_pages_are_what_the_classes_say() -> None:
    result = CliRunner().invoke(bridge, ["node", "docs", str(PAGES), "--check"], catch_exceptions=False)
    assert result.exit_code == 0, result.output


def test_stale_and_left_over_pages_are_found_and_replaced(tmp_path: Path) -> None:
    cli = CliRunner()
    assert cli.invoke(bridge, ["node", "docs", str(tmp_path)]).exit_code == 0
    (tmp_path / "jq.md").write_text("old")
    (tmp_path / "gone.md").write_text("left over")
    checked = cli.invoke(bridge, ["node", "docs", str(tmp_path), "--check"])
    assert checked.exit_code == 1
    assert "gone.md" in checked.output
    assert "jq.md" in checked.output
    assert cli.invoke(bridge, ["node", "docs", str(tmp_path)]).exit_code == 0
    assert cli.invoke(bridge, ["node", "docs", str(tmp_path), "--check"]).exit_code == 0
    assert not (tmp_path / "gone.md").exists()


def test_show_prints_the_page_also_by_the_name_of_older_flows() -> None:
    cli = CliRunner()
    page = cli.invoke(bridge, ["node", "show", "scheduler"])
    assert page.exit_code == 0
    assert page.output == (PAGES / "scheduler.md").read_text()
    assert cli.invoke(bridge, ["node", "show", "timer_trigger"]).output == page.output


def test_the_list_names_every_type_with_its_category() -> None:
    listed = {row["type"]: row for row in bridge_json("node", "list", "--json")}
    assert set(listed) == set(registry.names())
    assert listed["json_parser"]["category"] == "parse"


def test_an_unknown_type_is_answered_with_the_nearest() -> None:
    result = CliRunner().invoke(bridge, ["node", "show", "json_praser"])
    assert result.exit_code == 2
    assert "json_parser" in result.stderr
