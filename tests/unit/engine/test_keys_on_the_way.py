"""The search keys that a flow declares are read on the way."""

from __future__ import annotations

from typing import Any

import pytest
from engine_runs import HEAD, messages, plan_of, run

INDEX = """index:
  po_number: .order.number
  gln: '."order"["buyer gln"]'
  first_sku: .order.lines[0].sku
  skus: '[.order.lines[].sku] | join("+")'
"""
STEPS = """steps:
  - {id: parse, type: json_parser}
  - {id: check, type: jq, config: {program: 'if .bad then error("bad") else . end'}}
"""
FLOW = HEAD + INDEX + STEPS
ORDER = {"order": {"number": 4711, "buyer gln": "4012345000009", "lines": [{"sku": "A-1"}, {"sku": "B-2"}]}}
KEYS = {"po_number": 4711, "gln": "4012345000009", "first_sku": "A-1", "skus": "A-1+B-2"}


def keys(way: Any, text: str, *bodies: Any) -> list[dict[str, Any]]:
    outcomes = run(plan_of(text), messages(*bodies), using=way)
    return [dict(outcomes[f"m{n}"].keys) for n in range(1, len(bodies) + 1)]


def test_they_are_read_behind_the_parser_whatever_becomes_of_the_message_later(way: Any) -> None:
    outcomes = run(plan_of(FLOW), messages(ORDER, {**ORDER, "bad": True}), using=way)
    assert (outcomes["m1"].status, dict(outcomes["m1"].keys)) == ("done", KEYS)
    assert (outcomes["m2"].status, dict(outcomes["m2"].keys)) == ("failed", KEYS)


@pytest.mark.parametrize(
    ("order", "found"),
    [
        ({}, {}),
        ({"number": None, "lines": 3}, {}),
        ({"number": {"value": 1}, "lines": [3]}, {}),
        ({"number": ["PO-1"]}, {}),
        ({"number": "x" * 501}, {}),
        (
            {"number": "x" * 500, "lines": [{"sku": True}]},
            {"po_number": "x" * 500, "first_sku": True, "skus": "true"},
        ),
        ({"number": 1.5, "lines": [{"sku": ""}]}, {"po_number": 1.5, "first_sku": "", "skus": ""}),
    ],
)
def test_what_is_no_text_number_or_boolean_is_no_key_and_fails_nothing(
    way: Any, order: dict[str, Any], found: dict[str, Any]
) -> None:
    outcomes = run(plan_of(FLOW), messages({"order": order}), using=way)
    assert (outcomes["m1"].status, dict(outcomes["m1"].keys)) == ("done", found)


def test_a_number_of_many_digits_is_none(way: Any) -> None:
    text = b'{"order": {"number": %s, "lines": [{"sku": %s}]}}' % (b"9" * 30, b"9" * 40)
    assert keys(way, FLOW, text) == [{"po_number": int("9" * 30), "skus": "9" * 40}]


def test_a_body_that_never_is_json_has_none(way: Any) -> None:
    assert keys(way, FLOW, b"no json", [], "text") == [{}, {}, {}]


def test_xml_has_them_behind_its_parser_or_where_a_later_node_makes_the_form(way: Any) -> None:
    text = (
        HEAD
        + "index: {number: .Order.ID, mapped: .order.id}\n"
        + "steps:\n  - {id: parse, type: xml_parser}\n"
        + "  - {id: map, type: jq, config: {program: '{order: {id: .Order.ID}}'}}\n"
    )
    assert keys(way, text, b"<Order><ID>PO-9</ID></Order>") == [{"number": "PO-9", "mapped": "PO-9"}]


def test_the_first_value_on_the_way_counts(way: Any) -> None:
    text = (
        HEAD
        + "index: {id: .id, sku: .sku}\n"
        + "steps:\n  - {id: parse, type: json_parser}\n"
        + "  - {id: each, type: jq, config: {program: '.lines[] | {id: .n, sku}'}}\n"
    )
    assert keys(way, text, {"id": "O", "lines": [{"n": 1, "sku": "A"}, {"n": 2, "sku": "B"}]}) == [
        {"id": "O", "sku": "A"}
    ]
