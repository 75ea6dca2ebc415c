"""The trail as a file: CSV (RFC 4180) or JSON lines."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from dataclasses import asdict, fields
from typing import Literal

import orjson

from continuitybridge.audit.reading import Event

Format = Literal["csv", "jsonl"]
MEDIA_TYPES: dict[Format, str] = {"csv": "text/csv; charset=utf-8", "jsonl": "application/jsonl"}
_COLUMNS = tuple(field.name for field in fields(Event))
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
"""OWASP, "CSV Injection": spreadsheets take full-width signs for the plain ones."""


def written(events: Iterable[Event], form: Format) -> Iterator[bytes]:
    """The file, piece by piece."""
    if form == "jsonl":
        for event in events:
            yield orjson.dumps(asdict(event)) + b"\n"
        return
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\r\n")
    writer.writerow(_COLUMNS)
    for event in events:
        row = {**asdict(event), "details": orjson.dumps(event.details).decode(), "at": event.at.isoformat()}
        writer.writerow([_harmless(row[name]) for name in _COLUMNS])
        yield buffer.getvalue().encode()
        buffer.seek(0)
        buffer.truncate()
    yield buffer.getvalue().encode()


def _harmless(value: object) -> object:
    """What a spreadsheet would take for a formula stands behind an apostrophe."""
    if isinstance(value, str) and value.startswith(_FORMULA):
        return f"'{value}"
    return "" if value is None else value
