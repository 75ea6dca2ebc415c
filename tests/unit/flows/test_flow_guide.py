"""Every example in the author's guide is a flow, and lint says what the guide says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from continuitybridge.cli import bridge
from continuitybridge.flows import lint
from continuitybridge.flows.convert import FORMATS, convert
from continuitybridge.flows.load import load_flow
from continuitybridge.flows.plan import compile_flow

GUIDE = Path(__file__).parents[3] / "docs/flow-language.md"
BLOCKS = re.findall(
    r"^```(\S+)(?: (\S+))?\n(.*?)^```$", GUIDE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
)
FLOWS = [text for kind, name, text in BLOCKS if kind == "yaml" and not name]
FILES = {name: text for kind, name, text in BLOCKS if kind == "json"}


def test_the_guide_has_examples() -> None:
    assert len(FLOWS) >= 6


@pytest.mark.parametrize("text", FLOWS, ids=lambda text: str(text).split("\n", 1)[0])
def test_an_example_has_no_problems_and_runs(text: str) -> None:
    loaded = load_flow(text, files=FILES)
    assert [str(problem) for problem in lint.lint(loaded)] == []
    compile_flow(loaded.flow)
    for target in FORMATS[:2]:
        assert load_flow(convert(loaded, target), files=FILES).flow == loaded.flow


def test_lint_says_of_the_wrong_example_what_the_guide_says() -> None:
    (wrong,) = [text for kind, name, text in BLOCKS if (kind, name) == ("yaml", "wrong")]
    (said,) = [text for kind, _, text in BLOCKS if kind == "text"]
    found = lint.lint(load_flow(wrong, name="wrong.flow.yaml"))
    lines = said.splitlines()
    assert len(found) == len(lines)
    for problem, line in zip(found, lines, strict=True):
        pattern = ".*".join(re.escape(part) for part in line.split("…"))
        assert re.fullmatch(pattern, str(problem)), str(problem)


def test_every_key_of_the_language_stands_in_the_guide() -> None:
    from continuitybridge.flows.native import FLOW_KEYS, NODE_KEYS

    text = GUIDE.read_text(encoding="utf-8")
    for key in (*FLOW_KEYS, *NODE_KEYS):
        assert re.search(rf"^\|.*`{key}`", text, re.MULTILINE), key


def test_what_fails_arrives_at_the_error_route_with_what_went_wrong(tmp_path: Path) -> None:
    (text,) = [text for text in FLOWS if "vars.error" in text]
    (tmp_path / "careful.flow.yaml").write_text(text)
    (tmp_path / "order.json").write_text("{no json}")
    arguments = ["flow", "run", str(tmp_path / "careful.flow.yaml"), "--input", str(tmp_path / "order.json")]
    result = CliRunner().invoke(bridge, [*arguments, "--emulate"], catch_exceptions=False)
    assert result.exit_code == 0
    message = json.loads(result.stdout)
    assert (message["node"], message["error"]["node_id"]) == ("note", "read")
    assert f"read: {message['error']['detail']}" in result.stderr
