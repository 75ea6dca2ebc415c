"""`csv_parser`: RFC 4180, and no silently shifted columns."""

from __future__ import annotations

import contextlib
import csv
import io
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from node_runs import body_of, run

from continuitybridge.errors import ConfigurationError, InvalidPayload, NodeError
from continuitybridge.nodes import registry
from continuitybridge.nodes.base import BuildContext

fields = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8) | st.sampled_from(
    ['"', ",", "\r\n", 'a"b', " x ", ""]
)
tables = st.integers(1, 4).flatmap(
    lambda width: st.lists(st.lists(fields, min_size=width, max_size=width), max_size=5)
)


def parse(text: Any, **config: Any) -> Any:
    return body_of("csv_parser", config, text)


@given(tables, st.sampled_from([",", ";", "\t", "|", "€"]), st.sampled_from(["\r\n", "\n", "\r"]))
def test_whatever_csv_can_say_is_read_exactly(rows: list[list[str]], delimiter: str, line_end: str) -> None:
    written = io.StringIO(newline="")
    csv.writer(written, delimiter=delimiter, lineterminator=line_end, quoting=csv.QUOTE_ALL).writerows(rows)
    names = [f"c{n}" for n in range(len(rows[0]) if rows else 1)]
    config = {"header": False, "columns": names, "delimiter": delimiter, "skip_empty_lines": False}
    parsed = parse(written.getvalue().encode(), **config)
    assert [list(row.values()) for row in parsed] == rows


@given(
    st.binary(max_size=60),
    st.sampled_from(["list", "messages"]),
    st.booleans(),
    st.sampled_from(["utf-8", "utf-16", "windows-1252"]),
)
def test_any_bytes_give_rows_or_a_typed_refusal(data: bytes, output: str, trim: bool, encoding: str) -> None:
    with contextlib.suppress(NodeError):
        run("csv_parser", {"output": output, "trim": trim, "encoding": encoding}, data)


@given(st.text('a",\r\n \0\ud800', max_size=40))
def test_any_text_gives_rows_or_a_typed_refusal(text: str) -> None:
    with contextlib.suppress(NodeError):
        parse(text, header=False, columns=["a", "b"], uneven_rows="fit", trim=True)


def test_fields_in_quotes_hold_line_breaks_delimiters_and_quotes() -> None:
    assert parse(b'a,b\r\n"x\r\ny,z","say ""hi"""\r\n') == [{"a": "x\r\ny,z", "b": 'say "hi"'}]


def test_a_quote_inside_an_unquoted_field_is_text() -> None:
    assert parse(b'item\n5" pipe\n') == [{"item": '5" pipe'}]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b'a,b\n"x"y,z\n', "line 2"),
        (b'a,b\n1,2\n"never closed,3\n', "line"),
        (b"a,b\n1,2\n1,2,3\n", "line 3: 3 fields where 2 columns are"),
        (b"a,b\n1\n", "line 2: 1 fields where 2"),
        (b"a,,c\n1,2,3\n", "column 2 has no name"),
        (b"a,b,a\n1,2,3\n", "'a' twice"),
        (b"a\n\xff\n", "UTF-8"),
    ],
)
def test_what_is_broken_is_refused_with_its_place(text: bytes, reason: str) -> None:
    with pytest.raises(InvalidPayload, match=reason):
        parse(text)


def test_uneven_rows_are_made_to_fit_on_request() -> None:
    assert parse(b"a,b\n1\n1,2,3\n", uneven_rows="fit") == [{"a": "1", "b": ""}, {"a": "1", "b": "2"}]


def test_columns_replace_the_header_or_stand_in_for_it() -> None:
    assert parse(b"x,y\n1,2\n", columns=["a", "b"]) == [{"a": "1", "b": "2"}]
    assert parse(b"1,2\n", columns=["a", "b"], header=False) == [{"a": "1", "b": "2"}]


def test_nothing_and_a_lone_header_are_no_rows() -> None:
    assert parse(b"") == []
    assert parse(b"a,b\r\n") == []
    assert run("csv_parser", {"output": "messages"}, b"a,b\r\n") == []


def test_empty_lines_are_passed_over_or_counted() -> None:
    assert parse(b"a\n\n1\n\n") == [{"a": "1"}]
    assert parse(b"a\n\n1\n", skip_empty_lines=False) == [{"a": ""}, {"a": "1"}]


def test_white_space_belongs_to_the_field_unless_trimmed() -> None:
    assert parse(b"a, b\n 1 ,2\n") == [{"a": " 1 ", " b": "2"}]
    assert parse(b'a, b\n 1 , "x,y"\n', trim=True, uneven_rows="fit") == [{"a": "1", "b": "x,y"}]


def test_a_space_may_separate_or_quote() -> None:
    assert parse(b"a b\n1 2\n", delimiter=" ", trim=True) == [{"a": "1", "b": "2"}]
    assert parse(b"a,b\n 1,2 ,3\n", quote=" ", trim=True) == [{"a": "1,2", "b": "3"}]


def test_character_sets_are_read() -> None:
    assert parse("\ufeffa\nä\n".encode()) == [{"a": "ä"}]
    assert parse("a\nä\n".encode("windows-1252"), encoding="windows-1252") == [{"a": "ä"}]
    assert parse("a\nä\n".encode("utf-16"), encoding="utf-16") == [{"a": "ä"}]


def test_one_message_per_row_on_request() -> None:
    assert run("csv_parser", {"output": "messages"}, b"a\n1\n2\n") == [("out", {"a": "1"}), ("out", {"a": "2"})]


def test_a_field_may_be_long() -> None:
    assert parse(b"a\n" + b"x" * 300_000) == [{"a": "x" * 300_000}]


@pytest.mark.parametrize(
    "config",
    [
        {"header": False},
        {"delimiter": ""},
        {"delimiter": "::"},
        {"delimiter": "\n"},
        {"delimiter": '"'},
        {"columns": []},
        {"columns": ["a", "a"]},
        {"encoding": "zlib"},
        {"encoding": "iso-8859-12"},
        {"encoding": "idna"},
    ],
)
def test_a_configuration_that_cannot_work_is_refused_when_built(config: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        registry.build("csv_parser", config, BuildContext())


def test_keys_of_older_flows_are_translated() -> None:
    translate = registry.get("csv_parser").from_legacy
    old = {"delimiter": ";", "hasHeader": True, "skipEmptyLines": False, "columns": "a, b,", "trim": False}
    assert translate(old) == {
        "delimiter": ";",
        "header": True,
        "skip_empty_lines": False,
        "columns": ["a", "b"],
        "trim": False,
        "uneven_rows": "fit",
    }
    assert translate({"hasHeader": True, "columns": ""}) == {
        "header": True,
        "columns": None,
        "trim": True,
        "uneven_rows": "fit",
    }
    assert translate({"header": True, "columns": ["a"]}) == {"header": True, "columns": ["a"]}
