"""What holds for all tests."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes says more about the machine than about the code.
settings.register_profile("bridge", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("bridge")

# Airflow reads its configuration once, when the first test of a session imports it: so it is the same for all,
# whichever that is, and stands here before any of them.
AIRFLOW_HOME = tempfile.mkdtemp(prefix="bridge-airflow-home-")
os.environ["AIRFLOW_HOME"] = AIRFLOW_HOME
os.environ["AIRFLOW__CORE__LOAD_EXAMPLES"] = "False"
os.environ["AIRFLOW__CORE__PLUGINS_FOLDER"] = str(Path(__file__).resolve().parents[1] / "plugins")


# What the tests call listens on this machine.
os.environ["BRIDGE_EGRESS_ALLOW"] = "127.0.0.0/8"

TESTS = Path(__file__).resolve().parent
TOGETHER = ("system/airflow", "system/runtime")
"""Directories whose tests share a running platform: one process runs them all."""


def _group(nodeid: str) -> str:
    """What one process runs as a whole."""
    place = nodeid.partition("::")[0].removeprefix("tests/")
    return next((each for each in TOGETHER if place.startswith(each)), place)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest comes first. What kills processes and waits for servers on a busy machine may try once
    more; the summary names each test that did (RERUN), and one that fails twice has failed."""
    items.sort(key=lambda item: not item.path.is_relative_to(TESTS / "system"))
    for item in items:
        if not item.path.is_relative_to(TESTS / "unit"):
            item.add_marker(pytest.mark.flaky(reruns=1))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Several processes share the tests by file or running platform."""
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _group(nodeid)

    return ByGroup(config, log)


def pytest_unconfigure() -> None:
    """Airflow's home was the session's."""
    shutil.rmtree(AIRFLOW_HOME, ignore_errors=True)
