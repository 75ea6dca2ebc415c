"""What a failure keeps for triage: enough to understand it, without secrets, of bounded size."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any
from uuid import UUID

from continuitybridge.engine.message import Body, Failure, Message
from continuitybridge.flows.plan import Plan
from continuitybridge.inbox import payloads
from continuitybridge.vault.keyring import Cipher

SNAPSHOT_LIMIT_BYTES = 16 * 1024
"""How much of the failed node's input is kept. (The whole input, for replay, is kept elsewhere.)"""
TEXT_LIMIT = 4_000
SCRUBBED = "[scrubbed]"

_SECRET_NAME = re.compile(
    r"(?:^| )(?:pass(?:word|wd|phrase|code)?|pwd|secret|token|credential|authorization|auth|cookie|session"
    r"|signature|apikey|(?:api|private|access|signing) key|pin|cvv|cvc|iban|card number)s?(?: |$)"
)
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_SECRET_TEXT = (
    # <password>…</password>, with or without a namespace prefix and attributes
    re.compile(
        r"(?P<before><(?P<tag>(?:[\w.-]+:)?[\w.-]*(?:password|passwd|secret|token|credential|apikey|api_key)[\w.-]*)"
        r"(?:\s[^<>]*)?>)[^<]*(?P<after></(?P=tag)>)",
        re.IGNORECASE,
    ),
    # password=…, "token": "…"
    re.compile(
        r"(?P<before>[\"']?[\w.-]*(?:password|passwd|secret|token|credential|api_?key|authorization)[\w.-]*[\"']?"
        r"\s*[:=]\s*[\"']?)(?:(?:bearer|basic)\s+)?[^\s\"'&,;<>]+(?P<after>)",
        re.IGNORECASE,
    ),
    # URL credentials and bare bearer tokens
    re.compile(r"(?P<before>\w+://[^\s/:@]+:)[^\s/@]+(?P<after>@)"),
    re.compile(r"(?P<before>\b(?:bearer|basic)\s+)[A-Za-z0-9._~+/=-]{8,}(?P<after>)", re.IGNORECASE),
)


def scrub(value: Any, depth: int = 12) -> Any:
    """JSON data without what is named like a secret, and without secrets in texts; long texts are cut."""
    if depth == 0:
        return "[nested deeper]"
    if isinstance(value, Mapping):
        return {
            str(name): SCRUBBED if _is_secret(str(name)) else scrub(item, depth - 1)
            for name, item in list(value.items())[:500]
        }
    if isinstance(value, list | tuple):
        return [scrub(item, depth - 1) for item in value[:500]]
    if isinstance(value, str):
        return scrub_text(value[:TEXT_LIMIT])
    if isinstance(value, bytes):
        return scrub_text(value[:TEXT_LIMIT].decode(errors="replace"))
    if value is None or isinstance(value, bool | int | float):
        return value
    return scrub_text(str(value)[:TEXT_LIMIT])


def scrub_text(text: str) -> str:
    """Text without passwords, tokens and keys in the notations they usually have."""
    for pattern in _SECRET_TEXT:
        text = pattern.sub(lambda match: f"{match['before']}{SCRUBBED}{match['after']}", text)
    return text


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
            "input": _snapshot(message.body),
            "headers": scrub(message.headers),
            "vars": scrub(message.vars),
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


def _snapshot(body: Body) -> dict[str, Any]:
    if body is None:
        return {"kind": "none"}
    if isinstance(body, bytes | str):
        whole = body if isinstance(body, bytes) else body.encode(errors="surrogatepass")
        kind, text = "text", whole[:SNAPSHOT_LIMIT_BYTES].decode(errors="replace")
        if len(whole) <= SNAPSHOT_LIMIT_BYTES:
            try:
                text = json.dumps(scrub(json.loads(whole)), ensure_ascii=False)
                kind = "json"
            except (ValueError, RecursionError):
                text = scrub_text(text)
        else:
            text = scrub_text(text)
        return {"kind": kind, "size_bytes": len(whole), "text": text, "cut": len(whole) > SNAPSHOT_LIMIT_BYTES}
    text = json.dumps(scrub(body), ensure_ascii=False)
    size = len(text.encode(errors="replace"))
    return {
        "kind": "json",
        "size_bytes": size,
        "text": text[:SNAPSHOT_LIMIT_BYTES],
        "cut": size > SNAPSHOT_LIMIT_BYTES,
    }


def _is_secret(name: str) -> bool:
    words = re.sub(r"[^0-9A-Za-z]+", " ", _CAMEL.sub(" ", name)).strip().lower()
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
