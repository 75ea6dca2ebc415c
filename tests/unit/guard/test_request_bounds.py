"""What the guard bounds of a request, to the byte and the bracket, and what becomes of one that is too large."""

from __future__ import annotations

import json
from typing import Any

import pytest
from guard_world import HOOK, Guarded, Headers, asked, guarded

from continuitybridge.errors import BridgeError, Unavailable

__all__ = ["guarded"]


@pytest.mark.parametrize(
    ("headers", "query", "path", "status"),
    [
        ([(b"a", b"1")] * 12, b"", "/", 200),
        ([(b"a", b"1")] * 13, b"", "/", 431),
        ([(b"ab", b"x" * 5), (b"cd", b"x" * 80)], b"1234567890", "/", 200),
        ([(b"ab", b"x" * 5), (b"cd", b"x" * 81)], b"1234567890", "/", 431),
        ([(b"ab", b"x" * 5), (b"cd", b"x" * 80)], b"12345678901", "/", 431),
        ([(b"ab", b"x" * 5), (b"cd", b"x" * 80)], b"1234567890", "/x", 431),
    ],
)
@pytest.mark.parametrize("place", ["", "/bridge/hooks"])
async def test_heads_are_bounded_to_the_byte_everywhere(
    guarded: Guarded, headers: Headers, query: bytes, path: str, status: int, place: str
) -> None:
    settings = {"waf_max_headers": 12, "waf_max_head_bytes": 100 + len(place), "waf_enabled": False}
    answer = await asked(guarded(**settings), place + path, headers=headers, query=query)
    assert answer.status == status
    if status == 431:
        assert json.loads(answer.body)["allowed"] == 100 + len(place)
    raw = (place + path).replace("/", "%2F").encode()
    more = await asked(guarded(**settings), place + path, headers=headers, query=query, raw_path=raw)
    assert more.status == (431 if len(headers) == 2 else status), "the address counts as it was written"


LARGEST_OF_A_TASK = 256 * 1024 * 1024


@pytest.mark.parametrize(
    ("headers", "pieces", "path", "status"),
    [
        ([(b"content-length", b"30")], [b"x" * 30], "/x", 200),
        ([(b"content-length", b"31")], [b""], "/x", 413),
        ([(b"content-length", b"31")], [b"x" * 31], HOOK, 200),
        ([(b"content-length", b"many")], [b"x" * 30], "/x", 200),
        ([(b"content-length", b"many")], [b"x" * 31], "/x", 413),
        ([(b"content-length", b"0")], [b""], "/x", 200),
        ([(b"transfer-encoding", b"chunked")], [b"x" * 15, b"x" * 15], "/x", 200),
        ([(b"transfer-encoding", b"chunked")], [b"x" * 15, b"x" * 16], "/x", 413),
        ([(b"content-length", str(LARGEST_OF_A_TASK).encode())], [b"x" * 50], "/execution/x", 200),
        ([(b"content-length", str(LARGEST_OF_A_TASK + 1).encode())], [b""], "/execution/x", 413),
        ([(b"content-type", b"application/json"), (b"content-length", b"6")], [b"[[[]]]"], "/x", 200),
        ([(b"content-type", b"application/json"), (b"content-length", b"8")], [b"[[[[]]]]"], "/x", 422),
        ([(b"content-type", b"Application/JSON"), (b"content-length", b"8")], [b"[[[[", b"]]]]"], "/x", 422),
        ([(b"content-type", b"text/plain"), (b"content-length", b"8")], [b"[[[[]]]]"], "/x", 200),
        ([(b"x-type", b"application/json"), (b"content-length", b"8")], [b"[[[[]]]]"], "/x", 200),
        ([(b"content-type", b"application/json"), (b"content-length", b"8")], [b"[[[[]]]]"], "/execution/x", 200),
    ],
)
async def test_bodies_are_bounded_to_the_byte_and_json_to_the_bracket(
    guarded: Guarded, headers: Headers, pieces: list[bytes], path: str, status: int
) -> None:
    app = guarded(waf_max_body_bytes=30, max_nesting_depth=3, waf_enabled=False)
    answer = await asked(app, path, headers=headers, pieces=pieces)
    assert answer.status == status
    if status == 413:
        allowed = LARGEST_OF_A_TASK if path.startswith("/execution") else 30
        assert json.loads(answer.body)["allowed"] == allowed
    if status == 200:
        assert answer.body == str(sum(map(len, pieces))).encode()


async def test_a_request_without_a_body_is_read_from_the_server_itself(guarded: Guarded) -> None:
    handed: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        handed.append(receive)

    for headers in ([], [(b"content-length", b"0")], [(b"content-length", b"1")]):
        await asked(guarded(app), headers=headers)
    assert [type(each).__name__ for each in handed] == ["function", "function", "BoundedBody"]


TOO_LARGE: Any = {"headers": [(b"transfer-encoding", b"chunked")], "pieces": [b"x" * 31]}


@pytest.mark.parametrize("begins", ["never", "after", "before"])
@pytest.mark.parametrize("fails", [False, True])
async def test_a_refused_body_is_the_answer_unless_the_application_has_begun_its_own(
    guarded: Guarded, begins: str, fails: bool
) -> None:
    start = {"type": "http.response.start", "status": 500, "headers": []}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if begins == "before":
            await send(start)
        try:
            await receive()
        except BridgeError:
            if begins == "after":
                await send(start)
            if fails:
                raise

    bounded = guarded(app, waf_max_body_bytes=30)
    if begins == "before" and fails:
        with pytest.raises(BridgeError):
            await asked(bounded, **TOO_LARGE)
    else:
        assert (await asked(bounded, **TOO_LARGE)).status == (500 if begins == "before" else 413)


@pytest.mark.parametrize("headers", [[], [(b"content-length", b"1")]])
async def test_an_applications_own_failure_goes_on_and_who_cannot_be_looked_up_is_told_to_come_again(
    guarded: Guarded, headers: Headers, caplog: pytest.LogCaptureFixture
) -> None:
    begun: list[bool] = [False]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if begun[0]:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        raise scope["fails"]

    with pytest.raises(ZeroDivisionError):
        await asked(guarded(app), headers=headers, fails=ZeroDivisionError())
    away = Unavailable("away", retry_after_s=3)
    answer = await asked(guarded(app), headers=headers, fails=away)
    assert (answer.status, answer.headers["retry-after"]) == (503, "3")
    begun[0] = True
    with pytest.raises(Unavailable):
        await asked(guarded(app), headers=headers, fails=away)
