"""What intake looks at in a request beside its body's bytes: content type, charset, and which headers go with the
message."""

from __future__ import annotations

import codecs
import re
from collections.abc import Collection
from functools import lru_cache

from continuitybridge.errors import UnreadableContent, UnsupportedContent
from continuitybridge.webhooks.verification import VERIFIERS, Headers

MAX_HEADER_BYTES = 1024
"""Headers longer than this are not kept with the message."""
MAX_HEADERS = 48

_CHARSETS = re.compile(
    r"utf-(8|16|32)(-[lb]e)?|ascii|iso8859-\d+|cp125\d|koi8-[ru]|shift_jis|euc_(jp|kr)|gbk|gb2312|gb18030|big5"
)
"""Character sets that bodies may declare. Others that Python knows (punycode, idna) take quadratic time."""

_KEPT = re.compile(
    r"content-type|content-language|user-agent|date|traceparent|tracestate|idempotency-key|webhook-.+|ce-.+|x-.+"
)
_DROPPED = re.compile(
    r"authorization|cookie|signature|secret|token|password|passwd|credential|api-?key|hmac|^x-forwarded-|^x-real-ip"
)


def media_type(headers: Headers, valid: frozenset[str]) -> tuple[str, str | None]:
    """The declared media type and charset, both lower case. Raises `UnsupportedContent` when the type is not in
    `valid` (`type/subtype`, which takes its `+subtype` relatives too, `type/*`, `*/*`) or the body is encoded
    (`Content-Encoding`)."""
    kind, charset = _parsed(headers.get(b"content-type", b""))
    if not _takes(valid, kind):
        raise UnsupportedContent(
            f"content type {kind!r} is not taken here" if kind else "a Content-Type header is needed",
            valid=sorted(valid),
        )
    coding = headers.get(b"content-encoding", b"identity").strip().lower()
    if coding not in (b"", b"identity"):
        raise UnsupportedContent("the body must not be encoded (Content-Encoding)", valid=["identity"])
    return kind, charset


def _takes(valid: frozenset[str], kind: str) -> bool:
    if kind in valid:
        return True
    group, slash, name = kind.partition("/")
    if not (group and slash and name) or "*" in kind:
        return False
    suffix = name.rpartition("+")[2] if "+" in name else ""
    return f"{group}/*" in valid or "*/*" in valid or (bool(suffix) and f"{group}/{suffix}" in valid)


@lru_cache(maxsize=256)
def _parsed(value: bytes) -> tuple[str, str | None]:
    kind, *parameters = value.decode("latin-1").split(";")
    charset = None
    for parameter in parameters:
        name, _, given = parameter.partition("=")
        if name.strip().lower() == "charset":
            charset = given.strip().strip('"').lower()
    return kind.strip().lower()[:128], charset


def is_json(kind: str) -> bool:
    return kind == "application/json" or kind.endswith("+json")


def check_readable(body: bytes, kind: str, charset: str | None) -> None:
    """Raise `UnreadableContent` when the body cannot be what is declared: empty, an unknown charset, or bytes
    that the charset does not have (JSON is UTF-8: RFC 8259, 8.1). Whether it is well-formed, the flow says."""
    if not body:
        raise UnreadableContent("the body is empty")
    if charset is None:
        if not is_json(kind):
            return
        charset = "utf-8"
    try:
        body.decode(_codec(charset))
    except UnicodeDecodeError as error:
        raise UnreadableContent(f"byte {error.start} of the body is not {charset}") from None
    except UnicodeError:
        raise UnreadableContent(f"the body is not {charset}") from None


@lru_cache(maxsize=64)
def _codec(charset: str) -> str:
    try:
        name = codecs.lookup(charset).name
        if not _CHARSETS.fullmatch(name):
            raise LookupError
    except (LookupError, ValueError):
        # ValueError: a name with a null character.
        raise UnreadableContent(f"charset {charset[:40]!r} is not known") from None
    return name


def kept_headers(headers: Headers, hidden: Collection[bytes] = ()) -> dict[str, str]:
    """The headers that go with the message: an allow-list of names, minus everything that may be a credential,
    a signature or a person's address, and minus `hidden`, what the endpoint's verification reads."""
    kept: dict[str, str] = {}
    for name, value in headers.items():
        if (
            len(value) <= MAX_HEADER_BYTES
            and len(kept) < MAX_HEADERS
            and (text := _kept_name(name))
            and (name not in hidden or text in _HARMLESS)
        ):
            kept[text] = value.decode("latin-1")
    return kept


@lru_cache(maxsize=1024)
def _kept_name(name: bytes) -> str | None:
    text = name.decode("latin-1").lower()
    credential = any(text in way.headers and text not in _HARMLESS for way in VERIFIERS.values())
    fits = len(text) <= 64 and _KEPT.fullmatch(text) and not _DROPPED.search(text)
    return text if fits and not credential else None


_HARMLESS = ("webhook-id", "webhook-timestamp", "x-slack-request-timestamp")
