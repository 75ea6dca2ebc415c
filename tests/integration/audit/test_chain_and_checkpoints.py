"""What chain, checkpoints and signing key say of themselves to the letter: hashes, lines, signatures, files."""

from __future__ import annotations

import hashlib
import os
import stat
from base64 import b64decode, b64encode
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import orjson
import psycopg
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from continuitybridge import database
from continuitybridge.audit import chain, checkpoints, record, signing
from continuitybridge.errors import ConfigurationError
from continuitybridge.organizations import Organization
from continuitybridge.settings import Settings

NOBODY = UUID(int=0)
"""Whose the file's own faults are."""


def links(organization: Organization) -> list[chain.Link]:
    with database.tenant(organization.organization_id) as connection:
        return list(chain._links(connection, organization.organization_id))


def write(organization: Organization, *targets: str) -> None:
    for target in targets:
        with database.tenant(organization.organization_id) as connection:
            record(connection, organization.organization_id, "thing.done", target)


@pytest.fixture
def trail(organization: Organization) -> Organization:
    write(organization, "a", "b", "c")
    return organization


def as_owner(organization: Organization, statement: str) -> None:
    with psycopg.connect(database.owner_url()) as connection:
        connection.execute("ALTER TABLE bridge.audit_events NO FORCE ROW LEVEL SECURITY, DISABLE TRIGGER append")
        connection.execute(statement.encode(), (organization.organization_id,))
        connection.execute("ALTER TABLE bridge.audit_events FORCE ROW LEVEL SECURITY, ENABLE TRIGGER append")


# -- the chain ----------------------------------------------------------------------------------------------


def test_a_chain_that_holds_says_whose_it_is_and_how_far_it_goes(trail: Organization) -> None:
    last = links(trail)[-1]
    assert chain.verify(trail.organization_id) == chain.Verified(trail.organization_id, last.seq, last.hash, None)


def test_a_chain_that_does_not_hold_says_so_far_it_does_and_which_event_is_wrong(trail: Organization) -> None:
    before, changed = links(trail)[-2:]
    as_owner(
        trail, f"UPDATE bridge.audit_events SET target = 'x' WHERE organization_id = %s AND seq = {changed.seq}"
    )
    found = chain.verify(trail.organization_id)
    assert (found.organization_id, found.events, found.hash) == (trail.organization_id, before.seq, before.hash)
    assert found.fault is not None
    assert (found.fault.organization_id, found.fault.seq) == (trail.organization_id, changed.seq)
    assert found.fault.event_id == changed.event_id
    assert "changed" in found.fault.problem


def test_an_event_that_follows_another_than_it_says_is_named(trail: Organization) -> None:
    changed = links(trail)[-1]
    as_owner(
        trail,
        "UPDATE bridge.audit_events SET previous_hash = '\\x00' WHERE organization_id = %s"
        f" AND seq = {changed.seq}",
    )
    found = chain.verify(trail.organization_id).fault
    assert found is not None
    assert (found.seq, found.event_id) == (changed.seq, changed.event_id)


def test_an_event_that_is_another_than_at_a_checkpoint_is_named(trail: Organization) -> None:
    last = links(trail)[-1]
    found = chain.verify(trail.organization_id, [chain.Mark(last.seq, b"another")]).fault
    assert found is not None
    assert (found.seq, found.event_id) == (last.seq, last.event_id)
    assert chain.verify(trail.organization_id, [chain.Mark(last.seq, last.hash)]).fault is None


def framed(*fields: bytes | None) -> bytes:
    """As the description says: each field behind its length in four bytes, which is -1 where there is none."""
    return b"".join(
        b"\xff\xff\xff\xff" if each is None else len(each).to_bytes(4, "big") + each for each in fields
    )


@pytest.mark.parametrize("at", [datetime(2026, 2, 3, 4, 5, 6, 7, UTC), datetime(1969, 12, 31, 23, tzinfo=UTC)])
def test_an_events_hash_is_made_of_all_that_it_says(trail: Organization, at: datetime) -> None:
    link = replace(links(trail)[-1], at=at, environment="prod", personal=b"sealed", subject_id=uuid4())
    micros = (at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    assert link.subject_id is not None
    assert (
        *("tag", "previous_hash", "organization_id", "seq", "event_id", "at", "action", "target"),
        *("environment", "actor_kind", "subject_id", "personal", "details"),
    ) == chain.FIELDS
    said = framed(
        *(b"bridge-audit-1", b"before", trail.organization_id.bytes, link.seq.to_bytes(8, "big")),
        *(link.event_id.bytes, micros.to_bytes(8, "big", signed=True), b"thing.done", b"c", b"prod"),
        *(link.actor_kind.encode(), link.subject_id.bytes, b"sealed", link.details.encode()),
    )
    assert link.expected_hash(trail.organization_id, b"before") == hashlib.sha256(said).digest()
    bare = replace(link, environment=None, subject_id=None, personal=None)
    assert bare.expected_hash(trail.organization_id, b"before") != hashlib.sha256(said).digest()


# -- checkpoints --------------------------------------------------------------------------------------------


@pytest.fixture
def own(settings: Settings, tmp_path: Path) -> Settings:
    """Keys and checkpoints of the test's own."""
    return settings.model_copy(update={"state_dir": tmp_path / "state", "audit_dir": None})


def lines_of(own: Settings) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in checkpoints.path(own).read_bytes().splitlines()]


def signed(own: Settings, organization: Organization, seq: int, **said: Any) -> bytes:
    """A line as this platform's key signs it."""
    key = signing.current(own)
    said = {
        "organization_id": str(organization.organization_id),
        "seq": seq,
        "hash": "00" * 32,
        "at": "2026-01-01T00:00:00+00:00",
        "key_id": signing.key_id(key.public_key()),
        **said,
    }
    signature = key.sign(orjson.dumps(said, option=orjson.OPT_SORT_KEYS))
    return orjson.dumps({**said, "signature": b64encode(signature).decode()}) + b"\n"


def append(own: Settings, *lines: bytes) -> None:
    path = checkpoints.path(own)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as opened:
        opened.writelines(lines)


def test_a_checkpoint_is_a_signed_line_that_names_the_one_before(
    make_organization: Callable[[], Organization], own: Settings
) -> None:
    first, second = make_organization(), make_organization()
    ids = [first.organization_id, second.organization_id]
    # Who has no trail has no checkpoint.
    assert checkpoints.write([ids[0], uuid4(), ids[1]], own) == 2
    path = own.state_dir / "audit" / "checkpoints.jsonl"
    assert checkpoints.path(own) == path
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    lines = path.read_bytes().splitlines()
    public = signing.current(own).public_key()
    for organization, line, before in zip((first, second), lines, ("0" * 64, None), strict=True):
        said = orjson.loads(line)
        end = links(organization)[-1]
        signature = b64decode(said.pop("signature"))
        public.verify(signature, orjson.dumps(said, option=orjson.OPT_SORT_KEYS))
        assert abs(datetime.fromisoformat(said.pop("at")) - datetime.now(UTC)) < timedelta(minutes=1)
        assert said == {
            "organization_id": str(organization.organization_id),
            "seq": end.seq,
            "hash": end.hash.hex(),
            "key_id": signing.key_id(public),
            "previous": before or hashlib.sha256(lines[0]).hexdigest(),
        }
    found = checkpoints.read(own)
    assert found.problems == {}
    assert found.last == hashlib.sha256(lines[1]).hexdigest()
    assert {each: len(marks) for each, marks in found.marks.items()} == dict.fromkeys(ids, 1)
    assert checkpoints.write(ids, own) == 0
    assert list(checkpoints.lines(ids[1], own)) == [lines[1] + b"\n"]
    assert list(checkpoints.lines(uuid4(), own)) == []


def test_checkpoints_stand_where_the_setting_says(
    organization: Organization, own: Settings, tmp_path: Path
) -> None:
    apart = own.model_copy(update={"audit_dir": tmp_path / "far" / "away"})
    assert checkpoints.write([organization.organization_id], apart) == 1
    assert (tmp_path / "far" / "away" / "checkpoints.jsonl").exists()
    assert not checkpoints.path(own).exists()
    assert checkpoints.read(own).marks == {}
    assert list(checkpoints.lines(organization.organization_id, own)) == []


def test_lines_without_one_before_them_are_believed_at_the_beginning_only(
    organization: Organization, own: Settings
) -> None:
    append(own, signed(own, organization, 1), signed(own, organization, 2))
    assert checkpoints.read(own).problems == {}
    previous = checkpoints.read(own).last
    append(own, signed(own, organization, 3, previous=previous), signed(own, organization, 4))
    assert list(checkpoints.read(own).problems) == [4]


def test_what_is_wrong_with_the_file_is_told_by_line_and_path(organization: Organization, own: Settings) -> None:
    altered = orjson.loads(signed(own, organization, 1))
    # A reader that skips what is not base64 would take it.
    altered["signature"] = altered["signature"][:8] + "!" + altered["signature"][8:]
    append(own, signed(own, organization, 1), orjson.dumps(altered) + b"\n")
    [found] = checkpoints.faults(None, own)
    assert (found.organization_id, found.seq, found.event_id) == (NOBODY, 2, None)
    assert str(checkpoints.path(own)) in found.problem


def test_a_signing_key_that_is_gone_is_a_fault_of_nobodys(organization: Organization, own: Settings) -> None:
    checkpoints.write([organization.organization_id], own)
    (own.keys_dir / signing.KEY_FILE).unlink()
    [found] = checkpoints.faults(None, own)
    assert (found.organization_id, found.seq, found.event_id) == (NOBODY, 0, None)
    assert str(own.keys_dir / signing.KEY_FILE) in found.problem


def test_of_deleted_organizations_those_are_named_whose_trail_was_longer(
    make_organization: Callable[[], Organization], own: Settings
) -> None:
    ids = [make_organization().organization_id for _ in range(3)]
    checkpoints.write(ids, own)
    ends = {each: marks[-1].seq for each, marks in checkpoints.read(own).marks.items()}
    assert list(checkpoints.faults(ids, own)) == []
    assert list(checkpoints.faults([ids[1]], own, deleted={ids[0]: ends[ids[0]], ids[2]: 99})) == []
    [found] = checkpoints.faults([ids[1]], own, deleted={ids[0]: 99, ids[2]: ends[ids[2]] - 1})
    assert (found.organization_id, found.seq, found.event_id) == (ids[2], 1, None)
    assert f"{ends[ids[2]]} events" in found.problem
    assert [each.organization_id for each in checkpoints.faults([], own)] == ids


# -- the key that signs -------------------------------------------------------------------------------------


def test_the_signing_key_is_its_owners_and_named_by_its_hash(own: Settings) -> None:
    assert not signing.is_missing(own)
    key = signing.current(own)
    raw = key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    name = hashlib.sha256(raw).hexdigest()[:16]
    assert signing.key_id(key.public_key()) == name
    assert {each.name for each in own.keys_dir.iterdir()} == {
        "audit-signing.key",
        f"audit-signing.{name}.pub",
    }
    assert {stat.S_IMODE(each.stat().st_mode) for each in own.keys_dir.iterdir()} == {0o600}
    assert stat.S_IMODE(own.keys_dir.stat().st_mode) == 0o700
    kept = serialization.load_pem_private_key((own.keys_dir / "audit-signing.key").read_bytes(), password=None)
    assert kept.public_key() == key.public_key()
    assert f"audit-signing.{name}.pub" in {each.name for each in own.keys_dir.glob("*.pub")}
    public = serialization.load_pem_public_key((own.keys_dir / f"audit-signing.{name}.pub").read_bytes())
    assert public == key.public_key()
    assert signing.current(own).private_bytes_raw() == key.private_bytes_raw()
    assert set(signing.known(own)) == {name}


def test_a_new_signing_key_takes_the_place_of_the_former_which_stays_known(own: Settings) -> None:
    assert signing.known(own) == {}
    former = signing.key_id(signing.current(own).public_key())
    # Its public key was not written yet, say.
    (own.keys_dir / f"audit-signing.{former}.pub").unlink()
    assert set(signing.known(own)) == {former}
    (own.keys_dir / f"audit-signing.{former}.pub").unlink(missing_ok=True)
    new = signing.replace(own)
    assert signing.key_id(signing.current(own).public_key()) == new != former
    assert set(signing.known(own)) == {former, new}
    (own.keys_dir / signing.KEY_FILE).unlink()
    assert signing.is_missing(own)
    with pytest.raises(ConfigurationError, match="is gone") as refused:
        signing.current(own)
    assert refused.value.facts["field"] == signing.KEY_FILE
    assert signing.replace(own) not in (former, new)
    assert len(signing.known(own)) == 3
    assert not signing.is_missing(own)


def test_a_key_of_another_kind_does_not_sign(own: Settings) -> None:
    own.keys_dir.mkdir(parents=True)
    other = ec.generate_private_key(ec.SECP256R1())
    (own.keys_dir / signing.KEY_FILE).write_bytes(
        other.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    with pytest.raises(ConfigurationError, match="no Ed25519 key"):
        signing.current(own)
    (own.keys_dir / signing.KEY_FILE).unlink()
    (own.keys_dir / "audit-signing.0.pub").write_bytes(
        other.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    assert signing.known(own) == {}


def test_who_comes_second_signs_with_the_first_ones_key(own: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = own.model_copy(update={"state_dir": own.state_dir.with_name("other")})
    theirs = signing.current(elsewhere)
    real = os.link

    def late(source: Path, target: Path) -> None:
        if target.name == signing.KEY_FILE and not target.exists():
            target.write_bytes((elsewhere.keys_dir / signing.KEY_FILE).read_bytes())
        real(source, target)

    monkeypatch.setattr(os, "link", late)
    assert signing.current(own).private_bytes_raw() == theirs.private_bytes_raw()
    assert not [each for each in own.keys_dir.iterdir() if each.name.startswith(".")]
