"""The tutorial and the newcomer's page do what they say: every command is run, every output compared."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from running_platform import ROOT, Platform

RETRY_S = 120.0
FENCE = re.compile(r"^```(sh|text)( retry)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Step:
    """What is typed, and what is expected (empty: anything); `…` stands for any text."""

    commands: str
    expected: str
    retry: bool

    def matches(self, printed: str) -> bool:
        lines = [re.escape(line).replace("…", ".*") for line in self.expected.splitlines()]
        # Columns are as wide as what stands in them.
        pattern = r"\n(?:.*\n)*?".join(re.sub(r"(?:\\ )+", r" *", line) for line in lines)
        return re.search(pattern, printed) is not None


def steps(text: str) -> Iterator[Step]:
    """The shell blocks of a document, each with the output that stands behind it."""
    blocks = FENCE.findall(text)
    for number, (kind, retry, content) in enumerate(blocks):
        if kind == "sh":
            following = blocks[number + 1] if number + 1 < len(blocks) else ("", "", "")
            yield Step(content, following[2] if following[0] == "text" else "", bool(retry))


class Shell:
    """One bash session, as a reader has it: what a command leaves is there for the next."""

    def __init__(self, environment: dict[str, str], directory: Path) -> None:
        self._process = subprocess.Popen(
            ["bash", "--norc", "--noprofile"],
            env=environment,
            cwd=directory,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def type(self, commands: str) -> str:
        """Run the commands; returns what they printed."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(f"{{\n{commands}\n}} </dev/null\necho; echo '--- end ---'\n")
        stdin.flush()
        printed = ""
        for line in stdout:
            if line == "--- end ---\n":
                return printed
            printed += line
        raise AssertionError(f"the shell ended:\n{printed}")

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


def test_the_tutorial_does_what_it_says(platform: Platform, tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("the tutorial sends with curl, which is not on this machine")
    text = (ROOT / "docs" / "tutorial.md").read_text()
    text = text.replace("http://127.0.0.1:8080", platform.url()).replace(
        "http://127.0.0.1:8090", platform.url("WAREHOUSE")
    )
    typed = list(steps(text))
    assert len(typed) > 12
    shell = Shell(platform.environment, tmp_path)
    try:
        for step in typed:
            deadline = time.monotonic() + (RETRY_S if step.retry else 0)
            printed = shell.type(step.commands)
            while not step.matches(printed) and time.monotonic() < deadline:
                time.sleep(1)
                printed = shell.type(step.commands)
            assert step.matches(printed), f"{step.commands}\nprinted\n{printed}\nexpected\n{step.expected}"
    finally:
        shell.close()


@pytest.mark.parametrize(
    "document", ["README.md", *(f"docs/{p.name}" for p in sorted((ROOT / "docs").glob("*.md")))]
)
def test_every_link_of_a_page_leads_to_something_in_the_checkout(document: str) -> None:
    page = ROOT / document
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
    missing = [link for link in links if not (page.parent / link).exists()]
    assert missing == []


def test_every_target_that_the_pages_name_is_one_of_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        named = set(re.findall(r"`make ([a-z-]+)", page.read_text()))
        assert named <= targets, page
