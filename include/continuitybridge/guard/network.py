"""Where a request came from: the other end of the connection, or what a trusted proxy says of it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
MAX_HOPS = 16
_HOP_WITH_PORT = re.compile(r"(\d+\.\d+\.\d+\.\d+|\[[0-9A-Fa-f:.]+\]):\d{1,5}")
"""Some proxies (Azure's Application Gateway) tell the sender's port too."""
_MAPPED = IPv6Network("::ffff:0:0/96")


@lru_cache(maxsize=1024)
def networks(given: tuple[str, ...]) -> tuple[Network, ...]:
    """Addresses and networks as text; raises `ValueError` for what is none. Of IPv4 ones that are written as IPv6
    (`::ffff:203.0.113.0/120`) the IPv4 network counts, as of addresses."""
    return tuple(_plain(ip_network(each, strict=False)) for each in given)


def _plain(network: Network) -> Network:
    if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED):
        return IPv4Network((int(network.network_address) & 0xFFFFFFFF, network.prefixlen - 96))
    return network


def peer(scope: Any) -> Address | None:
    """The other end of the connection."""
    client = scope.get("client")
    return _address(client[0]) if client else None


def within(address: Address | None, allowed: Iterable[Network]) -> bool:
    return address is not None and any(address in network for network in allowed)


def sender(found: Address | None, headers: Mapping[bytes, bytes], trusted: Sequence[Network]) -> Address | None:
    """The address that a request came from: the connection's other end, and behind trusted proxies the last
    address in `X-Forwarded-For` that is none of theirs. None for what cannot be read: nobody."""
    if not trusted or not within(found, trusted):
        return found
    hops = headers.get(b"x-forwarded-for", b"").decode("latin-1").split(",")[-MAX_HOPS:]
    for hop in reversed(hops):
        if not hop.strip():
            return None
        with_port = _HOP_WITH_PORT.fullmatch(hop.strip())
        found = _address(with_port[1] if with_port else hop.strip())
        if not within(found, trusted):
            return found
    return found


def sender_of(scope: Any, trusted: Sequence[Network]) -> Address | None:
    """As `sender`, of a request: a proxy may add to the header, or write another one below it. A trusted proxy
    that says of nobody asks for itself."""
    found = peer(scope)
    if not trusted or not within(found, trusted):
        return found
    forwarded = [value for name, value in scope["headers"] if name == b"x-forwarded-for"]
    return sender(found, {b"x-forwarded-for": b", ".join(forwarded)}, trusted) if forwarded else found


@lru_cache(maxsize=4096)
def _address(text: str) -> Address | None:
    """An address; an IPv4 one that came as IPv6 (`::ffff:203.0.113.7`) is what it is."""
    try:
        found = ip_address(text.removeprefix("[").removesuffix("]"))
    except ValueError:
        return None
    return (found.ipv4_mapped or found) if isinstance(found, IPv6Address) else found


def read(text: str) -> Address | None:
    """An address as text; None for what is none."""
    return _address(text)


def account(address: Address) -> str:
    """On whose account an address goes: itself; of IPv6 its network of 64 bits, of which one sender has all."""
    if isinstance(address, IPv6Address):
        return str(ip_network((int(address) >> 64 << 64, 64)))
    return str(address)
