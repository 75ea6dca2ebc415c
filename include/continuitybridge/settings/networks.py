"""Networks, as settings say them."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_network


def networks(given: str) -> tuple[IPv4Network | IPv6Network, ...]:
    """Of a text with commas between them; raises `ValueError`."""
    return tuple(ip_network(each.strip(), strict=False) for each in given.split(",") if each.strip())
