"""Finding and building node types."""

from __future__ import annotations

import subprocess
import sys
from types import MappingProxyType
from typing import Any

import pytest

from continuitybridge.errors import ConfigurationError, NotFound
from continuitybridge.nodes import registry
from continuitybridge.nodes.base import BuildContext


def problems(node_type: str, config: Any) -> list[dict[str, Any]]:
    with pytest.raises(ConfigurationError) as refused:
        registry.build(node_type, config, BuildContext(flow="f", node_id="n"))
    found: list[dict[str, Any]] = refused.value.facts["problems"]
    return found


def test_names_are_known_without_importing_a_node() -> None:
    code = (
        "import sys; from continuitybridge.nodes import registry; assert 'jq' in registry.names();"
        "registry.get('json_parser');"
        "sys.exit(any(m in sys.modules for m in ('jq', 'lxml', 'httptools', 'jinja2', 'croniter')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_unknown_type_is_refused_with_the_nearest_names() -> None:
    with pytest.raises(NotFound) as refused:
        registry.get("xml-parser")
    assert refused.value.facts["nearest"][0] == "xml_parser"


@pytest.mark.parametrize(
    ("old", "ours"),
    [("timer_trigger", "scheduler"), ("ingress", "webhook_trigger"), ("jq", "jq"), ("no_such_thing", None)],
)
def test_names_of_older_flows_lead_to_ours(old: str, ours: str | None) -> None:
    assert registry.canonical_name(old) == ours


def test_every_problem_is_told_at_once_with_field_value_and_what_is_valid() -> None:
    found = problems(
        "csv_parser", {"delimeter": ";", "output": "mesages", "header": "yes", "columns": [], "quote": "''"}
    )
    by_field = {problem["field"]: problem for problem in found}
    assert set(by_field) == {"delimeter", "output", "header", "columns", "quote"}
    assert by_field["delimeter"]["nearest"] == ["delimiter"]
    assert "delimiter" in by_field["delimeter"]["valid"]
    assert by_field["output"]["value"] == "mesages"
    assert by_field["output"]["valid"] == "list, messages"
    assert by_field["output"]["nearest"] == ["messages"]


def test_a_missing_field_is_named_with_its_description() -> None:
    (problem,) = problems("webhook_trigger", {})
    assert problem["field"] == "slug"
    assert problem["message"] == "is required"
    assert "address" in problem["valid"]


def test_a_problem_inside_a_list_bears_its_path() -> None:
    (problem,) = problems("xml_parser", {"lists": ["a", 7]})
    assert problem["field"] == "lists.1"
    assert problem["value"] == 7


def test_what_a_node_refuses_when_built_names_its_field_and_value() -> None:
    (problem,) = problems("manual_trigger", {"schema": {"type": "thing"}})
    assert problem["field"] == "schema"
    assert problem["value"] == {"type": "thing"}


def test_frozen_mappings_and_tuples_are_taken_as_configuration() -> None:
    config = MappingProxyType({"columns": ("a", "b"), "header": False})
    registry.build("csv_parser", config, BuildContext())
