"""A message's answer, read again."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import orjson

from continuitybridge import database
from continuitybridge.inbox.replies.rows import open_content
from continuitybridge.vault.keyring import Cipher


@dataclass(frozen=True, slots=True)
class Stored:
    """What the caller was answered, or would be. `body` is JSON data, else text; what is neither stands in
    `body_base64`."""

    status: int
    headers: dict[str, str]
    body: Any
    body_base64: str | None
    written_at: datetime


def stored(organization_id: UUID, message_id: str, keys: Cipher) -> Stored | None:
    """The result that the flow gave, as the application role; None when there is none (nobody asked for one, the
    message failed or is under way, or its answer is not kept any more). Raises `DecryptionFailed`."""
    with database.tenant(organization_id) as connection:
        row = connection.execute(
            "SELECT status, content, written_at FROM bridge.replies WHERE organization_id = %s AND message_id = %s"
            " AND ready ORDER BY replays DESC, written_at LIMIT 1",
            (organization_id, message_id),
        ).fetchone()
    if row is None or row[0] is None or (row[0] == 202 and row[1] is None):
        return None
    content = open_content(keys, organization_id, message_id, row[1])
    body, encoded = _readable(content.body, content.headers.get("content-type", ""))
    return Stored(row[0], content.headers, body, encoded, row[2])


def _readable(body: bytes, content_type: str) -> tuple[Any, str | None]:
    if not body:
        return None, None
    kind = content_type.partition(";")[0].strip().lower()
    try:
        if kind == "application/json" or kind.endswith("+json"):
            return orjson.loads(body), None
    except orjson.JSONDecodeError:
        pass
    try:
        return body.decode(), None
    except UnicodeDecodeError:
        return None, b64encode(body).decode()
