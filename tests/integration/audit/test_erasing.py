"""A person who is erased: his name and address stand in no column of the organization's any more."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from uuid import UUID, uuid4

import psycopg
import pytest
from click.testing import CliRunner

from continuitybridge import api_keys, connections, database, deployments, destinations, invitations, secrets
from continuitybridge import organizations as orgs
from continuitybridge.audit import subjects
from continuitybridge.cli import bridge
from continuitybridge.flows.load import load_flow
from continuitybridge.guard import verbs as guard
from continuitybridge.inbox import holds
from continuitybridge.organizations import Organization, visits
from continuitybridge.vault import Keyring

ERASED = {
    *(("api_keys", name) for name in ("user_name", "created_by", "revoked_by")),
    ("connections", "updated_by"),
    ("deployment_history", "by"),
    ("deployments", "deployed_by"),
    ("destinations", "status_by"),
    ("flow_holds", "by"),
    ("flow_versions", "created_by"),
    ("guard_blocks", "blocked_by"),
    *(("invitations", name) for name in ("email", "created_by", "accepted_by", "revoked_by")),
    *(("replay_jobs", name) for name in ("created_by", "ended_by")),
    ("secret_versions", "created_by"),
    ("secrets", "updated_by"),
    ("token_connects", "user_name"),
    ("visits", "user_name"),
}
KEPT = {
    ("memberships", "user_name"): "who is a member; it goes when he is removed",
    ("people", "user_name"): "the account, which is the platform's",
    ("identities", "user_name"): "the account's",
    ("recovery_codes", "user_name"): "the account's",
    ("sign_in_tokens", "user_name"): "the account's, for minutes",
    ("guard_blocks", "address"): "a network address that was refused, nobody's by name",
    ("deletions", "requested_by"): "the platform's register of organizations that are gone",
}
_PERSONAL = re.compile(r"(^|_)(by|user|user_name|email|mail|address|person|owner_name|actor)$")
FLOW = """
flow: orders
version: 1.0.0
triggers: [{id: in, type: manual_trigger}]
steps: [{id: deliver, type: http_request, config: {connection: erp}, next: end}]
"""


@pytest.fixture
def owner() -> Iterator[psycopg.Connection[tuple[object, ...]]]:
    with psycopg.connect(database.owner_url()) as connection:
        yield connection


def test_every_column_that_may_name_a_person_is_erased_or_kept_for_a_reason(
    owner: psycopg.Connection[tuple[str, str]],
) -> None:
    found = owner.execute(
        "SELECT c.table_name, c.column_name FROM information_schema.columns c"
        " JOIN pg_class t ON t.relname = c.table_name AND t.relnamespace = 'bridge'::regnamespace"
        " WHERE c.table_schema = 'bridge' AND t.relkind IN ('r', 'p') AND NOT t.relispartition"
    ).fetchall()
    assert {place for place in found if _PERSONAL.search(place[1])} == ERASED | KEPT.keys()


def _act(o: UUID, name: str, email: str) -> None:
    """Whatever leaves a name behind."""
    connections.put(o, "prod", "erp", {"base_url": "https://erp.example/"}, name)
    secrets.put(o, "prod", "key", "api_key", {"api_key": uuid4().hex}, name)
    deployments.deploy(o, "prod", load_flow(FLOW), name)
    holds.hold(o, "prod", "orders", "pause", by=name)
    destinations.pause(o, "prod", "erp", by=name)
    guard.block(o, "192.0.2.9", by=name)
    made = api_keys.create(o, "ci", user_name=name, by=name)
    api_keys.revoke(o, made.shown.key_id, by=name)
    invitations.accept(invitations.invite(o, email, "consultant", by=name).token, name)
    ended = invitations.invite(o, f"{uuid4().hex}@firm.example", "customer_user", by=name)
    invitations.revoke(o, ended.shown.invitation_id, by=name)
    with database.tenant(o) as connection:
        connection.execute(
            "INSERT INTO bridge.replay_jobs (organization_id, job_id, query, start, version, rate_per_s, matched,"
            " created_by, status, ended_at, ended_by)"
            " VALUES (%s, %s, '{}', 'beginning', 'original', 1, 1, %s, 'done', now(), %s)",
            (o, uuid4(), name, name),
        )
        connection.execute(
            "INSERT INTO bridge.token_connects (organization_id, connect_id, environment, connection, revision,"
            " user_name, ciphertext, status, expires_at)"
            " VALUES (%s, %s, 'prod', 'erp', 1, %s, '', 'denied', now())",
            (o, uuid4(), name),
        )
    visits.choose(o, name)


def _named(o: UUID, *wanted: str) -> set[tuple[str, str]]:
    """The columns of the organization's rows in which one of these stands."""
    found = set()
    with psycopg.connect(database.owner_url()) as connection:
        tables = connection.execute(
            "SELECT relname FROM pg_class c JOIN information_schema.columns k ON k.table_name = relname"
            " AND k.table_schema = 'bridge' AND k.column_name = 'organization_id'"
            " WHERE relnamespace = 'bridge'::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition"
        ).fetchall()
        for (table,) in tables:
            connection.execute(f"ALTER TABLE bridge.{table} NO FORCE ROW LEVEL SECURITY")
            rows = connection.execute(
                f"SELECT to_jsonb(t) FROM bridge.{table} t WHERE organization_id = %s", (o,)
            ).fetchall()
            found |= {
                (table, key) for (row,) in rows for key in row if any(each in str(row[key]) for each in wanted)
            }
        connection.rollback()
    return found


def test_an_erased_person_stands_beside_nothing_that_he_did(make_organization: Callable[[], Organization]) -> None:
    ours, theirs = make_organization(), make_organization()
    name = f"anna-{uuid4().hex[:8]}"
    email = f"{uuid4().hex[:8]}@firm.example"
    for each in (ours, theirs):
        _act(each.organization_id, name, email)
    before = _named(theirs.organization_id, name, email)
    assert before == ERASED | {("memberships", "user_name")}
    assert _named(ours.organization_id, name, email) == before
    done = CliRunner().invoke(bridge, ["audit", "erase", name, "-o", ours.slug, "--yes"])
    assert done.exit_code == 0, done.output
    assert "is a member" in done.output
    assert _named(ours.organization_id, name, email) == {("memberships", "user_name"), ("visits", "user_name")}
    with database.tenant(ours.organization_id) as connection:
        [(stands,)] = connection.execute("SELECT DISTINCT updated_by FROM bridge.connections")
    assert re.fullmatch(r"erased-[0-9a-f]{12}", stands)
    orgs.remove_member(ours.organization_id, name, by="berta")
    again = CliRunner().invoke(bridge, ["audit", "erase", name, "-o", ours.slug, "--yes"])
    assert again.exit_code == 0, again.output
    assert "is a member" not in again.output
    assert _named(ours.organization_id, name, email) == set()
    assert _named(theirs.organization_id, name, email) == before


def _late(o: UUID, *emails: str) -> None:
    with psycopg.connect(database.owner_url()) as connection:
        connection.execute("ALTER TABLE bridge.invitations NO FORCE ROW LEVEL SECURITY")
        connection.execute(
            "UPDATE bridge.invitations SET expires_at = now() - interval '1 day'"
            " WHERE organization_id = %s AND email = ANY (%s) AND accepted_at IS NULL",
            (o, list(emails)),
        )
        connection.execute("ALTER TABLE bridge.invitations FORCE ROW LEVEL SECURITY")


def test_an_address_goes_from_all_invitations_to_it_but_the_open_one(
    make_organization: Callable[[], Organization], keyring: Keyring
) -> None:
    ours = make_organization()
    o, name = ours.organization_id, f"anna-{uuid4().hex[:8]}"
    one, two, open_, other = (f"{uuid4().hex[:8]}@firm.example" for _ in range(4))
    for email in (one, two, open_):
        invitations.revoke(o, invitations.invite(o, email, "customer_user", by="z").shown.invitation_id, by="z")
        invitations.accept(invitations.invite(o, email, "customer_user", by="z").token, name)
        invitations.invite(o, email, "customer_user", by="z")
    invitations.accept(invitations.invite(o, other, "customer_user", by="z").token, other)
    _late(o, one, two)
    done = CliRunner().invoke(bridge, ["audit", "erase", name, "-o", ours.slug, "--yes"])
    assert done.exit_code == 0, done.output
    assert "keeps the address " + open_ in done.output
    assert one not in done.output
    by_email: dict[str, list[str]] = {}
    for each in invitations.list_invitations(o):
        by_email.setdefault(each.email, []).append(each.state)
    assert by_email.pop(open_) == ["open"]
    assert by_email.pop(other) == ["accepted"]
    assert sorted(by_email.values()) == [["accepted", "revoked"], *2 * [["expired", "accepted", "revoked"]]]
    assert all(each.startswith("erased-") for each in by_email)
    with database.tenant(o) as connection:
        for email in (one, two, open_):
            assert not subjects.ids_of_name(connection, o, email, keyring)
        assert subjects.ids_of_name(connection, o, other, keyring)
    revoked = re.search(r"invitation revoke (\S+)", done.output)
    assert revoked is not None
    invitations.revoke(o, UUID(revoked[1]), by="z")
    CliRunner().invoke(bridge, ["audit", "erase", open_, "-o", ours.slug, "--yes"])
    assert not _named(o, one, two, open_)
