"""Ids of messages: UUIDv7 (RFC 9562), ascending within a process."""

from __future__ import annotations

import os
import time

MAX_ID_LENGTH = 1_000
"""Characters of the longest id that is asked for: eight calls below each other, with the ids of the steps that
made them (64 each) and the numbers of children between."""

_last_ms = 0
_sequence = 0
_VARIANT, _RANDOM = 0b10 << 62, (1 << 62) - 1


def new_message_id() -> str:
    """A new id: milliseconds since the epoch, a number that counts within the millisecond, 62 random bits. Where
    more than 4096 are made within one millisecond, the next one's are used."""
    # Threads that meet here may get the same time and number; the random bits tell their ids apart.
    global _last_ms, _sequence
    now_ms = time.time_ns() // 1_000_000
    if now_ms > _last_ms:
        _last_ms, _sequence = now_ms, 0
    elif _sequence < 0xFFF:
        _sequence += 1
    else:
        _last_ms, _sequence = _last_ms + 1, 0
    begin = f"{_last_ms:012x}7{_sequence:03x}"
    end = f"{int.from_bytes(os.urandom(8), 'big') & _RANDOM | _VARIANT:016x}"
    return f"{begin[:8]}-{begin[8:12]}-{begin[12:]}-{end[:4]}-{end[4:]}"
