"""An organization that is deleted is exported first, gone completely, and its neighbours do not notice."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import psycopg
import pytest
from click.testing import CliRunner
from database.test_isolation import fill
from psycopg import sql

from continuitybridge import database, deployments, lifecycle, organizations
from continuitybridge.cli import bridge
from continuitybridge.connections import verbs as connections
from continuitybridge.database import connections as connections_of
from continuitybridge.database import urls
from continuitybridge.database.embedded import EmbeddedPostgres
from continuitybridge.errors import Conflict, NotFound, Unavailable
from continuitybridge.inbox.objects import open_store
from continuitybridge.settings import get_settings

from .conftest import Deployed, SignIn

SECRET = "a-password-of-a-destination"
Rows = Callable[[UUID], dict[str, str]]
LARGE = b'{"order": "' + b"x" * 5_000 + b'"}'


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The payload store and the directory of exports; what is above 1,000 bytes goes to the store."""
    monkeypatch.setenv("BRIDGE_PAYLOAD_OFFLOAD_BYTES", "1000")
    monkeypatch.setenv("BRIDGE_PAYLOAD_STORE_URL", f"file://{tmp_path / 'store'}")
    monkeypatch.setenv("BRIDGE_EXPORT_DIR", str(tmp_path / "exports"))
    get_settings.cache_clear()
    yield tmp_path / "store"
    monkeypatch.undo()
    get_settings.cache_clear()


OF_PEOPLE = ("people", "recovery_codes", "sign_in_tokens", "identities")
"""Tables of what is a person's, whatever organizations he belongs to."""


def command(*arguments: str, status: int = 0) -> str:
    done = CliRunner().invoke(bridge, list(arguments))
    assert done.exit_code == status, done.output
    return done.output


@pytest.fixture
def rows(postgres: EmbeddedPostgres) -> Callable[[UUID], dict[str, str]]:
    """What each table with an `organization_id` holds of an organization, by the database's own catalogue and past
    row-level security: a digest, or nothing for an empty one."""

    def rows(organization_id: UUID) -> dict[str, str]:
        found = {}
        with psycopg.connect(**{**urls.parse(postgres.admin_url), "dbname": "continuitybridge"}) as connection:
            tables = connection.execute(
                "SELECT c.table_name FROM information_schema.columns c"
                " JOIN pg_class t ON t.relname = c.table_name AND t.relnamespace = 'bridge'::regnamespace"
                " WHERE c.table_schema = 'bridge' AND c.column_name = 'organization_id' AND NOT t.relispartition"
            ).fetchall()
            for (table,) in tables:
                query = sql.SQL(
                    "SELECT coalesce(md5(string_agg(t::text, '' ORDER BY t::text)), '') FROM bridge.{} t"
                    " WHERE organization_id = %s"
                ).format(sql.Identifier(table))
                [(found[table],)] = connection.execute(query, (organization_id,)).fetchall()
        return found

    return rows


@pytest.fixture
def impatient(postgres: EmbeddedPostgres) -> Iterator[Callable[[str], None]]:
    """Makes the application role's timeout of that name a second; the next call, and the end of the test, give it
    back."""
    changed: list[str] = []

    def set_to(setting: str, value: str) -> None:
        with psycopg.connect(postgres.admin_url, autocommit=True) as connection:
            connection.execute(f"ALTER ROLE bridge_app SET {setting} = '{value}'")
        connections_of.close_pools()

    def impatient(setting: str) -> None:
        if setting in changed:
            changed.remove(setting)
            set_to(setting, "60s")
        else:
            changed.append(setting)
            set_to(setting, "1s")

    yield impatient
    for each in changed:
        set_to(each, "60s")


def whole(deployed: Callable[[], Deployed], stranger: httpx.Client) -> Deployed:
    """An organization with something in every table and in the payload store."""
    made = deployed()
    owner = made.organization.organization_id
    fill(made.organization)
    settings = {"base_url": "https://wms.example", "auth": {"type": "bearer", "token": SECRET}}
    connections.put(owner, "dev", "warehouse", settings, "test")
    made.send(stranger, b'{"order": "small"}')
    made.send(stranger, LARGE)
    return made


def archive(file: Path) -> tuple[dict[str, Any], zipfile.ZipFile]:
    opened = zipfile.ZipFile(file)
    return json.loads(opened.read("manifest.json")), opened


def test_everything_of_it_goes_and_nothing_of_its_neighbour(
    deployed: Callable[[], Deployed],
    stranger: httpx.Client,
    sign_in: SignIn,
    store: Path,
    tmp_path: Path,
    rows: Rows,
) -> None:
    mine, other = whole(deployed, stranger), whole(deployed, stranger)
    owner, slug = mine.organization.organization_id, mine.organization.slug
    member, boss = sign_in({mine.organization: "customer_admin"}), sign_in(superadmin=True)
    command("audit", "checkpoint")
    before = rows(other.organization.organization_id)
    assert {table for table, digest in rows(owner).items() if not digest} == {"deletions", *OF_PEOPLE}
    assert any((store / str(owner)).rglob("*"))

    place = f"/bridge/organizations/{slug}/deletion"
    refused = boss.post(place, json={"confirm": "another", "export": True})
    assert (refused.status_code, refused.json()["field"]) == (422, "confirm")
    asked = boss.post(place, json={"confirm": slug, "export": True})
    assert (asked.status_code, asked.json()["finished_at"]) == (202, None)
    # Gone for its members at once; nothing is accepted; the neighbour goes on.
    assert member.get(f"/bridge/organizations/{slug}").status_code == 404
    assert member.get(f"/bridge/flows?organization={slug}").status_code == 404
    assert boss.client.put(f"/bridge/organizations/{slug}/tier", json={"tier": "free"}).status_code == 409
    assert boss.post(f"/bridge/organizations/{slug}/resume").status_code == 409
    deadline = time.monotonic() + 10
    while True:
        hook = f"/bridge/hooks/{slug}/dev/orders"
        if stranger.post(hook, content=b"{}", headers={"x-api-key": mine.secret}).status_code in (404, 410):
            break
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert [each.status for each in deployments.list_since() if each.organization_id == owner][:1] == ["removed"]

    assert lifecycle.continue_deletions() == 1
    assert {table for table, digest in rows(owner).items() if digest} == {"deletions"}
    assert not any((store / str(owner)).rglob("*"))
    assert rows(other.organization.organization_id) == before
    other.send(stranger)
    assert (slug in str(boss.get("/bridge/deletions").json()), member.get("/bridge/deletions").status_code) == (
        True,
        403,
    )
    with pytest.raises(NotFound):
        organizations.by_slug(slug)
    with pytest.raises(Conflict, match="was deleted"):
        organizations.create(slug, "Another")
    assert deployments.gone_since(0)[-1][0] == slug

    done = lifecycle.deletion(slug)
    assert done.export_file is not None
    file = Path(done.export_file)
    assert hashlib.sha256(file.read_bytes()).hexdigest() == done.export_sha256
    assert (file.stat().st_mode & 0o777, file.parent) == (0o600, tmp_path / "exports")
    # The trail of one that was deleted is not missed, and its number of events is known.
    verified = CliRunner().invoke(bridge, ["audit", "verify", "--json"])
    text = verified.output
    assert f"organization {owner} is gone" not in text
    assert f'"slug": "{slug}"' in text


def test_the_archive_has_the_payloads_in_the_clear_and_no_credential(
    deployed: Callable[[], Deployed], stranger: httpx.Client, sign_in: SignIn, tmp_path: Path
) -> None:
    mine = whole(deployed, stranger)
    member = sign_in({mine.organization: "customer_admin"})
    key = member.post("/bridge/api-keys", json={"name": "program"}).json()["key"]
    token = member.post(
        f"/bridge/organizations/{mine.organization.slug}/invitations", json={"email": "bert@acme.example"}
    ).json()["token"]
    printed = command("organization", "export", mine.organization.slug, "--output", str(tmp_path))
    file = Path(printed.partition(" ")[0])
    manifest, opened = archive(file)
    assert set(opened.namelist()) == {*manifest["members"], "manifest.json"}
    for name, member_of in manifest["members"].items():
        content = opened.read(name)
        assert (hashlib.sha256(content).hexdigest(), len(content)) == (member_of["sha256"], member_of["bytes"])
    messages = [json.loads(line) for line in opened.read("tables/messages.jsonl").splitlines()]
    assert len(messages) == manifest["tables"]["messages"]["rows"] == 3
    bodies = {each["payload"].get("text") for each in messages}
    assert {'{"order": "small"}', LARGE.decode()} <= bodies
    # What the test put there is no ciphertext: it is named, and keeps nobody from the rest.
    assert manifest["tables"]["messages"]["unreadable"] == ["m"]
    assert manifest["tables"]["connections"]["left_out"] == ["ciphertext"]
    assert b"orders" in opened.read("flows/orders/1.0.0/orders.flow.yaml")
    trail = opened.read("audit/trail.jsonl").decode()
    assert member.name in trail
    assert "organization.exported" in trail
    everything = b"".join(opened.read(name) for name in opened.namelist())
    for secret in (SECRET, key, token, mine.secret):
        assert secret.encode() not in everything
        assert hashlib.sha256(secret.encode()).hexdigest().encode() not in everything
    assert "data_keys" not in manifest["tables"]


def test_whoever_is_killed_in_the_middle_is_followed_by_another(
    deployed: Callable[[], Deployed], stranger: httpx.Client, tmp_path: Path, rows: Rows
) -> None:
    mine = whole(deployed, stranger)
    owner, slug = mine.organization.organization_id, mine.organization.slug
    with psycopg.connect(database.owner_url()) as connection:
        connection.execute("ALTER TABLE bridge.failures NO FORCE ROW LEVEL SECURITY")
        connection.execute(
            "INSERT INTO bridge.failures (organization_id, failure_id, message_id, child_id, environment, flow,"
            " version, code, verdict, final, attempt) SELECT %s, gen_random_uuid(), 'm', 'm', 'dev', 'f', '1',"
            " 'c', 'terminal', false, 1 FROM generate_series(1, 20000)",
            (owner,),
        )
        connection.execute("ALTER TABLE bridge.failures FORCE ROW LEVEL SECURITY")
    arguments = ["organization", "delete", slug, "--export", "--output", str(tmp_path), "--confirm", slug]
    process = subprocess.Popen(
        [sys.executable, "-m", "continuitybridge.cli", *arguments], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("failures:"):
            os.kill(process.pid, signal.SIGKILL)
            break
    assert process.wait(30) == -signal.SIGKILL
    process.stderr.close()
    half = lifecycle.deletion(slug)
    assert (half.finished_at, half.export_sha256 is not None) == (None, True)
    assert rows(owner)["failures"]
    with pytest.raises(NotFound):
        lifecycle.work("another")
    again = command(*arguments)
    assert f"{slug} is deleted" in again
    assert {table for table, digest in rows(owner).items() if digest} == {"deletions"}
    done = lifecycle.deletion(slug)
    # The archive that was complete is not written again.
    assert (done.export_sha256, done.requested_at) == (half.export_sha256, half.requested_at)
    assert [file.name for file in tmp_path.glob("*.zip*")] == [Path(str(done.export_file)).name]
    assert again.endswith(command(*arguments))


def test_a_deletion_needs_its_word_and_its_export(
    deployed: Callable[[], Deployed], tmp_path: Path, rows: Rows
) -> None:
    mine = deployed()
    slug = mine.organization.slug
    command("organization", "delete", slug, "--confirm", slug, status=2)
    command("organization", "delete", slug, "--no-export", "--confirm", "no", status=2)
    command("organization", "delete", "nobody", "--no-export", "--confirm", "nobody", status=2)
    assert organizations.by_slug(slug).status == "active"
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    arguments = ["organization", "delete", slug, "--export", "--confirm", slug]
    assert "cannot be written" in command(*arguments, "--output", str(blocked / "x"), status=2)
    assert rows(mine.organization.organization_id)["flow_versions"]
    with psycopg.connect(connections_of.role_url("platform")) as connection:
        other = organizations.by_slug(deployed().organization.slug)
        with pytest.raises(psycopg.errors.InvalidParameterValue, match="not being deleted"):
            connection.execute("SELECT bridge.remove_rows(%s, 'messages', 10)", (other.organization_id,))
    command(*arguments)
    assert command("organization", "deletions").count(slug) >= 1


def test_an_export_of_payloads_that_come_slowly_comes_to_its_end(
    deployed: Callable[[], Deployed],
    stranger: httpx.Client,
    store: Path,
    tmp_path: Path,
    impatient: Callable[[str], None],
) -> None:
    """The store's object is a pipe, whose writer takes longer than a transaction may lie idle."""
    mine = deployed()
    mine.send(stranger, LARGE)
    [stored] = [each for each in store.rglob("*") if each.is_file()]
    content = stored.read_bytes()
    stored.unlink()
    os.mkfifo(stored)

    def feed() -> None:
        with stored.open("wb") as pipe:
            time.sleep(2.0)
            pipe.write(content)

    feeding = threading.Thread(target=feed, daemon=True)
    feeding.start()
    impatient("idle_in_transaction_session_timeout")
    printed = command("organization", "export", mine.organization.slug, "--output", str(tmp_path))
    feeding.join(10)
    manifest, opened = archive(Path(printed.partition(" ")[0]))
    assert manifest["tables"]["messages"]["unreadable"] == []
    assert json.loads(opened.read("tables/messages.jsonl"))["payload"]["text"] == LARGE.decode()


def test_a_person_whose_key_was_altered_keeps_nobody_from_deleting(
    deployed: Callable[[], Deployed], sign_in: SignIn, rows: Rows
) -> None:
    mine = deployed()
    owner, slug = mine.organization.organization_id, mine.organization.slug
    boss = sign_in(superadmin=True)
    assert boss.post(f"/bridge/organizations/{slug}/suspend", json={"reason": "unpaid"}).status_code == 200
    with psycopg.connect(database.owner_url()) as connection:
        connection.execute("ALTER TABLE bridge.audit_subjects NO FORCE ROW LEVEL SECURITY")
        # The one's key, and with the other's the version of the key that it is under.
        connection.execute(
            "UPDATE bridge.audit_subjects SET sealed_key = set_byte(sealed_key, 4 + 16 * (n %% 2)::int, 9)"
            " FROM (SELECT subject_id AS id, row_number() OVER () AS n FROM bridge.audit_subjects"
            "       WHERE organization_id = %s) AS s WHERE subject_id = id",
            (owner,),
        )
        connection.execute("ALTER TABLE bridge.audit_subjects FORCE ROW LEVEL SECURITY")
    asked = boss.post(f"/bridge/organizations/{slug}/deletion", json={"confirm": slug, "export": True})
    assert asked.status_code == 202, asked.text
    assert lifecycle.continue_deletions() == 1
    assert {table for table, digest in rows(owner).items() if digest} == {"deletions"}
    _, opened = archive(Path(str(lifecycle.deletion(slug).export_file)))
    trail = [json.loads(line) for line in opened.read("audit/trail.jsonl").splitlines()]
    assert "organization.suspended" in {each["action"] for each in trail}
    assert "(altered)" in {each["actor"] for each in trail}


def test_the_trail_tells_of_the_deletion_when_its_request_was_killed(
    deployed: Callable[[], Deployed], impatient: Callable[[str], None]
) -> None:
    """Between the commits of the request and of its event: the trail is locked until the request is given up."""
    mine = deployed()
    owner, slug = mine.organization.organization_id, mine.organization.slug
    impatient("statement_timeout")
    with psycopg.connect(database.owner_url()) as other:
        other.execute("LOCK TABLE bridge.audit_events IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(Unavailable):
            lifecycle.request_deletion(slug, confirm=slug, with_export=True, by="cli (anna)")
    impatient("statement_timeout")
    assert lifecycle.continue_deletions() == 1
    done = lifecycle.deletion(slug)
    _, opened = archive(Path(str(done.export_file)))
    trail = [json.loads(line) for line in opened.read("audit/trail.jsonl").splitlines()]
    [told] = [each for each in trail if each["action"] == "organization.deletion_requested"]
    assert (told["actor"], told["target"], done.organization_id) == ("cli (anna)", slug, owner)


def test_an_object_that_was_on_its_way_while_its_organization_was_deleted_goes_an_hour_later(
    deployed: Callable[[], Deployed], store: Path
) -> None:
    made = deployed()
    owner, slug = made.organization.organization_id, made.organization.slug
    lifecycle.request_deletion(slug, confirm=slug, with_export=False, by="test")
    lifecycle.work(slug)
    open_store().put(f"{owner}/2026/01/01/late", b"ciphertext")
    open_store().put(f"{uuid4()}/2026/01/01/anothers", b"ciphertext")
    lifecycle.continue_deletions()
    assert (store / str(owner) / "2026/01/01/late").exists()
    with database.platform() as connection:
        connection.execute(
            "UPDATE bridge.deletions SET finished_at = finished_at - interval '2 hours'"
            " WHERE organization_id = %s",
            (owner,),
        )
    lifecycle.continue_deletions()
    assert not (store / str(owner)).exists()
    assert len([each for each in store.rglob("*") if each.is_file()]) == 1
    with database.platform() as connection:
        [(swept,)] = connection.execute(
            "SELECT swept_at IS NOT NULL FROM bridge.deletions WHERE organization_id = %s", (owner,)
        ).fetchall()
    assert swept
