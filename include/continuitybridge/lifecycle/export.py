"""An organization as a file: everything that the tables hold of it, in the clear, except credentials.

A ZIP archive:

- `manifest.json`: what it is of, each other member's SHA-256 and bytes, each table's rows, columns that were left
  out, rows that could not be opened;
- `tables/<table>.jsonl`: one JSON object per row; ids and times as text, payloads as `{"text": …}` or
  `{"base64": …}`;
- `flows/<flow>/<version>/`: each version's source and side files, as they were deployed;
- `audit/trail.jsonl`: the trail with the names in it; `audit/checkpoints.jsonl`: the signed checkpoints of it.

Binary columns are written only where this module knows how to open them: hashes and ciphertexts of credentials,
whatever table they come to stand in, are left out. The archive is not encrypted: its file has mode 0600.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import orjson
import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from continuitybridge import database
from continuitybridge.audit import TrailDamaged, checkpoints, exporting, reading, record
from continuitybridge.errors import BridgeError, ConfigurationError, Unavailable
from continuitybridge.inbox import capture, payloads
from continuitybridge.inbox.replies import rows as replies
from continuitybridge.inbox.waits import parking
from continuitybridge.lifecycle import removal
from continuitybridge.organizations import Organization
from continuitybridge.vault.keyring import Cipher, Keyring

FORMAT = "continuitybridge-organization-1"
READ_ROWS = 200
"""Rows that are in memory at once."""

Row = Mapping[str, Any]
Opener = Callable[[Cipher, UUID, Row, bytes], Any]


@dataclass(frozen=True, slots=True)
class Exported:
    """An archive that is on disk: its file, SHA-256 (hex), size, and how many rows of each table it has."""

    file: Path
    sha256: str
    size_bytes: int
    rows: Mapping[str, int]
    unreadable: int


def _body(keys: Cipher, organization_id: UUID, row: Row, stored: bytes) -> Any:
    return _content(payloads.open_body(keys, organization_id, row["message_id"], stored))


def _headers(keys: Cipher, organization_id: UUID, row: Row, stored: bytes) -> Any:
    return payloads.decrypt_headers(keys, organization_id, row["message_id"], stored)


def _part(keys: Cipher, organization_id: UUID, place: str, stored: bytes) -> Any:
    message = payloads.decrypt_message(keys, organization_id, place, stored)
    body = _content(message.body) if isinstance(message.body, bytes) else {"json": message.body}
    return {"id": message.id, "headers": message.headers, "vars": message.vars, "body": body}


def _hand_over(keys: Cipher, organization_id: UUID, row: Row, stored: bytes) -> Any:
    return _part(keys, organization_id, payloads.hand_over_place(row["message_id"], row["hand_over_id"]), stored)


def _wait_part(keys: Cipher, organization_id: UUID, row: Row, stored: bytes) -> Any:
    return _part(keys, organization_id, row["place"], stored)


def _failure(keys: Cipher, organization_id: UUID, row: Row, stored: bytes) -> Any:
    return capture.decrypt_context(keys, organization_id, row["failure_id"], stored)


def _summary(keys: Cipher, organization_id: UUID, row: Row, stored: bytes) -> Any:
    return parking.read_summary(keys, organization_id, row["hand_over_id"], stored)


def _reply(keys: Cipher, organization_id: UUID, row: Row, stored: bytes) -> Any:
    found = replies.open_content(keys, organization_id, row["message_id"], stored)
    return {"headers": found.headers, "body": _content(found.body), "explanation": found.explanation}


def _hex(_: Cipher, __: UUID, ___: Row, stored: bytes) -> str:
    return stored.hex()


_OPENERS: Mapping[tuple[str, str], Opener] = {
    ("messages", "payload"): _body,
    ("messages", "headers"): _headers,
    ("settled_messages", "payload"): _body,
    ("settled_messages", "headers"): _headers,
    ("hand_overs", "payload"): _hand_over,
    ("wait_parts", "payload"): _wait_part,
    ("failures", "context"): _failure,
    ("waits", "summary"): _summary,
    ("replies", "content"): _reply,
    # What the chain's hashes are of, so that it can be checked again. The names in it are beside, in the trail.
    ("audit_events", "personal"): _hex,
    ("audit_events", "previous_hash"): _hex,
    ("audit_events", "hash"): _hex,
    ("audit_chains", "hash"): _hex,
}


@dataclass
class _Archive:
    """The members that were written so far."""

    zip: zipfile.ZipFile
    members: dict[str, dict[str, Any]] = field(default_factory=dict)

    def write(self, name: str, pieces: Iterable[bytes]) -> None:
        digest, size = hashlib.sha256(), 0
        with self.zip.open(name, "w", force_zip64=True) as member:
            for piece in pieces:
                member.write(piece)
                digest.update(piece)
                size += len(piece)
        self.members[name] = {"sha256": digest.hexdigest(), "bytes": size}


@dataclass
class _Table:
    """What was met while a table was written."""

    rows: int = 0
    left_out: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)


def export(
    organization: Organization, directory: Path, *, keys: Cipher | None = None, record_it: bool = False
) -> Exported:
    """Write the organization's archive into the directory, on disk when this returns. A run that is killed leaves
    a file whose name ends in `.part`, which the next one of this organization takes for its own.

    Reads as the application role, table by table: of an organization that goes on working it is no single moment.
    `record_it` notes it in the trail, before the trail is written. Raises `ConfigurationError` when the directory
    cannot be written, `Unavailable`.
    """
    keys = keys or Keyring.open()
    owner = organization.organization_id
    if record_it:
        with suppress(TrailDamaged), database.tenant(owner) as connection:
            record(connection, owner, "organization.exported", organization.slug, keys=keys)
    made_at = datetime.now(UTC)
    file = directory / f"{organization.slug}-{made_at:%Y%m%dT%H%M%SZ}.zip"
    part = file.with_name(f"{organization.slug}-{owner}.zip.part")
    found: dict[str, _Table] = {}
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (
            os.fdopen(os.open(part, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600), "w+b") as opened,
            zipfile.ZipFile(opened, "w", zipfile.ZIP_DEFLATED) as archive_file,
        ):
            archive = _Archive(archive_file)
            for table in ["organizations", *sorted(removal.tables())]:
                if columns := _readable(owner, table):
                    found[table] = _Table()
                    archive.write(f"tables/{table}.jsonl", _rows(keys, owner, table, columns, found[table]))
            _write_flows(archive, owner)
            events = reading.every(owner, reading.Filter(), keys=keys)
            archive.write("audit/trail.jsonl", exporting.written(events, "jsonl"))
            archive.write("audit/checkpoints.jsonl", checkpoints.lines(owner))
            manifest = {
                "format": FORMAT,
                "organization_id": owner,
                "slug": organization.slug,
                "name": organization.name,
                "made_at": made_at,
                "tables": {
                    name: {"rows": each.rows, "left_out": each.left_out, "unreadable": each.unreadable}
                    for name, each in found.items()
                },
                "members": archive.members,
            }
            archive_file.writestr("manifest.json", orjson.dumps(manifest, option=orjson.OPT_INDENT_2))
        digest, size = _on_disk(part)
        part.replace(file)
        _sync(directory)
    except OSError as error:
        raise ConfigurationError(
            f"the export cannot be written to {directory}: {error.strerror}",
            field="directory",
            value=str(directory),
        ) from error
    unreadable = sum(len(each.unreadable) for each in found.values())
    return Exported(file, digest, size, {name: each.rows for name, each in found.items()}, unreadable)


def _readable(organization_id: UUID, table: str) -> list[str]:
    """The columns that the application role may read; what it may not (data keys) is the platform's."""
    with database.tenant(organization_id) as connection:
        rows = connection.execute(
            "SELECT attname FROM pg_catalog.pg_attribute WHERE attrelid = %(table)s::pg_catalog.regclass"
            " AND attnum > 0 AND NOT attisdropped"
            " AND pg_catalog.has_column_privilege(%(table)s, attname, 'SELECT') ORDER BY attnum",
            {"table": f"bridge.{table}"},
        ).fetchall()
    return [row[0] for row in rows]


@contextmanager
def _unhurried(organization_id: UUID) -> Iterator[psycopg.Connection[Any]]:
    """A transaction that may take its time: between two reads of it large payloads are opened and compressed."""
    with database.tenant(organization_id) as connection:
        connection.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
        connection.execute("SET LOCAL statement_timeout = 0")
        yield connection


def _rows(keys: Cipher, organization_id: UUID, table: str, columns: Sequence[str], met: _Table) -> Iterator[bytes]:
    query = sql.SQL("SELECT {} FROM bridge.{} WHERE organization_id = %s").format(
        sql.SQL(", ").join(map(sql.Identifier, columns)), sql.Identifier(table)
    )
    with (
        _unhurried(organization_id) as connection,
        connection.cursor(f"export-{table}", row_factory=dict_row) as cursor,
    ):
        cursor.itersize = READ_ROWS
        for row in cursor.execute(query, (organization_id,)):
            met.rows += 1
            yield orjson.dumps(_written(keys, organization_id, table, row, met), default=str) + b"\n"


def _written(keys: Cipher, organization_id: UUID, table: str, row: dict[str, Any], met: _Table) -> dict[str, Any]:
    written = dict(row)
    for column, value in row.items():
        if not isinstance(value, bytes):
            continue
        opener = _OPENERS.get((table, column))
        if opener is None:
            del written[column]
            if column not in met.left_out:
                met.left_out.append(column)
            continue
        try:
            written[column] = opener(keys, organization_id, row, value)
            # Texts that are no UTF-8 (lone surrogates) cannot be written.
            orjson.dumps(written[column], default=str)
        except Unavailable:
            raise
        except (BridgeError, ValueError, TypeError, KeyError) as error:
            written[column] = {"unreadable": getattr(error, "code", type(error).__name__)}
            met.unreadable.append(str(row.get("message_id", met.rows)))
    return written


def _write_flows(archive: _Archive, organization_id: UUID) -> None:
    with (
        _unhurried(organization_id) as connection,
        connection.cursor("export-flows") as cursor,
    ):
        cursor.itersize = READ_ROWS
        cursor.execute(
            "SELECT flow, version, source, files FROM bridge.flow_versions WHERE organization_id = %s",
            (organization_id,),
        )
        for flow, version, source, files in cursor:
            place = f"flows/{_name(flow)}/{_name(version)}"
            archive.write(f"{place}/{_name(flow)}.flow.yaml", [source.encode()])
            for name, content in sorted(files.items()):
                text = content if isinstance(content, str) else orjson.dumps(content).decode()
                archive.write(f"{place}/files/{_name(name)}", [text.encode()])


def _name(text: str) -> str:
    """A path that leads nowhere else."""
    parts = text.replace("\\", "/").split("/")
    return "/".join(part for part in parts if part.strip(".")) or "_"


def _content(data: bytes) -> dict[str, str]:
    try:
        return {"text": data.decode()}
    except UnicodeDecodeError:
        return {"base64": b64encode(data).decode()}


def _on_disk(file: Path) -> tuple[str, int]:
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
        os.fsync(opened.fileno())
        return digest, opened.tell()


def _sync(directory: Path) -> None:
    opened = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
