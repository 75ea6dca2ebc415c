"""Rules that every table of schema `bridge` keeps, read from the database's own catalogue: a new table that breaks
one fails here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import psycopg

import continuitybridge
from continuitybridge import database
from continuitybridge.custody.registry import COLUMNS, PLAIN
from continuitybridge.database.bootstrap import ROLES

ALEMBICS_OWN = {"alembic_version"}
"""Holds a revision, no organization's data; no role but owner and backup may touch it."""


def catalogue(query: str, *parameters: Any) -> list[Any]:
    with psycopg.connect(database.owner_url()) as connection:
        return connection.execute(query, parameters).fetchall()


PLATFORMS_OWN = {"accounts"}
"""Hold nothing of one organization; no role but the platform's and backup may touch them."""


def tables() -> list[str]:
    rows = catalogue(
        "SELECT relname FROM pg_class WHERE relnamespace = 'bridge'::regnamespace AND relkind IN ('r', 'p')"
        " ORDER BY relname"
    )
    return [row[0] for row in rows if row[0] not in ALEMBICS_OWN]


def test_there_are_tables_and_partitions_to_look_at() -> None:
    found = tables()
    assert {"messages", "settled_messages", "settled_messages_held", "connections", "data_keys"} <= set(found)
    assert any(name.startswith("settled_messages_standard_2") for name in found)


def test_row_level_security_is_enabled_and_forced_everywhere() -> None:
    open_tables = catalogue(
        "SELECT relname FROM pg_class WHERE relnamespace = 'bridge'::regnamespace AND relkind IN ('r', 'p')"
        " AND NOT (relrowsecurity AND relforcerowsecurity)"
    )
    assert {row[0] for row in open_tables} == ALEMBICS_OWN


def test_every_table_names_its_organization() -> None:
    without = catalogue(
        "SELECT c.relname FROM pg_class c WHERE c.relnamespace = 'bridge'::regnamespace"
        " AND c.relkind IN ('r', 'p') AND NOT EXISTS ("
        "  SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attname = 'organization_id'"
        "  AND a.attnotnull AND a.atttypid = 'uuid'::regtype)"
    )
    assert {row[0] for row in without} == ALEMBICS_OWN | PLATFORMS_OWN


def test_every_foreign_key_has_an_index() -> None:
    keys = catalogue(
        "SELECT c.conrelid, c.conrelid::regclass::text, c.conname, c.conkey FROM pg_constraint c"
        " WHERE c.contype = 'f' AND c.connamespace = 'bridge'::regnamespace"
    )
    assert keys
    missing = []
    for relation, table, name, columns in keys:
        indexes = catalogue(
            "SELECT i.indkey::int2[], pg_get_expr(i.indpred, i.indrelid) FROM pg_index i"
            " WHERE i.indrelid = %s AND i.indisvalid",
            relation,
        )
        names = dict(catalogue("SELECT attnum, attname FROM pg_attribute WHERE attrelid = %s", relation))
        # A partial index serves when all it leaves out are rows whose key is null.
        harmless = {None, *(f"({names[column]} IS NOT NULL)" for column in columns)}
        if not any(
            set(index[: len(columns)]) == set(columns) and predicate in harmless for index, predicate in indexes
        ):
            missing.append((table, name))
    assert missing == []


def test_every_policy_for_a_writer_checks_what_is_written() -> None:
    loose = catalogue(
        "SELECT tablename, policyname FROM pg_policies WHERE schemaname = 'bridge'"
        " AND cmd NOT IN ('SELECT', 'DELETE') AND with_check IS NULL"
    )
    assert loose == []


def test_policies_of_the_application_role_name_the_organization_of_the_transaction() -> None:
    loose = catalogue(
        "SELECT tablename FROM pg_policies WHERE schemaname = 'bridge' AND roles @> '{bridge_app}'"
        " AND (qual NOT LIKE '%%current_organization()%%' OR with_check NOT LIKE '%%current_organization()%%')"
    )
    assert loose == []


def test_no_policy_or_grant_is_for_everybody() -> None:
    assert catalogue("SELECT * FROM pg_policies WHERE schemaname = 'bridge' AND roles @> '{public}'") == []
    granted = catalogue(
        "SELECT c.relname, r.rolname FROM pg_class c, LATERAL aclexplode(c.relacl) a"
        " LEFT JOIN pg_roles r ON r.oid = a.grantee"
        " WHERE c.relnamespace = 'bridge'::regnamespace AND (a.grantee = 0 OR r.rolname NOT LIKE 'bridge\\_%%')"
    )
    assert granted == []


def test_every_table_can_be_emptied_of_an_organization_that_is_deleted() -> None:
    found = catalogue(
        "SELECT tablename::text FROM pg_policies WHERE schemaname = 'bridge' AND policyname = 'removal'"
    )
    partitions = catalogue("SELECT relname FROM pg_class WHERE relispartition AND relkind IN ('r', 'p')")
    wanted = set(tables()) - {row[0] for row in partitions} - {"deletions", *PLATFORMS_OWN}
    assert {row[0] for row in found} == wanted


def test_partitions_are_reached_through_their_parent_only() -> None:
    granted = catalogue(
        "SELECT c.relname FROM pg_class c, LATERAL aclexplode(c.relacl) a JOIN pg_roles r ON r.oid = a.grantee"
        " WHERE c.relnamespace = 'bridge'::regnamespace AND c.relispartition AND r.rolname <> 'bridge_owner'"
    )
    assert granted == []


def test_our_roles_have_no_powers_beyond_their_grants() -> None:
    rows = catalogue(
        "SELECT rolname FROM pg_roles WHERE rolname = ANY(%s)"
        " AND (rolsuper OR rolbypassrls OR rolcreaterole OR rolcreatedb OR rolreplication)",
        [*ROLES, "airflow"],
    )
    assert rows == []
    assert len(catalogue("SELECT 1 FROM pg_roles WHERE rolname = ANY(%s)", [*ROLES, "airflow"])) == 6
    members = catalogue(
        "SELECT r.rolname FROM pg_auth_members m JOIN pg_roles r ON r.oid = m.member WHERE r.rolname = ANY(%s)",
        [*ROLES, "airflow"],
    )
    assert members == []


def test_functions_that_run_as_the_owner_are_for_one_role_and_fix_their_search_path() -> None:
    functions = catalogue(
        "SELECT p.proname, p.proconfig, array_agg(r.rolname::text ORDER BY r.rolname)"
        " FROM pg_proc p, LATERAL aclexplode(p.proacl) a JOIN pg_roles r ON r.oid = a.grantee"
        " WHERE p.pronamespace = 'bridge'::regnamespace AND p.prosecdef GROUP BY p.proname, p.proconfig"
    )
    assert sorted(row[0] for row in functions) == [
        "append_to_audit",
        "check_account_ecosystems",
        "check_account_systems",
        "check_assigned_organizations",
        "drop_replies_partitions",
        "drop_settled_partitions",
        "erase_from_rows",
        "erase_from_traces",
        "expire_settled",
        "make_replies_partition",
        "make_settled_partition",
        "remove_rows",
        "settled_by_keys",
    ]
    for name, settings, grantees in functions:
        # Searching shows the organization of the transaction, as a policy does.
        user = {
            "settled_by_keys": ["bridge_app"],
            "append_to_audit": [],
            "check_account_ecosystems": [],
            "check_account_systems": [],
            "check_assigned_organizations": [],
            "erase_from_rows": ["bridge_platform"],
            "erase_from_traces": ["bridge_platform"],
            "remove_rows": ["bridge_platform"],
        }.get(name, ["bridge_relay"])
        assert sorted(grantees) == sorted(["bridge_owner", *user])
        assert "search_path=pg_catalog, pg_temp" in settings


def test_a_commit_waits_for_the_disk() -> None:
    """fsync and full_page_writes are tried on a server that is not the tests' own."""
    with database.relay() as connection:
        assert connection.execute("SELECT current_setting('synchronous_commit')").fetchone() == ("on",)


def test_every_column_of_bytes_is_proved_to_open_or_said_to_be_plain() -> None:
    found = catalogue(
        "SELECT c.table_name, c.column_name FROM information_schema.columns c"
        " JOIN pg_class t ON t.relname = c.table_name AND t.relnamespace = 'bridge'::regnamespace"
        " WHERE c.table_schema = 'bridge' AND c.data_type = 'bytea' AND NOT t.relispartition"
    )
    known = {(each.table, each.column) for each in COLUMNS}
    assert known & PLAIN.keys() == set()
    assert set(found) - known - PLAIN.keys() == set(), "declare it in its room's COLUMNS (see vault/columns.py)"
    assert PLAIN.keys() - set(found) == set()
    assert {place for place in known - set(found) if place != ("audit_events", "details")} == set()


def test_each_advisory_lock_has_a_number_of_its_own() -> None:
    """Two things under one number wait for each other, or take each other for themselves."""
    package = Path(continuitybridge.__file__).parent
    ours = re.compile(r"4_?201_?917_?\d{3}")
    of_code = [
        int(found.replace("_", "")) for file in package.rglob("*.py") for found in ours.findall(file.read_text())
    ]
    of_migrations = {int(found) for file in package.rglob("*.sql") for found in ours.findall(file.read_text())}
    assert len(of_code) >= 7
    assert sorted(of_code) == sorted(set(of_code))
    assert of_migrations.isdisjoint(of_code)
