"""The node `logger`."""

from __future__ import annotations

from built_nodes import Built, problems
from data_strategies import BODIES
from hypothesis import given

from continuitybridge.nodes import registry


def test_it_writes_one_line_with_its_level_text_and_fields_and_passes_the_message_on() -> None:
    node = Built(
        "logger",
        {"level": "warning", "message": "order {{ body.id }}", "fields": {"lines": "{{ body.lines | length }}"}},
    )
    body = {"id": "PO-7", "lines": [1, 2]}
    assert node.one(body) is body
    assert node.lines == [("warning", "order PO-7", {"message_id": "m-1", "node_id": "node", "lines": 2})]


def test_nothing_of_the_message_is_logged_unless_it_is_named() -> None:
    node = Built("logger", {})
    node.one({"card": "4111"}, headers={"authorization": "Bearer x"})
    assert node.lines == [("info", "message m-1", {"message_id": "m-1", "node_id": "node"})]


def test_a_line_that_cannot_be_written_as_declared_says_why_and_the_message_still_passes() -> None:
    fields = {"a": "{{ body.a }}", "b": "{{ body.b }}"}
    node = Built("logger", {"message": "order {{ body.id }}", "fields": fields})
    assert node.one({"b": 1}) == {"b": 1}
    ((_, text, logged),) = node.lines
    assert text == "message m-1: template: there is no field 'id'"
    assert logged["a"] == "(template: there is no field 'a')"
    assert logged["b"] == 1


def test_a_long_text_is_cut() -> None:
    node = Built("logger", {"message": "{{ body }}"})
    node.one("x" * 50_000)
    assert len(node.lines[0][1]) == 10_000


def test_every_wrong_template_is_told_at_once() -> None:
    config = {"message": "{{ id }}", "fields": {"a": "{{ body.", "b": "fine"}}
    assert set(problems("logger", config)) == {"message", "fields.a"}
    assert "is not one of" in problems("logger", {"level": "warn"})["level"]


@given(BODIES)
def test_whatever_a_message_holds_it_passes(body: object) -> None:
    node = Built("logger", {"message": "{{ body.a.b }} {{ body }}", "fields": {"x": "{{ body | length }}"}})
    assert node.one(body) is body
    assert len(node.lines) == 1


def test_both_old_key_sets_are_read() -> None:
    old_form = {
        "logLevel": "warn",
        "message": "Order {{$.id}}",
        "includePayload": True,
        "payloadFields": "id, customer.name",
        "logToFile": True,
        "logToDatabase": False,
    }
    translated = registry.get("logger").from_legacy(old_form)
    assert translated == {
        "level": "warning",
        "message": "Order {{ body.id }}",
        "fields": {"id": "{{ body.id }}", "customer.name": "{{ body.customer.name }}"},
    }
    Built("logger", translated)
    executor = {
        "logLevel": "info",
        "includeHeaders": True,
        "includeBody": True,
        "prettyPrint": True,
        "logMessage": "",
    }
    assert registry.get("logger").from_legacy(executor) == {
        "level": "info",
        "fields": {"body": "{{ body }}", "headers": "{{ headers }}"},
    }
    assert registry.get("logger").from_legacy({}) == {}
    ours = {"level": "error", "message": "x {{ body.id }}", "fields": {"a": "{{ body.a }}"}}
    assert registry.get("logger").from_legacy(ours) == ours
