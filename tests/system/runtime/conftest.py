"""A platform of the test session's own, brought up as a user would: `bridge demo`, with its state in a directory
and on ports of its own."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path

import pytest
from running_platform import Platform


@pytest.fixture(scope="session")
def demo(shared: ExitStack) -> tuple[Platform, str]:
    """The platform with the demo in it, and what the command that made both printed."""
    directory = Path(tempfile.mkdtemp(prefix="bridge-run-"))
    shared.callback(shutil.rmtree, directory, ignore_errors=True)
    made = Platform.at(directory / "state")
    shared.callback(made.bridge, "down", check=False)
    return made, made.bridge("demo").stdout


@pytest.fixture
def platform(demo: tuple[Platform, str]) -> Platform:
    """The running platform."""
    return demo[0]
