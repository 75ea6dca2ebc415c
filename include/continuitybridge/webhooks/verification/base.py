"""What a way of verification is. One file per way declares all of it: settings, documentation, an example that
the tests run, what it reads of a request. The trigger's configuration, the reference page and intake read it
from there.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, Generic, Literal, Protocol, TypeVar

from continuitybridge.errors import ConfigurationError, NotAuthenticated
from continuitybridge.nodes.base import NodeConfig

Headers = Mapping[bytes, bytes]
"""A request's headers: lower-case names; values of a repeated header joined by `, ` (RFC 9110, 5.3)."""

TOLERANCE_S = 300
"""How far a timestamp may lie in the past or the future, in seconds."""
STRONG_SECRET_BYTES = 24
"""Secrets made here have at least so many random bytes; a shorter one of somebody else's is taken with a
warning."""
MAX_SECRET_CHARACTERS = 8192


class Received(Protocol):
    """A request as verification sees it. `url` is the whole address as its sender used it, query included;
    `proxied` says that it came by way of a trusted proxy, whose own headers can be believed."""

    @property
    def method(self) -> str: ...
    @property
    def url(self) -> str: ...
    @property
    def headers(self) -> Headers: ...
    @property
    def body(self) -> bytes: ...
    @property
    def proxied(self) -> bool: ...


@dataclass(frozen=True)
class Example:
    """A request that is believed, with these settings, this secret and at this time (seconds since the epoch). The
    tests run it: as it is, and altered in every part."""

    title: str
    headers: Mapping[bytes, bytes]
    body: bytes = b'{"order": "PO-1"}'
    secret: str = field(default="", repr=False)
    settings: Mapping[str, Any] = field(default_factory=dict)
    at: float = 1_790_000_000.0
    method: str = "POST"
    url: str = "https://bridge.example/bridge/hooks/aurora/prod/orders"
    proxied: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """What a challenge is answered with, by 200."""

    content_type: bytes
    body: bytes


class VerificationSettings(NodeConfig):
    """Base of every way's settings. Each has `type`, the way's name."""

    type: str

    def addresses(self) -> Iterable[tuple[str, str]]:
        """Field and URL of what the way calls, as `nodes.base` says."""
        return ()


SettingsT = TypeVar("SettingsT", bound=VerificationSettings)
_SettingsClass = type[VerificationSettings]


class Verifier(ABC, Generic[SettingsT]):
    """One way of verification with its settings, for one endpoint. Keeps nothing of a request; comparisons take
    the same time whatever differs."""

    name: ClassVar[str]
    label: ClassVar[str]
    summary: ClassVar[str]
    """One sentence. The class docstring is the long documentation (Markdown)."""
    Settings: ClassVar[_SettingsClass]
    examples: ClassVar[tuple[Example, ...]] = ()
    headers: tuple[str, ...] = ()
    """The headers that bear credentials (lower case), never stored with a message; settings may name others."""
    origin: Literal["made", "given", "none"] = "made"
    """Whether the endpoint's secret is made here, given by the provider, or not needed."""
    scheme: ClassVar[str] = "Signature"
    """What `WWW-Authenticate` says."""
    content_types: ClassVar[tuple[str, ...]] = ("application/json", "application/xml", "text/xml")
    """Media types that are taken unless the trigger says otherwise."""
    idempotency: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    """Where the provider puts the key that tells a repetition, in the words of the trigger's `idempotency`."""
    prepares: ClassVar[bool] = False
    """Whether `prepare` has to be awaited before `verify`."""
    asks: ClassVar[bool] = False
    """Whether somebody else is asked about each request, so that no example can be tried by itself."""

    settings: SettingsT

    def __init__(self, settings: SettingsT) -> None:
        self.settings = settings

    def takes_get(self) -> bool:
        """Whether it proves anything about a request without a body: who sent it, or method and query."""
        return False

    def generate(self) -> str:
        """A new random secret, as its owner is shown it."""
        raise ConfigurationError(
            f"{self.label} secrets come from the provider: give the one shown there", field="secret"
        )

    @abstractmethod
    def key(self, secret: str) -> Any:
        """What `verify` needs of a secret. Raises `ConfigurationError` (never quoting it) for an unfit one."""

    def weakness(self, secret: str) -> str | None:
        """What a warning should say of a secret that is taken all the same."""
        return weakness(len(secret.encode()))

    async def prepare(self, received: Received, keys: Sequence[Any]) -> None:
        """Fetch what `verify` needs beside the secrets. Raises `Unavailable`."""

    @abstractmethod
    def verify(self, received: Received, keys: Sequence[Any], now: float) -> None:
        """Return when the raw request was made with one of the keys (several are valid while a secret is
        rotated); raise `NotAuthenticated` otherwise, whatever the request's bytes are. `now` in seconds since the
        epoch."""

    def answer(self, received: Received) -> Answer | None:
        """The answer to a verified request that is a challenge and no message; None for a message."""
        return None

    def refused(self, detail: str) -> NotAuthenticated:
        return NotAuthenticated(detail, scheme=self.scheme)


def weakness(size_bytes: int) -> str | None:
    """The warning about a secret of so many bytes, if it needs one."""
    if size_bytes >= STRONG_SECRET_BYTES:
        return None
    return f"the secret has {size_bytes} bytes; one of at least {STRONG_SECRET_BYTES} random bytes is safe"


def text_key(secret: str, what: str) -> bytes:
    """A secret whose characters are the key. Raises `ConfigurationError`."""
    if not secret or len(secret) > MAX_SECRET_CHARACTERS or secret != secret.strip():
        raise ConfigurationError(
            f"{what} has 1 to {MAX_SECRET_CHARACTERS} characters, none of them blank at either end", field="secret"
        )
    try:
        return secret.encode()
    except UnicodeEncodeError:
        raise ConfigurationError(f"{what} is no text", field="secret") from None
