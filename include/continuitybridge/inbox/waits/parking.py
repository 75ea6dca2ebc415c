"""What is written for a message that waits: worked out, and encrypted, before the transaction."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from continuitybridge.engine.message import Body, Message, Wait
from continuitybridge.flows.plan import Plan
from continuitybridge.inbox import payloads
from continuitybridge.vault.keyring import Cipher

SUMMARY = "wait-summary"


@dataclass(frozen=True, slots=True)
class Call:
    """The message that another flow is called with."""

    called_id: str
    flow: str
    trigger: str | None
    payload: bytes
    content_type: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Parked:
    """A row of `waits` to be, beside its hand-over. `key_hash`: of a group; `former`: what that was under the
    organization's earlier data keys, of a group across messages, which may be open since then."""

    wait: Wait
    key_hash: bytes | None = None
    former: Sequence[bytes] = ()
    summary: bytes | None = None
    call: Call | None = None
    awaits: str | None = None
    """JSON text: of a group within a message, the nodes from which something can come to it; None: not known."""

    @property
    def late_s(self) -> float:
        return float(self.wait.options.get("late_s", 0))

    @property
    def holds(self) -> bool:
        """Whether dead letters among the siblings keep the group waiting."""
        return bool(self.wait.options.get("holds"))


@dataclass(frozen=True, slots=True)
class Result:
    """What left a flow that another one called: a row of `wait_parts` to be."""

    part_id: UUID
    child_id: str
    place: str
    payload: bytes


def parked(
    keys: Cipher,
    organization_id: UUID,
    message_id: str,
    hand_over_id: UUID,
    message: Message,
    node_id: str,
    wait: Wait,
    plan: Plan | None,
) -> Parked:
    """The wait of `message` (a part of the accepted message `message_id`) at `node_id`. Raises `TypeError` or
    `ValueError` when what goes to a person or a flow is no data, `Unavailable` when it is large and cannot be
    stored."""
    if wait.kind == "group":
        if wait.scope is not None:
            awaits = json.dumps(plan.leading_to(node_id)) if plan is not None and node_id in plan.nodes else None
            return Parked(wait, key_hash=_key_hash(message_id, wait.scope, wait.key), awaits=awaits)
        key = wait.key.encode()
        former = keys.former_fingerprints(organization_id, key)
        return Parked(wait, key_hash=keys.fingerprint(organization_id, key), former=former)
    if wait.kind == "person":
        text = json.dumps(wait.payload).encode()
        return Parked(wait, summary=keys.encrypt(organization_id, SUMMARY, str(hand_over_id), text))
    called_id = f"{message.id}.{_step_in_id(node_id)}"
    content, content_type = _as_received(wait.payload)
    trigger = wait.options.get("trigger")
    return Parked(
        wait,
        call=Call(
            called_id,
            str(wait.options["flow"]),
            None if trigger is None else str(trigger),
            payloads.seal_body(keys, organization_id, called_id, content),
            content_type,
            len(content),
        ),
    )


def result(keys: Cipher, organization_id: UUID, message_id: str, part_id: UUID, message: Message) -> Result:
    """What `message`, which left its flow, is to whoever called it. Raises as `payloads.encrypt_message`."""
    place = payloads.hand_over_place(message_id, part_id)
    bare = Message(message.id, message.body)
    return Result(part_id, message.id, place, payloads.encrypt_message(keys, organization_id, place, bare))


def read_summary(keys: Cipher, organization_id: UUID, hand_over_id: UUID, summary: bytes) -> dict[str, Any]:
    """What a person decides on: `title` and `details`."""
    found: dict[str, Any] = json.loads(keys.decrypt(organization_id, SUMMARY, str(hand_over_id), summary))
    return found


def _step_in_id(node_id: str) -> str:
    """The step as it stands in the id of its call: a number would make it the id of a child of the message."""
    return f"~{node_id}" if node_id.isdigit() else node_id


def _key_hash(message_id: str, scope: str, key: str) -> bytes:
    # Nothing but ids: no secret, and the same whatever key encrypts meanwhile.
    return hashlib.sha256("\0".join((message_id, scope, key)).encode(errors="surrogatepass")).digest()


def _as_received(body: Body) -> tuple[bytes, str]:
    """A body as a webhook would have brought it, and its media type."""
    if isinstance(body, bytes):
        return body, "application/octet-stream"
    if isinstance(body, str):
        return body.encode(), "text/plain; charset=utf-8"
    return json.dumps(body).encode(), "application/json"
