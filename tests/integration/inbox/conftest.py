"""Deployed flows for the inbox's tests."""

from __future__ import annotations

from collections.abc import Callable
from uuid import uuid4

import pytest
from inbox_world import Deployed

from continuitybridge.organizations import Organization
from continuitybridge.vault.keyring import Keyring


@pytest.fixture
def deployed(organization: Organization, keyring: Keyring) -> Deployed:
    """A flow of this test's own organization, deployed in prod."""
    return Deployed(organization, keyring, f"flow-{uuid4().hex[:8]}")


@pytest.fixture
def make_deployed(make_organization: Callable[[], Organization], keyring: Keyring) -> Callable[[], Deployed]:
    """Deployed flows of organizations of their own."""
    return lambda: Deployed(make_organization(), keyring, f"flow-{uuid4().hex[:8]}")
