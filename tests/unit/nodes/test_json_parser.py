"""`json_parser`: RFC 8259, to the letter, and nothing lost."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from node_runs import body_of, run

from continuitybridge.errors import InvalidPayload, LimitExceeded, NodeError

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(10**40), 10**40)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=4)
    ),
    max_leaves=20,
)


def parse(text: Any, **config: Any) -> Any:
    return body_of("json_parser", config, text)


@given(json_values, st.booleans(), st.sampled_from([None, 1, 4]))
def test_whatever_json_can_say_is_read_exactly(value: Any, ascii_only: bool, indent: int | None) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    parsed = parse(text.encode())
    assert parsed == value
    assert json.dumps(parsed) == json.dumps(value)  # 1 and 1.0 and true are told apart


@given(st.binary(max_size=60))
def test_any_bytes_give_a_value_or_a_typed_refusal(data: bytes) -> None:
    try:
        value = parse(data)
    except NodeError:
        return
    assert json.loads(data) == value


@given(st.text(st.sampled_from('{}[]:,"\\ue10.-+ntf a\x00\ud800'), max_size=40))
def test_any_text_of_json_characters_gives_a_value_or_a_typed_refusal(text: str) -> None:
    with contextlib.suppress(NodeError):
        parse(text)


@pytest.mark.parametrize(
    "text",
    [
        b"NaN",
        b"[Infinity]",
        b"[-Infinity]",
        b"[1,]",
        b'{"a":1,}',
        b"{'a':1}",
        b"{a:1}",
        b"[01]",
        b"[+1]",
        b"[.5]",
        b"[5.]",
        b"[1e400]",
        b'["\t"]',
        b'["\\x41"]',
        b'["\\ud800"]',
        b"// x\n1",
        b"[1] [2]",
        b"\x0c1",
        "\u00a01".encode(),
        b'"\xff"',
        b'"\xc0\x80"',
        b"",
        b" \r\n",
        b"[1",
        "[1]".encode("utf-16"),
        '{"a": 1}'.encode("utf-32"),
        b"[" + b"9" * 5000 + b"]",
    ],
)
def test_what_rfc_8259_does_not_have_is_refused(text: bytes) -> None:
    with pytest.raises(InvalidPayload):
        parse(text)


def test_a_refusal_says_where() -> None:
    with pytest.raises(InvalidPayload) as refused:
        parse(b'{\n  "a": 1,\n  "b": nope\n}')
    assert refused.value.facts["line"] == 3
    assert "line 3, column" in refused.value.detail


def test_utf_16_is_named_in_the_refusal() -> None:
    with pytest.raises(InvalidPayload, match="UTF-16"):
        parse("[1]".encode("utf-16"))


def test_a_byte_order_mark_is_skipped_or_refused() -> None:
    assert parse(b"\xef\xbb\xbf[1]") == [1]
    with pytest.raises(InvalidPayload):
        parse(b"\xef\xbb\xbf[1]", byte_order_mark="refuse")


@pytest.mark.parametrize(
    "text",
    [
        b'{"a":1,"a":2}',
        b'{"a": 1, "b": {"x": [], "a": 2, "a": 2}}',
        # The second spelling of a key, and colons that escapes hide from counting.
        b'{"a":1,"\\u0061":2}',
        b'{"a":1,"a":"\\u003a"}',
        b'{"a":1,"a":"\\u003A"}',
        b'{ "\\u003a":1, "\\u003a":":" }',
    ],
)
def test_a_key_that_occurs_twice_is_refused_however_it_is_spelt(text: bytes) -> None:
    with pytest.raises(InvalidPayload, match="occurs twice"):
        parse(text)


def test_the_first_or_the_last_of_duplicate_keys_is_kept_on_request() -> None:
    text = b'{"a": 1, "b": 2, "a": {"c": 3, "c": 4}}'
    assert parse(text, duplicate_keys="first") == {"a": 1, "b": 2}
    assert parse(text, duplicate_keys="last") == {"a": {"c": 4}, "b": 2}


@given(st.lists(st.tuples(st.text("ab:\\\u003a", max_size=2), st.integers() | st.text(":", max_size=2))))
def test_duplicates_are_found_exactly_when_there_are_some(pairs: list[tuple[str, Any]]) -> None:
    text = "{" + ", ".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in pairs) + "}"
    if len(dict(pairs)) == len(pairs):
        assert parse(text) == dict(pairs)
    else:
        with pytest.raises(InvalidPayload):
            parse(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b"18446744073709551616", 2**64),
        (b"-9223372036854775809", -(2**63) - 1),
        (b"[9999999999999999999]", [9999999999999999999]),
        (b'{"n": -9999999999999999999}', {"n": -9999999999999999999}),
        (b"1e2", 100.0),
        (b"-0", 0),
    ],
)
def test_integers_keep_every_digit(text: bytes, value: Any) -> None:
    parsed = parse(text)
    assert parsed == value
    assert type(parsed) is type(value)


def test_nesting_is_limited_by_the_setting() -> None:
    assert run("json_parser", {}, b"[" * 200 + b"]" * 200)
    for depth in (201, 1_500, 1_000_000):
        with pytest.raises(LimitExceeded) as refused:
            run("json_parser", {}, b"[" * depth + b"]" * depth)
        assert refused.value.facts["limit"] == "max_nesting_depth"


def test_many_brackets_side_by_side_are_not_deep() -> None:
    assert parse(b"[" + b"[{}]," * 5_000 + b"[]]")[0] == [{}]


def test_a_duplicate_key_is_found_below_what_the_fast_writer_can_write() -> None:
    depth = 400
    text = b"[" * depth + b'{"a":1,"a":2}' + b"]" * depth
    with pytest.raises(InvalidPayload, match="occurs twice"):
        run("json_parser", {}, text, max_nesting_depth=500)


def test_a_value_passes_unchanged_and_nothing_is_refused() -> None:
    assert parse({"a": 1}) == {"a": 1}
    assert parse([1]) == [1]
    for body in (None, 7, True):
        with pytest.raises(InvalidPayload):
            parse(body)
