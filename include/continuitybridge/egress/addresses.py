"""IP addresses: how they may be written, and which of them lead to the public internet.

The registries are IANA's for special-purpose addresses (RFC 6890). `ipaddress` knows most of them, each version of
Python some more; what is missing somewhere stands here.
"""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

METADATA: frozenset[Address] = frozenset(
    map(
        ip_address,
        # AWS, Azure, Google and most others; AWS by IPv6; Alibaba; Oracle; Azure's wire server.
        ("169.254.169.254", "fd00:ec2::254", "100.100.100.200", "192.0.0.192", "168.63.129.16"),
    )
)
"""Where clouds tell a machine its credentials. A network that is allowed does not include them."""

_NAT64 = IPv6Network("64:ff9b::/96")
"""RFC 6052: an IPv4 address as hosts without IPv4 see it."""
_NOT_PUBLIC: tuple[Network, ...] = tuple(
    map(
        ip_network,
        (
            "192.0.0.0/24",  # IETF protocol assignments
            "192.88.99.0/24",  # 6to4 relays, withdrawn (RFC 7526)
            "168.63.129.16/32",
            "::/96",  # IPv4-compatible, withdrawn (RFC 4291)
            "64:ff9b:1::/48",  # NAT64 of the local network (RFC 8215)
            "2001::/23",  # IETF protocol assignments, Teredo
            "2002::/16",  # 6to4: leads to whatever IPv4 address it holds
            "3fff::/20",  # documentation (RFC 9637)
            "5f00::/16",  # segment routing (RFC 9602)
            "fec0::/10",  # site-local, withdrawn (RFC 3879)
        ),
    )
)


def literal(host: str) -> Address | None:
    """The address that a host is, however that is written; None for a name.

    Beside the usual forms those that C libraries take for IPv4 addresses: `127.1`, `0x7f.0.0.1`, `2130706433`
    (inet_aton(3)), with or without a dot at the end.
    """
    text = host.strip("[]").rstrip(".")
    try:
        return ip_address(text)
    except ValueError:
        pass
    if not _ends_in_a_number(text):
        return None
    try:
        return IPv4Address(socket.inet_aton(text))
    except (OSError, ValueError):
        return None


def plain(address: Address) -> Address:
    """An address as what it leads to: IPv4 behind IPv6 (IPv4-mapped, NAT64) is IPv4; without its zone."""
    if isinstance(address, IPv4Address):
        return address
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return IPv6Address(int(address))


def is_public(address: Address) -> bool:
    """Whether a plain address belongs to the public internet, for one receiver."""
    return (
        address.is_global
        and not address.is_multicast
        and not address.is_reserved
        and not any(address in network for network in _NOT_PUBLIC)
    )


def _ends_in_a_number(host: str) -> bool:
    """As the URL standard tells addresses from names (WHATWG URL, "ends in a number")."""
    last = host.rpartition(".")[2]
    if last.isascii() and last.isdigit():
        return True
    try:
        return last[:2].lower() == "0x" and (len(last) == 2 or int(last, 16) >= 0)
    except ValueError:
        return False
