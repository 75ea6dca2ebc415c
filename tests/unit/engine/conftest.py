from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from engine_destination import Destination

from continuitybridge.engine import runner


@pytest.fixture(params=["fork", "exec"])
def fresh(request: pytest.FixtureRequest) -> Iterator[runner.Runner]:
    """A runner of the test's own, with either kind of nursery."""
    with runner.Runner(start=request.param) as own:
        yield own


@pytest.fixture(params=["child", "inline"])
def way(request: pytest.FixtureRequest) -> object:
    """Both ways to run a plan: in a process of its own, and in this one."""
    return runner.run if request.param == "child" else runner.run_inline


@pytest.fixture
def destination() -> Iterator[Destination]:
    there = Destination()
    thread = threading.Thread(target=there.server.serve_forever)
    thread.start()
    yield there
    there.open.set()
    there.server.shutdown()
    thread.join()
    there.server.server_close()
