"""`http_request` against a real server: what goes over the wire, which answers fail, what is tried again."""

from __future__ import annotations

import asyncio
import gzip
import logging
import secrets
import ssl
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
import pytest_asyncio
from scripted_server import ScriptedServer, answer, cut, silence

from certificates import self_signed
from continuitybridge.engine.message import Message
from continuitybridge.engine.services import LocalServices
from continuitybridge.errors import BridgeError, DeliveryFailed, LimitExceeded, NotFound, Verdict
from continuitybridge.nodes import registry
from continuitybridge.nodes.base import AsyncNode, BuildContext, ConnectionInfo, RunContext

QUICK = {"retry_wait_s": 0.01, "attempt_timeout_s": 2.0, "timeout_s": 5.0}


@pytest_asyncio.fixture
async def server() -> AsyncIterator[ScriptedServer]:
    scripted = ScriptedServer()
    await scripted.start()
    yield scripted
    await scripted.stop()


class Destination:
    """The node under test with its services."""

    def __init__(self, config: Mapping[str, Any], *connections: ConnectionInfo) -> None:
        node = registry.build("http_request", config, BuildContext(flow="test", node_id="deliver"))
        assert isinstance(node, AsyncNode)
        self.node = node
        self.lines: list[str] = []
        services = LocalServices(
            {connection.name: connection for connection in connections},
            log=lambda level, text, fields: self.lines.append(f"{level} {text} {dict(fields)}"),
        )
        self.context = RunContext("deliver", services)

    async def send(self, body: Any, **message: Any) -> Message:
        result = await self.node.process(Message("m-1", body, **message), self.context)
        assert isinstance(result, Message)
        return result


async def send(config: Mapping[str, Any], body: Any, *connections: ConnectionInfo, **message: Any) -> Message:
    destination = Destination({**QUICK, **config}, *connections)
    try:
        return await destination.send(body, **message)
    finally:
        await destination.node.aclose()


async def failure(config: Mapping[str, Any], body: Any, *connections: ConnectionInfo) -> BridgeError:
    with pytest.raises(BridgeError) as failed:
        await send(config, body, *connections)
    return failed.value


# ---------------------------------------------------------------- what is sent
async def test_data_is_sent_as_json_and_the_message_goes_on_unchanged(server: ScriptedServer) -> None:
    server.answers = [answer(201, b"ignored", location="/orders/7")]
    body = {"id": 7, "name": "Zoë", "serial": 2**70}
    result = await send({"url": f"{server.origin}/orders"}, body, vars={"kept": 1})
    (request,) = server.received
    assert (request.method, request.target) == ("POST", "/orders")
    assert request.body == b'{"id":7,"name":"Zo\\u00eb","serial":1180591620717411303424}'
    assert request.headers["content-type"] == "application/json"
    assert result.body == body
    assert result.vars["kept"] == 1
    assert result.vars["deliver"]["status"] == 201
    assert result.vars["deliver"]["headers"]["location"] == "/orders/7"


async def test_every_request_bears_the_idempotency_key_of_message_node_and_generation(
    server: ScriptedServer,
) -> None:
    await send({"url": server.origin}, {}, generation=3)
    assert server.received[0].headers["idempotency-key"] == "m-1:deliver:3"


async def test_bytes_go_out_as_they_came_with_the_type_they_came_with(server: ScriptedServer) -> None:
    await send({"url": server.origin}, b"\xff\x00raw", headers={"content-type": "application/edifact"})
    assert server.received[0].body == b"\xff\x00raw"
    assert server.received[0].headers["content-type"] == "application/edifact"


async def test_a_declared_content_type_wins_over_the_guess(server: ScriptedServer) -> None:
    await send({"url": server.origin, "headers": {"content-type": "application/soap+xml"}}, "<a/>")
    await send({"url": server.origin}, "<?xml version='1.0'?><a/>")
    await send({"url": server.origin}, "hello")
    assert [request.headers["content-type"] for request in server.received] == [
        "application/soap+xml",
        "application/xml",
        "text/plain; charset=utf-8",
    ]


async def test_values_from_the_message_fill_path_query_and_headers_without_changing_their_shape(
    server: ScriptedServer,
) -> None:
    config = {
        "url": server.origin + "/orders/{{ body.id }}/lines?fixed=1",
        "method": "GET",
        "query": {"q": "{{ body.q }}", "many": "{{ body.many }}", "none": "{{ body.none }}", "n": 5},
        "headers": {"X-Q": "{{ body.q }}", "X-None": "{{ body.none }}"},
    }
    await send(config, {"id": "a/../b?x=1#é", "q": "a&b=c d", "many": [1, True, "x"], "none": None})
    (request,) = server.received
    assert request.target == (
        "/orders/a%2F..%2Fb%3Fx%3D1%23%C3%A9/lines?fixed=1&q=a%26b%3Dc%20d&many=1&many=true&many=x&n=5"
    )
    assert request.headers["x-q"] == "a&b=c d"
    assert "x-none" not in request.headers
    assert request.body == b""


async def test_a_declared_body_keeps_the_types_of_values_that_stand_alone(server: ScriptedServer) -> None:
    config = {
        "url": server.origin,
        "body": {"order": "{{ body.order }}", "text": "no. {{ body.order.n }}", "count": "{{ body.order.n }}"},
    }
    await send(config, {"order": {"n": 5}})
    assert server.received[0].body == b'{"order":{"n":5},"text":"no. 5","count":5}'


async def test_a_connection_gives_address_headers_and_credentials(server: ScriptedServer) -> None:
    password = secrets.token_hex(12)
    base = f"{server.origin}/api/v2/"
    connections = (
        ConnectionInfo("basic", base, {"X-Tenant": "t"}, {"type": "basic", "username": "ü", "password": password}),
        ConnectionInfo("bearer", base, {}, {"type": "bearer", "token": password}),
        ConnectionInfo("key", base, {}, {"type": "api_key", "header": "X-Key", "value": password}),
    )
    for connection in connections:
        await send({"connection": connection.name, "path": "/orders"}, {}, *connections)
    assert {request.target for request in server.received} == {"/api/v2/orders"}
    assert server.received[0].headers["x-tenant"] == "t"
    assert server.received[0].headers["authorization"].startswith("Basic ")
    assert server.received[1].headers["authorization"] == f"Bearer {password}"
    assert server.received[2].headers["x-key"] == password


async def test_one_client_keeps_its_connection_and_forgets_cookies(server: ScriptedServer) -> None:
    server.answers = [answer(200, b"x" * 1000, set_cookie="session=1; Path=/")]
    destination = Destination({**QUICK, "url": server.origin})
    for _ in range(3):
        result = await destination.send({})
    await destination.node.aclose()
    assert server.connections == 1
    assert all("cookie" not in request.headers for request in server.received)
    assert "set-cookie" not in result.vars["deliver"]["headers"]


def test_a_node_serves_one_event_loop_after_another() -> None:
    destination = Destination({**QUICK, "url": "http://127.0.0.1:1", "retries": 0})

    async def once() -> Verdict:
        with pytest.raises(DeliveryFailed) as failed:
            await destination.send({})
        return failed.value.verdict

    assert [asyncio.run(once()), asyncio.run(once())] == [Verdict.TRANSIENT] * 2


# ---------------------------------------------------------------- verdicts and retries
@pytest.mark.parametrize("status", [408, 425, 429, 500, 501, 502, 503, 504, 599])
async def test_a_passing_status_is_tried_again_and_then_fails_as_transient(
    server: ScriptedServer, status: int
) -> None:
    server.answers = [answer(status, b"busy")] * 3
    error = await failure({"url": server.origin, "retries": 2}, {})
    assert error.verdict is Verdict.TRANSIENT
    assert error.code == "delivery-failed"
    assert error.facts["status"] == status
    assert error.facts["attempts"] == 3
    assert error.facts["response"] == "busy"
    assert len(server.received) == 3
    assert len({request.headers["idempotency-key"] for request in server.received}) == 1


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 409, 410, 413, 415, 422, 451, 301, 302, 304])
async def test_a_standing_status_fails_at_once_as_terminal(server: ScriptedServer, status: int) -> None:
    server.answers = [answer(status, location="/elsewhere")]
    error = await failure({"url": server.origin}, {})
    assert error.verdict is Verdict.TERMINAL
    assert len(server.received) == 1


async def test_a_delivery_that_succeeds_later_counts_its_attempts(server: ScriptedServer) -> None:
    server.answers = [answer(503), answer(503), answer(202)]
    result = await send({"url": server.origin}, {})
    assert result.vars["deliver"]["status"] == 202
    assert result.vars["deliver"]["attempts"] == 3


async def test_a_kept_connection_that_the_destination_ended_costs_the_message_nothing(
    server: ScriptedServer,
) -> None:
    """Whether it ended while nobody used it, or just as a request was on its way, cannot be told from here."""

    async def last(writer: asyncio.StreamWriter) -> None:
        await answer(200)(writer)
        writer.close()

    async def half(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200")
        writer.close()

    destination = Destination({**QUICK, "url": server.origin, "retries": 0})
    server.answers = [answer(200), cut, last, answer(200), answer(200), half]
    for _ in range(4):
        assert (await destination.send({})).vars["deliver"]["attempts"] == 1
    assert server.connections == 3
    # The first answer on a connection, and one that has begun, are failures like any other.
    with pytest.raises(DeliveryFailed):
        await destination.send({})
    server.answers = [cut]
    with pytest.raises(DeliveryFailed):
        await destination.send({})
    assert len({request.headers["idempotency-key"] for request in server.received}) == 1
    await destination.node.aclose()


async def test_declared_statuses_count_as_delivered_and_others_do_not(server: ScriptedServer) -> None:
    server.answers = [answer(409), answer(200)]
    config = {"url": server.origin, "success": [201, 409], "retries": 0}
    assert (await send(config, {})).vars["deliver"]["status"] == 409
    assert (await failure(config, {})).facts["status"] == 200


async def test_nothing_listening_is_transient() -> None:
    error = await failure({"url": "http://127.0.0.1:1", "retries": 1}, {})
    assert error.verdict is Verdict.TRANSIENT
    assert error.facts["attempts"] == 2


async def test_a_slow_attempt_is_given_up_and_tried_again(server: ScriptedServer) -> None:
    server.answers = [silence, answer(200)]
    result = await send({"url": server.origin, "attempt_timeout_s": 0.2}, {})
    assert result.vars["deliver"]["attempts"] == 2


async def test_the_time_limit_bounds_all_attempts_together(server: ScriptedServer) -> None:
    server.answers = [silence] * 10
    config = {"url": server.origin, "timeout_s": 0.5, "attempt_timeout_s": 0.4, "retries": 10}
    started = asyncio.get_running_loop().time()
    error = await failure(config, {})
    assert asyncio.get_running_loop().time() - started < 30
    assert error.verdict is Verdict.TRANSIENT
    assert len(server.received) <= 3


async def test_an_answer_that_drips_is_cut_off(server: ScriptedServer) -> None:
    async def drip(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n")
        for _ in range(1000):
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.02)

    server.answers = [drip]
    config = {"url": server.origin, "attempt_timeout_s": 0.3, "retries": 0, "response": "body"}
    assert (await failure(config, {})).verdict is Verdict.TRANSIENT


async def test_retry_after_is_waited_for_when_there_is_time_and_told_when_there_is_not(
    server: ScriptedServer,
) -> None:
    server.answers = [answer(429, retry_after="1"), answer(200)]
    started = asyncio.get_running_loop().time()
    await send({"url": server.origin}, {})
    assert asyncio.get_running_loop().time() - started >= 1
    later = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    for header in ("3600", later):
        server.answers = [answer(503, retry_after=header)]
        error = await failure({"url": server.origin}, {})
        assert error.facts["attempts"] == 1
        assert 3500 <= error.facts["retry_after_s"] <= 3600


@pytest.mark.parametrize("header", ["soon", "-5", "9" * 50, "Thu, 99 Foo 9999 99:99:99 GMT", "\x00"])
async def test_a_retry_after_that_says_nothing_is_passed_over(server: ScriptedServer, header: str) -> None:
    server.answers = [answer(503, retry_after=header)]
    error = await failure({"url": server.origin, "retries": 0}, {})
    assert isinstance(error, DeliveryFailed)


# ---------------------------------------------------------------- answers
async def test_the_answer_goes_under_a_field_of_the_message(server: ScriptedServer) -> None:
    server.answers = [answer(200, b'{"available":12,"id":18446744073709551617}', content_type="application/json")]
    result = await send({"url": server.origin, "method": "GET", "response": "body.stock"}, {"sku": "A"})
    assert result.body["sku"] == "A"
    assert result.body["stock"]["status"] == 200
    assert result.body["stock"]["body"] == {"available": 12, "id": 18446744073709551617}


@pytest.mark.parametrize(
    ("content", "content_type", "expected"),
    [
        (b'{"a":1}', "application/problem+json", {"a": 1}),
        (b"not json", "application/json", "not json"),
        ("é".encode("latin-1"), "text/plain; charset=iso-8859-1", "é"),
        ("é".encode(), "text/plain; charset=no-such", "é"),
        (b"<a/>", "application/soap+xml", "<a/>"),
        (b"\x00\xff", "application/pdf", b"\x00\xff"),
        (b"\x00\xff", "", b"\x00\xff"),
        (b"", "application/json", None),
    ],
)
async def test_the_answer_takes_the_place_of_the_body_as_its_type_says(
    server: ScriptedServer, content: bytes, content_type: str, expected: Any
) -> None:
    server.answers = [answer(200, content, **({"content_type": content_type} if content_type else {}))]
    result = await send({"url": server.origin, "response": "body"}, {})
    assert result.body == expected


async def test_an_answer_that_is_used_may_not_be_larger_than_allowed(server: ScriptedServer) -> None:
    server.answers = [answer(200, b"x" * 2000)]
    config = {"url": server.origin, "response": "body", "max_response_bytes": 1000}
    error = await failure(config, {})
    assert isinstance(error, LimitExceeded)
    server.answers = [answer(200, b"x" * 200_000)]
    assert (await send({**config, "response": "vars"}, {})).vars["deliver"]["status"] == 200


async def test_a_compressed_bomb_is_inflated_no_further_than_allowed(server: ScriptedServer) -> None:
    bomb = gzip.compress(b"\0" * 50_000_000)
    server.answers = [answer(200, bomb, content_encoding="gzip")]
    error = await failure({"url": server.origin, "response": "body", "max_response_bytes": 10_000}, {})
    assert isinstance(error, LimitExceeded)
    server.answers = [answer(200, gzip.compress(b"[1]"), content_encoding="gzip", content_type="application/json")]
    assert (await send({"url": server.origin, "response": "body"}, {})).body == [1]
    server.answers = [answer(200, b"junk", content_encoding="gzip")]
    assert (await failure({"url": server.origin, "response": "body", "retries": 0}, {})).code == "delivery-failed"
    server.answers = [answer(200, b"junk", content_encoding="br")]
    assert (await failure({"url": server.origin, "response": "body"}, {})).verdict is Verdict.TERMINAL


async def test_an_answer_nested_too_deep_is_a_typed_failure(server: ScriptedServer) -> None:
    deep = b"[" * 900 + b"]" * 900
    server.answers = [answer(200, deep, content_type="application/json")]
    assert isinstance(await failure({"url": server.origin, "response": "body"}, {}), LimitExceeded)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x00\x01\x02\r\n\r\n",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nZZ\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"x: " + b"y" * 200_000 + b"\r\n\r\n",
    ],
)
async def test_what_is_no_answer_is_a_passing_failure(server: ScriptedServer, raw: bytes) -> None:
    async def write(writer: asyncio.StreamWriter) -> None:
        writer.write(raw)
        writer.close()

    server.answers = [write]
    error = await failure({"url": server.origin, "response": "body", "retries": 0}, {})
    assert isinstance(error, DeliveryFailed)
    assert error.verdict is Verdict.TRANSIENT


# ---------------------------------------------------------------- redirects and TLS
async def test_redirects_are_not_followed_unless_allowed_and_then_on_the_same_host_with_the_same_method(
    server: ScriptedServer,
) -> None:
    server.answers = [answer(307, location="/new?x=1"), answer(201)]
    result = await send({"url": server.origin, "follow_redirects": True}, {"a": 1})
    assert [request.target for request in server.received] == ["/", "/new?x=1"]
    assert server.received[1].body == b'{"a":1}'
    assert result.vars["deliver"]["status"] == 201


@pytest.mark.parametrize("status", [301, 302, 303])
async def test_a_redirect_that_would_turn_a_delivery_into_a_query_is_a_failure(
    server: ScriptedServer, status: int
) -> None:
    server.answers = [answer(status, location="/new")]
    error = await failure({"url": server.origin, "follow_redirects": True}, {})
    assert error.verdict is Verdict.TERMINAL
    assert len(server.received) == 1


async def test_credentials_never_follow_a_redirect_to_another_host(server: ScriptedServer) -> None:
    other = ScriptedServer()
    await other.start()
    auth = {"type": "api_key", "header": "X-Key", "value": secrets.token_hex(8)}
    connection = ConnectionInfo("w", server.origin, {}, auth)
    without_scheme = other.origin.removeprefix("http:")
    with_user = f"http://user:pw@{server.origin.removeprefix('http://')}/"
    for location in (other.origin, without_scheme, with_user, "http://["):
        server.answers = [answer(307, location=location)]
        error = await failure({"connection": "w", "follow_redirects": True}, {}, connection)
        assert error.verdict is Verdict.TERMINAL
    assert other.received == []
    await other.stop()


async def test_redirects_in_a_circle_end(server: ScriptedServer) -> None:
    server.answers = [answer(307, location="/again")] * 20
    error = await failure({"url": server.origin, "follow_redirects": True}, {})
    assert error.verdict is Verdict.TERMINAL
    assert len(server.received) == 6


async def test_a_certificate_that_nobody_vouches_for_is_refused_unless_the_flow_says_otherwise(
    tls_server: ScriptedServer,
) -> None:
    error = await failure({"url": tls_server.origin, "retries": 0}, {})
    assert "certificate" in error.detail.lower()
    assert tls_server.received == []
    await send({"url": tls_server.origin, "verify_tls": False}, {})
    assert len(tls_server.received) == 1


@pytest_asyncio.fixture
async def tls_server(tmp_path: Any) -> AsyncIterator[ScriptedServer]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(self_signed(tmp_path))
    scripted = ScriptedServer()
    await scripted.start(context)
    yield scripted
    await scripted.stop()


# ---------------------------------------------------------------- secrets
async def test_no_credential_appears_in_errors_logs_or_texts_even_when_the_destination_echoes_them(
    server: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    logging.getLogger("httpcore").setLevel(logging.WARNING)
    secret = secrets.token_hex(16)
    connection = ConnectionInfo(
        "w", server.origin, {"X-Static": f"static-{secret}"}, {"type": "bearer", "token": secret}
    )
    server.answers = [answer(400, f"you sent Bearer {secret} and static-{secret}".encode())]
    destination = Destination({**QUICK, "connection": "w", "query": {"q": "private"}}, connection)
    with pytest.raises(DeliveryFailed) as failed:
        await destination.send({})
    await destination.node.aclose()
    shown = f"{failed.value!r} {failed.value.detail} {failed.value.facts} {caplog.text} {destination.lines}"
    assert secret not in shown
    assert secret not in repr(connection)
    assert failed.value.facts["response"] == "you sent *** and ***"
    assert failed.value.facts["url"] == server.origin
    assert "private" not in f"{failed.value.detail} {failed.value.facts} {caplog.text}"


async def test_a_connection_that_does_not_exist_is_named() -> None:
    error = await failure({"connection": "nowhere"}, {})
    assert isinstance(error, NotFound)
    assert "nowhere" in error.detail


async def test_an_error_before_sending_sends_nothing(server: ScriptedServer) -> None:
    for config, body in (
        ({"url": server.origin + "/{{ body.id }}"}, {}),
        ({"url": server.origin + "/{{ body.id }}"}, {"id": ".."}),
        ({"url": server.origin + "/{{ body.id }}"}, {"id": ""}),
        ({"url": server.origin, "headers": {"x-a": "{{ body.id }}"}}, {"id": "a\r\nx-evil: 1"}),
        ({"url": server.origin, "headers": {"x-a": "{{ body.id }}"}}, {"id": "é"}),
        ({"url": server.origin, "response": "body.answer"}, [1]),
        ({"url": server.origin, "body": {"a": "{{ body.none }}"}}, {}),
    ):
        error = await failure(config, body)
        assert error.verdict is Verdict.TERMINAL
        assert error.code in ("transform-failed", "invalid-payload")
    assert server.received == []
