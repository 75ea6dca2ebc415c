"""The addresses of webhooks: which endpoint one names, and how its sender knows it."""

from __future__ import annotations

from continuitybridge.request_paths import path_of
from continuitybridge.settings import Settings
from continuitybridge.webhooks import network
from continuitybridge.webhooks.request import Scope

PREFIX = "/bridge/hooks/"
LEGACY_PREFIX = "/api/webhook/"
"""The old address, which knows neither organization nor environment: the settings name them."""


class Addresses:
    """What a request's meaning depends on beside itself (`request.Surroundings`)."""

    def __init__(self, settings: Settings) -> None:
        self.proxies = settings.trusted_networks
        self._public_url = settings.external_url
        self._legacy: str | None = None
        if settings.legacy_organization:
            self._legacy = f"{settings.legacy_organization}/{settings.legacy_environment}/"

    def place(self, scope: Scope) -> str | None:
        """`organization/environment/slug` of the address; None for an old address that belongs to nobody."""
        path = path_of(scope)
        if path.startswith(PREFIX):
            return path[len(PREFIX) :]
        if path.startswith(LEGACY_PREFIX) and self._legacy is not None:
            return self._legacy + path[len(LEGACY_PREFIX) :]
        return None

    def url(self, scope: Scope) -> str:
        """The address that a request was sent to, as its sender knows it."""
        raw: str = scope.get("raw_path", b"").decode("latin-1") or scope["path"]
        query = scope["query_string"].decode("latin-1")
        return f"{self._public_url}{path_of(scope, raw)}{'?' + query if query else ''}"

    def is_proxy(self, address: network.Address | None) -> bool:
        """Whether the headers that come from there are a trusted proxy's."""
        return network.within(address, self.proxies)
