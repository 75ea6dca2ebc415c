"""The node `jq`."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
from built_nodes import Built, is_json_data, problem
from data_strategies import BODIES, JSON_DATA
from hypothesis import given
from hypothesis import strategies as st

from continuitybridge.engine.message import Message
from continuitybridge.errors import InvalidPayload, LimitExceeded, NodeError, TransformFailed
from continuitybridge.nodes import registry


@given(JSON_DATA)
def test_the_identity_program_changes_no_value(body: object) -> None:
    assert Built("jq", {"program": "."}).one(body) == body


@pytest.mark.parametrize(
    "number",
    ["100000000000000000000000001", "9007199254740993", "-9223372036854775809", "1.1", "1e-7", "0.1", "12.0"],
)
def test_a_number_that_is_not_computed_with_keeps_its_value(number: str) -> None:
    value = json.loads(number)
    found = Built("jq", {"program": "{n: .list[0]}"}).one({"list": [value]})["n"]
    assert found == value
    assert type(found) is type(value)


def test_arithmetic_is_that_of_doubles() -> None:
    assert Built("jq", {"program": ".a + .b"}).one({"a": 0.1, "b": 0.2}) == 0.1 + 0.2
    assert Built("jq", {"program": "1e300 * 1e300"}).one(None) == 1.7976931348623157e308


def test_several_outputs_become_several_messages_and_none_drops_it() -> None:
    node = Built("jq", {"program": ".[]"})
    assert node.emits([1, 2, 3]) == [("out", 1), ("out", 2), ("out", 3)]
    assert node.emits([None]) == [("out", None)]
    assert node.emits([]) == []


def test_all_outputs_can_be_one_list() -> None:
    node = Built("jq", {"program": ".[]", "outputs": "array"})
    assert node.one([1, 2]) == [1, 2]
    assert node.one([]) == []


def test_a_list_of_outputs_is_bounded_like_messages_are() -> None:
    node = Built("jq", {"program": "range(1e18)", "outputs": "array"})
    assert isinstance(node.fails(None), LimitExceeded)


def test_messages_are_made_one_by_one_so_that_an_endless_program_does_not_fill_memory() -> None:
    node = Built("jq", {"program": "range(1e18)"})
    emitted = iter(node.node.process(Message("m-1", None), node.context))  # type: ignore[arg-type]
    assert [next(emitted).body for _ in range(3)] == [0, 1, 2]


def test_headers_vars_and_the_message_id_are_bound() -> None:
    program = '{h: $headers["x-a"], v: $vars.step.status, m: $message.id, g: $message.generation, b: .}'
    found = Built("jq", {"program": program}).one(5, headers={"x-a": "1"}, variables={"step": {"status": 202}})
    assert found == {"h": "1", "v": 202, "m": "m-1", "g": 1, "b": 5}


def test_what_jq_says_is_in_the_error() -> None:
    error = Built("jq", {"program": ".a.b"}).fails({"a": 5})
    assert isinstance(error, TransformFailed)
    assert error.detail == 'jq: Cannot index number with string ("b")'
    assert Built("jq", {"program": 'error("no country")'}).fails({}).detail == "jq: no country"
    assert Built("jq", {"program": "error({code: 5})"}).fails({}).detail == 'jq: {"code": 5}'


def test_after_a_failure_the_next_message_is_processed_as_ever() -> None:
    node = Built("jq", {"program": ".a.b, .c"})
    for _ in range(3):
        assert node.fails({"a": 5, "c": 1})
        assert node.emits({"a": {"b": 1}, "c": 2}) == [("out", 1), ("out", 2)]


def test_bytes_are_refused_with_what_belongs_before() -> None:
    error = Built("jq", {"program": "."}).fails(b'{"a": 1}')
    assert isinstance(error, InvalidPayload)
    assert "json_parser" in error.detail


@pytest.mark.parametrize(
    ("program", "where"),
    [
        (".a | [", "line 1, column 6"),
        (".a\n| foo(1)", "foo/1 is not defined, line 2, column 3"),
        ("$nothing", "$nothing is not defined, line 1, column 1"),
        ("$vars.a | bar", "bar/0 is not defined, line 1, column 11"),
        (". |", "unexpected end of file"),
        (".) | (.", "syntax error"),
        ("def f: 1;", "unexpected end of file"),
        (".a\0 | nonsense", "NUL"),
        ("." + " " * 70_000, "at most 65536 characters"),
    ],
)
def test_a_wrong_program_is_found_when_the_flow_is_checked(program: str, where: str) -> None:
    found = problem("jq", {"program": program})
    assert found.startswith("program: jq: ")
    assert where in found


@pytest.mark.parametrize(
    "program",
    [
        "env",
        "env.PATH",
        '"\\(env)"',
        "def f: def g: env; g; f",
        "[.[] | env] | length",
        "input",
        "try input catch .",
        "input_line_number",
        '"x" | modulemeta',
        "halt",
        "halt_error",
        "1, halt_error(1)",
    ],
)
def test_what_reaches_beyond_the_message_is_refused_by_name(program: str) -> None:
    assert "is not available here" in problem("jq", {"program": program})


@pytest.mark.parametrize(
    "program",
    ["{env: .env}", ".env", "{env}", "{$message} | .message.id", "def env: 5; env", '"env"', ".halt # env"],
)
def test_fields_that_are_called_like_builtins_are_just_fields(program: str) -> None:
    Built("jq", {"program": program}).emits({"env": 1})


@pytest.mark.parametrize(
    "program",
    [
        "$ENV",
        "$ENV.SECRET_OF_THE_SERVER",
        '"\\($ENV)"',
        "def f: $ENV; f",
        "{$ENV}",
        ". as [$a] ?// $b | $ENV",
        "[.[]? as $x | $ENV] + [$ENV]",
        "reduce 1 as $x (0; $ENV)",
        "{} as $x | $ENV | tostring",
    ],
)
def test_the_environment_of_the_server_is_out_of_reach(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_THE_SERVER", "do-not-tell")
    assert "do-not-tell" not in json.dumps(Built("jq", {"program": program}).emits([1]))


def test_modules_and_files_of_the_server_are_out_of_reach(tmp_path: Path) -> None:
    (tmp_path / "secret.json").write_text('{"password": "do-not-tell"}')
    (tmp_path / "module.jq").write_text("def told: 5;")
    for program in (
        f'import "secret" as $s {{search: "{tmp_path}"}}; $s',
        f'include "module" {{search: "{tmp_path}"}}; told',
        f'import "module" as m {{search: "{tmp_path}"}}; m::told',
        f'module {{search: "{tmp_path}"}}; import "secret" as $s; $s',
    ):
        assert "syntax error" in problem("jq", {"program": program})


@given(st.sampled_from([".", ".a", ".[]?", ".. | numbers", "keys?", "tojson", "[.] | flatten", ".a.b.c"]), BODIES)
def test_whatever_a_message_holds_the_outcome_is_data_or_a_typed_failure(program: str, body: object) -> None:
    try:
        emitted = Built("jq", {"program": program}).emits(body)
    except NodeError:
        return
    assert all(is_json_data(found) for _, found in emitted)


def test_deep_data_is_processed_or_refused_but_never_ends_the_process() -> None:
    for depth in (200, 900, 5_000):
        body: object = []
        for _ in range(depth):
            body = [body]
        with contextlib.suppress(NodeError):
            Built("jq", {"program": "[.]"}).emits(body)
    built_deep = Built("jq", {"program": "reduce range(100000) as $i (0; [.])"})
    assert isinstance(built_deep.fails(None), TransformFailed)


@pytest.mark.parametrize("key", ["expression", "filter", "query"])
def test_older_keys_for_the_program_are_read(key: str) -> None:
    assert registry.get("jq").from_legacy({key: ".a"}) == {"program": ".a"}
    assert registry.get("jq").from_legacy({"program": ".a"}) == {"program": ".a"}
