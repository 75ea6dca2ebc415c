"""Row-level security seen from outside: connections of the product's roles that try what they must not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import sql

from continuitybridge import database
from continuitybridge.database import aio
from continuitybridge.database.connections import read_env, role_url
from continuitybridge.errors import NotFound
from continuitybridge.inbox import reconcile, retention, triage
from continuitybridge.inbox.accept import Acceptance, accept
from continuitybridge.inbox.replay import replay
from continuitybridge.inbox.status import status
from continuitybridge.organizations import Organization, add_member, memberships
from continuitybridge.settings import Settings
from continuitybridge.vault.keyring import Keyring

TENANT_TABLES = (
    "environments",
    "memberships",
    "flow_versions",
    "deployments",
    "deployment_history",
    "endpoints",
    "endpoint_secrets",
    "connections",
    "secrets",
    "secret_versions",
    "batches",
    "messages",
    "hand_overs",
    "failures",
    "settled_messages",
    "idempotency_keys",
    "refusals",
    "destinations",
    "flow_holds",
    "replies",
    "payload_objects",
    "replay_jobs",
    "waits",
    "wait_groups",
    "wait_parts",
    "audit_subjects",
    "audit_chains",
    "audit_events",
    "api_keys",
    "guard_blocks",
    "guard_policies",
    "organization_limits",
    "quota_windows",
    "storage_use",
    "invitations",
    "mails",
    "tokens",
    "token_connects",
    "visits",
    "ecosystems",
    "systems",
)
PLATFORM_TABLES = {
    *("environments", "memberships", "audit_subjects", "api_keys", "organization_limits", "quota_windows"),
    "storage_use",
    *("guard_blocks", "guard_policies", "invitations", "mails"),
}
"""What the platform role reads, beside organizations and data keys."""
PERSONS_TABLES = ("people", "recovery_codes", "sign_in_tokens", "identities")
"""What is a person's and no organization's: the platform role's alone."""


@pytest.fixture
def app() -> Iterator[psycopg.Connection[Any]]:
    """A connection of the application role of our own, beside the pool."""
    with psycopg.connect(role_url("app"), autocommit=True) as connection:
        yield connection


def fill(organization: Organization) -> None:
    """One row in every table, written by the owner with row-level security set aside."""
    o = organization.organization_id
    hand_over_id = uuid4()
    rows: dict[str, dict[str, Any]] = {
        "memberships": {"user_name": "anna", "role": "customer_user"},
        "flow_versions": {
            "flow": "f", "version": "1", "digest": "d", "source": "", "plan": "{}", "created_by": "t",
        },
        "deployments": {"environment": "prod", "flow": "f", "version": "1", "deployed_by": "t"},
        "deployment_history": {
            "revision": 0, "environment": "prod", "flow": "f", "version": "1", "action": "deploy", "by": "t",
        },
        "endpoints": {
            "environment": "prod", "slug": "s", "flow": "f", "trigger_id": "t", "verification": "api_key",
        },
        "endpoint_secrets": {"environment": "prod", "slug": "s", "secret_id": uuid4(), "ciphertext": b"x"},
        "secrets": {"environment": "prod", "name": "s", "type": "custom", "updated_by": "t"},
        "secret_versions": {
            "environment": "prod", "name": "s", "version": 1,
            "ciphertext": b"x", "created_by": "t",
        },
        "connections": {"environment": "prod", "name": "c", "type": "http", "updated_by": "t"},
        "batches": {
            "batch_id": "b", "environment": "prod", "flow": "f", "version": "1", "dag_id": str(o), "run_id": "r",
        },
        "messages": {
            "message_id": "m", "environment": "prod", "flow": "f", "version": "1", "source": "api",
            "payload": b"x", "size_bytes": 1, "state": "dead",
        },
        "hand_overs": {
            "hand_over_id": hand_over_id, "message_id": "m", "child_id": "m", "environment": "prod", "flow": "f",
            "version": "1", "stage": "s", "node_id": "n", "payload": b"x", "state": "dead",
        },
        "failures": {
            "failure_id": uuid4(), "message_id": "m", "child_id": "m", "environment": "prod", "flow": "f",
            "version": "1", "code": "c", "verdict": "terminal", "final": True, "attempt": 1,
        },
        "settled_messages": {
            "message_id": "s", "environment": "prod", "flow": "f", "version": "1", "source": "api",
            "result": "done", "payload": b"x", "content_type": "x", "size_bytes": 1, "generation": 1, "replays": 0,
            "attempts": 1, "retention_class": "standard", "placement": "standard", "accepted_at": "2026-01-01",
        },
        "idempotency_keys": {
            "environment": "prod", "endpoint": "", "key_hash": b"k", "body_hash": b"h", "message_id": "m",
            "expires_at": "2100-01-01",
        },
        "refusals": {"environment": "prod", "endpoint": "s", "code": "c", "minute": "2026-01-01"},
        "destinations": {"environment": "prod", "name": "d"},
        "payload_objects": {
            "object_id": uuid4(), "message_id": "m", "kind": "message", "key": "k", "size_bytes": 1,
            "due_at": "2026-01-01",
        },
        "replay_jobs": {
            "job_id": uuid4(), "query": "{}", "start": "beginning", "version": "original", "rate_per_s": 1,
            "matched": 1, "created_by": "t",
        },
        "flow_holds": {"environment": "prod", "flow": "f", "kind": "pause", "by": "t"},
        "waits": {
            "hand_over_id": hand_over_id, "message_id": "m", "environment": "prod", "flow": "f", "node_id": "n",
            "kind": "person",
        },
        "wait_groups": {
            "environment": "prod", "flow": "f", "node_id": "n", "key_hash": b"k", "group_id": uuid4(), "need": 1,
        },
        "wait_parts": {
            "wait_id": uuid4(), "part_id": uuid4(), "message_id": "m", "origin_id": "m", "child_id": "m",
            "place": "p", "payload": b"x",
        },
        "api_keys": {
            "key_id": uuid4(), "hash": uuid4().bytes * 2, "name": "n", "beginning": "cb_", "user_name": "anna",
            "scope": "read", "created_by": "t", "expires_at": "2100-01-01",
        },
        "invitations": {
            "invitation_id": uuid4(), "hash": uuid4().bytes * 2, "email": "anna@acme.example",
            "role": "customer_user", "created_by": "t", "expires_at": "2100-01-01",
        },
        "visits": {"user_name": "anna"},
        "ecosystems": {"ecosystem": "e", "kind": "erp", "name": "E"},
        "systems": {"environment": "prod", "system": "s", "ecosystem": "e", "name": "S"},
        "guard_blocks": {"address": "192.0.2.1", "reason": "r", "blocked_by": "t"},
        "guard_policies": {"mode": "detect"},
        "mails": {"mail_id": uuid4(), "kind": "k", "content": b"x", "expires_at": "2100-01-01"},
        "tokens": {"environment": "prod", "connection": "c"},
        "token_connects": {
            "connect_id": uuid4(), "environment": "prod", "connection": "c", "revision": 1, "user_name": "anna",
            "ciphertext": b"x", "expires_at": "2100-01-01",
        },
        "quota_windows": {"resource": "messages_per_hour", "starts_at": "2026-01-01", "used": 1},
        "storage_use": {"bytes": 1},
        # Its limits are written with it. That it was made stands in its trail already.
        "audit_subjects": {"subject_id": uuid4(), "fingerprint": b"f", "sealed_key": b"k"},
        "replies": {"message_id": "m", "reply_id": uuid4(), "code": "c", "ready": True, "replays": 0},
    }  # fmt: skip
    with psycopg.connect(database.owner_url()) as connection:
        for table, values in rows.items():
            connection.execute(
                sql.SQL("ALTER TABLE bridge.{} NO FORCE ROW LEVEL SECURITY").format(sql.Identifier(table))
            )
            values = {"organization_id": o, **values}
            connection.execute(
                sql.SQL("INSERT INTO bridge.{} ({}) VALUES ({})").format(
                    sql.Identifier(table),
                    sql.SQL(", ").join(map(sql.Identifier, values)),
                    sql.SQL(", ").join([sql.Placeholder()] * len(values)),
                ),
                list(values.values()),
            )
            connection.execute(
                sql.SQL("ALTER TABLE bridge.{} FORCE ROW LEVEL SECURITY").format(sql.Identifier(table))
            )


@pytest.fixture
def two(make_organization: Callable[[], Organization]) -> tuple[Organization, Organization]:
    """Two organizations with a row of each in every table."""
    pair = make_organization(), make_organization()
    for organization in pair:
        fill(organization)
    return pair


def visible(connection: psycopg.Connection[Any], table: str) -> set[UUID]:
    query = sql.SQL("SELECT DISTINCT organization_id FROM bridge.{}").format(sql.Identifier(table))
    return {row[0] for row in connection.execute(query)}


def become(connection: psycopg.Connection[Any], organization_id: object) -> None:
    connection.execute("SELECT set_config('bridge.organization_id', %s, false)", (str(organization_id),))


def test_the_list_of_tables_here_is_complete(app: psycopg.Connection[Any]) -> None:
    rows = app.execute(
        "SELECT c.relname FROM pg_class c WHERE c.relnamespace = 'bridge'::regnamespace"
        " AND c.relkind IN ('r', 'p') AND NOT c.relispartition"
    )
    assert {row[0] for row in rows} == {
        *(*TENANT_TABLES, *PERSONS_TABLES),
        *("organizations", "data_keys", "deletions", "accounts", "alembic_version"),
    }


@pytest.mark.parametrize("table", [*TENANT_TABLES, "organizations"])
def test_an_organization_sees_its_own_rows_and_nobody_without_one_sees_any(
    app: psycopg.Connection[Any], two: tuple[Organization, Organization], table: str
) -> None:
    ours, theirs = (each.organization_id for each in two)
    assert visible(app, table) == set()
    for organization_id in (ours, theirs):
        become(app, organization_id)
        assert visible(app, table) == {organization_id}
    become(app, uuid4())
    assert visible(app, table) == set()
    become(app, "")
    assert visible(app, table) == set()


@pytest.mark.parametrize("table", TENANT_TABLES)
def test_rows_of_another_organization_can_be_neither_changed_nor_deleted_nor_made_nor_given_away(
    app: psycopg.Connection[Any], two: tuple[Organization, Organization], table: str
) -> None:
    ours, theirs = (each.organization_id for each in two)
    become(app, ours)
    name = sql.Identifier(table)

    def attempt(statement: str, *parameters: Any) -> int:
        try:
            return app.execute(sql.SQL(statement).format(name), parameters).rowcount
        except (psycopg.errors.InsufficientPrivilege, psycopg.errors.ForeignKeyViolation):
            return 0

    assert (
        attempt("UPDATE bridge.{} SET organization_id = organization_id WHERE organization_id = %s", theirs) == 0
    )
    assert attempt("DELETE FROM bridge.{} WHERE organization_id = %s", theirs) == 0
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        app.execute(sql.SQL("UPDATE bridge.{} SET organization_id = %s").format(name), (theirs,))
    columns = [
        row[0]
        for row in app.execute(
            "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped"
            " AND attgenerated = ''",
            (f"bridge.{table}",),
        )
    ]
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        app.execute(
            sql.SQL("INSERT INTO bridge.{} ({}) SELECT {} FROM bridge.{}").format(
                name,
                sql.SQL(", ").join(map(sql.Identifier, columns)),
                sql.SQL(", ").join(
                    sql.Literal(theirs) if column == "organization_id" else sql.Identifier(column)
                    for column in columns
                ),
                name,
            )
        )
    become(app, theirs)
    assert visible(app, table) == {theirs}


def test_the_application_role_sees_no_data_keys_and_no_secrets_of_the_schema(app: psycopg.Connection[Any]) -> None:
    for table in (
        "data_keys",
        "alembic_version",
        "settled_messages_held",
        "settled_messages_standard_default",
        *PERSONS_TABLES,
    ):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            app.execute(sql.SQL("SELECT 1 FROM bridge.{}").format(sql.Identifier(table)))
    for statement in (
        "SELECT bridge.make_settled_partition('short', '2020-01-01', '2020-01-02')",
        "SELECT * FROM bridge.drop_settled_partitions('short', '2020-01-01')",
        "UPDATE bridge.flow_versions SET source = ''",
        "DELETE FROM bridge.deployment_history",
        "UPDATE bridge.audit_events SET action = 'a.b'",
        "DELETE FROM bridge.audit_events",
        "TRUNCATE bridge.audit_events",
        "UPDATE bridge.audit_chains SET seq = 0",
        "UPDATE bridge.audit_subjects SET erased_at = now()",
        "DELETE FROM bridge.settled_messages",
        "CREATE TABLE bridge.mine ()",
        "CREATE TABLE public.mine ()",
        "SET ROLE bridge_owner",
        "ALTER TABLE bridge.messages DISABLE ROW LEVEL SECURITY",
    ):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            app.execute(statement)


def test_the_relay_role_reads_no_connections_memberships_or_keys_and_writes_no_flows(
    two: tuple[Organization, Organization],
) -> None:
    with psycopg.connect(role_url("relay"), autocommit=True) as relay:
        assert {each.organization_id for each in two} <= visible(relay, "messages")
        for table in ("connections", "memberships", "data_keys", *PERSONS_TABLES):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                visible(relay, table)
        for statement in (
            "UPDATE bridge.endpoint_secrets SET ciphertext = ''",
            "DELETE FROM bridge.endpoints",
            "UPDATE bridge.deployments SET version = ''",
            "UPDATE bridge.organizations SET name = ''",
            "DELETE FROM bridge.settled_messages",
            "UPDATE bridge.settled_messages SET payload = NULL",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                relay.execute(statement)


def test_the_platform_role_sees_no_messages_flows_or_connections(two: tuple[Organization, Organization]) -> None:
    with psycopg.connect(role_url("platform"), autocommit=True) as platform:
        assert {each.organization_id for each in two} <= visible(platform, "data_keys")
        for table in set(TENANT_TABLES) - PLATFORM_TABLES:
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                visible(platform, table)


def test_airflows_role_cannot_read_schema_bridge(
    settings: Settings, two: tuple[Organization, Organization]
) -> None:
    url = read_env(settings.state_dir / "bridge.env")["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"]
    with psycopg.connect(url.replace("+psycopg2", ""), autocommit=True) as airflow:
        assert airflow.execute("SHOW idle_in_transaction_session_timeout").fetchone() == ("8s",)
        airflow.execute("CREATE TABLE public.of_airflow (x int)")
        airflow.execute("DROP TABLE public.of_airflow")
        for table in (*TENANT_TABLES, "data_keys", "organizations"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                visible(airflow, table)
        for statement in ("CREATE TABLE bridge.mine ()", "CREATE SCHEMA mine", "SET ROLE bridge_app"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                airflow.execute(statement)


def test_the_backup_role_reads_everything_and_changes_nothing(
    settings: Settings, two: tuple[Organization, Organization]
) -> None:
    url = read_env(settings.keys_dir / "owner.env")["BRIDGE_DATABASE_BACKUP_URL"]
    with psycopg.connect(url, autocommit=True) as backup:
        for table in (*TENANT_TABLES, "organizations", "data_keys"):
            assert {each.organization_id for each in two} <= visible(backup, table)
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                backup.execute(sql.SQL("DELETE FROM bridge.{}").format(sql.Identifier(table)))


# -- verbs --------------------------------------------------------------------------------------------------


def test_verbs_of_one_organization_do_not_reach_anothers_messages(
    two: tuple[Organization, Organization], keyring: Keyring
) -> None:
    ours, theirs = (each.organization_id for each in two)
    assert status(ours, "m").state == "dead"
    with database.relay() as connection:
        connection.execute("UPDATE bridge.messages SET flow = 'theirs' WHERE organization_id = %s", (theirs,))
    mine = accept(Acceptance(theirs, "prod", "f", "1", "api", b"x", idempotency_key="k"), keyring).message_id
    with pytest.raises(NotFound):
        status(ours, mine)
    [refused] = replay(ours, [mine], by="anna")
    assert isinstance(refused.refused, NotFound)
    assert {letter.flow for letter in triage.list_dead(ours)} == {"f"}
    assert triage.discard(ours, [mine], by="anna") == []
    assert retention.hold(ours, [mine]) == 0
    assert reconcile.check(ours, [mine]).missing == [mine]
    again = accept(Acceptance(ours, "prod", "f", "1", "api", b"y", idempotency_key="k"), keyring)
    assert not again.duplicate


def test_a_user_sees_his_own_memberships_in_whatever_organization(
    two: tuple[Organization, Organization],
) -> None:
    name = f"user-{uuid4().hex[:8]}"
    ours, theirs = two
    add_member(ours.organization_id, name, "customer_admin")
    add_member(theirs.organization_id, f"other-{name}", "customer_admin")
    assert [each.slug for each in memberships(name)] == [ours.slug]
    with database.tenant(None, user_name=name) as connection:
        assert connection.execute("SELECT slug FROM bridge.organizations").fetchall() == [(ours.slug,)]
        assert connection.execute("SELECT count(*) FROM bridge.environments").fetchone() == (0,)


# -- connections that are used again ------------------------------------------------------------------------


def fail_as(organization: Organization, statement: str) -> int:
    """Use the tenant's connection, then raise; returns nothing but through the exception's argument."""
    with database.tenant(organization.organization_id, "anna") as connection:
        connection.execute(statement)
        raise ZeroDivisionError(connection.info.backend_pid)


def test_a_pooled_connection_bears_no_tenant_after_an_exception(organization: Organization) -> None:
    failed_on: set[int] = set()
    used_again = 0
    for turn in range(30):
        if turn % 2:
            # Else those that failed would never be in turn below, where the pool has three connections, or six.
            with database.tenant(None):
                pass
        with pytest.raises(ZeroDivisionError) as raised:
            fail_as(organization, "SELECT 1")
        failed_on.add(raised.value.args[0])
        with pytest.raises(psycopg.errors.UndefinedTable):
            fail_as(organization, "SELECT * FROM bridge.nothing")
        with database.tenant(None) as connection:
            used_again += connection.info.backend_pid in failed_on
            bears = connection.execute("SELECT bridge.current_organization(), bridge.current_user_name()")
            assert bears.fetchone() == (None, None)
            assert connection.execute("SELECT count(*) FROM bridge.environments").fetchone() == (0,)
    # The pool takes its connections in turn.
    assert used_again > 5


async def test_a_pooled_async_connection_bears_no_tenant_after_an_exception(organization: Organization) -> None:
    with pytest.raises(ZeroDivisionError):
        async with aio.tenant(organization.organization_id, "anna"):
            raise ZeroDivisionError
    async with aio.tenant(None) as connection:
        cursor = await connection.execute("SELECT bridge.current_organization(), bridge.current_user_name()")
        assert await cursor.fetchone() == (None, None)
        cursor = await connection.execute("SELECT count(*) FROM bridge.environments")
        assert await cursor.fetchone() == (0,)
    await aio.close_pools()


def test_an_exception_leaves_nothing_behind(organization: Organization) -> None:
    with pytest.raises(ZeroDivisionError):
        fail_as(
            organization,
            "INSERT INTO bridge.connections (organization_id, environment, name, type, updated_by)"
            " VALUES (bridge.current_organization(), 'prod', 'c', 'http', 't')",
        )
    with database.tenant(organization.organization_id) as connection:
        assert connection.execute("SELECT count(*) FROM bridge.connections").fetchone() == (0,)


def test_a_forked_child_makes_connections_of_its_own(organization: Organization) -> None:
    import os

    def backend() -> int:
        with database.tenant(organization.organization_id) as connection:
            assert connection.execute("SELECT count(*) FROM bridge.environments").fetchone() == (4,)
            return connection.info.backend_pid

    parent = backend()
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writable, str(backend()).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert int(os.read(readable, 100)) != parent
    assert backend()
