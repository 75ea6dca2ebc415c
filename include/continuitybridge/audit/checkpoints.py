"""Checkpoints: what each chain was at some time, signed, in a file outside the database.

Whoever can write the tables as their owner can write a whole chain anew; he cannot make it end in what was signed
before. So the file belongs where he does not come: `BRIDGE_AUDIT_DIR` may be a volume that only takes appends, and
its lines may be copied anywhere. Each line is a JSON object with `organization_id`, `seq`, `hash` (hexadecimal),
`at`, `key_id`, `previous` and `signature` (Ed25519, RFC 8032, base64) over the object without it, keys sorted,
without spaces. `previous` is SHA-256 of the line before, without its end (64 zeros in the first): a line that was
taken out is missed. So is what was cut off at the end, or the whole file: which line was the last stands with the
key (`signing.remember`). Where somebody comes there too, a copy alone tells.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import orjson
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from continuitybridge import database
from continuitybridge.audit import signing
from continuitybridge.audit.chain import Fault, Mark
from continuitybridge.settings import Settings, get_settings

FILE = "checkpoints.jsonl"
_FIRST = "0" * 64

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """What a file holds: marks by organization; what is wrong with lines, by their numbers from 1; and the hash of
    the last line that is ours, or that was written last where that is not there any more."""

    marks: dict[UUID, list[Mark]]
    problems: dict[int, str]
    last: str


def path(settings: Settings | None = None) -> Path:
    """The file that checkpoints are appended to."""
    settings = settings or get_settings()
    return (settings.audit_dir or settings.state_dir / "audit") / FILE


def write(organizations: Iterable[UUID], settings: Settings | None = None) -> int:
    """Sign what these organizations' chains are now and append it, on disk when this returns; returns how many
    lines were new. A chain that has not grown since its last line gets none. Raises `ConfigurationError` when the
    key that signed before is gone."""
    settings = settings or get_settings()
    file = path(settings)
    key = signing.current(settings)
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as opened:
        # Each line names the one before: who writes is alone.
        fcntl.flock(opened, fcntl.LOCK_EX)
        there = read(settings)
        known = {each: marks[-1] for each, marks in there.marks.items()}
        lines, previous = [], there.last
        for organization_id in organizations:
            mark = _end(organization_id)
            if mark is not None and known.get(organization_id) != mark:
                line = _line(key, organization_id, mark, previous)
                lines.append(line + b"\n")
                previous = _hash(line)
        opened.write(b"".join(lines))
        opened.flush()
        os.fsync(opened.fileno())
        if lines:
            signing.remember(settings, file, previous)
    if lines:
        log.info("%d checkpoints of audit trails were written to %s", len(lines), file)
    return len(lines)


def read(settings: Settings | None = None) -> Checkpoints:
    """The file's checkpoints, oldest first, as far as they bear our signature."""
    settings = settings or get_settings()
    marks: dict[UUID, list[Mark]] = defaultdict(list)
    problems: dict[int, str] = {}
    last, chained = _FIRST, False
    file, number = path(settings), 0
    remembered = signing.remembered(settings, file)
    is_there = remembered is None
    if file.exists():
        publics = signing.known(settings)
        with file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                digest = _hash(line.rstrip(b"\n"))
                is_there = is_there or digest == remembered
                found = _checked(line, publics)
                if found is None:
                    problems[number] = f"line {number} does not bear our signature"
                    continue
                organization_id, mark, previous = found
                # Lines from before there was a chain stand at the beginning.
                if previous is None and chained:
                    problems[number] = f"line {number} is not chained to the one before"
                elif previous is not None and previous != last:
                    problems[number] = f"before line {number} something was taken out, or put in another order"
                chained = chained or previous is not None
                last = digest
                marks[organization_id].append(mark)
    if remembered is not None and not is_there:
        # The next line names what it was written behind, so that this is told for ever.
        problems[number + 1] = f"behind line {number} lines were taken out" if number else "its lines are gone"
        last = remembered
    return Checkpoints(dict(marks), problems, last)


def lines(organization_id: UUID, settings: Settings | None = None) -> Iterator[bytes]:
    """The file's lines about this organization, as they stand there."""
    file = path(settings)
    if file.exists():
        about = str(organization_id).encode()
        with file.open("rb") as written:
            yield from (line for line in written if about in line)


def faults(
    organizations: Collection[UUID] | None,
    settings: Settings | None = None,
    *,
    deleted: Mapping[UUID, int] | None = None,
) -> Iterator[Fault]:
    """What is wrong with the file itself and with its key, and, given all `organizations` that there are, which
    others had a trail. Of those that were `deleted`, how many events the trail had then is known."""
    settings = settings or get_settings()
    found = read(settings)
    for number, problem in found.problems.items():
        yield Fault(UUID(int=0), number, None, f"{path(settings)}: {problem}")
    if signing.is_missing(settings):
        yield Fault(UUID(int=0), 0, None, f"{settings.keys_dir / signing.KEY_FILE} is gone: nothing is signed")
    for organization_id, marks in found.marks.items():
        if organizations is not None and organization_id not in organizations:
            if marks[-1].seq <= (deleted or {}).get(organization_id, -1):
                continue
            problem = (
                f"organization {organization_id} is gone; at a checkpoint its trail had {marks[-1].seq} events"
            )
            yield Fault(organization_id, 1, None, problem)


def _end(organization_id: UUID) -> Mark | None:
    with database.tenant(organization_id) as connection:
        row = connection.execute(
            "SELECT seq, hash FROM bridge.audit_chains WHERE organization_id = %s AND seq > 0", (organization_id,)
        ).fetchone()
    return None if row is None else Mark(row[0], bytes(row[1]))


def _line(key: Ed25519PrivateKey, organization_id: UUID, mark: Mark, previous: str) -> bytes:
    said = {
        "organization_id": str(organization_id),
        "seq": mark.seq,
        "hash": mark.hash.hex(),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "key_id": signing.key_id(key.public_key()),
        "previous": previous,
    }
    return orjson.dumps({**said, "signature": b64encode(key.sign(_signed(said))).decode()})


def _hash(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()


def _signed(said: dict[str, Any]) -> bytes:
    return orjson.dumps(said, option=orjson.OPT_SORT_KEYS)


def _checked(line: bytes, publics: Mapping[str, Ed25519PublicKey]) -> tuple[UUID, Mark, str | None] | None:
    """Whose chain was what, and the line before; None for a line that nobody here signed."""
    try:
        said = orjson.loads(line)
        signature = b64decode(said.pop("signature"), validate=True)
        publics[said["key_id"]].verify(signature, _signed(said))
        mark = Mark(int(said["seq"]), bytes.fromhex(said["hash"]))
        return UUID(said["organization_id"]), mark, said.get("previous")
    except (
        orjson.JSONDecodeError,
        InvalidSignature,
        Base64Error,
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
    ):
        return None
