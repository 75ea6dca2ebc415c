"""Key management services for the tests of this directory: each is started once."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from key_services import Service, aws_service, gcp_service, transit_service

from continuitybridge.settings import get_settings
from continuitybridge.vault import kms

__all__ = ["aws_service", "gcp_service", "transit_service"]


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Sets variables, for this test."""

    def given(**values: str) -> None:
        for name, value in values.items():
            monkeypatch.setenv(name, value)
        get_settings.cache_clear()
        kms._services.clear()
        kms._resting.clear()

    yield given
    monkeypatch.undo()
    get_settings.cache_clear()
    kms._services.clear()
    kms._resting.clear()


@pytest.fixture(params=["aws_service", "gcp_service", "transit_service"])
def service(request: pytest.FixtureRequest, environment: Callable[..., None]) -> Service:
    """A service that this process may use, with a key of the test's own."""
    found: Service = request.getfixturevalue(request.param)
    environment(**found.environment)
    found.reference = found.new_key()
    return found
