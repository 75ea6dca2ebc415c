"""What a caller who waits for the result is answered: made from what left the flow, checked before deploying."""

from __future__ import annotations

import json
from typing import Any, cast

import pytest

from continuitybridge.engine.message import Message, Reply
from continuitybridge.errors import ConfigurationError, TransformFailed
from continuitybridge.nodes import registry
from continuitybridge.nodes.base import BuildContext, TriggerNode

MAX_BYTES = 10_000


def webhook(**result: Any) -> TriggerNode[Any]:
    config = {"slug": "orders", "reply": "result", **({"result": result} if result else {})}
    return cast("TriggerNode[Any]", registry.build("webhook_trigger", config, BuildContext()))


def answer(content: Any, kept: dict[str, str] | None = None, /, **result: Any) -> Reply:
    return webhook(**result).reply(Message("m", content, kept or {}), MAX_BYTES)


def problems(**config: Any) -> list[dict[str, Any]]:
    with pytest.raises(ConfigurationError) as error:
        registry.build("webhook_trigger", {"slug": "orders", **config}, BuildContext())
    return cast("list[dict[str, Any]]", error.value.facts["problems"])


def test_without_templates_the_message_itself_is_the_answer() -> None:
    assert answer({"a": [1]}) == Reply(200, {"content-type": "application/json"}, b'{"a":[1]}', "m")
    assert answer("grüezi").headers == {"content-type": "text/plain; charset=utf-8"}
    assert answer("<?xml version='1.0'?><a/>").headers == {"content-type": "application/xml"}
    kept = answer(b"\x00\xff", {"content-type": "application/x-thing"})
    assert (kept.headers, kept.body) == ({"content-type": "application/x-thing"}, b"\x00\xff")


def test_templates_make_status_headers_and_body() -> None:
    reply = answer(
        {"number": 7, "lines": ["a"], "new": True},
        status="{{ 201 if body.new else 200 }}",
        headers={"Location": "/orders/{{ body.number }}", "X-None": "{{ none }}"},
        body={"order": "{{ body.number }}", "count": "{{ body.lines | length }} lines"},
    )
    assert reply.status == 201
    assert reply.headers == {"content-type": "application/json", "location": "/orders/7"}
    assert json.loads(reply.body) == {"order": 7, "count": "1 lines"}
    xml = answer({"n": 1}, body="<n>{{ body.n }}</n>", headers={"Content-Type": "application/xml"})
    assert (xml.body, xml.headers) == (b"<n>1</n>", {"content-type": "application/xml"})


def test_an_answer_without_content_has_no_content_type() -> None:
    assert webhook().reply(None, MAX_BYTES) == Reply(204)
    assert answer({"a": 1}, body="") == Reply(200, {}, b"", "m")
    assert answer({"a": 1}, status=304).body == b""


@pytest.mark.parametrize(
    ("body", "result"),
    [
        ({}, {"body": "{{ body.missing }}"}),
        ({"s": 99}, {"status": "{{ body.s }}"}),
        ({"s": True}, {"status": "{{ body.s }}"}),
        ({"v": "a\r\nset-cookie: x"}, {"headers": {"X-V": "{{ body.v }}"}}),
        ("x" * (MAX_BYTES + 1), {}),
    ],
)
def test_what_cannot_be_an_answer_is_an_error(body: Any, result: dict[str, Any]) -> None:
    with pytest.raises(TransformFailed):
        answer(body, **result)


@pytest.mark.parametrize(
    ("result", "field"),
    [
        ({"status": "{{ total }}"}, "result.status"),
        ({"status": 42}, "result.status"),
        ({"status": "fine"}, "result.status"),
        ({"headers": {"Set-Cookie": "a=b"}}, "result.headers.Set-Cookie"),
        ({"headers": {"no name": "x"}}, "result.headers.no name"),
        ({"body": {"a": ["{{ f() }}"]}}, "result.body.a.0"),
        ({"errors": {"delivery-faild": 504}}, "result.errors"),
        ({"errors": {"delivery-failed": 200}}, "result.errors"),
        ({"limit_s": 0}, "result.limit_s"),
        ({"limit_s": 301}, "result.limit_s"),
    ],
)
def test_a_wrong_result_is_refused_before_any_message(result: dict[str, Any], field: str) -> None:
    [problem] = problems(reply="result", result=result)
    assert problem["field"] == field


def test_every_problem_is_told_at_once() -> None:
    found = problems(reply="result", result={"status": "{{ x }}", "headers": {"Date": "x"}, "body": "{{ y }}"})
    assert [p["field"] for p in found] == ["result.status", "result.headers.Date", "result.body"]


def test_a_result_that_nobody_waits_for_is_refused() -> None:
    [problem] = problems(result={"status": 201})
    assert "reply: result" in problem["message"]


def test_only_the_named_steps_give_the_result() -> None:
    named = webhook(**{"from": ["deliver"]})
    assert named.reply_counts("deliver")
    assert not named.reply_counts("note")
    assert webhook().reply_counts("note")
