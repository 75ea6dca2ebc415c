"""What the older formats mean: handles and labels, onSuccess and onError, defaults, old configurations."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from continuitybridge.errors import ConfigurationError
from continuitybridge.flows import lint
from continuitybridge.flows.convert import convert
from continuitybridge.flows.load import LoadedFlow, load_flow
from continuitybridge.flows.model import Step


def node(name: str, type_name: str, **data: Any) -> dict[str, Any]:
    return {"id": name, "type": type_name, "position": {"x": 1, "y": 2}, "data": data}


def edge(source: str, target: str, **more: Any) -> dict[str, Any]:
    return {"id": f"e-{source}-{target}", "source": source, "target": target, **more}


def canvas(nodes: list[dict[str, Any]], edges: list[dict[str, Any]], **more: Any) -> LoadedFlow:
    return load_flow(json.dumps({"name": "Orders", "nodes": nodes, "edges": edges, **more}), name="o.json")


def dsl(steps: list[dict[str, Any]], triggers: list[dict[str, Any]] | None = None, **more: Any) -> LoadedFlow:
    triggers = [{"id": "t", "type": "manual_trigger"}] if triggers is None else triggers
    document = {"name": "orders", "version": "1.0", "triggers": triggers, "steps": steps, **more}
    return load_flow(yaml.safe_dump(document, sort_keys=False))


def steps(loaded: LoadedFlow) -> dict[str, Step]:
    return {step.id: step for step in loaded.flow.nodes()}


IF = {"field": "country", "operator": "equals", "value": "CH"}


# ---------------------------------------------------------------- which format
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("flow: a", "yaml"),
        ('{"flow": "a", "steps": []}', "yaml"),
        ('{"nodes": [], "edges": []}', "canvas"),
        ("nodes: []\nedges: []\n", "canvas"),
        ('{"name": "a", "version": "1", "triggers": [], "steps": []}', "dsl"),
        ("name: a\nsteps: []\n", "dsl"),
        ("triggers: []\nsteps: []\n", "yaml"),
        ("{flow: a, version: 1.0.0}", "yaml"),
    ],
)
def test_the_format_is_told_by_its_keys_in_yaml_and_json(text: str, expected: str) -> None:
    assert load_flow(text).format == expected


# ---------------------------------------------------------------- the canvas
def test_edges_of_a_linear_node_leave_by_out_whatever_handle_or_label_they_bear() -> None:
    for more in ({}, {"sourceHandle": "right"}, {"label": "success"}, {"label": "Next"}, {"sourceHandle": "out"}):
        loaded = canvas([node("a", "json_parser"), node("b", "logger")], [edge("a", "b", **more)])
        assert steps(loaded)["a"].next == {"out": ("b",)}


@pytest.mark.parametrize("more", [{"sourceHandle": "error"}, {"label": "error"}, {"label": "Error"}])
def test_an_edge_called_error_is_the_error_route(more: dict[str, str]) -> None:
    loaded = canvas([node("a", "json_parser"), node("b", "logger")], [edge("a", "b", **more)])
    assert steps(loaded)["a"].on_error == "b"
    assert steps(loaded)["a"].next == {"out": ("end",)}


@pytest.mark.parametrize(
    ("met", "not_met"),
    [
        ({"label": "true"}, {"label": "false"}),
        ({"label": "Yes"}, {"label": "NO"}),
        ({"label": "success"}, {"label": "error"}),
        ({"sourceHandle": "true"}, {"sourceHandle": "false"}),
        ({"sourceHandle": "output-0"}, {"sourceHandle": "output-1"}),
        ({"sourceHandle": "true", "label": "no matter"}, {"sourceHandle": "otherwise"}),
    ],
)
def test_the_edges_of_an_old_condition_are_its_two_branches(met: dict[str, str], not_met: dict[str, str]) -> None:
    loaded = canvas(
        [node("a", "conditional", config=IF), node("b", "logger"), node("c", "logger")],
        [edge("a", "b", **met), edge("a", "c", **not_met)],
    )
    assert steps(loaded)["a"].next == {"true": ("b",), "otherwise": ("c",)}


def test_a_branch_of_ours_is_drawn_by_its_name() -> None:
    loaded = canvas(
        [
            node("a", "conditional", config={"branches": {"domestic": ".x"}}),
            node("b", "logger"),
            node("c", "logger"),
        ],
        [edge("a", "b", sourceHandle="domestic"), edge("a", "c", label="otherwise")],
    )
    assert steps(loaded)["a"].next == {"domestic": ("b",), "otherwise": ("c",)}


def test_an_unnamed_edge_of_a_condition_is_told_by_lint() -> None:
    loaded = canvas(
        [node("t", "manual_trigger"), node("a", "conditional", config=IF), node("b", "logger")],
        [edge("t", "a"), edge("a", "b")],
    )
    found = {problem.value for problem in lint.lint(loaded)}
    assert found == {"out", "true", "otherwise"}


def test_the_second_output_of_a_validation_is_its_invalid_messages() -> None:
    config = {"rules": "id: {required: true}"}
    for more in ({"sourceHandle": "invalid"}, {"label": "invalid"}, {"sourceHandle": "output_1"}):
        loaded = canvas(
            [node("a", "validation", config=config), node("b", "logger"), node("c", "logger")],
            [edge("a", "b"), edge("a", "c", **more)],
        )
        assert steps(loaded)["a"].next == {"out": ("b",), "invalid": ("c",)}


def test_an_old_configuration_is_read_from_all_three_places_it_stood_in() -> None:
    loaded = canvas(
        [
            {"id": "t", "type": "webhook_trigger", "data": {"webhookSlug": "orders", "webhookMethod": "POST"}},
            {"id": "a", "type": "csv_parser", "config": {"delimiter": ";"}, "data": {"url": "", "icon": "table"}},
            node("b", "timer_trigger", cronExpression="0 6 * * *"),
        ],
        [edge("t", "a")],
    )
    found = steps(loaded)
    assert found["t"].config["slug"] == "orders"
    assert found["a"].config["delimiter"] == ";"
    assert found["a"].extra["data"] == {"url": "", "icon": "table"}
    assert "config" not in found["a"].extra
    assert (found["b"].type, found["b"].config["cron"]) == ("scheduler", "0 6 * * *")


def test_what_cannot_be_carried_over_is_told_and_kept() -> None:
    config = {"condition": "items.some(i => i.hazardous)"}
    loaded = canvas([node("t", "manual_trigger"), node("a", "conditional", config=config)], [edge("t", "a")])
    assert steps(loaded)["a"].config == config
    (problem,) = lint.lint(loaded)
    assert "cannot be carried over" in problem.message
    assert problem.field == "nodes[1].data.config.condition"
    assert "items.some" in convert(loaded, "yaml")


def test_node_types_that_are_not_here_yet_keep_their_configuration_and_are_named() -> None:
    config = {"messageType": "orderRelease", "strict": False}
    loaded = canvas(
        [node("t", "manual_trigger"), node("a", "bydm_parser", config=config, interfaceId="i-1")], [edge("t", "a")]
    )
    (problem,) = lint.lint(loaded)
    assert (problem.value, problem.field) == ("bydm_parser", "nodes[1].type")
    back = json.loads(convert(load_flow(convert(loaded, "yaml")), "canvas"))
    assert back["nodes"][1]["data"] == {"config": config, "interfaceId": "i-1"}


def test_title_and_version_become_a_name_and_a_semantic_version_and_come_back() -> None:
    loaded = canvas([], [], version="1.0", name="Order → Warehouse (EU)")
    assert (loaded.flow.name, loaded.flow.version) == ("order-warehouse-eu", "1.0.0")
    text = convert(loaded, "yaml")
    back = json.loads(convert(load_flow(text), "canvas"))
    assert (back["name"], back["version"]) == ("Order → Warehouse (EU)", "1.0")
    renamed = text.replace("flow: order-warehouse-eu", "flow: orders").replace("version: 1.0.0", "version: 2.0.0")
    back = json.loads(convert(load_flow(renamed), "canvas"))
    assert (back["name"], back["version"]) == ("orders", "2.0.0")


def test_an_old_canvas_becomes_a_flow_that_reads_from_top_to_bottom() -> None:
    loaded = canvas(
        [node("d", "logger"), node("c", "json_builder"), node("b", "json_parser"), node("t", "manual_trigger")],
        [edge("c", "d"), edge("b", "c"), edge("t", "b")],
    )
    assert [step.id for step in loaded.flow.nodes()] == ["t", "b", "c", "d"]
    assert "next" not in convert(loaded, "yaml")


def test_edges_removed_and_added_in_our_language_leave_and_enter_the_canvas() -> None:
    loaded = canvas(
        [node("t", "manual_trigger"), node("a", "json_parser"), node("b", "logger"), node("c", "logger")],
        [edge("t", "a", animated=True), edge("a", "b", label="on"), edge("b", "c")],
    )
    text = convert(loaded, "yaml").replace("type: json_parser", "type: json_parser\n    next: c")
    edges = json.loads(convert(load_flow(text), "canvas"))["edges"]
    assert edges == [
        edge("t", "a", animated=True),
        edge("b", "c"),
        {"id": "a:out:c", "source": "a", "sourceHandle": "out", "target": "c"},
    ]


def test_two_edges_of_one_output_are_a_fork_here_and_lint_says_that_it_was_none() -> None:
    loaded = canvas(
        [node("t", "manual_trigger"), node("a", "logger"), node("b", "logger")], [edge("t", "a"), edge("t", "b")]
    )
    assert steps(loaded)["t"].next == {"out": ("a", "b")}
    (warning,) = lint.lint(loaded)
    assert warning.severity == "warning"
    assert "first edge only" in warning.message


def test_a_second_error_route_is_refused_rather_than_lost() -> None:
    loaded = canvas(
        [node("a", "json_parser"), node("b", "logger"), node("c", "logger")],
        [edge("a", "b", label="error"), edge("a", "c", label="error")],
    )
    with pytest.raises(ConfigurationError, match="a second error route of 'a', to 'c'"):
        convert(loaded, "yaml")


@pytest.mark.parametrize(
    ("nodes", "edges", "field"),
    [
        ([5], [], "nodes[0]"),
        ([{"type": "logger"}], [], "nodes[0].id"),
        ([{"id": "a", "type": "logger", "data": 5}], [], "nodes[0].data"),
        ([{"id": "a", "type": "logger", "data": {"config": "x"}}], [], "nodes[0].data.config"),
        ([], [5], "edges[0]"),
        ([], [{"id": "e", "source": "a"}], "edges[0].target"),
        ([{"id": "end", "type": "logger"}], [], "nodes[0].id"),
    ],
)
def test_a_malformed_part_of_a_canvas_is_named_and_not_converted_away(
    nodes: list[Any], edges: list[Any], field: str
) -> None:
    loaded = canvas(nodes, edges)
    assert field in {problem.field for problem in lint.lint(loaded)}
    with pytest.raises(ConfigurationError, match="without loss"):
        convert(loaded, "yaml")


def test_an_edge_from_nowhere_is_told_in_the_canvas_and_in_what_it_became() -> None:
    loaded = canvas(
        [node("t", "manual_trigger"), node("parse", "json_parser")], [edge("t", "parse"), edge("pars", "parse")]
    )
    for again in (loaded, load_flow(convert(loaded, "yaml"))):
        (problem,) = lint.lint(again)
        assert (problem.value, problem.nearest) == ("pars", "parse")
        assert problem.field.endswith("edges[1]")


def test_an_edge_to_nowhere_is_told_at_the_edge() -> None:
    loaded = canvas([node("t", "manual_trigger"), node("a", "logger")], [edge("t", "a"), edge("a", "gone")])
    (problem,) = lint.lint(loaded)
    assert (problem.field, problem.value) == ("edges[1]", "gone")


def test_a_canvas_of_a_later_language_is_refused() -> None:
    loaded = canvas([], [], bridge={"language": 2})
    assert any(problem.field == "bridge.language" for problem in lint.lint(loaded))


# ---------------------------------------------------------------- the DSL
def test_the_dsl_is_linear_and_on_success_and_on_error_lead_elsewhere() -> None:
    loaded = dsl(
        [
            {"id": "a", "type": "json_parser", "onError": "c"},
            {"id": "b", "type": "jq", "config": {"program": "."}, "onSuccess": "d"},
            {"id": "c", "type": "logger", "onSuccess": "end"},
            {"id": "d", "type": "logger"},
        ]
    )
    found = steps(loaded)
    followers = {name: step.next["out"][0] for name, step in found.items()}
    assert followers == {"t": "a", "a": "b", "b": "d", "c": "end", "d": "end"}
    assert found["a"].on_error == "c"
    assert lint.lint(loaded) == []


def test_on_success_and_on_error_of_a_condition_are_its_branches() -> None:
    loaded = dsl(
        [
            {"id": "a", "type": "conditional", "config": IF, "onError": "c"},
            *({"id": n, "type": "logger"} for n in "bc"),
        ]
    )
    assert steps(loaded)["a"].next == {"true": ("b",), "otherwise": ("c",)}
    assert steps(loaded)["a"].on_error is None


def test_labels_and_ids_have_the_predecessors_defaults() -> None:
    loaded = dsl(
        [{"type": "logger"}],
        [{"type": "manual_trigger"}, {"type": "timer_trigger", "config": {"cronExpression": "* * * * *"}}],
    )
    assert [(step.id, step.label) for step in loaded.flow.nodes()] == [
        ("trigger_0", "Trigger: manual_trigger"),
        ("trigger_1", "Trigger: timer_trigger"),
        ("step_0", "logger"),
    ]


def test_every_trigger_leads_to_the_first_step() -> None:
    loaded = dsl(
        [{"id": "a", "type": "logger"}],
        [{"id": "t", "type": "manual_trigger"}, {"id": "u", "type": "manual_trigger"}],
    )
    assert [trigger.next for trigger in loaded.flow.triggers] == [{"out": ("a",)}] * 2


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("next: [b, c]", "a --out--> c"),
        (
            "type: conditional, config: {branches: {domestic: .x}}, next: {domestic: b, otherwise: c}",
            "a --domestic--> b",
        ),
        (
            "type: conditional, config: {branches: {'true': .x}}, next: {'true': b, otherwise: c}, on_error: c",
            "a --error--> c",
        ),
        (
            "type: validation, config: {rules: {id: {required: true}}}, next: {out: b, invalid: c}",
            "a --invalid--> c",
        ),
    ],
)
def test_an_edge_that_the_dsl_has_no_word_for_is_refused_by_name(text: str, named: str) -> None:
    kind = "" if "type:" in text else "type: json_parser, "
    loaded = load_flow(
        "flow: a\nversion: 1.0.0\ntriggers: [{id: t, type: manual_trigger}]\n"
        f"steps: [{{id: a, {kind}{text}}}, {{id: b, type: logger}}, {{id: c, type: logger}}]\n"
    )
    with pytest.raises(ConfigurationError) as refused:
        convert(loaded, "dsl")
    assert named in refused.value.detail
    convert(loaded, "canvas")


def test_a_condition_with_one_branch_called_true_is_written_in_the_dsl() -> None:
    loaded = load_flow(
        "flow: a\nversion: 1.0.0\ntriggers: [{id: t, type: manual_trigger}]\nsteps:\n"
        "  - {id: a, type: conditional, config: {branches: {true: .x}}, next: {true: b, otherwise: end}}\n"
        "  - {id: b, type: logger}\n"
    )
    text = convert(loaded, "dsl")
    assert "onError: end" in text
    assert load_flow(text).flow == loaded.flow


def test_what_a_canvas_holds_beside_the_flow_stands_in_the_dsl_too() -> None:
    loaded = canvas(
        [node("t", "manual_trigger"), node("a", "logger")],
        [edge("t", "a", animated=True)],
        tags=["orders"],
        metadata={"organizationId": "o-1", "status": "live"},
    )
    back = load_flow(convert(loaded, "dsl"))
    assert back.flow == loaded.flow
    assert back.document.data["tags"] == ["orders"]
    assert back.document.data["steps"][0]["position"] == {"x": 1, "y": 2}


# ---------------------------------------------------------------- our language
def test_a_flow_of_ours_asked_for_in_our_language_comes_back_with_its_comments() -> None:
    text = "flow: a # the name\nversion: 1.0.0\ntriggers: []\nsteps: []\n"
    assert convert(load_flow(text), "yaml") == text


def test_the_linear_default_holds_beside_routes_of_other_ports() -> None:
    loaded = load_flow(
        "flow: a\nversion: 1.0.0\ntriggers: [{id: t, type: manual_trigger}]\nsteps:\n"
        "  - {id: a, type: validation, config: {rules: {id: {required: true}}}, next: {invalid: c}}\n"
        "  - {id: b, type: logger}\n  - {id: c, type: logger}\n"
    )
    assert steps(loaded)["a"].next == {"out": ("b",), "invalid": ("c",)}


def test_numbers_where_texts_belong_are_taken_as_they_are_written() -> None:
    loaded = load_flow("flow: a\nversion: 1.10\ntriggers: []\nsteps: [{id: 007, type: logger, label: 1e3}]\n")
    assert (loaded.flow.version, loaded.flow.steps[0].id, loaded.flow.steps[0].label) == ("1.10", "007", "1e3")


def test_what_would_not_read_back_the_same_is_refused() -> None:
    twice = "steps: [{id: a, type: logger}, {id: a, type: logger, next: b}, {id: b, type: logger}]"
    with pytest.raises(ConfigurationError, match="without loss"):
        convert(load_flow(f"flow: a\nversion: 1.0.0\ntriggers: []\n{twice}\n"), "canvas")
    deep: Any = "x"
    for _ in range(99):
        deep = [deep]
    with pytest.raises(ConfigurationError):
        convert(canvas([], [], tags=deep), "yaml")


def test_an_unknown_target_format_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no format 'xml'"):
        convert(load_flow("flow: a"), "xml")  # type: ignore[arg-type]
