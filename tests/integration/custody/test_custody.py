"""Every encrypted column: that all opens is proved, all comes to a new key while everything runs and is killed at
it, and a key goes when nothing needs it."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from click.testing import CliRunner, Result
from waits_world import World

from continuitybridge import audit, connections, custody, database, deployments, mail, secrets
from continuitybridge.audit import reading
from continuitybridge.cli import bridge
from continuitybridge.custody.registry import COLUMNS
from continuitybridge.custody.walking import acting_as
from continuitybridge.database import connections as connections_of
from continuitybridge.database.embedded import EmbeddedPostgres
from continuitybridge.flows.load import load_flow
from continuitybridge.inbox import replay
from continuitybridge.inbox.accept import Acceptance, accept
from continuitybridge.inbox.payloads import PAYLOAD
from continuitybridge.inbox.status import status
from continuitybridge.organizations import Organization
from continuitybridge.settings import get_settings
from continuitybridge.tokens import connect, store
from continuitybridge.vault import rotation
from continuitybridge.vault.columns import EncryptedColumn
from continuitybridge.vault.keyring import Keyring

LARGE = "x" * 3_000
PLATFORMS_OWN = {"people"}
"""Tables whose rows belong to no organization."""
LETTER = mail.Letter(kind="trial", to="bert@shop.example", subject="x", paragraphs=("y",))
BREAKS_B = '{id: apart, type: jq, config: {program: \'if .sku == "B" then error("b") end\'}, isolate: true}'


@pytest.fixture(autouse=True)
def payload_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The payload store of this test; what is above 1,000 bytes goes there."""
    monkeypatch.setenv("BRIDGE_PAYLOAD_OFFLOAD_BYTES", "1000")
    monkeypatch.setenv("BRIDGE_PAYLOAD_STORE_URL", f"file://{tmp_path / 'store'}")
    get_settings.cache_clear()
    yield tmp_path / "store"
    monkeypatch.undo()
    get_settings.cache_clear()


def accepted(world: World, flow: str, body: bytes, **given: Any) -> str:
    """A message with headers; an idempotency key and somebody who waits, where given."""
    message = Acceptance(
        *(world.organization_id, "prod", flow, "1.0.0", "webhook", body, "application/json"),
        headers={"x-request-id": "r"},
        **given,
    )
    return accept(message, world.keyring).message_id


@pytest.fixture
def world(organization: Organization, keyring: Keyring) -> World:
    """Something in every encrypted column."""
    world = World(organization, keyring)
    o = organization.organization_id
    connections.put(o, "prod", "erp", {"base_url": "https://erp.example/", "auth": {"type": "none"}}, "anna")
    secrets.put(o, "prod", "pin", "custom", {"pin": "1234"}, "anna")
    hooked = json.dumps(
        {
            "flow": "hooked",
            "version": "1.0.0",
            "triggers": [
                {"id": "in", "type": "webhook_trigger", "config": {"slug": "in", "verification": "api_key"}}
            ],
            "steps": [{"id": "note", "type": "logger", "config": {"message": "x"}}],
        }
    )
    deployments.deploy(o, "prod", load_flow(hooked), "anna")
    with database.tenant(o) as connection:
        audit.record(connection, o, "member.added", "", about="bert", by="anna", keys=keyring)
        mail.put(connection, o, LETTER, keyring=keyring)
        connection.execute(
            "INSERT INTO bridge.tokens (organization_id, environment, connection, ciphertext, grant_fingerprint)"
            " VALUES (%s, 'prod', 'erp', %s, %s)",
            (o, keyring.encrypt(o, store.PURPOSE, "prod/erp/0", b"{}"), keyring.fingerprint(o, b"x")),
        )
        connect_id = uuid4()
        connection.execute(
            "INSERT INTO bridge.token_connects (organization_id, connect_id, environment, connection, revision,"
            " user_name, ciphertext, expires_at) VALUES (%s, %s, 'prod', 'erp', 1, 'anna', %s, now())",
            (o, connect_id, keyring.encrypt(o, connect.PURPOSE, str(connect_id), b"verifier")),
        )
    world.deploy("done")
    world.deploy(
        "parts", "{id: lines, type: split, config: {items: .lines}}", BREAKS_B, "{id: gather, type: aggregate}"
    )
    world.deploy(
        "bulk",
        "{id: bulk, type: aggregate, config: {key: .c, size: 2, timeout_s: 3600, result: 'map(.n)'}}",
        "{id: ask, type: approval, config: {title: 'Order'}, next: {approved: end, rejected: end}}",
    )
    soon = datetime.now(UTC) + timedelta(seconds=60)
    accepted(world, "done", b'{"n": 1}', endpoint="done", idempotency_key="k", reply_until=soon)
    accepted(world, "done", json.dumps({"n": LARGE}).encode())
    accepted(world, "done", b"no json", reply_until=soon)
    accepted(world, "parts", json.dumps({"lines": [{"sku": each, "x": LARGE} for each in "ABC"]}).encode())
    for _ in range(2):
        accepted(world, "bulk", json.dumps({"c": 1, "n": LARGE}).encode())
    world.work()
    return world


def opened(world: World, keys: Any = None, **given: Any) -> dict[tuple[str, str], custody.Verified]:
    found = custody.verify(world.organization_id, keys or Keyring.open(), objects="all", **given)
    return {(each.table, each.column): each for each in found}


def run(*arguments: str, status: int = 0) -> Result:
    done = CliRunner().invoke(bridge, ["vault", *arguments])
    assert done.exit_code == status, done.output
    return done


def slug_of(world: World) -> str:
    with database.platform() as connection:
        [(slug,)] = connection.execute(
            "SELECT slug FROM bridge.organizations WHERE organization_id = %s", (world.organization_id,)
        )
    return str(slug)


def test_every_column_has_something_that_opens_and_nothing_is_broken(world: World) -> None:
    found = opened(world)
    assert {place for place, each in found.items() if not each.opened and place[0] not in PLATFORMS_OWN} == set()
    assert {place for place, each in found.items() if each.broken} == set()
    assert {place for place, each in found.items() if each.objects} >= {
        ("settled_messages", "payload"),
        ("messages", "payload"),
        ("hand_overs", "payload"),
    }
    said = json.loads(run("verify", "-o", slug_of(world), "--json").output)
    assert said["data_keys"] == []
    assert sum(each["opened"] for each in said["organizations"][slug_of(world)]) > 30


def as_owner(query: str, *parameters: Any, table: str) -> None:
    with psycopg.connect(database.owner_url()) as connection:
        connection.execute(f"ALTER TABLE bridge.{table} NO FORCE ROW LEVEL SECURITY")
        connection.execute(query, parameters)
        connection.execute(f"ALTER TABLE bridge.{table} FORCE ROW LEVEL SECURITY")


@pytest.mark.parametrize(
    "column",
    [each for each in COLUMNS if each.column != "details" and each.table not in PLATFORMS_OWN],
    ids=lambda each: f"{each.table}.{each.column}",
)
def test_a_row_that_was_altered_is_found_in_whatever_column_it_is(world: World, column: Any) -> None:
    """As somebody does who can write the tables as their owner."""
    where = f"organization_id = %s AND {column.column} IS NOT NULL AND {getattr(column, 'keyed', 'true')}"
    # What follows the key's version; of a hash, the version itself.
    at = 0 if "fingerprint" in column.column or column.column.endswith("_hash") else 12
    as_owner(
        f"UPDATE bridge.{column.table} SET {column.column} ="
        f" set_byte({column.column}, {at}, get_byte({column.column}, {at}) # 1) WHERE {where}",
        world.organization_id,
        table=column.table,
    )
    [place] = [(each.table, each.column) for each in COLUMNS if each is column]
    found = opened(world, columns=[column])[place]
    assert (found.opened, found.broken > 0) == (0, True)
    assert found.first is not None
    assert column.key[0] in found.first.key


def test_what_is_broken_is_named_by_table_and_key_and_the_exit_status_says_so(
    world: World, payload_store: Path
) -> None:
    o = world.organization_id
    with database.tenant(o) as connection:
        connection.execute("UPDATE bridge.connections SET revision = revision + 1")
    victim = next(path for path in sorted((payload_store / str(o)).rglob("*")) if path.is_file())
    victim.write_bytes(victim.read_bytes()[:-1] + b"x")
    done = run("verify", "-o", slug_of(world), "--objects", "all", status=1)
    assert "connections.ciphertext environment=prod, name=erp" in done.stderr
    assert "payload store holds something else" in done.stderr
    assert "payload store" not in run("verify", "-o", slug_of(world), "--objects", "none", status=1).stderr


def versions_of(world: World) -> dict[tuple[str, str], set[int]]:
    """The key versions that each column names."""
    found: dict[tuple[str, str], set[int]] = {}
    for column in COLUMNS:
        if isinstance(column, EncryptedColumn) and column.stale() != "false" and column.table not in PLATFORMS_OWN:
            at = column.stale().partition(" <>")[0].replace("{c}", column.column)
            with acting_as(column.reader, world.organization_id) as connection:
                rows = connection.execute(
                    f"SELECT DISTINCT {at} FROM bridge.{column.table}"
                    f" WHERE {column.column} IS NOT NULL AND organization_id = %s",
                    (world.organization_id,),
                ).fetchall()
            found[column.table, column.column] = {int.from_bytes(row[0], "big") for row in rows}
    return found


def test_everything_comes_to_the_new_key_and_the_old_one_goes_when_nothing_needs_it(world: World) -> None:
    o, slug = world.organization_id, slug_of(world)
    before = {each.message_id: each.state for each in [status(o, m) for m in messages(world)]}
    rotation.rotate_data_key(o, by="anna")
    done = run("retire-keys", "-o", slug, status=1)
    assert "version 1 is kept: followed at" in done.stderr
    kept = custody.retire(o, by="anna", after_s=0).kept
    assert "secret_versions.ciphertext" in kept[1]
    assert "version 2" in run("reencrypt", "-o", slug).output
    assert set(map(frozenset, versions_of(world).values())) == {frozenset({2})}
    assert not any(each.broken for each in opened(world).values())
    # Hashes of what came end by themselves: the key is kept for them.
    kept = custody.retire(o, by="anna", after_s=0).kept
    assert "idempotency_keys.body_hash" in kept[1]
    assert "payload" not in kept[1]
    with database.relay() as connection:
        connection.execute("DELETE FROM bridge.idempotency_keys WHERE organization_id = %s", (o,))
        connection.execute("DELETE FROM bridge.wait_groups WHERE organization_id = %s", (o,))
    with database.tenant(o) as connection:
        connection.execute("DELETE FROM bridge.tokens")
    assert "messages.payload" in retired_while_a_row_is_copied(world).kept[1]
    assert custody.retire(o, by="anna", after_s=0) == custody.Retired((1,), {})
    Keyring.open().forget()
    assert not any(each.broken for each in opened(world).values())
    assert [each.version for each in rotation.check() if each.organization == slug] == [2]
    assert {each.message_id: each.state for each in [status(o, m) for m in messages(world)]} == before
    # People are found in the trail by their names as before.
    with database.tenant(o) as connection:
        ids = audit.recording.subjects.ids_of_name(connection, o, "anna", Keyring.open())
    assert len(ids) == 2
    actions = [each.action for each in reading.search(o, reading.Filter(actor="anna"), keys=Keyring.open())]
    assert {"data_key.retired", "data_key.rotated", "secret.created"} <= set(actions)
    # A message that was brought to the new key is replayed.
    dead = next(m for m, state in before.items() if state == "dead")
    replay.replay(o, dead, by="anna")


def retired_while_a_row_is_copied(world: World) -> custody.Retired:
    """Retire the keys; once the messages were looked at, one of them is under the first key again."""
    o = world.organization_id
    first = Keyring.open().export(o).without(o, 2)
    change = "UPDATE bridge.messages SET payload = %s WHERE organization_id = %s AND message_id = %s"
    with database.relay() as connection:
        message_id, payload = connection.execute(
            "SELECT message_id, payload FROM bridge.messages WHERE organization_id = %s LIMIT 1", (o,)
        ).fetchall()[0]
    with ThreadPoolExecutor(1) as side:
        with psycopg.connect(database.owner_url()) as connection:
            connection.execute("LOCK TABLE bridge.replies IN ACCESS EXCLUSIVE MODE")
            retiring = side.submit(custody.retire, o, by="anna", after_s=0)
            waits = "SELECT FROM pg_locks WHERE relation = 'bridge.replies'::regclass AND NOT granted"
            while not connection.execute(waits).fetchall():
                assert not retiring.done()
                time.sleep(0.02)
            as_owner(change, first.encrypt(o, PAYLOAD, message_id, b"{}"), o, message_id, table="messages")
        retired = retiring.result(60)
    as_owner(change, payload, o, message_id, table="messages")
    return retired


def messages(world: World) -> list[str]:
    with database.tenant(world.organization_id) as connection:
        rows = connection.execute(
            "SELECT message_id FROM bridge.messages UNION SELECT message_id FROM bridge.settled_messages"
        )
        return [row[0] for row in rows]


def test_killed_again_and_again_under_load_it_comes_to_its_end(
    make_organization: Callable[[], Organization], keyring: Keyring
) -> None:
    world = World(make_organization(), keyring)
    world.deploy("done")
    for _ in range(400):
        accepted(world, "done", b'{"n": 1}')
    rotation.rotate_data_key(world.organization_id, by="anna")
    ending, failed = threading.Event(), []

    def work() -> None:
        while not ending.is_set():
            try:
                accepted(world, "done", b'{"n": 2}')
                world.settle(world.claim(), together=20)
            except Exception as error:
                failed.append(error)

    worker = threading.Thread(target=work)
    worker.start()
    command = [sys.executable, "-m", "continuitybridge.cli", "vault", "reencrypt", "-o", slug_of(world)]
    try:
        for kill_after_s in (0.5, 0.6, 0.7):
            running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            time.sleep(kill_after_s)
            running.kill()
            running.wait()
        subprocess.run(command, check=False, stdout=subprocess.DEVNULL, timeout=120)
    finally:
        ending.set()
        worker.join()
    assert failed == []
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=120)
    assert {version for found in versions_of(world).values() for version in found} == {2}
    assert not any(each.broken for each in opened(world).values())
    world.work()
    assert {status(world.organization_id, each).state for each in messages(world)} == {"done"}


def test_reencrypting_takes_the_time_it_needs_and_reads_no_payload_that_is_done(
    world: World, postgres: EmbeddedPostgres
) -> None:
    """A statement that finds few rows among many takes longer than those that serve somebody who waits."""
    with psycopg.connect(postgres.admin_url, autocommit=True) as connection:
        connection.execute("ALTER ROLE bridge_app SET statement_timeout = '1s'")
    connections_of.close_pools()
    rotation.rotate_data_key(world.organization_id, by="anna")
    try:
        with psycopg.connect(database.owner_url()) as other:
            other.execute("LOCK TABLE bridge.failures, bridge.waits IN ACCESS EXCLUSIVE MODE")
            ending = threading.Timer(2.5, other.rollback)
            ending.start()
            done = run("reencrypt", "-o", slug_of(world))
            ending.join()
        assert "version 2" in done.output
        assert set(map(frozenset, versions_of(world).values())) == {frozenset({2})}
    finally:
        with psycopg.connect(postgres.admin_url, autocommit=True) as connection:
            connection.execute("ALTER ROLE bridge_app SET statement_timeout = '60s'")
        connections_of.close_pools()
    as_owner(
        "UPDATE bridge.messages SET payload = payload || (SELECT string_agg(uuid_send(gen_random_uuid()), '')"
        " FROM generate_series(1, 60000)) WHERE organization_id = %s",
        world.organization_id,
        table="messages",
    )
    [column] = [each for each in COLUMNS if (each.table, each.column) == ("messages", "payload")]
    assert isinstance(column, EncryptedColumn)
    stale = column.stale().replace("{c}", "payload")
    with acting_as(column.reader, world.organization_id) as connection:
        [(told,)] = connection.execute(
            "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) SELECT count(*) FROM bridge.messages"
            f" WHERE organization_id = %(organization)s AND {stale}",
            {"organization": world.organization_id, "version": (2).to_bytes(4, "big")},
        ).fetchall()
    # Of nearly a megabyte in each row the first bytes tell.
    assert told[0]["Plan"]["Shared Hit Blocks"] + told[0]["Plan"]["Shared Read Blocks"] < 100
