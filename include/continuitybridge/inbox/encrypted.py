"""The inbox's encrypted columns."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from continuitybridge.inbox import offload, payloads
from continuitybridge.inbox.waits.parking import SUMMARY
from continuitybridge.vault.columns import EncryptedColumn, FingerprintColumn, Row
from continuitybridge.vault.keyring import Cipher


@dataclass(frozen=True, slots=True)
class PayloadColumn(EncryptedColumn):
    """A payload, or a reference to one in the payload store. `message(row)` is whose it is, `kind` how long it is
    needed."""

    kind: offload.Kind = "message"

    def open(self, keys: Cipher, organization_id: UUID, row: Row, *, objects: bool) -> bool:
        stored, place = row[self.column], self.place(row)
        if not offload.is_reference(stored):
            keys.decrypt(organization_id, self.purpose, place, stored)
            return False
        if not objects:
            offload.check_reference(keys, organization_id, self.purpose, place, stored)
            return False
        offload.unseal(keys, organization_id, self.purpose, place, stored)
        return True

    def reseal(self, keys: Cipher, organization_id: UUID, row: Row) -> bytes | None:
        """A large payload becomes a new object; the former one goes with its message."""
        place = self.place(row)
        plaintext = offload.unseal(keys, organization_id, self.purpose, place, row[self.column])
        message_id = place if self.kind == "message" else place.rpartition("/")[0]
        return offload.seal(
            keys, organization_id, self.purpose, place, plaintext, message_id=message_id, kind=self.kind
        )

    def stale(self) -> str:
        # `get_byte` of the column would read all of a large value.
        first = "get_byte(substring({c} FROM 1 FOR 1), 0)"
        return f"substring({{c}} FROM CASE {first} WHEN 2 THEN 3 ELSE 2 END FOR 4) <> %(version)s"


def _message(row: Row) -> str:
    return str(row["message_id"])


_SETTLED = ("message_id", "settled_at", "tableoid")

COLUMNS = (
    PayloadColumn("messages", "payload", ("message_id",), payloads.PAYLOAD, _message),
    EncryptedColumn("messages", "headers", ("message_id",), payloads.HEADERS, _message),
    PayloadColumn("settled_messages", "payload", _SETTLED, payloads.PAYLOAD, _message),
    EncryptedColumn("settled_messages", "headers", _SETTLED, payloads.HEADERS, _message),
    PayloadColumn(
        "hand_overs",
        "payload",
        ("hand_over_id",),
        payloads.HAND_OVER,
        lambda row: payloads.hand_over_place(row["message_id"], row["hand_over_id"]),
        more=("message_id",),
        kind="part",
    ),
    PayloadColumn(
        "wait_parts",
        "payload",
        ("wait_id", "part_id"),
        payloads.HAND_OVER,
        lambda row: str(row["place"]),
        more=("place",),
        kind="part",
    ),
    EncryptedColumn("waits", "summary", ("hand_over_id",), SUMMARY, lambda row: str(row["hand_over_id"])),
    EncryptedColumn(
        "failures",
        "context",
        ("failure_id",),
        payloads.FAILURE,
        lambda row: str(row["failure_id"]),
        writer="relay",
    ),
    EncryptedColumn("replies", "content", ("message_id", "reply_id", "written_at"), payloads.REPLY, _message),
    FingerprintColumn("idempotency_keys", "body_hash", ("environment", "endpoint", "key_hash")),
    # Within one message the key's hash has no key of ours, and 32 bytes.
    FingerprintColumn(
        "wait_groups",
        "key_hash",
        ("environment", "flow", "node_id", "key_hash"),
        keyed="octet_length(key_hash) = 36",
    ),
)
