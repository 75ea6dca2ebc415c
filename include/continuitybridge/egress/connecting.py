"""Connections to where a policy lets them go."""

from __future__ import annotations

import asyncio
import socket
from ipaddress import IPv4Address, ip_address

from aiohappyeyeballs import AddrInfoType, start_connection

from continuitybridge.egress.addresses import Address, literal
from continuitybridge.egress.policy import Policy, refused

NEXT_ADDRESS_AFTER_S = 0.25
"""When a host has several addresses and one does not answer (RFC 8305)."""


async def open_socket(policy: Policy, host: str, port: int) -> socket.socket:
    """A connected socket to `host`, non-blocking. Raises `EgressRefused` when none of its addresses may be called,
    `OSError` when it has none or none answers. It goes to an address that was judged: nothing is resolved again.
    """
    infos = await judged(policy, host, port)
    return await start_connection(infos, happy_eyeballs_delay=NEXT_ADDRESS_AFTER_S)


async def judged(policy: Policy, host: str, port: int) -> list[AddrInfoType]:
    """The addresses of `host` that may be called, as `getaddrinfo` gives them. Raises as `open_socket` does."""
    address = literal(host)
    found: list[AddrInfoType]
    if address is not None:
        found = [_info(address, port)]
    else:
        found = [*await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    # A service of ours elsewhere may have to be resolved: not in the event loop.
    allowed = await asyncio.to_thread(_allowed, policy, host, port, found)
    if not allowed:
        raise refused(host, port)
    return allowed


def _allowed(policy: Policy, host: str, port: int, found: list[AddrInfoType]) -> list[AddrInfoType]:
    return [info for info in found if policy.permits(ip_address(info[4][0]), host, port)]


def _info(address: Address, port: int) -> AddrInfoType:
    if isinstance(address, IPv4Address):
        return socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (str(address), port)
    return socket.AF_INET6, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (str(address), port, 0, 0)
