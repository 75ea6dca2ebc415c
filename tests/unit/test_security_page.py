"""docs/security.md: each risk has tests, and each of them is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text()
ROW = re.compile(r"^\| \*\*(API\d+)\*\* .*$", re.MULTILINE)
TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def functions(file: Path) -> set[str]:
    return {
        node.name
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def test_every_risk_of_the_list_has_a_row_with_tests() -> None:
    rows = {found[1]: found[0] for found in ROW.finditer(PAGE)}
    assert list(rows) == [f"API{n}" for n in range(1, 11)]
    assert all(len(TEST.findall(row)) >= 3 for row in rows.values())


def test_every_test_that_the_page_names_is_there() -> None:
    named = TEST.findall(PAGE)
    assert named
    for file, name in named:
        assert (ROOT / file).is_file(), file
        assert name in functions(ROOT / file), f"{file}::{name}"
