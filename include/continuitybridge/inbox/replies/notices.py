"""Telling those who hold requests which messages have an answer."""

from __future__ import annotations

import contextlib
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import psycopg

from continuitybridge.engine.message import Reply
from continuitybridge.inbox.replies.rows import ACCEPTED, Prepared

CHANNEL = "bridge_replies"
"""NOTIFY channel. The payload is lines: `<organization id> <message id>` (look into `bridge.replies`), or with
three words more the answer itself: status, code, content in base64, each `-` for none. A hint: who waits also
looks."""

WANTED_CHANNEL = "bridge_replies_wanted"
"""NOTIFY channel. Lines as the shorter ones above: a process holds requests for messages that another one may run
for a request of its own, and would tell nobody of. A hint too."""

MAX_PAYLOAD_BYTES = 7_900
_NONE = "-"
_NOTIFY = "SELECT pg_notify(%s, payload) FROM unnest(%s::text[]) AS t (payload)"


@dataclass(frozen=True, slots=True)
class Notice:
    """That a message has an answer. `known` says that it is here: status or code, and content (encrypted), or
    within the process that made it `reply` itself; else it is to be looked up."""

    organization_id: UUID
    message_id: str
    known: bool = False
    status: int | None = None
    code: str | None = None
    content: bytes | None = None
    reply: Reply | None = field(default=None, repr=False)


class Notices:
    """What one transaction has to tell, sent after its commit: a transaction that notifies holds a lock of the
    whole server through its commit. Lost with a crash between the two, it is found by those who wait, who look."""

    def __init__(self) -> None:
        self._short: list[str] = []
        self._long: list[str] = []
        self._only_here: list[str] = []

    def __bool__(self) -> bool:
        return bool(self._short or self._only_here)

    def ready(self, organization_id: UUID, message_id: str, answer: Prepared | None = None) -> None:
        """An answer was written; `answer` is it, where it is at hand."""
        place = f"{organization_id} {message_id}"
        self._short.append(place)
        self._long.append(place if answer is None else f"{place} {_words(answer)}")

    def release(self, organization_id: UUID, message_id: str) -> None:
        """There will be none within the limit: callers need not wait. Written nowhere."""
        self._only_here.append(f"{organization_id} {message_id} {_words(ACCEPTED)}")

    def keep_from(self, hear: Callable[[Notice], bool]) -> None:
        """Tell `hear`, and no others what it takes for itself alone."""
        kept = [
            (short, long)
            for short, long in zip(self._short, self._long, strict=True)
            if not all(hear(notice) for notice in read(long))
        ]
        self._short, self._long = [short for short, _ in kept], [long for _, long in kept]
        self._only_here = [line for line in self._only_here if not all(hear(notice) for notice in read(line))]

    def send(self, connection: psycopg.Connection[Any]) -> None:
        """Notify, on a connection in autocommit mode. What goes wrong is not told: it is a hint."""
        with contextlib.suppress(psycopg.Error):
            connection.execute(*self.statement())

    def statement(self) -> tuple[str, tuple[str, list[str]]]:
        """What notifies, with its parameters. One notification where the answers fit into it, which saves who gets
        it a query; else as many as the messages' ids need."""
        lines = self._long + self._only_here
        if sum(map(len, lines)) + len(lines) > MAX_PAYLOAD_BYTES:
            lines = self._short + self._only_here
        return _NOTIFY, (CHANNEL, list(_packed(lines)))


def read(payload: str) -> Iterator[Notice]:
    """The notices of one notification; what is none is passed over."""
    for line in payload.splitlines():
        try:
            organization, message_id, *answer = line.split(" ")
            organization_id = UUID(organization)
            if not answer:
                yield Notice(organization_id, message_id)
                continue
            status, code, content = (None if word == _NONE else word for word in answer)
            yield Notice(
                organization_id,
                message_id,
                known=True,
                status=int(status) if status is not None else None,
                code=code,
                content=b64decode(content, validate=True) if content is not None else None,
            )
        except ValueError:
            continue


def wanted(keys: Iterable[tuple[UUID, str]]) -> tuple[str, tuple[str, list[str]]]:
    """What tells the others of messages (organization, message) whose answers are wanted here, with its
    parameters."""
    lines = [f"{organization_id} {message_id}" for organization_id, message_id in keys]
    return _NOTIFY, (WANTED_CHANNEL, list(_packed(lines)))


def _words(answer: Prepared) -> str:
    content = b64encode(answer.content).decode() if answer.content is not None else None
    return " ".join(_NONE if word is None else str(word) for word in (answer.status, answer.code, content))


def _packed(lines: list[str]) -> Iterator[str]:
    payload: list[str] = []
    size = 0
    for line in lines:
        if payload and size + len(line) + 1 > MAX_PAYLOAD_BYTES:
            yield "\n".join(payload)
            payload, size = [], 0
        payload.append(line)
        size += len(line) + 1
    if payload:
        yield "\n".join(payload)
