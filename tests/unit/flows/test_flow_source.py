"""Reading YAML and JSON with positions, strictly and within bounds."""

from __future__ import annotations

import json
from typing import Any

import pytest
from flow_strategies import keys, values
from hypothesis import given, settings
from hypothesis import strategies as st

from continuitybridge.errors import ConfigurationError
from continuitybridge.flows.source import MAX_SOURCE_BYTES, Document, parse
from continuitybridge.flows.yaml_writer import compact, dump


def problem(text: str, file: str = "a.yaml") -> dict[str, Any]:
    """The one problem of a source that cannot be read at all."""
    with pytest.raises(ConfigurationError) as refused:
        parse(text, file)
    (found,) = refused.value.facts["problems"]
    assert found["file"] == file
    return dict(found)


def told(document: Document) -> list[tuple[int, int, str]]:
    return [(found.line, found.column, found.message) for found in document.problems]


@given(st.dictionaries(keys, values, min_size=1, max_size=3))
@settings(max_examples=100, deadline=None)
def test_what_is_written_as_yaml_reads_back_as_it_was(data: dict[str, Any]) -> None:
    for written in (data, {key: compact(value) for key, value in data.items()}):
        document = parse(dump(written), "a.yaml")
        assert document.data == data
        assert not document.problems


@given(values)
@settings(max_examples=100, deadline=None)
def test_json_reads_as_the_standard_library_reads_it(data: Any) -> None:
    for text in (json.dumps(data), json.dumps(data, indent="\t", ensure_ascii=False)):
        assert repr(parse(text, "a.json").data) == repr(data)


@given(
    st.text(max_size=60) | st.text("{}[]:,-&*!|>'\"#%@ \n\tab1.?~", max_size=60),
    st.sampled_from([".yaml", ".json"]),
)
@settings(max_examples=200, deadline=None)
def test_no_text_does_anything_but_read_or_be_refused_with_a_place(text: str, suffix: str) -> None:
    try:
        parse(text, f"a{suffix}")
    except ConfigurationError as refused:
        (found,) = refused.facts["problems"]
        assert found["line"] >= 1
        assert found["column"] >= 1


def test_only_true_and_false_are_booleans_and_dates_are_texts() -> None:
    text = "[yes, no, on, off, y, 2020-01-01, 1:30, 1_000, 010, 0o10, 0x1f, true, False, ~, null, 1e3, .5]"
    assert parse(f"a: {text}", "a.yaml").data["a"] == [
        *("yes", "no", "on", "off", "y", "2020-01-01", "1:30", "1_000"),
        *(10, 8, 31, True, False, None, None, 1000.0, 0.5),
    ]


def test_keys_are_texts_whatever_they_look_like() -> None:
    assert parse("true: a\n1: b\nnull: c\n", "a.yaml").data == {"true": "a", "1": "b", "null": "c"}


@pytest.mark.parametrize(
    ("text", "file"),
    [("a: 1\nb:\n  c: [x, {d: 2}]\n", "a.yaml"), ('{"a": 1,\n"b": {\n  "c": ["x", {"d": 2}]}}', "a.json")],
)
def test_every_key_and_item_has_a_line_and_a_column(text: str, file: str) -> None:
    positions = parse(text, file).positions
    lines = text.split("\n")
    for path in [("a",), ("b",), ("b", "c"), ("b", "c", 0), ("b", "c", 1, "d")]:
        line, column = positions[path]
        name = path[-1] if isinstance(path[-1], str) else "x"
        assert lines[line - 1][column - 1 :].lstrip('"').startswith(name)


@pytest.mark.parametrize("text", ["a: 1\nb: 2\na: 3\n", '{"a": 1,\n "b": 2,\n "a": 3}'])
def test_a_key_that_stands_twice_is_told_with_both_places_and_the_first_one_holds(text: str) -> None:
    document = parse(text, "flow")
    assert document.data == {"a": 1, "b": 2}
    ((line, _, message),) = told(document)
    assert line == 3
    assert "twice (first in line 1" in message


def test_aliases_work_and_are_counted_each_time_they_are_used() -> None:
    assert parse("a: &x {k: [1, 2]}\nb: *x\n", "a.yaml").data["b"] == {"k": [1, 2]}
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10)
    )
    assert "too many values" in problem(bomb)["message"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &x [*x]\n", "refers to nothing"),
        ("a: *gone\n", "refers to nothing"),
        ("[" * 200, "too deep"),
        ("- " * 200_000 + "a", "too deep"),
        ("a: b: c\n", "not YAML"),
        ("a: [1\nb: 2\n", "not YAML"),
        ("a: 1\n---\nb: 2\n", "second document"),
        ("", "empty"),
        ("# nothing\n", "empty"),
        ("a: \0\n", "control characters"),
        ("? [a]\n: b\n", "a key must be a text"),
    ],
)
def test_yaml_that_cannot_be_a_flow_is_refused(text: str, message: str) -> None:
    assert message in problem(text)["message"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        '{"a"}',
        '{"a": }',
        '{"a": 1,}',
        "{'a': 1}",
        '{"a": 01}',
        '{"a": NaN}',
        '{"a": 1} x',
        "nul",
        '{"a": "\t"}',
        '["a"',
    ],
)
def test_json_is_rfc_8259_and_nothing_more(text: str) -> None:
    assert "not JSON" in problem(text, "a.json")["message"]


def test_a_problem_of_the_source_has_its_place() -> None:
    found = problem("a:\n  b: [1\nc: 2\n")
    assert (found["line"], found["column"]) == (3, 2)
    found = problem('{"a": 1,\n  "b" 2}', "a.json")
    assert (found["line"], found["column"]) == (2, 7)


def test_a_source_beyond_the_size_limit_is_refused_unread() -> None:
    assert "bytes" in problem("a: " + "x" * MAX_SOURCE_BYTES)["message"]


@pytest.mark.parametrize(
    ("text", "file", "message"),
    [
        ("a: .inf", "a.yaml", "not finite"),
        ("a: .nan", "a.yaml", "not finite"),
        ("a: 1e999", "a.yaml", "not finite"),
        ("a: 18446744073709551616", "a.yaml", "64 bits"),
        ("a: " + "9" * 100_000, "a.yaml", "64 bits"),
        ('{"a": -9223372036854775809}', "a.json", "64 bits"),
        ('{"a": "\\ud800"}', "a.json", "surrogate"),
        ("a: !!python/object/apply:os.system [id]", "a.yaml", "tag"),
        ("a: !!int x", "a.yaml", "tag"),
        ("<<: {a: 1}", "a.yaml", "merge"),
    ],
)
def test_what_json_cannot_hold_is_told(text: str, file: str, message: str) -> None:
    ((line, _, told_message),) = told(parse(text, file))
    assert line == 1
    assert message in told_message


def test_tags_of_the_core_schema_are_understood() -> None:
    assert parse("a: [!!str 1, !!int '2', !!float 3, !!bool 'true', !!null '']", "a.yaml").data["a"] == [
        *("1", 2, 3.0, True, None)
    ]
