"""What a failure keeps for triage: enough to understand it, without secrets, of bounded size."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from typing import Any
from uuid import UUID

from continuitybridge.engine.message import Body, Failure, Message
from continuitybridge.flows.plan import Plan
from continuitybridge.inbox import payloads
from continuitybridge.nodes.hidden import without, without_any
from continuitybridge.vault.keyring import Cipher

SNAPSHOT_LIMIT_BYTES = 16 * 1024
"""How much of the failed node's input is kept. (The whole input, for replay, is kept elsewhere.)"""
TEXT_LIMIT = 4_000
MAX_DEPTH = 12
MAX_VALUES = 2_000
SCRUBBED = "[scrubbed]"

_SECRET_NAME = re.compile(
    r"(?:^| )(?:pass(?:phrase|code)?|pwd|token|authorization|auth|cookie|session|signature|(?:api|private|access"
    r"|signing) key|pin|cvv|cvc|iban|card number)s?(?: |$)|password|passwd|secret|credential|apikey"
)
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_NO_WORD = re.compile(r"[^0-9A-Za-z]+")

# The texts are anybody's: every repetition is bounded or possessive and begins where a word or a tag begins, so
# that no content makes a pattern slow.
_ELEMENT = re.compile(
    r"(?P<before><(?P<name>[\w.:-]{1,100}+)(?:\s[^<>]{0,1000}+)?>)(?:<!\[CDATA\[[^\]]{1,4000}+\]\]>|[^<]{1,4000}+)"
)
_ASSIGNED = re.compile(r"(?<![\w.-])(?P<name>[\w.-]{1,100}+)[\"']?\s{0,3}+[:=]\s{0,3}+(?P<quote>[\"']?)")
_QUOTED_VALUE = re.compile(r"[^\"'<>]{1,4000}+")
_BARE_VALUE = re.compile(r"(?:(?:bearer|basic)\s{1,3}+)?[^\s\"'&,;<>]{1,4000}+", re.IGNORECASE)
_WITHOUT_NAME = (
    re.compile(r"(?P<before>(?<!\w)\w{1,20}+://[^\s/:@]{1,256}+:)[^\s/@]{1,256}+(?P<after>@)"),
    re.compile(r"(?P<before>\b(?:bearer|basic)\s{1,3}+)[\w.~+/=-]{8,4000}+(?P<after>)", re.IGNORECASE),
)


def scrub(value: Any) -> Any:
    """JSON data without what is named like a secret, and without secrets in texts. Bounded: long texts are cut,
    and what is nested too deep or comes after too many values is left out, marked as such."""
    return _scrub(value, MAX_DEPTH, [MAX_VALUES])


def _scrub(value: Any, depth: int, room: list[int]) -> Any:
    room[0] -= 1
    if room[0] < 0:
        return "[more]"
    if isinstance(value, str | bytes):
        text = value[:TEXT_LIMIT]
        return scrub_text(text if isinstance(text, str) else text.decode(errors="replace"))
    if value is None or isinstance(value, bool | int | float):
        return value
    if not isinstance(value, Mapping | list | tuple):
        return scrub_text(str(value)[:TEXT_LIMIT])
    if depth == 0:
        return "[nested deeper]"
    kept = islice(value.items() if isinstance(value, Mapping) else enumerate(value), max(room[0], 0) + 1)
    if isinstance(value, Mapping):
        return {
            str(name)[:TEXT_LIMIT]: SCRUBBED if _is_secret(str(name)) else _scrub(item, depth - 1, room)
            for name, item in kept
        }
    return [_scrub(item, depth - 1, room) for _, item in kept]


def scrub_text(text: str) -> str:
    """Text without passwords, tokens and keys in the notations they usually have."""
    text = _ELEMENT.sub(lambda m: m["before"] + SCRUBBED if _is_secret(m["name"]) else m[0], text)
    text = _scrub_assigned(text)
    for pattern in _WITHOUT_NAME:
        text = pattern.sub(lambda m: f"{m['before']}{SCRUBBED}{m['after']}", text)
    return text


def _scrub_assigned(text: str) -> str:
    """password=…, "token": "…" and the like."""
    kept: list[str] = []
    done = 0
    for name in _ASSIGNED.finditer(text):
        if name.start() < done or not _is_secret(name["name"]):
            continue
        value = (_QUOTED_VALUE if name["quote"] else _BARE_VALUE).match(text, name.end())
        if value is not None:
            kept += text[done : name.end()], SCRUBBED
            done = value.end()
    return "".join(kept) + text[done:]


def encrypt_context(
    keys: Cipher,
    organization_id: UUID,
    failure_id: UUID,
    failure: Failure,
    *,
    snapshot: bool,
    flow_version: str,
    owner: str,
    plan: Plan | None,
) -> bytes:
    """A failure's context, encrypted: detail, facts and stack; with `snapshot` (when it is final) also the failed
    node's configuration and input, headers and vars, scrubbed and cut."""
    hide = failure.hidden
    context: dict[str, Any] = {
        "detail": scrub_text(failure.detail[:TEXT_LIMIT]),
        "facts": scrub(failure.facts),
        "owner": owner,
    }
    if failure.traceback:
        context["traceback"] = scrub_text(failure.traceback[-2 * TEXT_LIMIT :])
    if snapshot:
        node = plan.nodes.get(failure.node_id) if plan is not None else None
        message = failure.message or Message(failure.message_id, failure.body)
        context |= {
            "node": {
                "id": failure.node_id,
                "type": failure.node_type,
                "config": scrub(node.config) if node else None,
            },
            "input": _snapshot(message.body, hide),
            "headers": scrub(without_any(message.headers, hide, SCRUBBED)),
            "vars": scrub(without_any(message.vars, hide, SCRUBBED)),
            "versions": {"flow": flow_version, "plan": plan.digest if plan else None, **_software()},
        }
    text = json.dumps(context).encode()
    return keys.encrypt(organization_id, payloads.FAILURE, str(failure_id), text)


def decrypt_context(
    keys: Cipher, organization_id: UUID, failure_id: UUID, ciphertext: bytes | None
) -> dict[str, Any] | None:
    """What `encrypt_context` kept; None where nothing was captured."""
    if ciphertext is None:
        return None
    context: dict[str, Any] = json.loads(
        keys.decrypt(organization_id, payloads.FAILURE, str(failure_id), ciphertext)
    )
    return context


def _snapshot(body: Body, hide: tuple[str, ...]) -> dict[str, Any]:
    if body is None:
        return {"kind": "none"}
    if isinstance(body, bytes | str):
        whole = body if isinstance(body, bytes) else body.encode(errors="surrogatepass")
        # What begins before the cut and ends behind it is hidden as a whole.
        most = SNAPSHOT_LIMIT_BYTES + max(map(len, hide), default=0) * 4
        kind, text = "text", whole[:most].decode(errors="replace")
        if len(whole) <= SNAPSHOT_LIMIT_BYTES:
            try:
                text = json.dumps(scrub(without_any(json.loads(whole), hide, SCRUBBED)), ensure_ascii=False)
                kind = "json"
            except (ValueError, RecursionError):
                text = scrub_text(without(text, hide, SCRUBBED))
        else:
            text = scrub_text(without(text, hide, SCRUBBED)[:SNAPSHOT_LIMIT_BYTES])
        return {"kind": kind, "size_bytes": len(whole), "text": text, "cut": len(whole) > SNAPSHOT_LIMIT_BYTES}
    text = json.dumps(scrub(without_any(body, hide, SCRUBBED)), ensure_ascii=False)
    size = len(text.encode(errors="replace"))
    return {
        "kind": "json",
        "size_bytes": size,
        "text": text[:SNAPSHOT_LIMIT_BYTES],
        "cut": size > SNAPSHOT_LIMIT_BYTES,
    }


def _is_secret(name: str) -> bool:
    words = _NO_WORD.sub(" ", _CAMEL.sub(" ", name[:200])).strip().lower()
    return _SECRET_NAME.search(words) is not None


@cache
def _software() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("continuitybridge", "apache-airflow"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
