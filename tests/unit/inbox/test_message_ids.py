"""Ids of messages are UUIDv7 (RFC 9562) and ascend."""

from __future__ import annotations

import time
from uuid import UUID

from continuitybridge.inbox.accept.ids import new_message_id


def test_ids_are_version_7_with_the_time_ascend_and_differ() -> None:
    before = time.time_ns() // 1_000_000
    made = [new_message_id() for _ in range(20_000)]
    after = time.time_ns() // 1_000_000
    assert made == sorted(set(made))
    for text in (made[0], made[-1]):
        found = UUID(text)
        assert str(found) == text
        assert (found.version, found.variant) == (7, "specified in RFC 4122")
        # Where more are made than a millisecond has numbers for, the next ones are used.
        assert before <= found.int >> 80 <= after + 20_000 // 4096 + 1
    assert len({text[-12:] for text in made}) == len(made), "the end is random"
