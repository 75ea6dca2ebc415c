"""The node `validation`."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from built_nodes import Built, problem, problems
from data_strategies import BODIES, JSON_DATA
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from continuitybridge.errors import InvalidPayload, NodeError, ValidationFailed
from continuitybridge.nodes import registry

ORDER = {
    "type": "object",
    "required": ["id", "lines"],
    "properties": {
        "id": {"type": "string"},
        "placed": {"type": "string", "format": "date-time"},
        "lines": {"type": "array", "items": {"required": ["sku"], "properties": {"n": {"minimum": 1}}}},
    },
}


def violations(config: dict[str, Any], body: Any, **more: Any) -> list[tuple[str, str]]:
    """(path, rule) of everything that is wrong with a body."""
    error = Built("validation", config, **more).fails(body)
    assert isinstance(error, ValidationFailed)
    return [(violation["path"], violation["rule"]) for violation in error.facts["violations"]]


def test_a_valid_message_passes_unchanged() -> None:
    body = {"id": "PO-7", "lines": [{"sku": "A"}]}
    assert Built("validation", {"schema": ORDER}).one(body) is body


def test_an_invalid_message_fails_with_every_violation_and_its_path() -> None:
    body = {"placed": "yesterday", "lines": [{"sku": "A", "n": 0}, {}], "a b": 1}
    found = violations({"schema": {**ORDER, "additionalProperties": False}}, body)
    assert sorted(found) == [
        ("$", "additionalProperties"),
        ("$.id", "required"),
        ("$.lines[0].n", "minimum"),
        ("$.lines[1].sku", "required"),
        ("$.placed", "format"),
    ]


def test_the_text_of_the_failure_names_the_first_and_counts_the_rest() -> None:
    error = Built("validation", {"schema": {"required": ["a", "b", "c", "d", "e"]}}).fails({})
    assert error.detail == "$.a: is required; $.b: is required; $.c: is required; and 2 others"


def test_a_message_with_a_thousand_violations_lists_a_hundred() -> None:
    error = Built("validation", {"schema": {"items": {"type": "string"}}}).fails([1] * 1000)
    assert len(error.facts["violations"]) == 100
    assert error.detail.endswith("and 97 or more others")


def test_with_a_route_for_it_an_invalid_message_leaves_by_the_port_invalid() -> None:
    node = Built("validation", {"schema": ORDER}, routes=("out", "invalid"))
    body = {"id": 5, "lines": []}
    assert node.emits(body, variables={"kept": 1}) == [("invalid", body)]
    assert node.message.vars["kept"] == 1
    (found,) = node.message.vars["node"]["violations"]
    assert found == {"path": "$.id", "rule": "type", "message": '5 is not of type "string"'}


def test_paths_are_written_so_that_they_can_be_read_back() -> None:
    schema = {"properties": {"a b": {"properties": {"it's": {"items": {"type": "null"}}}}}}
    assert violations({"schema": schema}, {"a b": {"it's": [1]}}) == [("$['a b']['it\\'s'][0]", "type")]


@pytest.mark.parametrize("body", [b"{}", b"\xff", "\ud800", {"a": b"x"}, {1: 2}])
def test_what_is_no_json_data_is_refused_as_such(body: Any) -> None:
    assert isinstance(Built("validation", {"schema": ORDER}).fails(body), InvalidPayload)


# ---------------------------------------------------------------- schemas
@pytest.mark.parametrize(
    ("schema", "body", "valid"),
    [
        ({"prefixItems": [{"type": "string"}], "items": False}, ["a"], True),
        ({"prefixItems": [{"type": "string"}], "items": False}, ["a", 1], False),
        ({"$schema": "http://json-schema.org/draft-07/schema#", "items": [{"type": "string"}]}, [1], False),
        ({"$schema": "http://json-schema.org/draft-04/schema#", "minimum": 1, "exclusiveMinimum": True}, 1, False),
        ({"$schema": "http://json-schema.org/draft-06/schema#", "const": 1}, 2, False),
        (
            {"$schema": "https://json-schema.org/draft/2019-09/schema", "dependentRequired": {"a": ["b"]}},
            {"a": 1},
            False,
        ),
        ({"$defs": {"t": {"type": "string"}}, "$ref": "#/$defs/t"}, 1, False),
        ({"unevaluatedProperties": False, "properties": {"a": {}}}, {"b": 1}, False),
        (False, {}, False),
        (True, {}, True),
        ({"type": "integer"}, 2**70, True),
        ({"multipleOf": 0.01}, 19.99, True),
    ],
)
def test_each_draft_means_what_it_says(schema: Any, body: Any, valid: bool) -> None:
    node = Built("validation", {"schema": schema})
    if valid:
        assert node.one(body) == body
    else:
        assert isinstance(node.fails(body), ValidationFailed)


SCHEMAS = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["object", "array", "string", "number", "integer", "null", "boolean"]),
        "required": st.lists(st.sampled_from(["a", "b"]), unique=True, max_size=2),
        "properties": st.sampled_from([{}, {"type": "string"}, {"minimum": 0}, False]).map(lambda a: {"a": a}),
        "minItems": st.integers(0, 3),
        "maxLength": st.integers(0, 5),
        "enum": st.just([1, "a", None, []]),
        "not": st.just({"type": "null"}),
    },
)


@given(SCHEMAS, JSON_DATA)
def test_the_verdict_is_that_of_the_reference_implementation(schema: dict[str, Any], body: Any) -> None:
    node = Built("validation", {"schema": schema})
    expected = Draft202012Validator(schema).is_valid(body)
    try:
        node.emits(body)
        found = True
    except ValidationFailed:
        found = False
    assert found is expected


def test_formats_are_checked_unless_they_are_switched_off() -> None:
    schema = {"format": "email"}
    assert violations({"schema": schema}, "nobody") == [("$", "format")]
    assert Built("validation", {"schema": schema, "formats": False}).one("nobody") == "nobody"


@pytest.mark.parametrize(
    ("schema", "where"),
    [
        ({"type": "strng"}, "schema.type: this is no JSON Schema"),
        ({"properties": {"a": {"minimum": "5"}}}, "schema.properties.a.minimum: this is no JSON Schema"),
        ({"properties": [1]}, "schema.properties: this is no JSON Schema"),
        ({"pattern": "("}, 'schema.pattern: this is no JSON Schema: "(" is not a "regex"'),
        ({"$schema": "http://example.com/own"}, "Unknown meta-schema"),
        ({"$ref": "#/$defs/nowhere"}, "nowhere"),
        ({"$ref": "http://127.0.0.1:9/x.json"}, "refers to 'http://127.0.0.1:9/x.json'"),
        ({"$ref": "file:///etc/hostname"}, "refers to 'file:///etc/hostname'"),
        ({"$ref": "other.json"}, "refers to 'other.json'"),
    ],
)
def test_a_wrong_schema_is_found_when_the_flow_is_checked(schema: Any, where: str) -> None:
    assert where in problem("validation", {"schema": schema})


def test_a_schema_in_a_side_file_finds_the_files_it_refers_to() -> None:
    files = {
        "schemas/order.json": '{"properties": {"buyer": {"$ref": "parts/party.yaml#/$defs/buyer"}}}',
        "schemas/parts/party.yaml": "$defs:\n  buyer: {required: [id], properties: {id: {$ref: id.json}}}\n",
        "schemas/parts/id.json": '{"type": "string", "pattern": "^C"}',
    }
    config = {"schema_file": "schemas/order.json"}
    assert violations(config, {"buyer": {"id": 5}}, files=files) == [("$.buyer.id", "type")]
    assert violations(config, {"buyer": {}}, files=files) == [("$.buyer.id", "required")]
    node = registry.get("validation")
    assert node.files_within("schemas/order.json", files["schemas/order.json"]) == ("schemas/parts/party.yaml",)
    assert node.files_within("x.json", "{") == ()
    found = problem("validation", config, files={"schemas/order.json": files["schemas/order.json"]})
    assert "refers to 'schemas/parts/party.yaml'" in found
    assert "the flow has no side file 'schemas/order.json'" in problem("validation", config)


def test_schemas_that_name_themselves_find_each_other_by_those_names() -> None:
    files = {
        "a.json": '{"$id": "https://example.com/s/a.json", "items": {"$ref": "b.json"}}',
        "b.json": '{"$id": "https://example.com/s/b.json", "type": "string"}',
    }
    assert violations({"schema_file": "a.json"}, [1], files=files) == [("$[0]", "type")]


@pytest.mark.parametrize("text", ["[1]", "5", "{", "a: [", "a: 1\na: 2", "\0", "&a [*a]"])
def test_a_side_file_that_holds_no_schema_is_refused(text: str) -> None:
    found = problem("validation", {"schema_file": "s.json"}, files={"s.json": text})
    assert found.startswith("schema_file: s.json")


@pytest.mark.parametrize("pattern", ["^(a+)+$", "^(a|aa)+$", "^(?=a)(a+)+$", "^(a|aa)+\\1$", "(.*a){25}"])
@pytest.mark.timeout(60)
def test_no_pattern_takes_for_ever(pattern: str) -> None:
    node = Built("validation", {"schema": {"pattern": pattern}})
    with contextlib.suppress(ValidationFailed):
        node.emits("a" * 5_000 + "!")


# ---------------------------------------------------------------- field rules
RULES = {
    "id": {"required": True, "type": "string", "minLength": 2, "maxLength": 5, "pattern": "^[A-Z]"},
    "total": {"type": "number", "min": 0, "max": 100},
    "state": {"enum": ["open", "closed"]},
    "buyer.email": {"required": True, "format": "email"},
    "items": {"required": True, "type": "array", "minItems": 1, "maxItems": 2},
    "items[*].sku": {"required": True},
    "items[*].tags[*]": {"type": "string"},
}
GOOD = {
    "id": "PO",
    "total": 5,
    "state": "open",
    "buyer": {"email": "a@b.ch"},
    "items": [{"sku": "A", "tags": ["x"]}],
}


def test_a_message_that_keeps_all_rules_passes() -> None:
    assert Built("validation", {"rules": RULES}).one(GOOD) == GOOD


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"id": None}, ("$.id", "type")),
        ({"id": "p"}, ("$.id", "minLength")),
        ({"id": "PO-12345"}, ("$.id", "maxLength")),
        ({"id": "po"}, ("$.id", "pattern")),
        ({"total": -1}, ("$.total", "minimum")),
        ({"total": 101}, ("$.total", "maximum")),
        ({"total": "5"}, ("$.total", "type")),
        ({"state": "lost"}, ("$.state", "enum")),
        ({"buyer": {"email": "nobody"}}, ("$.buyer.email", "format")),
        ({"buyer": {}}, ("$.buyer.email", "required")),
        ({"buyer": {"email": None}}, ("$.buyer.email", "required")),
        ({"buyer": "Acme"}, ("$.buyer", "type")),
        ({"items": []}, ("$.items", "minItems")),
        ({"items": [{"sku": 1}] * 3}, ("$.items", "maxItems")),
        ({"items": [{"sku": 1}, {}]}, ("$.items[1].sku", "required")),
        ({"items": [{"sku": 1, "tags": ["x", 5]}]}, ("$.items[0].tags[1]", "type")),
        ({"items": {"sku": 1}}, ("$.items", "type")),
    ],
)
def test_each_rule_is_broken_by_what_it_forbids(change: dict[str, Any], expected: tuple[str, str]) -> None:
    assert expected in violations({"rules": RULES}, {**GOOD, **change})


def test_an_absent_field_breaks_only_required_and_makes_what_holds_it_required() -> None:
    assert violations({"rules": RULES}, {"id": "PO"}) == [("$.buyer", "required"), ("$.items", "required")]
    optional = {"rules": {"a.b": {"type": "string"}, "c[*].d": {"required": True}, "e": {"enum": [1]}}}
    for body in ({}, {"a": None}, {"a": {}}, {"a": {"b": None}}, {"c": []}, {"c": None}, {"e": None}):
        assert Built("validation", optional).one(body) == body


def test_a_message_that_is_a_list_is_checked_element_by_element() -> None:
    node = {"rules": {"sku": {"required": True}}}
    assert Built("validation", node).one([{"sku": 1}]) == [{"sku": 1}]
    assert violations(node, [{"sku": 1}, {}, 5]) == [("$[1].sku", "required"), ("$[2]", "type")]
    assert violations({"rules": {"[*].sku": {"required": True}}}, [{}]) == [("$[0].sku", "required")]
    assert violations({"rules": {"[*].sku": {"required": True}}}, {"sku": 1}) == [("$", "type")]


def test_strict_refuses_fields_that_no_rule_names() -> None:
    config = {"rules": {"a": {}, "b.c": {}}, "strict": True}
    assert Built("validation", config).one({"a": 1, "b": {"x": 1}}) == {"a": 1, "b": {"x": 1}}
    assert violations(config, {"a": 1, "z": 1}) == [("$", "additionalProperties")]


def test_a_field_with_dots_in_its_name_is_written_in_brackets() -> None:
    assert violations({"rules": {"['order.id'].x": {"required": True}}}, {}) == [("$['order.id']", "required")]


def test_schema_and_rules_hold_together() -> None:
    config = {"schema": {"required": ["a"]}, "rules": {"b": {"required": True}}}
    assert violations(config, {}) == [("$.a", "required"), ("$.b", "required")]


def test_every_wrong_rule_is_told_at_once() -> None:
    found = problems("validation", {"rules": {"a": {"pattern": "("}, "b..c": {}, "": {}, "d": {"min": 1}}})
    assert set(found) == {"rules.a.pattern", "rules.b..c", "rules."}
    assert "did you mean required?" in problem("validation", {"rules": {"a": {"requird": True}}})
    assert "all for the elements" in problem("validation", {"rules": {"a": {}, "[*].b": {}}})


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({}, "nothing to check by"),
        ({"schema": {}, "schema_file": "x"}, "both given"),
        ({"schema": {}, "strict": True}, "there are no rules"),
    ],
)
def test_a_configuration_that_says_nothing_or_too_much_is_refused(config: dict[str, Any], reason: str) -> None:
    assert reason in problem("validation", config)


@given(BODIES)
def test_whatever_a_message_holds_it_passes_or_fails_typed(body: Any) -> None:
    for config in ({"schema": ORDER}, {"rules": RULES}):
        with contextlib.suppress(NodeError):
            Built("validation", config).emits(body)


# ---------------------------------------------------------------- older flows
def test_the_old_rules_are_read_from_yaml_json_and_lists() -> None:
    node = registry.get("validation")
    expected = {"sku": {"type": "string", "required": True}, "qty": {"type": "number", "min": 1}}
    as_yaml = "sku:\n  type: string\n  required: true\nqty:\n  type: number\n  min: 1\n"
    as_list = [{"field": "sku", **expected["sku"]}, {"field": "qty", "type": "number", "minimum": 1}]
    for rules in (as_yaml, json.dumps(expected), expected, as_list, json.dumps(as_list)):
        translated = node.from_legacy({"rules": rules, "strictMode": False, "continueOnError": True})
        assert translated == {"rules": expected}
        assert violations(translated, {"qty": 0}) == [("$.sku", "required"), ("$.qty", "minimum")]
    assert node.from_legacy({"rules": "a: string", "strictMode": True}) == {
        "rules": {"a": {"type": "string"}},
        "strict": True,
    }


def test_an_old_reference_to_a_schema_becomes_a_side_file() -> None:
    node = registry.get("validation")
    assert node.from_legacy({"schemaRef": "schemas/order.json"}) == {"schema_file": "schemas/order.json"}
    assert registry.canonical_name("validator") == "validation"
