"""A platform of the test session's own, brought up as a user would: `bridge demo`, with its state in a directory
and on ports of its own."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from running_platform import Platform


@pytest.fixture(scope="session")
def demo() -> Iterator[tuple[Platform, str]]:
    """The platform with the demo in it, and what the command that made both printed."""
    directory = Path(tempfile.mkdtemp(prefix="bridge-run-"))
    made = Platform.at(directory / "state")
    try:
        yield made, made.bridge("demo").stdout
    finally:
        made.bridge("down", check=False)
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def platform(demo: tuple[Platform, str]) -> Platform:
    """The running platform."""
    return demo[0]
