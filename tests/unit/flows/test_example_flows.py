"""The flows of include/examples: each is valid, and runs over its samples."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from continuitybridge.cli import bridge

EXAMPLES = sorted((Path(__file__).parents[3] / "include/examples").glob("*/*.flow.yaml"))


@pytest.mark.parametrize("flow", EXAMPLES, ids=lambda path: path.parent.name)
def test_an_example_is_valid(flow: Path) -> None:
    result = CliRunner().invoke(bridge, ["flow", "lint", str(flow)])
    assert result.exit_code == 0, result.output


def test_an_order_is_split_by_warehouse_and_confirmed_in_one() -> None:
    [flow] = [path for path in EXAMPLES if path.parent.name == "order-by-warehouse"]
    samples = [str(flow.parent / "samples" / name) for name in ("order.json", "large-order.json")]
    result = CliRunner().invoke(bridge, ["flow", "run", str(flow), "--emulate", "--input", *samples])
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    confirmed = {line["body"]["number"]: line["body"]["warehouses"] for line in lines}
    assert {line["node"] for line in lines} == {"confirm"}
    assert [(part["warehouse"], part["lines"]) for part in confirmed["PO-2031"]] == [("zurich", 2), ("geneva", 1)]
    waiting = CliRunner().invoke(bridge, ["flow", "run", str(flow), "--input", samples[1]])
    [line] = [json.loads(line) for line in waiting.stdout.splitlines()]
    assert (line["kind"], line["node"], line["for"], line["within_s"]) == ("waiting", "approve", "person", 86400)
