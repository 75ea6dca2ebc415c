"""What a superadmin allows beyond the public internet, as it is written in `BRIDGE_EGRESS_ALLOW`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_network

from continuitybridge.egress.addresses import METADATA, Address, Network, literal, plain

_NAME = re.compile(r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*")


@dataclass(frozen=True, slots=True)
class Rule:
    """A network, or a host by its name, at one port or at all of them (None)."""

    network: Network | None
    name: str
    port: int | None

    def allows(self, address: Address, name: str, port: int) -> bool:
        """Whether a call to `name` (as it was written, lower case) that leads to this plain address is meant."""
        if self.port is not None and self.port != port:
            return False
        if self.network is None:
            return name.rstrip(".") == self.name and address not in METADATA
        if address not in self.network:
            return False
        return address not in METADATA or self.network.num_addresses == 1

    def __str__(self) -> str:
        host = self.name if self.network is None else str(self.network)
        if self.port is None:
            return host
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"


def parse_rules(text: str) -> tuple[Rule, ...]:
    """The rules of a list separated by commas. Raises ValueError naming the one that cannot be read."""
    return tuple(_rule(each.strip()) for each in text.split(",") if each.strip())


def _rule(text: str) -> Rule:
    host, port = _apart(text)
    if port is not None and not 0 < port < 65536:
        raise ValueError(f"{text!r}: a port is a number from 1 to 65535")
    if "/" in host:
        try:
            return Rule(ip_network(host), "", port)
        except ValueError as error:
            raise ValueError(f"{text!r} is no network: {error}") from None
    if (address := literal(host)) is not None:
        return Rule(ip_network(plain(address)), "", port)
    name = host.lower().rstrip(".")
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{text!r} is no network, address or host: write 10.0.0.0/8, 127.0.0.1:8090, [fd00::1]:443 or "
            "erp.internal:8443"
        )
    return Rule(None, name, port)


def _apart(text: str) -> tuple[str, int | None]:
    """Host and port. The address of an IPv6 network has a port only in brackets."""
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        if not rest:
            return host, None
        rest = rest.removeprefix(":")
    elif text.count(":") == 1:
        host, _, rest = text.partition(":")
    else:
        return text, None
    if not (rest.isascii() and rest.isdigit()):
        raise ValueError(f"{text!r}: a port is a number from 1 to 65535")
    return host, int(rest[:6])
