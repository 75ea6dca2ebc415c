"""What the tests of one directory share, and no longer than they need it."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

_shared = ExitStack()


@pytest.fixture(scope="session")
def shared() -> ExitStack:
    """What enters here leaves after the directory's last test. A fixture of the session would stay for all that
    follow, and so would one of a package (the directories are none): a running platform takes a quarter of a core.
    """
    return _shared


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    if nextitem is None or nextitem.path.parent != item.path.parent:
        _shared.close()
