"""What a mail says, and what it looks like: the same words as HTML and as plain text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from email.errors import MessageError
from email.headerregistry import Address
from functools import lru_cache

import idna
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from continuitybridge.errors import ConfigurationError

MAX_ADDRESS_CHARACTERS = 254
"""RFC 5321, 4.5.3.1.3, without the angle brackets."""


@dataclass(frozen=True, slots=True)
class Letter:
    """A mail to one person. `kind` tells mails apart in lists and logs and names nobody. `button` is the one thing
    to do, as (label, address); its address stands in the plain text too. `closing` are small print."""

    kind: str
    to: str
    subject: str
    paragraphs: Sequence[str]
    button: tuple[str, str] | None = None
    closing: Sequence[str] = field(default_factory=tuple)


@dataclass(frozen=True, slots=True)
class Rendered:
    """A letter as it is sent."""

    to: str
    subject: str
    text: str
    html: str


def render(letter: Letter) -> Rendered:
    """Raises `ConfigurationError` for an address that none can be written to."""
    environment = _environment()
    content = {
        "subject": letter.subject,
        "paragraphs": letter.paragraphs,
        "button": letter.button,
        "closing": letter.closing,
    }
    return Rendered(
        checked_address(letter.to),
        letter.subject,
        environment.get_template("letter.txt").render(content),
        environment.get_template("letter.html").render(content),
    )


def checked_address(given: str) -> str:
    """An e-mail address as it is written to (RFC 5322 addr-spec), its domain as mail servers name it (IDNA).
    Raises `ConfigurationError`."""
    address = given.strip()
    try:
        name, _, domain = address.rpartition("@")
        if not domain.isascii():
            address = f"{name}@{idna.encode(domain, uts46=True).decode()}"
        parsed = Address(addr_spec=address)
    except (ValueError, IndexError, MessageError) as error:  # idna's are ValueErrors
        raise _no_address(given) from error
    if not parsed.username or not parsed.domain or len(address) > MAX_ADDRESS_CHARACTERS or not address.isascii():
        raise _no_address(given)
    return parsed.addr_spec


def _no_address(given: str) -> ConfigurationError:
    return ConfigurationError(
        "an e-mail address looks like name@example.com, the name in ASCII letters", field="email", value=given
    )


@lru_cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("continuitybridge.mail"),
        autoescape=select_autoescape(("html",)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
