"""Converting from any format to any other and back loses nothing."""

from __future__ import annotations

import json
from typing import Any

from flow_strategies import contains, flows, old_canvases, old_dsls
from hypothesis import HealthCheck, given, settings

from continuitybridge.errors import ConfigurationError
from continuitybridge.flows import canvas, dsl, native
from continuitybridge.flows.convert import convert
from continuitybridge.flows.load import load_flow
from continuitybridge.flows.model import Flow
from continuitybridge.flows.source import parse
from continuitybridge.flows.yaml_writer import dump

thorough = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def reloaded(text: str) -> Flow:
    loaded = load_flow(text)
    assert not loaded.unreadable
    return loaded.flow


@given(flows())
@thorough
def test_our_language_reads_back_the_flow_it_was_written_from(flow: Flow) -> None:
    assert reloaded(native.write(flow)) == flow


@given(flows())
@thorough
def test_a_canvas_reads_back_the_flow_it_was_drawn_from(flow: Flow) -> None:
    assert reloaded(canvas.write(flow)) == flow


@given(flows())
@thorough
def test_the_dsl_reads_back_the_flow_or_refuses_naming_edges_of_it(flow: Flow) -> None:
    edges = {(step.id, port, target) for step in flow.nodes() for port, to in step.next.items() for target in to}
    edges |= {(step.id, "error", step.on_error) for step in flow.steps}
    edges |= {(step.id, port, "nothing") for step in flow.nodes() for port in ("out", "true")}
    refused = None
    try:
        text = dsl.write(flow)
    except ConfigurationError as error:
        refused = error
    if refused is None:
        assert reloaded(text) == flow
        return
    assert refused.facts["edges"]
    for source, port, target in refused.facts["edges"]:
        assert (source, port, target) in edges
        assert f"{source} --{port}--> {target}" in refused.detail


@given(flows())
@thorough
def test_a_flow_survives_the_way_through_all_formats(flow: Flow) -> None:
    text = native.write(flow)
    for target in ("canvas", "yaml", "canvas", "yaml"):
        text = convert(load_flow(text), target)
    assert reloaded(text) == flow


@given(old_canvases())
@thorough
def test_an_old_canvas_comes_back_from_our_language_with_everything_it_held(document: dict[str, Any]) -> None:
    loaded = load_flow(json.dumps(document))
    assert not loaded.unreadable
    direct = convert(loaded, "canvas")
    assert contains(json.loads(direct), document)
    assert convert(load_flow(convert(loaded, "yaml")), "canvas") == direct
    assert convert(load_flow(direct), "canvas") == direct


@given(old_canvases())
@thorough
def test_an_old_canvas_that_the_dsl_can_express_comes_back_from_it(document: dict[str, Any]) -> None:
    loaded = load_flow(json.dumps(document))
    try:
        text = convert(loaded, "dsl")
    except ConfigurationError:
        return
    assert contains(json.loads(convert(load_flow(text), "canvas")), document)


@given(old_dsls())
@thorough
def test_an_old_dsl_document_comes_back_from_our_language_and_from_a_canvas(document: dict[str, Any]) -> None:
    loaded = load_flow(json.dumps(document))
    assert loaded.format == "dsl"
    assert not loaded.unreadable
    # A route to the step that follows anyway is left out when it is written.
    expected = {**document, "steps": [{k: v for k, v in s.items() if k != "onSuccess"} for s in document["steps"]]}
    expected["triggers"] = [{k: v for k, v in s.items() if k != "onSuccess"} for s in document["triggers"]]
    for way in (["yaml", "dsl"], ["canvas", "dsl"], ["yaml", "canvas", "yaml", "dsl"]):
        text = json.dumps(document)
        for target in way:
            text = convert(load_flow(text), target)
        assert reloaded(text) == loaded.flow
        assert contains(parse(text, "written").data, expected)


@given(old_dsls())
@settings(max_examples=50, deadline=None)
def test_the_dsl_is_read_from_yaml_as_from_json(document: dict[str, Any]) -> None:
    assert load_flow(dump(document)).flow == load_flow(json.dumps(document)).flow
