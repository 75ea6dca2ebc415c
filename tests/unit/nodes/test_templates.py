"""Templates, through the node `logger`, which renders them without any of HTTP's rules."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from built_nodes import Built, problem
from data_strategies import BODIES
from hypothesis import given
from hypothesis import strategies as st

from continuitybridge.errors import ConfigurationError, NodeError
from continuitybridge.nodes.language import legacy


def logged(template: str, body: Any = None, **more: Any) -> Any:
    """What a template that stands alone as a field's value gives."""
    node = Built("logger", {"fields": {"value": template}})
    node.one(body, **more)
    return node.lines[0][2]["value"]


ORDER = {
    "id": "PO-7",
    "items": [{"sku": "A-1", "n": 2}, {"sku": "B-2", "n": 3}],
    "none": None,
    "yes": True,
    "a b": 1,
}


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("plain text", "plain text"),
        ("{{ body.id }}", "PO-7"),
        ("no. {{ body.id }}", "no. PO-7"),
        ("{{ body.items }}", ORDER["items"]),
        ("{{ body.items[1].sku }} {{ body.items.0.n }}", "B-2 2"),
        ('{{ body["a b"] }}', 1),
        ("x{{ body.none }}{{ body.yes }}{{ body.items[0] }}", 'xnulltrue{"sku":"A-1","n":2}'),
        ("{{ body.missing | default('-') }}", "-"),
        ("{% for item in body.items %}{{ loop.index }}={{ item.sku }};{% endfor %}", "1=A-1;2=B-2;"),
        ("{% if body.yes %}y{% else %}n{% endif %}", "y"),
        ("{{ body.items | map(attribute='n') | sum }}", 5),
        ("{{ body.items | map(attribute='sku') }}", ["A-1", "B-2"]),
        ("{{ 'a,b' | split(',') }}", ["a", "b"]),
        ("{{ body.id[:2] ~ (1 + 1) }}", "PO2"),
        ("{{ message.id }}/{{ message.generation }}", "m-1/1"),
        ("{{ headers['x-a'] }}{{ vars.step.status }}", "h202"),
        ("{{ body.id | tojson }}", '"PO-7"'),
        ("{% set n = body.items | length %}{{ n * 2 }}", "4"),
        ("{# a remark #}", ""),
    ],
)
def test_a_template_reads_the_message(template: str, expected: Any) -> None:
    found = logged(template, ORDER, headers={"x-a": "h"}, variables={"step": {"status": 202}})
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ body.id", "unexpected end of template"),
        ("{% if %}", "Expected an expression"),
        ("{{ body.id | no_such }}", "No filter named 'no_such'"),
        ("{{ order.id }}", "order is not known here; the names are body, headers, vars, message"),
        ("{{ body.name.upper() }}", "a template calls nothing; use a filter"),
        ("{{ range(10) }}", "a template calls nothing"),
        ("{% for i in body recursive %}{{ loop(i) }}{% endfor %}", "a template calls nothing"),
        ("{% include 'x' %}", "includes no other file"),
        ("{% import 'x' as y %}", "imports no other file"),
        ("{% extends 'x' %}", "extends no other file"),
        ("{% macro f() %}{% endmacro %}", "macros are not available"),
        ("{% block a %}{% endblock %}", "blocks are not available"),
        ("{{ self }}", "self is not known here"),
        ("{{ 10 ** 10 ** 10 }}", "** is not available"),
        ("{{ body | attr('x') }}", "No filter named 'attr'"),
        ("{{ body | random }}", "No filter named 'random'"),
        ("{{ " + "(" * 2000 + "1" + ")" * 2000 + " }}", "nested too deep"),
    ],
)
def test_what_a_template_cannot_do_is_found_when_the_flow_is_checked(template: str, reason: str) -> None:
    found = problem("logger", {"message": template})
    assert found.startswith("message: template: ")
    assert reason in found


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__ }}",
        "{{ body.__class__.__mro__ }}",
        "{{ body['__class__'] }}",
        "{{ body.keys }}",
        "{{ ''['format'] }}",
        "{{ '%s'.__mod__ }}",
        "{{ body | map(attribute='__class__') | list }}",
        "{{ [body] | groupby('__class__') }}",
        "{{ [body, 1] | sort(attribute='__init__') }}",
        "{{ [body] | map('attr', '__class__') | list }}",
        "{{ headers.__init__.__globals__ }}",
        "{{ message.__dict__ }}",
        "{% for x in [1] %}{{ loop.__class__ }}{% endfor %}",
        "{% for x in [1] %}{{ loop._iterable }}{% endfor %}",
        "{{ {}.x.y }}",
        "{{ 'x' * 5 }}",
        "{{ [1] * 5 }}",
        "{{ '%99s' % 'x' }}",
    ],
)
def test_the_sandbox_reaches_data_and_nothing_of_python(template: str) -> None:
    node = Built("logger", {"message": template})
    node.one({"a": 1})
    assert node.lines[0][1].startswith("message m-1: ")
    assert "class" not in node.lines[0][1].replace("__class__", "")


def test_nothing_is_computed_while_a_flow_is_checked() -> None:
    for bomb in (
        "{{ 'x' | center(100000000000) }}",
        "{{ ['x'] | join * 1000000000000 }}",
        "{% if 'x' | center(100000000000) %}{% endif %}",
        "{% set x = '%0100000000000d' | format(1) %}",
        "{{ 'x' | indent(100000000000) ~ body }}",
    ):
        Built("logger", {"message": bomb, "fields": {"a": bomb}})


@given(st.text(alphabet="{}%#body.vars|[]()'\"_ -+*0123\n", max_size=30), BODIES)
def test_any_text_is_a_template_or_refused_and_any_message_renders_or_fails_typed(text: str, body: object) -> None:
    try:
        node = Built("logger", {"message": text, "fields": {"a": text}})
    except ConfigurationError:
        return
    with contextlib.suppress(NodeError):
        node.emits(body)


@pytest.mark.parametrize(
    ("old", "ours"),
    [
        ("{{$.order.id}}", "{{ body.order.id }}"),
        ("{{ $.items[0]['a b'] }}", '{{ body.items[0]["a b"] }}'),
        ("{{orderId}}", "{{ body.orderId }}"),
        ("{{{customer.first-name}}}", '{{ body.customer["first-name"] }}'),
        ("{{items.0.sku}}", "{{ body.items[0].sku }}"),
        ("{{$}}", "{{ body }}"),
        ('{"id": "{{$.id}}", "n": {{$.n}}}', '{"id": "{{ body.id }}", "n": {{ body.n }}}'),
        ("{{$.body.x}}", "{{ body.body.x }}"),
        ("{{ body.x }} {{ vars.y.z }}", "{{ body.x }} {{ vars.y.z }}"),
        ("{{ body.x | upper }}", "{{ body.x | upper }}"),
        ("plain { text }", "plain { text }"),
    ],
)
def test_old_placeholders_are_translated_and_ours_left_alone(old: str, ours: str) -> None:
    assert legacy.template(old, key="message") == ours
    Built("logger", {"message": ours})


@pytest.mark.parametrize("old", ["{{#each items}}x{{/each}}", "{{> partial}}", "{{#if a}}b{{else}}c{{/if}}"])
def test_old_blocks_are_refused_with_the_key_they_stand_in(old: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        legacy.template(old, key="bodyTemplate")
    assert refused.value.facts["field"] == "bodyTemplate"
