"""The node `conditional`, and the fast path of conditions."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from built_nodes import Built, problem, problems
from data_strategies import BODIES, JSON_DATA, NAMES, SCALARS
from hypothesis import example, given
from hypothesis import strategies as st

from continuitybridge.engine.message import Message
from continuitybridge.errors import ConfigurationError, InvalidPayload, NodeError
from continuitybridge.nodes import registry
from continuitybridge.nodes.language.condition import Condition


def port(expression: str, body: object, **more: Any) -> str:
    ((name, found),) = Built("conditional", {"branches": {"yes": expression}}).emits(body, **more)
    assert found is body
    return name


def test_the_first_branch_that_holds_takes_the_message_and_otherwise_the_rest() -> None:
    branches = {"large": ".total > 1000", "domestic": '.country == "CH"', "any-total": ".total != null"}
    node = Built("conditional", {"branches": branches})
    bodies = ({"total": 2000, "country": "CH"}, {"country": "CH"}, {"total": 1}, {})
    taken = [node.emits(body)[0][0] for body in bodies]
    assert taken == ["large", "domestic", "any-total", "otherwise"]


def test_its_ports_are_its_branches_in_order_and_otherwise() -> None:
    node = registry.get("conditional")
    config = node.Config.model_validate({"branches": {"b": ".b", "a": ".a"}})
    assert node.ports_of(config) == ("b", "a", "otherwise")


@pytest.mark.parametrize("name", ["otherwise", "error", "", "a b", "x" * 65])
def test_a_branch_cannot_have_the_name_of_a_fixed_port_or_one_that_no_route_could_name(name: str) -> None:
    assert "a branch is named" in problem("conditional", {"branches": {name: ".a"}})


def test_every_wrong_expression_is_told_at_once() -> None:
    found = problems("conditional", {"branches": {"a": ".a ==", "b": ".b", "c": "env"}})
    assert set(found) == {"branches.a", "branches.c"}


@pytest.mark.parametrize("text", ["null", "false", "empty", ".nothing", "error(1)?"])
def test_null_false_and_no_output_do_not_hold(text: str) -> None:
    assert port(text, {}) == "otherwise"


@pytest.mark.parametrize("text", ["true", "0", '""', "[]", "{}", "1, false"])
def test_everything_else_holds_and_the_first_output_counts(text: str) -> None:
    assert port(text, {}) == "yes"


def test_headers_vars_and_the_message_decide_too() -> None:
    assert port('$headers["x-source"] == "edi"', {}, headers={"x-source": "edi"}) == "yes"
    assert port("$vars.deliver.status == 202", {}, variables={"deliver": {"status": 202}}) == "yes"
    assert port('$vars["by-hand"].a == 1 or $message.id == "m-1"', {}) == "yes"


def test_an_expression_that_fails_on_a_message_fails_the_message_in_the_words_of_jq() -> None:
    node = Built("conditional", {"branches": {"a": ".a.b == 1"}})
    assert node.fails({"a": "text"}).detail.startswith("jq: Cannot index string with string")
    assert isinstance(node.fails(b"bytes"), InvalidPayload)


# ---------------------------------------------------------------- the fast path is jq
PATHS = st.lists(NAMES, min_size=1, max_size=3).map(lambda names: "." + "".join(f'["{n}"]' for n in names))
LITERALS = st.sampled_from(
    ['""', '"a"', '"CH"', '"é"', "0", "-1", "5", "1.5", "-0.25", "100000000000000", "true", "false", "null"]
)
OPERATORS = st.sampled_from(["==", "!=", "<", "<=", ">", ">="])
COMPARISONS = st.builds("{} {} {}".format, PATHS, OPERATORS, LITERALS)
TESTS = st.recursive(
    COMPARISONS | PATHS | st.just("."),
    lambda inner: (
        st.builds("{} {} {}".format, inner, st.sampled_from(["and", "or"]), inner) | inner.map("({})".format)
    ),
    max_leaves=4,
)


def verdicts(text: str, message: Message) -> list[object]:
    condition = Condition(text, field="where")
    found: list[object] = []
    for ask in (condition, condition.by_jq):
        try:
            found.append(ask(message))
        except NodeError as error:
            found.append((type(error), error.detail))
    return found


@given(TESTS, JSON_DATA)
@example('.["a"] == 1', {"a": True})
@example('.["a"] == 1', {"a": 1.0})
@example('.["a"] < 5', {"a": "4"})
@example('.["a"] > 100000000000000', {"a": 100000000000000.1})
@example('.["a"] >= 5', {"a": 2**70})
@example('.["a"] == null', {})
@example('.["a"]["b"] == null', {"a": None})
@example('.["a"]["b"] == null', {"a": [1]})
@example('.["a"] != 5 and .["b"] == 1 or .', {"a": 5, "b": 1})
def test_the_fast_path_answers_as_jq_does(text: str, body: object) -> None:
    fast, by_jq = verdicts(text, Message("m", body))
    assert fast == by_jq


@given(TESTS)
def test_every_expression_of_that_grammar_takes_the_fast_path(text: str) -> None:
    assert Condition(text, field="where").is_fast


@given(OPERATORS, LITERALS, SCALARS | st.sampled_from([[], {}, [1], {"a": 1}]))
def test_the_fast_path_orders_values_of_all_types_as_jq_does(operator: str, literal: str, value: object) -> None:
    fast, by_jq = verdicts(f".a {operator} {literal}", Message("m", {"a": value}))
    assert fast == by_jq


@given(st.text(alphabet='.$abheadrsv" []()<>=!andortuefls0123456789-\\|,#\n', max_size=24), JSON_DATA)
def test_no_text_is_read_in_another_way_than_jq_reads_it(text: str, body: object) -> None:
    try:
        fast, by_jq = verdicts(text, Message("m", body, {"a": "b"}, {"a": 1}))
    except ConfigurationError:
        return
    assert fast == by_jq


@given(BODIES)
def test_whatever_a_message_holds_it_leaves_by_a_port_or_fails_typed(body: object) -> None:
    node = Built("conditional", {"branches": {"a": '.a.b == "CH" and .c > 1', "b": ".. == 1"}})
    with contextlib.suppress(NodeError):
        node.emits(body)


@pytest.mark.parametrize(
    "text",
    [
        '.country == "CH"',
        '.order.total >= 1000 and (.order.currency == "CHF" or .express)',
        '$headers["content-type"] == "text/csv"',
        "$vars.deliver.status == 202",
        '."a b" != null',
    ],
)
def test_plain_comparisons_do_not_start_jq(text: str) -> None:
    assert Condition(text, field="where").is_fast


@pytest.mark.parametrize(
    "text", ['["a"] == "a"', ".a == .b", ".a | not", ".a[0] == 1", '.a == "\\u0041"', ".a == 1e3"]
)
def test_what_is_more_than_that_is_left_to_jq(text: str) -> None:
    assert not Condition(text, field="where").is_fast


def test_a_condition_may_have_many_parts() -> None:
    condition = Condition(" or ".join(f".f{n} == {n}" for n in range(2000)), field="where")
    assert condition.is_fast
    assert condition(Message("m", {"f1999": 1999}))
    assert not condition(Message("m", {}))


# ---------------------------------------------------------------- older flows
def from_legacy(**config: object) -> str:
    translated = registry.get("conditional").from_legacy(config)
    Built("conditional", translated)
    assert list(translated["branches"]) == ["true"]
    return str(translated["branches"]["true"])


@pytest.mark.parametrize(
    ("operator", "value", "met", "unmet"),
    [
        ("equals", "CH", ["CH"], ["DE", None, 5]),
        ("equals", 5, [5, "5"], [6, "6", None]),
        ("equals", "5", [5, "5"], [6]),
        ("equals", 0, [0, "0"], [1]),
        ("equals", True, [True], ["true", False]),
        ("not_equals", "CH", ["DE", None], ["CH"]),
        ("not_equals", 5, [6, "x"], [5, "5"]),
        ("greater_than", 100, [101, "150.5"], [100, "99", "abc", None, [200]]),
        ("less_than", "7.5", [7, "0"], [8, "8", "x", None]),
        ("in", ["CH", 5], ["CH", 5], ["DE", None]),
        ("in", "CH, DE", ["CH", "DE"], ["FR"]),
        ("contains", "an", ["banana", ["x", "an"]], ["bonobo", ["banana"], None, 5]),
        ("starts_with", "AB", ["ABC"], ["CAB", None, 5]),
        ("ends_with", "BC", ["ABC"], ["BCA", None]),
    ],
)
def test_each_old_operator_decides_as_users_know_it(
    operator: str, value: object, met: list[object], unmet: list[object]
) -> None:
    expression = from_legacy(field="order.state", operator=operator, value=value)
    for found, expected in [(item, "yes") for item in met] + [(item, "otherwise") for item in unmet]:
        assert port(expression, {"order": {"state": found}}) == expected, (expression, found)


def test_old_conditions_as_yaml_text_are_joined_by_their_logic() -> None:
    text = """
conditions:
  - {field: country, operator: equals, value: CH}
  - {field: items.0.sku, operator: starts_with, value: A}
logic: OR
"""
    either = from_legacy(conditions=text)
    assert port(either, {"country": "DE", "items": [{"sku": "A1"}]}) == "yes"
    assert port(either, {"country": "DE", "items": []}) == "otherwise"
    pairs = (("a", 1), ("b", 2))
    both = from_legacy(conditions=[{"field": n, "operator": "equals", "value": v} for n, v in pairs])
    assert port(both, {"a": 1, "b": 2}) == "yes"
    assert port(both, {"a": 1, "b": 3}) == "otherwise"
    assert from_legacy(conditions="{field: a b.c, operator: equals, value: x}") == '."a b".c == "x"'


def test_an_old_javascript_comparison_is_translated_and_anything_more_is_refused() -> None:
    source = "input.total > 100 && (data.country === 'CH' || payload.vip !== undefined);"
    translated = from_legacy(condition=source)
    assert translated == '.total > 100 and ( .country == "CH" or .vip != null )'
    for source in ("input.items.length > 0 ? a : b", "alert(1)", "a = 5", "x.map(y => y)", "`a`"):
        with pytest.raises(ConfigurationError) as refused:
            from_legacy(condition=source)
        assert refused.value.facts["field"] == "condition"


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({}, "branches"),
        ({"field": "a", "operator": "like", "value": 1}, "operator"),
        ({"field": "a", "operator": "greater_than", "value": "many"}, "operator"),
        ({"conditions": "["}, "conditions"),
        ({"conditions": "just text"}, "conditions"),
        ({"conditions": {"conditions": [], "logic": "AND"}}, "conditions"),
        ({"conditions": {"conditions": [{"field": "a", "operator": "equals"}], "logic": "XOR"}}, "conditions"),
        ({"field": "a", "operator": "equals", "value": 1, "script": "x"}, "script"),
    ],
)
def test_an_old_condition_that_cannot_be_expressed_names_its_key(config: dict[str, object], field: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        from_legacy(**config)
    assert refused.value.facts["field"] == field


def test_a_configuration_of_ours_passes_unchanged() -> None:
    ours = {"branches": {"a": ".a", "b": ".b"}}
    assert registry.get("conditional").from_legacy(ours) == ours
