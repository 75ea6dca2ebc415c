"""Flows bring the side files they name along, and no others."""

from __future__ import annotations

from pathlib import Path

import pytest

from continuitybridge.errors import ConfigurationError, NotFound
from continuitybridge.flows import lint
from continuitybridge.flows.convert import convert
from continuitybridge.flows.load import MAX_FILE_BYTES, LoadedFlow, load_flow

FLOW = """\
flow: orders
version: 1.0.0
triggers: [{{id: begin, type: manual_trigger}}]
steps:
  - id: check
    type: validation
    config: {{schema_file: {name}}}
"""
SCHEMA = '{"type": "object"}'


def at(folder: Path, name: str) -> LoadedFlow:
    flow = folder / "orders.flow.yaml"
    flow.write_text(FLOW.format(name=name))
    return load_flow(flow)


def test_a_file_that_a_step_names_is_read_from_beside_the_flow(tmp_path: Path) -> None:
    (tmp_path / "schemas").mkdir()
    (tmp_path / "schemas/order.json").write_text(SCHEMA)
    (tmp_path / "unused.json").write_text(SCHEMA)
    loaded = at(tmp_path, "schemas/order.json")
    assert loaded.flow.files == {"schemas/order.json": SCHEMA}
    assert lint.lint(loaded) == []


def test_files_that_a_side_file_names_come_along_too(tmp_path: Path) -> None:
    (tmp_path / "schemas").mkdir()
    (tmp_path / "schemas/order.json").write_text('{"properties": {"line": {"$ref": "line.json"}}}')
    (tmp_path / "schemas/line.json").write_text('{"properties": {"of": {"$ref": "order.json"}}}')
    loaded = at(tmp_path, "schemas/order.json")
    assert sorted(loaded.flow.files) == ["schemas/line.json", "schemas/order.json"]
    assert lint.lint(loaded) == []


def test_files_given_with_the_text_are_used_and_the_disk_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "order.json").write_text(SCHEMA)
    text = FLOW.format(name="order.json")
    assert load_flow(text, files={"order.json": "{}", "other.json": "{}"}).flow.files == {"order.json": "{}"}
    (problem,) = lint.lint(load_flow(text))
    assert "was not given with the flow" in problem.message


@pytest.mark.parametrize(
    "name", ["../secret.json", "/etc/passwd", "a/../../secret.json", "..\\secret.json", "link.json"]
)
def test_a_file_outside_the_flows_folder_is_never_read(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "flow"
    folder.mkdir()
    (tmp_path / "secret.json").write_text(SCHEMA)
    (folder / "link.json").symlink_to(tmp_path / "secret.json")
    loaded = at(folder, f"'{name}'")
    assert loaded.flow.files == {}
    (problem,) = lint.lint(loaded)
    assert "leads out of the flow's folder" in problem.message
    assert (problem.line, problem.field) == (7, "steps[0].config.schema_file")


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"\xff\xfe", "not UTF-8"), (b" " * (MAX_FILE_BYTES + 1), "too large"), (None, "No such file")],
)
def test_a_file_that_cannot_be_used_is_told_at_the_field_that_names_it(
    tmp_path: Path, content: bytes | None, said: str
) -> None:
    if content is not None:
        (tmp_path / "order.json").write_bytes(content)
    (problem,) = lint.lint(at(tmp_path, "order.json"))
    assert said in problem.message
    assert problem.field == "steps[0].config.schema_file"


def test_a_text_is_never_taken_for_a_path(tmp_path: Path) -> None:
    secret = tmp_path / "flow.yaml"
    secret.write_text("flow: secret\nversion: 1.0.0\n")
    assert load_flow(str(secret)).flow.name == ""


def test_a_flow_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="No such file"):
        load_flow(tmp_path / "gone.yaml")


def test_a_flow_that_is_not_utf_8_is_refused_with_the_line(tmp_path: Path) -> None:
    flow = tmp_path / "a.yaml"
    flow.write_bytes(b"flow: a\nversion: \xff\n")
    with pytest.raises(ConfigurationError) as refused:
        load_flow(flow)
    assert refused.value.facts["problems"][0]["line"] == 2


def test_side_files_keep_their_names_through_conversion(tmp_path: Path) -> None:
    (tmp_path / "order.json").write_text(SCHEMA)
    loaded = at(tmp_path, "order.json")
    again = load_flow(convert(loaded, "canvas"), files=loaded.flow.files)
    assert again.flow == loaded.flow
