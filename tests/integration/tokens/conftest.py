"""A server that gives tokens, and connections that need them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from continuitybridge import connections
from continuitybridge.organizations import Organization
from token_server import TokenServer


@pytest.fixture
def provider() -> Iterator[TokenServer]:
    server = TokenServer()
    yield server
    server.close()


@pytest.fixture
def connect(organization: Organization, provider: TokenServer) -> Callable[..., str]:
    """Makes the connection `erp` in dev; gives its name."""

    def make(grant: str = "client_credentials", **more: Any) -> str:
        connections.put(organization.organization_id, "dev", "erp", provider.oauth(grant, **more), "anna")
        return "erp"

    return make
