"""The node `http_request` as declared: what is refused when the flow is checked, emulation, older keys. What goes
over the wire is tried in `tests/integration/nodes`."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from built_nodes import Built, problem, problems
from data_strategies import BODIES
from hypothesis import given
from hypothesis import strategies as st

from continuitybridge.errors import ConfigurationError, DeliveryFailed, NodeError, TransformFailed, Verdict
from continuitybridge.nodes import registry

WAREHOUSE = {"connection": "warehouse"}


@pytest.mark.parametrize(
    ("config", "field", "reason"),
    [
        ({}, "", "give either connection or url"),
        ({"connection": "a", "url": "https://x.example"}, "", "give either connection or url"),
        ({"url": "https://x.example", "path": "/a"}, "", "write it into url"),
        ({"connection": "No Name"}, "connection", ""),
        ({"url": "ftp://x.example"}, "url", "begins with http:// or https://"),
        ({"url": "x.example/a"}, "url", "begins with http:// or https://"),
        ({"url": "https:///a"}, "url", "has no host"),
        ({"url": "https://{{ body.host }}/a"}, "url", "the host cannot come from the message"),
        ({"url": "https://user:pw@x.example/"}, "url", "no user name or password"),
        ({"url": "https://x.example/{{ id }}"}, "url", "id is not known here"),
        ({**WAREHOUSE, "path": "/{{ body.id"}, "path", "template: unexpected end"),
        ({**WAREHOUSE, "query": {"q": "{{ q }}"}}, "query.q", "q is not known here"),
        ({**WAREHOUSE, "headers": {"a b": "x"}}, "headers.a b", "is no header name"),
        ({**WAREHOUSE, "headers": {"Host": "x"}}, "headers.Host", "set by the platform"),
        ({**WAREHOUSE, "headers": {"Idempotency-Key": "x"}}, "headers.Idempotency-Key", "set by the platform"),
        ({**WAREHOUSE, "headers": {"Authorization": "Bearer x"}}, "headers.Authorization", "a connection does"),
        ({**WAREHOUSE, "body": {"a": ["{{ b }}"]}}, "body.a.0", "b is not known here"),
        ({**WAREHOUSE, "method": "FETCH"}, "method", "is not one of"),
        ({**WAREHOUSE, "success": ["ok"]}, "success", "is no status"),
        ({**WAREHOUSE, "success": []}, "success", ""),
        ({**WAREHOUSE, "response": "header"}, "response", ""),
        ({**WAREHOUSE, "timeout_s": 0}, "timeout_s", ""),
        ({**WAREHOUSE, "timeout_s": 5, "attempt_timeout_s": 6}, "", "longer than timeout_s"),
        ({**WAREHOUSE, "retrys": 5}, "retrys", "did you mean retries?"),
        ({**WAREHOUSE, "sample": {"status": 5}}, "sample.status", ""),
    ],
)
def test_a_wrong_configuration_is_found_when_the_flow_is_checked(config: Any, field: str, reason: str) -> None:
    found = problem("http_request", config)
    assert found.startswith(f"{field}: ")
    assert reason in found


def test_everything_wrong_is_told_at_once_and_no_credential_is_repeated() -> None:
    config = {
        **WAREHOUSE,
        "path": "{{ x }}",
        "query": {"q": "{{ y }}"},
        "headers": {"X-API-Key": "s3cr3t", "b c": "1"},
    }
    found = problems("http_request", config)
    assert set(found) == {"path", "query.q", "headers.X-API-Key", "headers.b c"}
    with pytest.raises(ConfigurationError) as refused:
        Built("http_request", config)
    assert "s3cr3t" not in f"{refused.value} {refused.value.facts}"


# ---------------------------------------------------------------- emulation
def test_emulated_it_answers_with_the_sample_and_asks_for_no_connection() -> None:
    node = Built(
        "http_request", {**WAREHOUSE, "response": "body.answer", "sample": {"status": 201, "body": {"n": 1}}}
    )
    assert node.one({"id": 7}) == {
        "id": 7,
        "answer": {"status": 201, "headers": {"content-type": "application/json"}, "body": {"n": 1}},
    }
    assert node.message.vars["node"] == {
        "status": 201,
        "attempts": 1,
        "headers": {"content-type": "application/json"},
    }


def test_the_sample_may_be_a_text_nothing_or_a_failure() -> None:
    text = {"url": "https://x.example", "response": "body", "sample": {"body": "hello"}}
    assert Built("http_request", text).one({}) == "hello"
    assert Built("http_request", {**text, "sample": {"status": 204, "body": None}}).one({}) is None
    for status, verdict in ((503, Verdict.TRANSIENT), (404, Verdict.TERMINAL)):
        error = Built("http_request", {**text, "sample": {"status": status}}).fails({})
        assert isinstance(error, DeliveryFailed)
        assert error.verdict is verdict


def test_emulated_the_request_is_built_all_the_same_so_that_its_faults_are_found() -> None:
    for config in (
        {**WAREHOUSE, "path": "/{{ body.id }}"},
        {**WAREHOUSE, "query": {"q": "{{ body.id }}"}},
        {**WAREHOUSE, "headers": {"x-a": "{{ body.id }}"}},
        {**WAREHOUSE, "body": "{{ body.id }}"},
    ):
        node = Built("http_request", config)
        assert isinstance(node.fails({}), TransformFailed)
        node.one({"id": "ok"})


@pytest.mark.parametrize("value", ["..", ".", "", None, {}, [1]])
def test_a_value_that_would_change_what_a_path_means_is_refused(value: Any) -> None:
    node = Built("http_request", {**WAREHOUSE, "path": "/orders/{{ body.id }}/lines"})
    assert isinstance(node.fails({"id": value}), TransformFailed)
    split = Built("http_request", {**WAREHOUSE, "path": "/orders/{{ body.a }}{{ body.b }}"})
    assert isinstance(split.fails({"a": ".", "b": "."}), TransformFailed)


@pytest.mark.parametrize("value", ["a\nb", "a\r\nx: y", "\x00", "\x7f", "é", {"a": 1}])
def test_a_value_that_cannot_stand_in_a_header_is_refused(value: Any) -> None:
    node = Built("http_request", {**WAREHOUSE, "headers": {"X-A": "p{{ body.v }}", "X-B": "{{ body.v }}"}})
    assert isinstance(node.fails({"v": value}), TransformFailed)


@given(BODIES, st.sampled_from(["vars", "body", "body.x"]))
def test_whatever_a_message_holds_it_is_sent_or_fails_typed(body: Any, response: str) -> None:
    config = {
        **WAREHOUSE,
        "path": "/{{ body.a }}",
        "headers": {"x-a": "{{ body.b }}"},
        "query": {"c": "{{ body.c }}"},
    }
    for declared in (
        {**WAREHOUSE, "response": response},
        {**config, "response": response, "body": "{{ body.a }}"},
    ):
        with contextlib.suppress(NodeError):
            Built("http_request", declared).emits(body)


@given(st.text(alphabet="/:@?#%{}[]. htpsexample.com\\\n\x00é", max_size=30))
def test_any_address_is_taken_or_refused_when_the_flow_is_checked(rest: str) -> None:
    for url in (rest, f"https://{rest}", f"https://x.example{rest}", f"https://x.example/{rest}"):
        with contextlib.suppress(ConfigurationError, NodeError):
            Built("http_request", {"url": url}).emits({"a": 1})


# ---------------------------------------------------------------- older flows
def from_legacy(**config: Any) -> dict[str, Any]:
    translated = registry.get("http_request").from_legacy(config)
    Built("http_request", translated)
    return translated


def test_the_old_keys_are_read() -> None:
    translated = from_legacy(
        url="https://api.example.com/orders/{{$.order.id}}",
        method="POST",
        headers='{"X-Shop": "{{$.shop}}"}',
        queryParams={"page": 1, "q": "{{$.q}}"},
        body='{"id": "{{$.order.id}}", "total": "{{$.order.total}}"}',
        timeout=5000,
        retryAttempts=3,
        followRedirects=False,
        validateSSL=False,
        responseField="answer",
    )
    assert translated == {
        "url": "https://api.example.com/orders/{{ body.order.id }}",
        "method": "POST",
        "headers": {"X-Shop": "{{ body.shop }}"},
        "query": {"page": "1", "q": "{{ body.q }}"},
        "body": {"id": "{{ body.order.id }}", "total": "{{ body.order.total }}"},
        "retries": 3,
        "attempt_timeout_s": 5.0,
        "timeout_s": 28.0,
        "follow_redirects": False,
        "verify_tls": False,
        "response": "body.answer",
    }


def test_what_old_forms_left_out_is_written_as_they_meant_it() -> None:
    assert from_legacy(url="https://x.example", headers="", body=None) == {
        "url": "https://x.example",
        "method": "GET",
        "retries": 0,
        "attempt_timeout_s": 30.0,
        "timeout_s": 31.0,
        "follow_redirects": True,
        "response": "body.response",
    }
    assert from_legacy(url="https://x.example", method="put")["body"] == ""
    assert "body" not in from_legacy(url="https://x.example", method="delete", body={"a": 1})


def test_an_old_body_with_bare_placeholders_stays_a_text_and_is_sent_as_json() -> None:
    translated = from_legacy(url="https://x.example", method="POST", body='{"n": {{$.n}}, "s": "{{name}}"}')
    assert translated["body"] == '{"n": {{ body.n }}, "s": "{{ body.name }}"}'
    assert translated["headers"] == {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"url": "https://x.example", "headers": "[1]"}, "headers"),
        ({"url": "https://x.example", "queryParams": "text"}, "queryParams"),
        ({"url": "https://x.example", "timeout": "soon"}, "timeout"),
        ({"url": "https://x.example", "validateSSL": "maybe"}, "validateSSL"),
        ({"url": "https://x.example", "method": "POST", "body": "{{#each items}}"}, "body"),
        ({"url": "https://x.example/{{#if a}}"}, "url"),
    ],
)
def test_an_old_key_that_cannot_be_expressed_is_named(config: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        registry.get("http_request").from_legacy(config)
    assert refused.value.facts["field"] == field


def test_old_credentials_in_headers_and_hosts_from_the_message_are_found_when_the_flow_is_checked() -> None:
    node = registry.get("http_request")
    for old, field in (
        (
            {"url": "https://x.example", "headers": json.dumps({"Authorization": "Bearer x"})},
            "headers.Authorization",
        ),
        ({"url": "{{$.base}}/orders"}, "url"),
        ({"url": "https://{{$.host}}/orders"}, "url"),
    ):
        assert field in problems("http_request", node.from_legacy(old))


def test_a_configuration_of_ours_passes_unchanged() -> None:
    ours = {"connection": "warehouse", "path": "/a", "method": "POST"}
    assert registry.get("http_request").from_legacy(ours) == ours


def test_a_misspelt_key_does_not_hide_what_is_wrong_with_the_others() -> None:
    config = {**WAREHOUSE, "retrys": 5, "method": "FETCH", "path": "/{{ id }}"}
    assert set(problems("http_request", config)) == {"retrys", "method", "path"}
