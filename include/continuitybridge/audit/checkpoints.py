"""Checkpoints: what each chain was at some time, signed, in a file outside the database.

Whoever can write the tables as their owner can write a whole chain anew; he cannot make it end in what was signed
before. So the file belongs where he does not come: `BRIDGE_AUDIT_DIR` may be a volume that only takes appends, and
its lines may be copied anywhere. Each line is a JSON object with `organization_id`, `seq`, `hash` (hexadecimal),
`at`, `key_id` and `signature` (Ed25519, RFC 8032, base64) over the object without it, keys sorted, without spaces.
"""

from __future__ import annotations

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
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from continuitybridge import database
from continuitybridge.audit.chain import Fault, Mark
from continuitybridge.errors import ConfigurationError
from continuitybridge.settings import Settings, get_settings

FILE = "checkpoints.jsonl"
KEY_FILE = "audit-signing.key"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """What a file holds: marks by organization, and the lines that nobody here signed."""

    marks: dict[UUID, list[Mark]]
    forged: list[int]


def path(settings: Settings | None = None) -> Path:
    """The file that checkpoints are appended to."""
    settings = settings or get_settings()
    return (settings.audit_dir or settings.state_dir / "audit") / FILE


def write(organizations: Iterable[UUID], settings: Settings | None = None) -> int:
    """Sign what these organizations' chains are now and append it, on disk when this returns; returns how many
    lines were new. A chain that has not grown since its last line gets none."""
    settings = settings or get_settings()
    file = path(settings)
    known = {each: marks[-1] for each, marks in read(settings).marks.items()}
    key = _signing_key(settings)
    lines = []
    for organization_id in organizations:
        mark = _end(organization_id)
        if mark is not None and known.get(organization_id) != mark:
            lines.append(_line(key, organization_id, mark))
    if lines:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as opened:
            opened.write(b"".join(lines))
            opened.flush()
            os.fsync(opened.fileno())
        log.info("%d checkpoints of audit trails were written to %s", len(lines), file)
    return len(lines)


def read(settings: Settings | None = None) -> Checkpoints:
    """The file's checkpoints, oldest first, as far as they bear our signature."""
    settings = settings or get_settings()
    marks: dict[UUID, list[Mark]] = defaultdict(list)
    forged: list[int] = []
    file = path(settings)
    if file.exists():
        public = _signing_key(settings).public_key()
        with file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                found = _checked(line, public)
                if found is None:
                    forged.append(number)
                else:
                    marks[found[0]].append(found[1])
    return Checkpoints(dict(marks), forged)


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
    """What is wrong with the file itself, and, given all `organizations` that there are, which others had a trail.
    Of those that were `deleted`, how many events the trail had then is known."""
    found = read(settings)
    for number in found.forged:
        yield Fault(UUID(int=0), number, None, f"line {number} of {path(settings)} does not bear our signature")
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


def _line(key: Ed25519PrivateKey, organization_id: UUID, mark: Mark) -> bytes:
    said = {
        "organization_id": str(organization_id),
        "seq": mark.seq,
        "hash": mark.hash.hex(),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "key_id": _key_id(key.public_key()),
    }
    return orjson.dumps({**said, "signature": b64encode(key.sign(_signed(said))).decode()}) + b"\n"


def _signed(said: dict[str, Any]) -> bytes:
    return orjson.dumps(said, option=orjson.OPT_SORT_KEYS)


def _checked(line: bytes, public: Ed25519PublicKey) -> tuple[UUID, Mark] | None:
    try:
        said = orjson.loads(line)
        signature = b64decode(said.pop("signature"), validate=True)
        public.verify(signature, _signed(said))
        return UUID(said["organization_id"]), Mark(int(said["seq"]), bytes.fromhex(said["hash"]))
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


def _key_id(public: Ed25519PublicKey) -> str:
    raw = public.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return hashlib.sha256(raw).hexdigest()[:16]


def _signing_key(settings: Settings) -> Ed25519PrivateKey:
    """The installation's, in a file of mode 0600 that is made on first use."""
    file = settings.keys_dir / KEY_FILE
    if not file.exists():
        _make_key(file)
    key = serialization.load_pem_private_key(file.read_bytes(), None)
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigurationError(f"{file} holds no Ed25519 key", field=KEY_FILE)
    return key


def _make_key(file: Path) -> None:
    text = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = file.with_name(f".{file.name}.{os.getpid()}")
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as opened:
        opened.write(text)
        opened.flush()
        os.fsync(opened.fileno())
    try:
        # Of several processes that come first at once, one makes it.
        os.link(fresh, file)
    except FileExistsError:
        pass
    finally:
        fresh.unlink()
