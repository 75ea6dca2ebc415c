"""Addresses of requests: what of a URL goes where in HTTP/1.1 (RFC 9110, 9112; URLs by RFC 3986)."""

from __future__ import annotations

import re
from contextlib import suppress
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import quote, urljoin

import idna

from continuitybridge.settings import egress_policy

PORTS = {"http": 80, "https": 443}

_ADDRESS = re.compile(r"(?P<origin>[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*)(?P<rest>.*)", re.DOTALL)
_AUTHORITY = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^:\[\]@]+)(?::(?P<port>[0-9]*))?")
_SAFE = "/?:@!$&'()*+,;=-._~[]"
_SENT_AS_IT_IS = re.compile(r"(?:[A-Za-z0-9/?:@!$&'()*+,;=\-._~\[\]]|%[0-9A-Fa-f]{2})*")
_ENCODED = re.compile(r"%(?![0-9A-Fa-f]{2})")


class Origin(NamedTuple):
    """Whom to connect to. `host` is in ASCII and lower case, without brackets."""

    scheme: str
    host: str
    port: int

    @property
    def authority(self) -> str:
        """As in the header Host: the port only where it is not the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if PORTS[self.scheme] == self.port else f"{host}:{self.port}"


class Address(NamedTuple):
    """`target` is path and query, percent-encoded."""

    origin: Origin
    target: str

    def __str__(self) -> str:
        return f"{self.origin.scheme}://{self.origin.authority}{self.target}"


def parse(url: str) -> Address:
    """Raises ValueError, whose text does not repeat the address, for one that cannot be called."""
    match = _ADDRESS.fullmatch(url)
    if match is None:
        raise ValueError("the address has no scheme and host")
    return Address(_origin(match["origin"]), _target(match["rest"]))


def check(url: str) -> None:
    """Raise `EgressRefused` for an address whose host shows that it may not be called. What `parse` cannot read
    passes: who builds the request says so better."""
    with suppress(ValueError):
        origin = parse(url).origin
        egress_policy().check(origin.host, origin.port)


def redirected(address: Address, location: str) -> Address | None:
    """Where `location` leads from `address`, if it stays at the same origin."""
    try:
        target = parse(urljoin(str(address), location))
    except ValueError:
        return None
    return target if target.origin == address.origin else None


@lru_cache(maxsize=1024)
def _origin(text: str) -> Origin:
    scheme, _, authority = text.partition("://")
    scheme = scheme.lower()
    if scheme not in PORTS:
        raise ValueError("an address begins with http:// or https://")
    if "@" in authority:
        raise ValueError("an address holds no user name or password; a connection does")
    match = _AUTHORITY.fullmatch(authority)
    if match is None:
        raise ValueError("the address has no host that can be called")
    port = int(match["port"] or PORTS[scheme])
    if not 0 < port < 65536:
        raise ValueError("the address's port is none")
    return Origin(scheme, _host(match["host"]), port)


def _host(text: str) -> str:
    if text.startswith("["):
        return text[1:-1].lower()
    host = text.lower()
    if not host.isascii():
        try:
            host = idna.encode(host, uts46=True).decode()
        except idna.IDNAError:
            raise ValueError("the address's host is no name") from None
    if not re.fullmatch(r"[a-z0-9._~-]+", host):
        raise ValueError("the address's host is no name")
    return host


def _target(rest: str) -> str:
    target = rest.partition("#")[0]
    if not target.startswith("/"):
        target = "/" + target
    if _SENT_AS_IT_IS.fullmatch(target):
        return target
    return quote(_ENCODED.sub("%25", target), safe=_SAFE + "%")
