"""The node `object_mapper`: the language, its files, and what older mappings become."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from built_nodes import Built, is_json_data, problem, problems
from data_strategies import BODIES, JSON_DATA
from hypothesis import given
from hypothesis import strategies as st
from jsonpath import JSONPathEnvironment

from continuitybridge.errors import (
    ConfigurationError,
    InvalidPayload,
    NodeError,
    TransformFailed,
    ValidationFailed,
)
from continuitybridge.nodes import registry

RFC9535 = JSONPathEnvironment(strict=True)


def mapped(mapping: dict[str, Any], body: Any, **more: Any) -> Any:
    config = {"mapping": mapping, **more.pop("config", {})}
    files = more.pop("files", None)
    return Built("object_mapper", config, files=files).one(body, **more)


def value(rule: Any, body: Any, **more: Any) -> Any:
    """What one field becomes; `...` when it is left out."""
    return mapped({"x": rule}, body, **more).get("x", ...)


def refusal(rule: Any, body: Any) -> str:
    error = Built("object_mapper", {"mapping": {"x": rule}}).fails(body)
    assert isinstance(error, TransformFailed)
    return error.detail


def wrong(rule: Any, **more: Any) -> str:
    return problem("object_mapper", {"mapping": {"x": rule}, **more})


# ---------------------------------------------------------------- paths
@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("$.a.b", 1),
        ("$['a']['b']", 1),
        ('$["a b"].c', 2),
        ("$.list[1].n", 20),
        ("$.list[9].n", None),
        ("$.a.b.c", None),
        ("$.text[0]", None),
        ("$.list.n", None),
        ("$.é", 3),
        ("$.list[*].n", [10, 20]),
        ("$.list[-1].n", [20]),
        ("$.list[?@.n > 10].n", [20]),
        ("$.list[?@.none].n", None),
        ("$..b", [1]),
        ("$.list[0:1]", [{"n": 10}]),
        ("$.text[?@.a]", None),
    ],
)
def test_a_path_finds_one_value_or_a_list_of_values(path: str, expected: Any) -> None:
    body = {"a": {"b": 1}, "a b": {"c": 2}, "é": 3, "list": [{"n": 10}, {"n": 20}], "text": "abc"}
    assert value(path, body) == expected


def test_the_message_is_reachable_from_everywhere() -> None:
    rule = {"arrayPath": "$.lines", "itemMapping": {"sku": "$.sku", "order": "$body.id", "via": "$headers['x-a']"}}
    found = value(rule, {"id": 7, "lines": [{"sku": "A"}]}, headers={"x-a": "edi"})
    assert found == [{"sku": "A", "order": 7, "via": "edi"}]
    assert value("$vars.step.status", {}, variables={"step": {"status": 202}}) == 202
    assert value("$message.id", {}) == "m-1"
    assert value("$body", 5) == 5


KEYS = st.sampled_from(["a", "b", "a b", "items", "é", "x-y"])
STEPS = st.lists(KEYS.map("['{}']".format) | st.integers(0, 3).map("[{}]".format), max_size=4).map("".join)


@given(STEPS, JSON_DATA)
def test_a_path_to_one_place_finds_what_the_reference_implementation_finds(steps: str, body: Any) -> None:
    found = RFC9535.findall(f"${steps}", body) if isinstance(body, dict | list) else ([body] if not steps else [])
    assert value({"path": f"${steps}", "optional": True}, body) == (
        found[0] if found and found[0] is not None else ...
    )


@pytest.mark.parametrize(
    "path", ["$.", "$[", "$.a[", "$.a b", "$['a", "$.a[?]", "$x", "a.b", "", "$.a[01]", "$.a[?@.b ==]"]
)
def test_what_is_no_path_is_found_when_the_flow_is_checked(path: str) -> None:
    assert "path" in wrong(path).lower()


# ---------------------------------------------------------------- fields
def test_null_counts_as_no_value_and_the_first_fallback_with_one_is_taken() -> None:
    rule = {"path": "$.a", "fallback": ["$.b", "$.c"], "default": "d"}
    assert [value(rule, body) for body in ({"a": 1}, {"a": None, "b": 2}, {"c": 3}, {})] == [1, 2, 3, "d"]
    assert value({"path": "$.a", "fallback": "$.b"}, {"b": 0}) == 0


def test_a_field_without_value_is_null_left_out_or_its_default() -> None:
    assert value("$.a", {}) is None
    assert value({"path": "$.a", "optional": True}, {}) is ...
    assert value({"path": "$.a", "optional": True, "default": 5}, {}) == 5
    assert value({"path": "$.a", "default": "raw", "transform": "parseInt", "lookup": "t"}, {}, config=T) == "raw"


T = {"lookups": {"t": {"01": "new", "2": "old", "true": "yes"}}}


def test_defaults_and_constants_are_fresh_for_each_message() -> None:
    node = Built("object_mapper", {"mapping": {"a": {"constant": []}, "b": {"path": "$.b", "default": {}}}})
    first = node.one({})
    first["a"].append(1)
    first["b"]["x"] = 1
    assert node.one({}) == {"a": [], "b": {}}


def test_nested_objects_are_built_and_left_out_when_nothing_in_them_has_a_value() -> None:
    mapping = {
        "to": {"city": {"path": "$.city", "optional": True}, "geo": {"lat": {"path": "$.lat", "optional": True}}},
        "fixed": {"constant": {"k": 1}},
    }
    assert mapped(mapping, {"city": "Bern", "lat": 1}) == {
        "to": {"city": "Bern", "geo": {"lat": 1}},
        "fixed": {"k": 1},
    }
    assert mapped(mapping, {"city": "Bern"}) == {"to": {"city": "Bern"}, "fixed": {"k": 1}}
    assert mapped(mapping, {}) == {"fixed": {"k": 1}}


def test_target_fields_may_be_called_like_keys_of_the_language() -> None:
    mapping = {"default": "$.a", "optional": {"description": "$.a", "lookup": "$.a"}, "path": {"path": "$.a"}}
    assert mapped(mapping, {"a": 1}) == {
        "default": 1,
        "optional": {"description": 1, "lookup": 1},
        "path": 1,
    }


def test_strict_names_every_field_that_is_missing() -> None:
    mapping = {
        "id": "$.id",
        "note": {"path": "$.note", "optional": True},
        "state": {"path": "$.state", "default": "new"},
        "lines": {"arrayPath": "$.lines", "itemMapping": {"sku": "$.sku"}},
        "to": {"city": "$.city"},
    }
    node = Built("object_mapper", {"mapping": mapping, "strict": True})
    assert node.fails({"lines": [{}, {}]}).detail == (
        "the message lacks id ($.id), lines[*].sku ($.sku), to.city ($.city)"
    )
    assert "lines ($.lines)" in node.fails({}).detail
    assert node.one({"id": 1, "lines": [], "city": "x"}) == {
        "id": 1,
        "state": "new",
        "lines": [],
        "to": {"city": "x"},
    }


# ---------------------------------------------------------------- lists
@pytest.mark.parametrize("path", ["$.lines", "$.lines[*]"])
def test_each_element_is_mapped_and_a_single_one_counts_as_a_list(path: str) -> None:
    rule = {"arrayPath": path, "itemMapping": {"sku": "$.sku"}}
    assert value(rule, {"lines": [{"sku": 1}, {"sku": 2}]}) == [{"sku": 1}, {"sku": 2}]
    assert value(rule, {"lines": {"sku": 1}}) == [{"sku": 1}]
    assert value(rule, {"lines": []}) == []
    assert value(rule, {}) == []
    assert value({**rule, "optional": True}, {}) is ...
    assert value({**rule, "default": [1]}, {"lines": None}) == [1]


def test_elements_may_be_chosen_and_become_plain_values_or_lists_again() -> None:
    body = {"lines": [{"n": 1, "tags": ["a", "b"]}, {"n": 2, "tags": []}]}
    assert value({"arrayPath": "$.lines[?@.n > 1]", "itemMapping": {"n": "$.n"}}, body) == [{"n": 2}]
    assert value({"arrayPath": "$.lines", "itemMapping": "$.n"}, body) == [1, 2]
    inner = {"arrayPath": "$.tags", "itemMapping": {"t": "$"}}
    assert value({"arrayPath": "$.lines", "itemMapping": {"tags": inner}}, body) == [
        {"tags": [{"t": "a"}, {"t": "b"}]},
        {"tags": []},
    ]


def test_a_fault_in_a_list_names_the_element() -> None:
    rule = {"arrayPath": "$.l", "itemMapping": {"q": {"n": {"path": "$.n", "transform": "parseInt"}}}}
    assert refusal(rule, {"l": [{"n": "1"}, {"n": "one"}]}) == "x[1].q.n: 'one' is not a number"


# ---------------------------------------------------------------- transforms
def cast(transform: Any, given: Any) -> Any:
    return value({"path": "$.v", "transform": transform}, {"v": given})


@pytest.mark.parametrize(
    ("transform", "given", "expected"),
    [
        ("parseInt", "100", 100),
        ("parseInt", " -7 ", -7),
        ("parseInt", "2.9", 2),
        ("parseInt", -2.5, -3),
        ("parseInt", "1e3", 1000),
        ("parseInt", "9" * 30, int("9" * 30)),
        ("parseFloat", "29.99", 29.99),
        ("parseFloat", "100", 100),
        ("parseFloat", ".5", 0.5),
        ("parseFloat", 7, 7),
        ("round", "2.5", 3),
        ({"round": {"digits": 2}}, 2.675, 2.68),
        ({"round": {"digits": 2}}, 1e300, 1e300),
        ("toString", 5, "5"),
        ("toString", True, "true"),
        ("toString", {"a": [1]}, '{"a":[1]}'),
        ("toBoolean", "Yes", True),
        ("toBoolean", 0, False),
        (["trim", "upper"], " ab ", "AB"),
        ("lower", "ÄB", "äb"),
        ("concat", ["a", None, 1], "a1"),
        ("firstNonNull", [None, 0, 1], 0),
        ("toISO3166Alpha2", "USA", "US"),
        ("toISO3166Alpha2", "swe", "SE"),
        ("toISO3166Alpha2", "ch", "CH"),
        ("toISO3166Alpha2", "040", "AT"),
        ("toISO3166Alpha2", 40, "AT"),
        ("toISO8601", "2025-03-01T08:15:00", "2025-03-01T08:15:00Z"),
        ("toISO8601", "2025-03-01T08:15:00Z", "2025-03-01T08:15:00Z"),
        ("toISO8601", "2025-03-01T08:15:00.120+01:00", "2025-03-01T08:15:00.120+01:00"),
        ("toISO8601", "2025-03-01", "2025-03-01T00:00:00Z"),
        ("toISO8601", "20250301T0815", "2025-03-01T08:15:00Z"),
        ("toISO8601", "2025-03-01 08:15", "2025-03-01T08:15:00Z"),
        ("toISO8601", 1740816900, "2025-03-01T08:15:00Z"),
        ("toISO8601", 1740816900123, "2025-03-01T08:15:00.123000Z"),
        ({"toISO8601": {"timezone": "Europe/Zurich"}}, "2025-07-01T08:00:00", "2025-07-01T08:00:00+02:00"),
        ({"toISO8601": {"format": "%d.%m.%Y"}}, "01.03.2025", "2025-03-01T00:00:00Z"),
        ({"uomConvert": {"from": "LB", "to": "kg"}}, "10", 4.5359237),
        ({"uomConvert": {"from": "KG", "to": "G"}}, 2.5, 2500),
        ({"uomConvert": {"from": "M", "to": "M"}}, 1.5, 1.5),
    ],
)
def test_a_transform_gives(transform: Any, given: Any, expected: Any) -> None:
    found = cast(transform, given)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("transform", "given", "reason"),
    [
        ("parseInt", "12abc", "'12abc' is not a number"),
        ("parseInt", float("inf"), "is not a number"),
        ("parseFloat", "1,5", "'1,5' is not a number"),
        ("parseFloat", "", "'' is not a number"),
        ("parseFloat", True, "true is not a number"),
        ("parseFloat", "1e999", "is not a number"),
        ("parseFloat", "0x10", "is not a number"),
        ("toBoolean", "maybe", "'maybe' is neither true nor false"),
        ("toISO3166Alpha2", "SW", "'SW' is no country code of ISO 3166-1"),
        ("toISO3166Alpha2", "Sweden", "is no country code"),
        ("toISO8601", "2025-02-30", "'2025-02-30' is not ISO 8601"),
        ("toISO8601", "2025-02-30T00:00:00Z", "is not ISO 8601"),
        ("toISO8601", True, "true is no date"),
        ("toISO8601", 1e30, "is no date"),
        ({"toISO8601": {"format": "%d.%m.%Y"}}, "2025-03-01", "is not of the form %d.%m.%Y"),
        ({"uomConvert": {"from": "LB", "to": "L"}}, 1, "no factor from LB to L"),
        ({"uomConvert": {"from": "$.nothing", "to": "KG"}}, 1, "no factor from no unit to KG"),
        ({"uomConvert": {"from": "LB", "to": "KG"}}, "many", "'many' is not a number"),
    ],
)
def test_a_value_that_a_transform_cannot_take_fails_the_message_and_is_never_guessed(
    transform: Any, given: Any, reason: str
) -> None:
    found = refusal({"path": "$.v", "transform": transform}, {"v": given})
    assert found.startswith("x: ")
    assert reason in found


def test_several_paths_are_joined_or_chosen_from() -> None:
    body = {"first": "Ada", "last": "Byron", "n": 5}
    paths = ["$.first", "$.middle", "$.last", "$.n"]
    assert value({"path": paths, "transform": {"concat": {"separator": " "}}}, body) == "Ada Byron 5"
    assert value({"path": ["$.x", "$.last"], "transform": "firstNonNull"}, body) == "Byron"
    assert value({"path": ["$.x", "$.y"], "transform": "concat", "default": "-"}, body) == "-"
    assert value({"path": ["$.x", "$.last"], "transform": ["firstNonNull", "upper"]}, body) == "BYRON"


def test_a_table_of_factors_of_its_own_converts_units() -> None:
    rule = {"path": "$.n", "transform": {"uomConvert": {"from": "$.unit", "to": "EA", "table": "packs"}}}
    config = {"lookups": {"packs": {"EA": 1, "CS": 12, "PLT": "480"}}}
    assert value(rule, {"n": "2", "unit": "plt"}, config=config) == 960
    broken = problem("object_mapper", {"mapping": {"x": rule}, "lookups": {"packs": {"EA": 1, "CS": "dozen"}}})
    assert "a table of factors has positive numbers" in broken


NAMES_OF_TRANSFORMS = [
    "toISO8601", "toISO3166Alpha2", "parseInt", "parseFloat", "round", "toString", "toBoolean", "upper", "lower",
    "trim", "concat", "firstNonNull",
]  # fmt: skip


@given(st.sampled_from(NAMES_OF_TRANSFORMS), BODIES)
def test_any_value_is_transformed_into_data_or_refused(transform: str, given: Any) -> None:
    try:
        found = cast(transform, given)
    except AssertionError:
        raise
    except NodeError:
        return
    assert is_json_data(found) or isinstance(given, bytes)


# ---------------------------------------------------------------- lookups
def test_a_lookup_compares_as_text_and_falls_to_the_default() -> None:
    rule = {"path": "$.v", "lookup": "t"}
    assert [value(rule, {"v": v}, config=T) for v in ("01", 2, 2.0, True)] == ["new", "old", "old", "yes"]
    assert value({**rule, "default": "?"}, {"v": "99"}, config=T) == "?"
    assert value({**rule, "optional": True}, {"v": "99"}, config=T) is ...
    error = Built("object_mapper", {"mapping": {"x": rule}, **T}).fails({"v": "99"})
    assert error.detail == "x: t has no entry '99', and the field has no default"


FILES = {
    "maps/status_map.yaml": 'order:\n  "01": new\n  02: done  # a text too\n  no: never\nship: {A: away}\n',
    "maps/units.json": '{"uom_map": {"PC": "EA", "CS": "CS"}, "weight": {"KG": 1, "STN": 6.35029318}}',
}


def test_tables_of_side_files_are_found_by_file_by_table_and_by_both() -> None:
    config = {"lookup_files": list(FILES)}
    for name, key, expected in (
        ("status_map.order", "02", "done"),
        ("status_map.order", "no", "never"),
        ("order", "01", "new"),
        ("uom_map", "PC", "EA"),
        ("units.uom_map", "CS", "CS"),
    ):
        assert value({"path": "$.v", "lookup": name}, {"v": key}, config=config, files=FILES) == expected
    stones = {"path": "$.v", "transform": {"uomConvert": {"from": "STN", "to": "KG", "table": "weight"}}}
    assert value(stones, {"v": 1}, config=config, files=FILES) == 6.35029318


def test_an_unknown_table_is_found_when_the_flow_is_checked_with_the_nearest_name() -> None:
    config = {"mapping": {"x": {"path": "$.v", "lookup": "status_map.ordr"}}, "lookup_files": list(FILES)}
    assert "did you mean status_map.order" in problem("object_mapper", config, files=FILES)
    twice = {"a.yaml": "t: {x: 1}", "b.yaml": "t: {x: 2}"}
    config = {"mapping": {"x": {"path": "$.v", "lookup": "t"}}, "lookup_files": list(twice)}
    assert "several files have a table 't'" in problem("object_mapper", config, files=twice)
    config["mapping"]["x"]["lookup"] = "b.t"
    Built("object_mapper", config, files=twice)
    assert "the flow has no side file 'nowhere.yaml'" in problem(
        "object_mapper", {"mapping": {"x": "$.v"}, "lookup_files": ["nowhere.yaml"]}
    )


# ---------------------------------------------------------------- mapping files
ORDER_MAP = """
includes: ["../tables/state_codes.yaml", "../tables/packs.yaml"]
version: "1.0"
sourceFormat: "House order"
targetFormat: "Canonical order"
mapping:
  orderId: {path: "$.no", description: "the number"}
  status: {path: "$.state.code", lookup: "state_codes.sales", default: "pending"}
  placed: {path: "$.at", transform: "toISO8601"}
  items:
    arrayPath: "$.rows.row[*]"
    itemMapping:
      sku: {path: "$.article", fallback: "$.ean"}
      quantity: {path: "$.count", transform: "parseFloat", default: 0}
      uom: {path: "$.pack", lookup: "pack_map", default: "EA"}
  to:
    country: {path: "$.land", transform: "toISO3166Alpha2", default: "CH"}
transforms:
  toISO8601: {description: "for people"}
validation:
  - {field: "orderId", required: true, type: "string", minLength: 1}
  - {field: "items", required: true, minItems: 1}
  - {field: "items[*].sku", required: true, type: "string"}
  - {field: "items[*].quantity", required: true, minimum: 0}
"""
MAP_FILES = {
    "maps/orders/house.yaml": ORDER_MAP,
    "maps/tables/state_codes.yaml": 'sales:\n  "1": pending\n  "2": confirmed\nreturns: {"1": announced}\n',
    "maps/tables/packs.yaml": "pack_map:\n  ST: EA\n  KA: CS\n",
}
HOUSE_ORDER = {
    "no": "H-77",
    "state": {"code": "2"},
    "at": "2025-04-05T06:07:08",
    "land": "AUT",
    "rows": {"row": [{"article": "A", "count": "12", "pack": "ST"}, {"ean": "76", "count": "3", "pack": "KA"}]},
}


def test_a_mapping_file_with_includes_and_rules_maps_an_order() -> None:
    node = Built("object_mapper", {"file": "maps/orders/house.yaml"}, files=MAP_FILES)
    assert node.one(HOUSE_ORDER) == {
        "orderId": "H-77",
        "status": "confirmed",
        "placed": "2025-04-05T06:07:08Z",
        "items": [{"sku": "A", "quantity": 12, "uom": "EA"}, {"sku": "76", "quantity": 3, "uom": "CS"}],
        "to": {"country": "AT"},
    }
    error = node.fails({**HOUSE_ORDER, "rows": {"row": {"article": 5, "count": -1, "pack": "??"}}})
    assert isinstance(error, ValidationFailed)
    paths = {violation["path"] for violation in error.facts["violations"]}
    assert paths == {"$.items[0].sku", "$.items[0].quantity"}


def test_a_mapping_file_names_the_files_it_includes() -> None:
    node = registry.get("object_mapper")
    assert node.files_within("maps/orders/house.yaml", ORDER_MAP) == (
        "maps/tables/state_codes.yaml",
        "maps/tables/packs.yaml",
    )
    for text in ("[", "5", "includes: 5", "includes: [5]"):
        assert node.files_within("x.yaml", text) == ()


@pytest.mark.parametrize(
    ("text", "field", "reason"),
    [
        ("[", "file", "line 2, column 1"),
        ("5", "file", "has no key `mapping`"),
        ("mapping: {a: $.a}\nmaping: {}", "file.m.yaml.maping", "unknown key 'maping'"),
        ("mapping: {a: {path: $.a, lookup: t}}", "file.m.yaml.mapping.a.lookup", "there is no lookup table 't'"),
        ("mapping: {a: $.a}\nincludes: [t.yaml]", "file.m.yaml.includes", "the flow has no side file 't.yaml'"),
        ("mapping: {a: $.a}\nincludes: {}\nlookups: []", "file.m.yaml.includes", "includes is a list"),
        ("mapping: {a: $.a}\nvalidation: [{required: true}]", "rules", "a rule has a field"),
        ("mapping: {a: $.a}\nvalidation: [{field: a, colour: red}]", "file.m.yaml.validation", "colour"),
        ("mapping: {a: $.a, a: $.b}", "file", "the key 'a' occurs twice"),
    ],
)
def test_a_wrong_mapping_file_is_found_when_the_flow_is_checked(text: str, field: str, reason: str) -> None:
    found = problems("object_mapper", {"file": "m.yaml"}, files={"m.yaml": text})
    assert reason in found[field]


# ---------------------------------------------------------------- what is refused
@pytest.mark.parametrize(
    ("rule", "field", "reason"),
    [
        (5, "mapping.x", "a field is a path"),
        ({}, "mapping.x", "an object without fields"),
        ({"path": "$.a", "defualt": 1}, "mapping.x.defualt", "did you mean default?"),
        ({"path": "$.a", "transform": "parsInt"}, "mapping.x.transform", "did you mean parseInt"),
        ({"path": "$.a", "transform": ["trim", "nope"]}, "mapping.x.transform.1", "no transform 'nope'"),
        ({"path": "$.a", "transform": []}, "mapping.x.transform", "a transform is named"),
        ({"path": "$.a", "transform": {"concat": ","}}, "mapping.x.transform", "a name with its options"),
        (
            {"path": "$.a", "transform": {"concat": {"sep": ","}}},
            "mapping.x.transform.concat.sep",
            "it has separator",
        ),
        (
            {"path": "$.a", "transform": {"round": {"digits": "2"}}},
            "mapping.x.transform.round.digits",
            "must be a number",
        ),
        (
            {"path": "$.a", "transform": {"parseInt": {"base": 2}}},
            "mapping.x.transform.parseInt.base",
            "it has none",
        ),
        (
            {"path": "$.a", "transform": {"uomConvert": {"from": "KG"}}},
            "mapping.x.transform.uomConvert.to",
            "needs to",
        ),
        (
            {"path": "$.a", "transform": {"toISO8601": {"timezone": "Mars/X"}}},
            "mapping.x.transform.toISO8601.timezone",
            "no time zone",
        ),
        ({"path": ["$.a", "$.b"]}, "mapping.x.path", "several paths need a transform"),
        ({"path": ["$.a", "$.b"], "transform": "parseInt"}, "mapping.x.transform", "takes one value"),
        ({"path": "$.a", "optional": "yes"}, "mapping.x.optional", "true or false"),
        ({"path": "$.a", "lookup": 5}, "mapping.x.lookup", "a lookup is named"),
        ({"arrayPath": "$.a"}, "mapping.x", "arrayPath needs itemMapping"),
        ({"arrayPath": "$.a", "itemMapping": {"y": "$["}}, "mapping.x.itemMapping.y.path", "is no JSONPath"),
        ({"constant": 1, "path": "$.a"}, "mapping.x.path", "unknown key 'path'"),
    ],
)
def test_a_wrong_rule_is_found_when_the_flow_is_checked(rule: Any, field: str, reason: str) -> None:
    found = wrong(rule)
    assert found.startswith(f"{field}: ")
    assert reason in found


def test_everything_wrong_is_told_at_once() -> None:
    mapping = {"a": "x", "b": {"path": "$.b", "transform": "nope"}, "c": {"d": 5}, "e": "$.e"}
    assert set(problems("object_mapper", {"mapping": mapping})) == {
        "mapping.a.path",
        "mapping.b.transform",
        "mapping.c.d",
    }
    assert "give either mapping or file" in problem("object_mapper", {})


def test_a_mapping_nested_without_end_is_refused() -> None:
    deep: Any = "$.a"
    for _ in range(600):
        deep = {"x": deep}
    with pytest.raises(ConfigurationError):
        Built("object_mapper", {"mapping": deep})


@given(BODIES)
def test_whatever_a_message_holds_it_is_mapped_or_fails_typed(body: Any) -> None:
    node = Built("object_mapper", {"file": "maps/orders/house.yaml"}, files=MAP_FILES)
    with contextlib.suppress(NodeError):
        node.emits(body)
    general = {"a": "$..a", "b": "$.items[?@.a > 1]", "c": {"arrayPath": "$[*]", "itemMapping": {"d": "$.a"}}}
    with contextlib.suppress(NodeError):
        Built("object_mapper", {"mapping": general}).emits(body)
    if isinstance(body, bytes):
        assert isinstance(node.fails(body), InvalidPayload)


# ---------------------------------------------------------------- older mappings
def from_legacy(**config: Any) -> dict[str, Any]:
    translated = registry.get("object_mapper").from_legacy(config)
    Built("object_mapper", translated)
    return translated


def test_mappings_of_the_old_library_do_what_they_did() -> None:
    translated = from_legacy(
        mappings={
            "order.id": "orderId",
            "order.buyer.name": "customer.name",
            "order.lines[].sku": "items[].article",
            "order.lines[].qty": "items[].quantity",
            "order.lines[].serials[].n": "items[].serials[].number",
            "order.tags[]": "labels[]",
            "order.lines[0].sku": "firstArticle",
            "order.lines[].sku ": "allArticles",
            "order.total": ["total", {"key": "sum.value", "default": 0}],
            "order.missing": "nowhere",
        }
        | {},
        sourceFormat="json",
        strict=False,
    )
    body = {
        "order": {
            "id": "PO-7",
            "buyer": {"name": "Acme"},
            "lines": [{"sku": "A", "qty": 1, "serials": [{"n": 5}]}, {"sku": "B", "qty": 2}],
            "tags": ["x", "y"],
        }
    }
    found = Built("object_mapper", translated).one(body)
    assert found == {
        "orderId": "PO-7",
        "customer": {"name": "Acme"},
        "items": [
            {"article": "A", "quantity": 1, "serials": [{"number": 5}]},
            {"article": "B", "quantity": 2},
        ],
        "labels": ["x", "y"],
        "firstArticle": "A",
        "sum": {"value": 0},
    }


def test_the_form_of_the_old_help_text_and_json_text_are_read_too() -> None:
    translated = from_legacy(mappings=json.dumps({"orderId": "$.id", "to.city": "$.address.city"}), strict=True)
    assert translated == {"strict": True, "mapping": {"orderId": "$.id", "to": {"city": "$.address.city"}}}
    assert from_legacy(mappings={"skus": "$.lines[*].sku"}) == {
        "mapping": {"skus": {"path": "$.lines[*].sku", "optional": True}}
    }


def test_old_default_values_lie_under_the_result() -> None:
    translated = from_legacy(
        mappings={"a": "x", "b": "y.z"}, defaultValues={"x": 1, "currency": "EUR", "y": {"z": 9}}
    )
    assert Built("object_mapper", translated).one({}) == {"x": 1, "currency": "EUR"}
    assert Built("object_mapper", translated).one({"a": 5, "b": 6}) == {"x": 5, "currency": "EUR", "y": {"z": 6}}


def test_an_old_reference_to_a_mapping_file_is_a_side_file() -> None:
    node = registry.get("object_mapper")
    assert node.from_legacy({"mappingRef": "maps/a.yaml"}) == {"file": "maps/a.yaml"}
    ours = {"mapping": {"a": "$.a"}, "strict": True}
    assert node.from_legacy(ours) == ours


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"mappings": "{"}, "mappings"),
        ({"mappings": {}}, "mappings"),
        ({"mappings": {"a": "b[]+"}}, "mappings.a"),
        ({"mappings": {"a": {"key": "b", "transform": "x => x"}}}, "mappings.a"),
        ({"mappings": {"a": "b[0]"}}, "mappings.a"),
        ({"mappings": {"a": "b[].c"}}, "mappings.a"),
        ({"mappings": {"a": "b", "c": "b"}}, "mappings.c"),
        ({"mappings": {"a": "b", "c": "b.d"}}, "mappings.c"),
        ({"mappings": {"a[].x": "b[].x", "c[].y": "b[].y"}}, "mappings.c[].y"),
        ({"mappings": {"a": 5}}, "mappings.a"),
        ({"mappings": {"": "b"}}, "mappings."),
        ({"mappings": {"a": "b"}, "sourceFormat": "xml"}, "sourceFormat"),
        ({"mappingRef": "m.yaml", "defaultValues": {"a": 1}}, "defaultValues"),
    ],
)
def test_an_old_mapping_that_cannot_be_expressed_names_its_key(config: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        registry.get("object_mapper").from_legacy(config)
    assert refused.value.facts["field"] == field


@given(
    st.dictionaries(
        st.text(alphabet="ab.[]0?+", max_size=6),
        st.text(alphabet="ab.[]0?+$*", max_size=6) | st.none() | st.lists(st.just("a"), max_size=2),
        max_size=3,
    )
)
def test_any_old_mapping_is_translated_or_refused(mappings: dict[str, Any]) -> None:
    try:
        translated = registry.get("object_mapper").from_legacy({"mappings": mappings})
        node = Built("object_mapper", translated)
    except ConfigurationError:
        return
    with contextlib.suppress(NodeError):
        node.emits({"a": [{"b": 1}], "b": 2})
