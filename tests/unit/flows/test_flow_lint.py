"""Lint tells every problem of a flow at once, with its place and what would be valid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from continuitybridge.errors import ConfigurationError
from continuitybridge.flows import lint
from continuitybridge.flows.load import load_flow
from continuitybridge.flows.problems import Problem

HEAD = """\
flow: orders
version: 1.0.0
triggers:
  - id: begin
    type: manual_trigger
steps:
"""


def problems(text: str, files: dict[str, str] | None = None) -> list[Problem]:
    return lint.lint(load_flow(text, name="orders.flow.yaml", files=files or {}))


def only(text: str, files: dict[str, str] | None = None) -> Problem:
    found = problems(text, files)
    assert len(found) == 1, [str(problem) for problem in found]
    return found[0]


def step(text: str) -> Problem:
    """The one problem of a flow with this as the text of its steps."""
    return only(HEAD + text)


def test_a_sound_flow_has_no_problems() -> None:
    assert problems(HEAD + "  - {id: parse, type: json_parser}\n") == []


# ---------------------------------------------------------------- the flow itself
@pytest.mark.parametrize(
    ("line", "replaced_by", "field", "said", "nearest"),
    [
        ("flow: orders", "flow: Orders & More", "flow", "not a flow's name", "orders-more"),
        ("version: 1.0.0", "version: 1.0", "version", "not a semantic version", "1.0.0"),
        ("version: 1.0.0", "version: 01.0.0", "version", "not a semantic version", "1.0.0"),
        ("version: 1.0.0", "version: latest", "version", "not a semantic version", None),
        ("version: 1.0.0", "version: [1, 0]", "version", "must be a text", None),
        ("version: 1.0.0", "version: 1.0.0\ncapture: sample", "capture", "not a way to capture", "sampled"),
        ("version: 1.0.0", "version: 1.0.0\nmode: streaming", "mode", "not a mode", "stream"),
        ("version: 1.0.0", "version: 1.0.0\nconcurrency: 0", "concurrency", "must be a whole number", None),
        ("version: 1.0.0", "version: 1.0.0\nconcurrency: '4'", "concurrency", "must be a whole number", None),
        ("version: 1.0.0", "version: 1.0.0\nordering: po", "ordering", "must be a mapping", None),
        ("version: 1.0.0", "version: 1.0.0\nordering: {key: ''}", "ordering.key", "is required", None),
        ("version: 1.0.0", "version: 1.0.0\nordering: {key: '$.a[*]'}", "ordering.key", "no place of a key", None),
        ("version: 1.0.0", "version: 1.0.0\nordering: {key: '/a//b'}", "ordering.key", "no place of a key", None),
        ("version: 1.0.0", "version: 1.0.0\nordering: {key: 'a b'}", "ordering.key", "no place of a key", None),
        (
            "version: 1.0.0",
            "version: 1.0.0\nordering: {key: $.po, after_dead_letter: holds}",
            "ordering.after_dead_letter",
            "is not what may follow",
            "hold",
        ),
        ("version: 1.0.0", "version: 1.0.0\nlabel: {team: a}", "label", "unknown key", "labels"),
        ("version: 1.0.0", "version: 1.0.0\nlabels: {team: [a]}", "labels.team", "must be a text", None),
        ("version: 1.0.0", "version: 1.0.0\nindex: {Po: .id}", "index.Po", "not the name of a search key", None),
        ("version: 1.0.0", "version: 1.0.0\nindex: {po: '.id |'}", "index.po", "jq", None),
        ("version: 1.0.0", "version: 1.0.0\nversion: 1.0.0", "version", "stands here twice", None),
        ("version: 1.0.0", "version: 1.0.0\non_error: pars", "on_error", "does not exist", "parse"),
        ("version: 1.0.0", "version: 1.0.0\non_error: begin", "on_error", "is a trigger", None),
    ],
)
def test_a_wrong_field_of_the_flow_is_named(
    line: str, replaced_by: str, field: str, said: str, nearest: str | None
) -> None:
    text = (HEAD + "  - {id: parse, type: json_parser}\n").replace(line, replaced_by)
    problem = only(text)
    assert (problem.file, problem.field, problem.nearest) == ("orders.flow.yaml", field, nearest)
    assert said in problem.message
    written = field.split(".")[-1]
    assert text.split("\n")[problem.line - 1][problem.column - 1 :].startswith(written)


@pytest.mark.parametrize("key", ["flow", "version", "triggers", "steps"])
def test_a_missing_part_is_named(key: str) -> None:
    parts = {
        "flow": "flow: orders\n",
        "version": "version: 1.0.0\n",
        "triggers": "triggers: [{id: begin, type: manual_trigger, next: end}]\n",
        "steps": "steps: [{id: parse, type: json_parser}]\n",
    }
    if key != "steps":
        parts["triggers"] = parts["triggers"].replace(", next: end", "")
    problem = only("".join(text for name, text in parts.items() if name != key))
    assert key.removesuffix("s") in problem.message


@pytest.mark.parametrize(
    ("text", "field", "said"),
    [
        ("steps: 5\ntriggers: []", "steps", "must be a list"),
        ("steps: [5]\ntriggers: []", "steps[0]", "must be a mapping"),
        ("steps: [{id: a, type: json_parser, config: 5}]\ntriggers: []", "steps[0].config", "must be a mapping"),
        ("steps: [{id: a, type: json_parser, isolate: maybe}]\ntriggers: []", "steps[0].isolate", "true or false"),
        ("steps: [{type: json_parser}]\ntriggers: []", "steps[0].id", "is required"),
        ("steps: [{id: a}]\ntriggers: []", "steps[0].type", "is required"),
        ("steps: [{id: end, type: json_parser}]\ntriggers: []", "steps[0].id", "means that a flow ends"),
        ("steps: [{id: a b, type: json_parser}]\ntriggers: []", "steps[0].id", "is not an id"),
        ("steps: [{id: a, type: json_parser, nxt: end}]\ntriggers: []", "steps[0].nxt", "unknown key"),
        ("extra: {edges: [5]}\nsteps: []\ntriggers: []", "extra.edges[0]", "does not belong here"),
    ],
)
def test_a_part_of_the_wrong_shape_is_named_whatever_else_is_wrong(text: str, field: str, said: str) -> None:
    found = problems(f"flow: a\nversion: 1.0.0\n{text}\n")
    assert any(problem.field == field and said in problem.message for problem in found), found


@pytest.mark.parametrize("text", ["5", "[]", "a text", "null", "mapping: {a: $.a}\nlookups: {}", "{}"])
def test_what_is_no_flow_at_all_is_told_so(text: str) -> None:
    assert "this is no flow" in [problem.message for problem in problems(text)]
    assert len(problems(text)) <= 2


# ---------------------------------------------------------------- nodes and their configuration
def test_a_misspelt_node_type_is_named_with_the_nearest_and_with_what_is_valid() -> None:
    problem = step("  - id: parse\n    type: json_parsr\n")
    assert (problem.line, problem.column, problem.field) == (8, 5, "steps[0].type")
    assert (problem.value, problem.nearest) == ("json_parsr", "json_parser")
    assert "xml_parser" in problem.valid


def test_a_name_of_older_flows_is_proposed_as_ours() -> None:
    assert step("  - id: check\n    type: validator\n").nearest == "validation"


def test_a_misspelt_configuration_key_is_named_with_the_nearest() -> None:
    problem = step("  - id: rows\n    type: csv_parser\n    config:\n      delimitr: ';'\n")
    assert (problem.line, problem.column, problem.field) == (10, 7, "steps[0].config.delimitr")
    assert problem.nearest == "delimiter"
    assert "did you mean" not in problem.message


@pytest.mark.parametrize(
    ("node", "field"),
    [
        ("{id: a, type: jq, config: {program: '.a | nope('}}", "steps[0].config.program"),
        ("{id: a, type: filter, config: {where: '.a =='}}", "steps[0].config.where"),
        ("{id: a, type: logger, config: {message: '{{ body.a '}}", "steps[0].config.message"),
        ("{id: a, type: validation, config: {schema: {type: strin}}}", "steps[0].config.schema"),
        ("{id: a, type: validation, config: {rules: {a.b: {pattern: '('}}}}", "steps[0].config.rules.a.b"),
        ("{id: a, type: xslt, config: {stylesheet: '<xsl:stylesheet/>'}}", "steps[0].config.stylesheet"),
        ("{id: a, type: object_mapper, config: {mapping: {a: '$.['}}}", "steps[0].config.mapping.a"),
        ("{id: a, type: json_builder, config: {style: nice}}", "steps[0].config.style"),
    ],
)
def test_a_bad_program_schema_or_stylesheet_is_found_at_its_field(node: str, field: str) -> None:
    problem = step(f"  - {node}\n")
    assert problem.field.startswith(field)
    assert problem.line == 7


@pytest.mark.parametrize(
    ("config", "key"), [("cron: '* * * *'", "cron"), ("cron: 0 6 * * *, timezone: Europe/Zuerich", "timezone")]
)
def test_a_bad_cron_line_or_time_zone_is_found(config: str, key: str) -> None:
    problem = only(
        "flow: a\nversion: 1.0.0\ntriggers:\n  - id: clock\n    type: scheduler\n"
        f"    config: {{{config}}}\nsteps: [{{id: a, type: json_parser}}]\n"
    )
    assert (problem.line, problem.field) == (6, f"triggers[0].config.{key}")


def test_a_side_file_that_is_missing_is_told_once_and_a_bad_one_at_the_field_that_names_it(tmp_path: Path) -> None:
    flow = tmp_path / "orders.flow.yaml"
    flow.write_text(HEAD + "  - id: map\n    type: xslt\n    config:\n      file: order.xsl\n")
    (missing,) = lint.lint(load_flow(flow))
    assert (missing.line, missing.field, missing.value) == (10, "steps[0].config.file", "order.xsl")
    (tmp_path / "order.xsl").write_text("<not-a-stylesheet/>")
    (bad,) = lint.lint(load_flow(flow))
    assert (bad.line, bad.field) == (10, "steps[0].config.file")
    assert bad.message != missing.message


# ---------------------------------------------------------------- ids and routes
def test_two_nodes_of_one_id_are_told_with_the_line_of_the_first() -> None:
    problem = step("  - {id: a, type: json_parser}\n  - {id: a, type: json_builder}\n")
    assert (problem.line, problem.field) == (8, "steps[1].id")
    assert "first in line 7" in problem.message


@pytest.mark.parametrize("routes", ["next: ship", "next: [b, ship]", "next: {out: ship}"])
def test_an_edge_to_nowhere_is_told_with_the_nearest_step_and_nothing_else(routes: str) -> None:
    problem = step(
        f"  - {{id: a, type: json_parser, {routes}, on_error: b}}\n  - {{id: shop, type: json_builder}}\n"
        "  - {id: b, type: json_builder}\n"
    )
    assert problem.line == 7
    assert problem.value == "ship"
    assert problem.nearest == "shop"
    assert problem.valid == "a, shop, b, end"


def test_an_error_route_to_nowhere_is_told() -> None:
    problem = step("  - {id: a, type: json_parser, on_error: b}\n")
    assert problem.field == "steps[0].on_error"
    assert "a --error--> b" in problem.message


def test_a_trigger_is_no_target() -> None:
    problem = step("  - {id: a, type: json_parser, next: begin}\n")
    assert "is a trigger" in problem.message


@pytest.mark.parametrize(
    ("branches", "missing"), [("", ["large", "otherwise"]), (", next: {large: end}", ["otherwise"])]
)
def test_a_branch_without_a_route_is_told(branches: str, missing: list[str]) -> None:
    found = problems(HEAD + f"  - {{id: a, type: conditional, config: {{branches: {{large: .x}}}}{branches}}}\n")
    assert [problem.value for problem in found] == missing
    assert all("missing route" in problem.message for problem in found)


def test_a_port_that_does_not_exist_is_told_with_the_nearest() -> None:
    found = problems(
        HEAD + "  - id: a\n    type: conditional\n    config: {branches: {large: .x}}\n"
        "    next:\n      larg: end\n      otherwise: end\n"
    )
    wrong = next(problem for problem in found if problem.value == "larg")
    assert (wrong.line, wrong.nearest, wrong.valid) == (11, "large", "large, otherwise")


def test_the_port_of_invalid_messages_needs_no_route() -> None:
    assert problems(HEAD + "  - {id: a, type: validation, config: {schema: {type: object}}}\n") == []


@pytest.mark.parametrize(
    ("routes", "said"),
    [
        ("next: []", "leads nowhere"),
        ("next:", "leads nowhere"),
        ("next: {}", "leads nowhere"),
        ("next: [end, b]", "stands alone"),
        ("next: [b, b]", "twice"),
        ("next: {error: b}", "key of their own"),
        ("next: [[b]]", "leads nowhere"),
    ],
)
def test_a_route_that_says_nothing_sensible_is_told(routes: str, said: str) -> None:
    found = problems(HEAD + f"  - id: a\n    type: json_parser\n    {routes}\n  - {{id: b, type: json_builder}}\n")
    assert any(said in problem.message and problem.line == 9 for problem in found), found


def test_what_belongs_to_steps_only_is_told_on_a_trigger() -> None:
    found = problems(
        HEAD.replace("manual_trigger", "manual_trigger\n    on_error: a\n    isolate: true")
        + "  - {id: a, type: json_parser}\n"
    )
    assert [problem.field for problem in found] == ["triggers[0].on_error", "triggers[0].isolate"]


def test_a_trigger_among_the_steps_and_a_step_among_the_triggers_are_told() -> None:
    found = problems(
        "flow: a\nversion: 1.0.0\ntriggers: [{id: t, type: json_parser}]\nsteps: [{id: s, type: manual_trigger}]\n"
    )
    assert [(problem.field, problem.message) for problem in found] == [
        ("triggers[0].type", "json_parser is no trigger"),
        ("steps[0].type", "manual_trigger is a trigger"),
    ]


def test_two_webhooks_with_one_address_are_told() -> None:
    hook = "{id: %s, type: webhook_trigger, config: {slug: orders}}"
    problem = only(
        f"flow: a\nversion: 1.0.0\ntriggers:\n  - {hook % 'x'}\n  - {hook % 'y'}\n"
        "steps: [{id: s, type: json_parser}]\n"
    )
    assert (problem.line, problem.field) == (5, "triggers[1].config.slug")


def test_a_result_that_comes_from_a_step_which_gives_none_is_told() -> None:
    found = problems(
        "flow: a\nversion: 1.0.0\n"
        "triggers:\n"
        "  - id: in\n    type: webhook_trigger\n"
        "    config: {slug: a, reply: result, result: {from: [lst, read, last]}}\n"
        "steps:\n  - {id: read, type: json_parser}\n  - {id: last, type: json_builder}\n"
    )
    assert [(problem.line, problem.field, problem.nearest) for problem in found] == [
        (6, "triggers[0].config.result.from[0]", "last"),
        (6, "triggers[0].config.result.from[1]", None),
    ]
    assert "does not exist" in found[0].message
    assert "no message leaves the flow" in found[1].message


# ---------------------------------------------------------------- the graph
def test_a_circle_is_told_at_the_edge_that_closes_it() -> None:
    problem = step("  - {id: a, type: json_parser}\n  - {id: b, type: json_builder, next: a}\n")
    assert (problem.line, problem.field) == (8, "steps[1].next")
    assert "a → b → a" in problem.message


def test_a_step_that_leads_to_itself_is_a_circle() -> None:
    assert "a → a" in step("  - {id: a, type: json_parser, next: a}\n").message


def test_an_error_route_that_leads_back_is_a_circle() -> None:
    problem = step(
        "  - {id: a, type: json_parser, next: end, on_error: b}\n  - {id: b, type: json_builder, on_error: a}\n"
    )
    assert "circle" in problem.message
    assert problem.field == "steps[1].on_error"


def test_every_knot_of_circles_is_told() -> None:
    found = problems(
        HEAD + "  - {id: a, type: json_parser, next: [b, c]}\n  - {id: b, type: json_builder, next: b}\n"
        "  - {id: c, type: json_builder}\n  - {id: d, type: json_builder, next: c}\n"
    )
    assert [problem.message.split(": ")[1] for problem in found] == ["b → b", "c → d → c"]


def test_the_flows_error_route_makes_no_circle_of_its_handler() -> None:
    assert (
        problems(HEAD + "  - {id: a, type: json_parser, next: end}\n  - {id: b, type: logger}\non_error: b\n")
        == []
    )


def test_a_step_that_nothing_leads_to_is_told_and_an_error_route_leads_somewhere() -> None:
    problem = step(
        "  - {id: a, type: json_parser, next: end, on_error: c}\n  - {id: b, type: json_builder, next: end}\n"
        "  - {id: c, type: logger}\n"
    )
    assert (problem.line, problem.value) == (8, "b")
    assert "nothing leads to" in problem.message


# ---------------------------------------------------------------- all of it
def test_all_problems_are_told_at_once_in_the_order_of_the_source() -> None:
    text = """\
flow: Orders
version: "1"
triggers:
  - id: clock
    type: scheduler
    config: {cron: never}
steps:
  - id: parse
    type: jason_parser
  - id: pick
    type: jq
    config: {program: '.a |'}
  - id: decide
    type: conditional
    config: {branches: {large: .total > 5}}
    next: {large: shipp}
  - id: ship
    type: logger
    config: {mesage: hi}
    next: decide
  - id: ship
    type: logger
"""
    found = problems(text)
    assert [problem.line for problem in found] == sorted(problem.line for problem in found)
    told = {(problem.line, problem.field) for problem in found}
    assert told >= {
        (1, "flow"),
        (2, "version"),
        (6, "triggers[0].config.cron"),
        (9, "steps[0].type"),
        (12, "steps[1].config.program"),
        (16, "steps[2].next"),
        (16, "steps[2].next.large"),
        (19, "steps[3].config.mesage"),
        (21, "steps[4].id"),
    }


def test_check_raises_with_all_problems_as_facts_and_passes_over_warnings() -> None:
    loaded = load_flow(HEAD + "  - {id: a, type: jso_parser}\n  - {id: a, type: json_builder}\n")
    with pytest.raises(ConfigurationError) as refused:
        lint.check(loaded)
    facts: list[dict[str, Any]] = refused.value.facts["problems"]
    assert [fact["field"] for fact in facts] == ["steps[0].type", "steps[1].id"]
    canvas = (
        '{"name": "a", "enabled": false, "nodes": [{"id": "t", "type": "manual_trigger"}, '
        '{"id": "s", "type": "json_parser"}], "edges": [{"id": "e", "source": "t", "target": "s"}]}'
    )
    loaded = load_flow(canvas)
    assert [problem.severity for problem in lint.lint(loaded)] == ["warning"]
    lint.check(loaded)


def test_a_flow_of_thousands_of_misspelt_names_is_still_told_in_bounded_work() -> None:
    many = "".join(f"  - {{id: step{i}, type: json_parser, next: stop{i}}}\n" for i in range(3000))
    found = problems(HEAD + many)
    assert sum("does not exist" in problem.message for problem in found) == 3000
    assert max(len(problem.valid) for problem in found) < 2000
