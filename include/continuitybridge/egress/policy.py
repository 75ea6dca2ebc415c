"""What this process may call for a tenant."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from pydantic import BaseModel

from continuitybridge.egress.addresses import Address, is_public, literal, plain
from continuitybridge.egress.rules import Rule, parse_rules
from continuitybridge.errors import EgressRefused

_DESTINATIONS_OF_OURS = frozenset({"warehouse_port"})
"""Settings of ports at which something listens that flows are to call."""
_AIRFLOWS_OWN = (8974, 8793, 8794)
"""Ports of Airflow's that we do not set: the scheduler's health, and logs where they are served by default."""
_STORE_PORTS = {"redis": 6379, "rediss": 6379}
_POSTGRES_PORT = 5432


@dataclass(frozen=True)
class Policy:
    """Public addresses may be called, and what `allow` names.

    Never what the platform itself listens at: `ports` on this machine, and `services`, hosts and ports of its
    databases elsewhere. It says nothing of proxies: who sets `HTTPS_PROXY` has the proxy decide about names that
    cannot be resolved here.
    """

    allow: tuple[Rule, ...] = ()
    ports: frozenset[int] = frozenset()
    services: frozenset[tuple[str, int]] = frozenset()

    @classmethod
    def of(cls, allow: str, settings: BaseModel) -> Policy:
        """What is allowed, and what the settings say of the platform's own servers: every `…_port`, every
        `database_…url` and `redis_…url`. Raises ValueError naming the rule that cannot be read."""
        return _policy(allow, frozenset(_ports(settings)), frozenset(_services(settings)))

    def to_data(self) -> dict[str, Any]:
        """As JSON data, for handing it to another process."""
        return {
            "allow": ",".join(map(str, self.allow)),
            "ports": sorted(self.ports),
            "services": sorted(self.services),
        }

    @classmethod
    def from_data(cls, data: dict[str, Any]) -> Policy:
        """What `to_data` gave."""
        services = frozenset((str(host), int(port)) for host, port in data["services"])
        return _policy(data["allow"], frozenset(data["ports"]), services)

    def permits(self, address: Address, host: str, port: int) -> bool:
        """Whether a call to `host` may go to this address, which it is or has."""
        address = plain(address)
        if self._is_ours(address, port):
            return False
        return is_public(address) or any(rule.allows(address, host.lower(), port) for rule in self.allow)

    def check(self, host: str, port: int) -> None:
        """Raise `EgressRefused` for a host that is an address, or the name of this machine, and may not be called.
        Any other name is judged when it is connected to."""
        found = ip_address("127.0.0.1") if is_loopback_name(host) else literal(host)
        if found is not None and not self.permits(found, host, port):
            raise refused(host, port)

    def _is_ours(self, address: Address, port: int) -> bool:
        if port in self.ports and _is_this_machine(address):
            return True
        return any(address in _addresses_of(host) for host, at in self.services if at == port)


def refused(host: str, port: int) -> EgressRefused:
    """Why nothing is sent there. Which address a name has is not told: it may be one of an inner network."""
    return EgressRefused(
        f"{host}:{port} is not called: it is, or leads to, a private, local or reserved address or the platform "
        "itself; what is not the platform a superadmin can allow (BRIDGE_EGRESS_ALLOW)",
        host=host,
        port=port,
    )


def is_loopback_name(host: str) -> bool:
    """RFC 6761, 6.3."""
    name = host.lower().rstrip(".")
    return name == "localhost" or name.endswith(".localhost")


_installed: Policy | None = None


def install(policy: Policy) -> None:
    """This process follows `policy`: a node process has no settings of its own."""
    global _installed
    _installed = policy


def installed() -> Policy | None:
    """What this process was told to follow."""
    return _installed


@lru_cache(maxsize=16)
def _policy(allow: str, ports: frozenset[int], services: frozenset[tuple[str, int]]) -> Policy:
    return Policy(parse_rules(allow), ports, services)


def _ports(settings: BaseModel) -> Iterator[int]:
    for name in type(settings).model_fields:
        if name.endswith("_port") and name not in _DESTINATIONS_OF_OURS:
            port = getattr(settings, name)
            if port is not None:
                yield port
    yield from _AIRFLOWS_OWN


def _services(settings: BaseModel) -> Iterator[tuple[str, int]]:
    for name in type(settings).model_fields:
        if not (name.startswith(("database_", "redis_")) and name.endswith("_url")):
            continue
        secret = getattr(settings, name)
        if secret is not None:
            yield from _hosts(secret.get_secret_value())


def _hosts(url: str) -> Iterable[tuple[str, int]]:
    """Hosts and ports of a database's URL, which may name several (libpq, "Specifying Multiple Hosts")."""
    parts = urlsplit(url)
    for each in parts.netloc.rpartition("@")[2].split(","):
        with suppress(ValueError):
            one = urlsplit(f"//{each}")
            if one.hostname:
                yield one.hostname, one.port or _STORE_PORTS.get(parts.scheme, _POSTGRES_PORT)


def _is_this_machine(address: Address) -> bool:
    if address.is_loopback or address.is_unspecified:
        return True
    import psutil

    return any(
        address == found
        for each in psutil.net_if_addrs().values()
        for interface in each
        if interface.family in (socket.AF_INET, socket.AF_INET6)
        and (found := literal(interface.address.partition("%")[0])) is not None
    )


def _addresses_of(host: str) -> set[Address]:
    if (found := literal(host)) is not None:
        return {found}
    try:
        return {
            plain(ip_address(str(info[4][0]).partition("%")[0]))
            for info in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        }
    except OSError:
        return set()
