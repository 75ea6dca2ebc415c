"""Flows in mode stream, a destination, and what runs node processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from uuid import uuid4

import pytest
from stream_world import Destination, Flow, Working

from continuitybridge.engine.runner import Runner
from continuitybridge.organizations import Organization
from continuitybridge.settings import Settings
from continuitybridge.vault.keyring import Keyring


@pytest.fixture(scope="module")
def runner() -> Iterator[Runner]:
    with Runner(start="exec", idle_children=4) as runner:
        runner.warm()
        yield runner


@pytest.fixture
def destination() -> Iterator[Destination]:
    server = Destination()
    yield server
    server.stop()


@pytest.fixture
def make_flow(
    make_organization: Callable[[], Organization], keyring: Keyring, destination: Destination
) -> Callable[[], Flow]:
    """Flows of organizations of their own."""
    return lambda: Flow(make_organization(), keyring, f"flow-{uuid4().hex[:8]}", destination)


@pytest.fixture
def working(runner: Runner, settings: Settings) -> Callable[..., Working]:
    """Workers in this process: `working(stream_lanes=1)`."""
    return lambda **changes: Working(runner, settings.model_copy(update=changes))
