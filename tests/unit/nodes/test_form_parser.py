"""`form_parser`: every form that can be written is read exactly."""

from __future__ import annotations

import contextlib
from typing import Any
from urllib.parse import urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st
from node_runs import body_of

from continuitybridge.errors import InvalidPayload, LimitExceeded

texts = st.text(st.characters(codec="utf-8"), max_size=6) | st.sampled_from(["", "+", "&=", "%41", " "])


def parse(form: Any, **config: Any) -> Any:
    return body_of("form_parser", config, form)


@given(st.lists(st.tuples(texts, texts), max_size=6))
def test_whatever_a_form_can_say_is_read_exactly(fields: list[tuple[str, str]]) -> None:
    expected: dict[str, Any] = {}
    for name, value in fields:
        expected.setdefault(name, []).append(value)
    written = urlencode(fields).encode()
    assert parse(written, lists=list(expected)) == expected
    assert parse(written) == {name: v[0] if len(v) == 1 else v for name, v in expected.items()}


@given(st.binary(max_size=40))
def test_any_bytes_are_read_or_refused(form: bytes) -> None:
    with contextlib.suppress(InvalidPayload):
        assert isinstance(parse(form), dict)


def test_fields_without_a_value_are_empty_and_nothing_is_no_field() -> None:
    assert parse(b"a&b=&&c=1&") == {"a": "", "b": "", "c": "1"}
    assert parse(b"") == {}


def test_too_many_fields_and_json_that_is_none_or_too_deep_are_refused() -> None:
    with pytest.raises(LimitExceeded):
        parse(b"&" * 10_000)
    with pytest.raises(InvalidPayload, match="payload"):
        parse(b"payload=%7B", json_fields=["payload"])
    with pytest.raises(LimitExceeded):
        parse(b"p=" + b"[" * 300 + b"]" * 300, json_fields=["p"])
