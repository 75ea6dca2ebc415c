"""The audit trail: what is written to it by whom, and that whoever changes it afterwards is found out."""

from __future__ import annotations

import json
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from click.testing import CliRunner, Result

from continuitybridge import connections, database, organizations
from continuitybridge.audit import Actor, TrailDamaged, acting, chain, checkpoints, record, signing
from continuitybridge.cli import bridge
from continuitybridge.organizations import Organization
from continuitybridge.settings import Settings, get_settings

EVENTS = 6


def run(*arguments: str) -> Result:
    return CliRunner().invoke(bridge, list(arguments))


def events(organization: Organization, *arguments: str) -> list[dict[str, Any]]:
    """What `bridge audit list` tells, oldest first."""
    told = run("audit", "list", "-o", organization.slug, "--json", *arguments)
    assert told.exit_code == 0, told.output
    found: list[dict[str, Any]] = json.loads(told.stdout)
    return found[::-1]


@pytest.fixture
def trail(organization: Organization) -> Organization:
    """An organization with some events."""
    with acting(Actor("user", "anna", "192.0.2.7")):
        for number in range(EVENTS - 1):
            write(organization, f"thing-{number}")
    return organization


@pytest.fixture
def ledger(tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Checkpoints of the test's own."""
    monkeypatch.setenv("BRIDGE_AUDIT_DIR", str(tmp_path))
    get_settings.cache_clear()
    yield tmp_path / checkpoints.FILE
    monkeypatch.delenv("BRIDGE_AUDIT_DIR")
    get_settings.cache_clear()


def write(organization: Organization, target: str, **details: Any) -> None:
    with database.tenant(organization.organization_id) as connection:
        record(connection, organization.organization_id, "thing.done", target, details=details)


class Owner:
    """Somebody who came to be the tables' owner, and knows how they work."""

    def __init__(self, organization: Organization) -> None:
        self.id = organization.organization_id

    def do(self, *statements: str) -> None:
        with psycopg.connect(database.owner_url()) as connection:
            connection.execute(
                "ALTER TABLE bridge.audit_events NO FORCE ROW LEVEL SECURITY, DISABLE TRIGGER append"
            )
            for statement in statements:
                connection.execute(statement.replace(":o", f"'{self.id}'").encode())
            connection.execute("ALTER TABLE bridge.audit_events FORCE ROW LEVEL SECURITY, ENABLE TRIGGER append")

    def rechain(self, first: int) -> None:
        """Give every event from `first` on the hash that it should have, and the chain its end."""
        with database.tenant(self.id) as connection:
            links = list(chain._links(connection, self.id))
        last = b"" if first == 1 else next(link.hash for link in links if link.seq == first - 1)
        statements = []
        for link in links:
            if link.seq >= first:
                made = link.expected_hash(self.id, last)
                statements.append(
                    f"UPDATE bridge.audit_events SET previous_hash = '\\x{last.hex()}', hash = '\\x{made.hex()}'"
                    f" WHERE organization_id = :o AND seq = {link.seq}"
                )
                last = made
        self.do(*statements, self.end(links[-1].seq, last))

    @staticmethod
    def end(seq: int, last: bytes) -> str:
        return f"UPDATE bridge.audit_chains SET seq = {seq}, hash = '\\x{last.hex()}' WHERE organization_id = :o"


def fault(organization: Organization) -> dict[str, Any] | None:
    told = run("audit", "verify", "-o", organization.slug, "--json")
    [of] = json.loads(told.stdout)["trails"]
    found: dict[str, Any] | None = of["fault"]
    assert told.exit_code == (0 if found is None else 1)
    return found


# -- what is written ----------------------------------------------------------------------------------------


def test_the_whole_life_of_an_organization_stands_in_its_trail(organization: Organization) -> None:
    o = organization.organization_id
    organizations.add_member(o, "berta", "customer_user")
    definition = {"base_url": "https://erp.example/", "auth": {"type": "bearer", "token": "a-secret-token"}}
    connections.put(o, "prod", "erp", definition, "anna")
    connections.put(o, "prod", "erp", definition, "anna")
    connections.remove(o, "prod", "erp")
    organizations.remove_member(o, "berta")
    told = events(organization)
    assert [(each["action"], each["target"]) for each in told] == [
        ("organization.created", organization.slug),
        ("member.added", "berta"),
        ("connection.created", "erp"),
        ("connection.changed", "erp"),
        ("connection.removed", "erp"),
        ("member.removed", "berta"),
    ]
    assert "a-secret-token" not in json.dumps(told)
    assert told[1]["details"] == {"role": "customer_user"}
    assert [each["seq"] for each in told] == list(range(1, 7))
    assert fault(organization) is None


def test_limits_that_others_set_are_told_to_the_organizations_that_they_are_for(
    make_organization: Callable[[], Organization], airflow_user: Callable[..., str]
) -> None:
    theirs, others = make_organization(), make_organization()
    account = f"customer-{uuid4().hex[:8]}"
    consultant = airflow_user(f"of-{account}")
    for limit in ("3", "5"):
        assert run("account", "set", account, "--name", "Customer", "--max-organizations", limit).exit_code == 0
        assert run("account", "assign", account, "-o", theirs.slug).exit_code == 0
    for organization, role in ((theirs, "consultant"), (others, "customer_user")):
        organizations.add_member(organization.organization_id, consultant, role)
    assert run("person", "limit", consultant, "--max-organizations", "4").exit_code == 0
    told = [(each["action"], each["target"], each["details"]) for each in events(theirs)[1:]]
    limits = {"max_organizations": 5, "max_ecosystems": None, "max_systems": None}
    assert told == [
        ("organization.account_changed", account, {}),
        ("organization.account_limited", account, limits),
        ("member.added", consultant, {"role": "consultant"}),
        ("consultant.limited", consultant, {"max_organizations": 4}),
    ]
    assert [each["action"] for each in events(others)] == ["organization.created", "member.added"]
    assert fault(theirs) is None


def test_a_command_bears_the_name_of_who_gave_it(
    organization: Organization, airflow_user: Callable[..., str]
) -> None:
    name = airflow_user(f"carl-{uuid4().hex[:8]}")
    done = run("organization", "member", "add", "-o", organization.slug, name, "--role", "consultant")
    assert done.exit_code == 0, done.output
    last = events(organization)[-1]
    assert (last["action"], last["target"], last["actor_kind"]) == ("member.added", name, "command")
    assert last["actor"].startswith("cli")


def test_who_makes_an_organization_stands_first_in_its_trail() -> None:
    slug = f"org-{uuid4().hex[:12]}"
    done = run("organization", "create", slug, "--name", "Made by a command")
    assert done.exit_code == 0, done.output
    [first] = events(organizations.by_slug(slug))
    assert (first["action"], first["target"], first["actor_kind"]) == ("organization.created", slug, "command")
    assert first["actor"].startswith("cli")


def test_what_is_undone_leaves_no_event(trail: Organization) -> None:
    def fails() -> None:
        with database.tenant(trail.organization_id) as connection:
            record(connection, trail.organization_id, "thing.done", "never")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert "never" not in [each["target"] for each in events(trail)]
    assert fault(trail) is None


def test_events_of_many_at_once_make_one_chain(organization: Organization) -> None:
    def many(name: str) -> None:
        with acting(Actor("user", name)):
            for number in range(10):
                write(organization, f"{name}-{number}")

    threads = [threading.Thread(target=many, args=(f"user-{n % 3}",)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    told = events(organization, "--limit", "1000")
    assert len(told) == 61
    assert fault(organization) is None
    assert len({each["actor"] for each in told[1:]}) == 3


def test_it_is_searched_by_action_target_actor_and_time(trail: Organization) -> None:
    organizations.add_member(trail.organization_id, "anna", "consultant")
    assert [each["target"] for each in events(trail, "--actor", "anna", "--target", "thing-2")] == ["thing-2"]
    assert [each["action"] for each in events(trail, "--action", "member")] == ["member.added"]
    assert events(trail, "--action", "thin") == []
    assert events(trail, "--actor", "nobody") == []
    assert events(trail, "--since", "2100-01-01") == []
    assert len(events(trail, "--until", "2100-01-01")) == EVENTS + 1


# -- erasing ------------------------------------------------------------------------------------------------


def test_what_others_wrote_commands_no_terminal(organization: Organization) -> None:
    commanding = "a\x1b]0;title\x07\x1b[2J\x9b1m\u202egnp.exe\r\nb\x7f\U000e0041"
    write(organization, commanding)
    for options in ((), ("--json",)):
        told = run("audit", "list", "-o", organization.slug, *options)
        assert told.exit_code == 0
        assert all(each.isprintable() for line in told.stdout.split("\n") for each in line), ascii(told.stdout)
        assert "\\u001b]0;title" in told.stdout
    assert events(organization)[-1]["target"] == commanding
    # Names that are printed as they are.
    refused = run("audit", "list", "-o", "no\x1b[2J")
    assert refused.exit_code == 2
    assert "\x1b" not in refused.stderr


def test_an_erased_person_is_named_nowhere_and_the_chain_holds(trail: Organization) -> None:
    organizations.add_member(trail.organization_id, "anna", "customer_user")
    with acting(Actor("user", "berta", "192.0.2.8")):
        write(trail, "of-berta")
    done = run("audit", "erase", "anna", "-o", trail.slug, "--yes")
    assert done.exit_code == 0, done.output
    assert "is erased" in done.output
    told = events(trail)
    assert "anna" not in json.dumps(told)
    assert "192.0.2.7" not in json.dumps(told)
    assert [each["actor"] for each in told if each["target"] == "of-berta"] == ["berta"]
    assert [each["target"] for each in told if each["action"] == "member.added"] == ["(erased)"]
    assert sum(each["erased"] for each in told) == EVENTS - 1
    assert fault(trail) is None
    with acting(Actor("user", "anna")):
        write(trail, "again")
    assert events(trail, "--actor", "anna")[0]["target"] == "again"
    assert run("audit", "erase", "nobody", "-o", trail.slug, "--yes").output == "not in the trail\n"


def test_the_database_holds_no_name_and_no_address_in_clear(trail: Organization) -> None:
    with database.tenant(trail.organization_id) as connection:
        for table in ("audit_events", "audit_subjects"):
            text = str(connection.execute(f"SELECT * FROM bridge.{table}").fetchall())
            assert "anna" not in text
            assert "192.0.2.7" not in text


# -- being found out ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        "action = 'thing.undone'",
        "target = 'other'",
        "environment = 'prod'",
        "actor_kind = 'platform'",
        "details = '{\"a\": 1}'",
        "details = ' {}'",
        "at = at + interval '1 microsecond'",
        "event_id = gen_random_uuid()",
        "personal = '\\x00'",
        "hash = sha256('other')",
    ],
)
def test_an_event_that_was_changed_is_named(trail: Organization, change: str) -> None:
    Owner(trail).do(f"UPDATE bridge.audit_events SET {change} WHERE organization_id = :o AND seq = 3")
    found = fault(trail)
    assert found is not None
    assert (found["seq"], found["problem"]) == (3, "it was changed after it was written")
    assert UUID(found["event_id"])


def test_an_event_that_was_changed_with_its_hash_is_found_by_the_next(trail: Organization) -> None:
    owner = Owner(trail)
    owner.do("UPDATE bridge.audit_events SET target = 'other' WHERE organization_id = :o AND seq = 3")
    with database.tenant(owner.id) as connection:
        link = next(each for each in chain._links(connection, owner.id) if each.seq == 3)
    made = link.expected_hash(owner.id, link.previous_hash).hex()
    owner.do(f"UPDATE bridge.audit_events SET hash = '\\x{made}' WHERE organization_id = :o AND seq = 3")
    found = fault(trail)
    assert found is not None
    assert (found["seq"], found["problem"]) == (4, "it does not follow the event before it")


def test_an_event_that_was_deleted_is_named(trail: Organization) -> None:
    Owner(trail).do("DELETE FROM bridge.audit_events WHERE organization_id = :o AND seq = 3")
    found = fault(trail)
    assert found is not None
    assert (found["seq"], found["problem"]) == (3, "event 3 is missing: event 4 follows")


def test_an_event_that_was_put_in_between_is_named(trail: Organization) -> None:
    Owner(trail).do(
        "UPDATE bridge.audit_events SET seq = -seq WHERE organization_id = :o AND seq > 3",
        "INSERT INTO bridge.audit_events SELECT organization_id, 4, gen_random_uuid(), at, action, 'planted',"
        " environment, actor_kind, subject_id, personal, details, hash, sha256('planted')"
        " FROM bridge.audit_events WHERE organization_id = :o AND seq = 3",
        "UPDATE bridge.audit_events SET seq = 1 - seq WHERE organization_id = :o AND seq < 0",
    )
    found = fault(trail)
    assert found is not None
    assert (found["seq"], found["problem"]) == (4, "it was changed after it was written")


def test_events_in_another_order_are_named(trail: Organization) -> None:
    Owner(trail).do(
        "UPDATE bridge.audit_events SET seq = -seq WHERE organization_id = :o AND seq IN (3, 4)",
        "UPDATE bridge.audit_events SET seq = 7 + seq WHERE organization_id = :o AND seq < 0",
    )
    found = fault(trail)
    assert found is not None
    assert (found["seq"], found["problem"]) == (3, "it does not follow the event before it")


@pytest.mark.parametrize("seq", [0, -1_000])
def test_an_event_in_front_of_the_first_is_named(trail: Organization, seq: int) -> None:
    Owner(trail).do(
        f"INSERT INTO bridge.audit_events SELECT organization_id, {seq}, gen_random_uuid(), at, action, target,"
        " environment, actor_kind, subject_id, personal, details, '', sha256('')"
        " FROM bridge.audit_events WHERE organization_id = :o AND seq = 1"
    )
    found = fault(trail)
    assert found is not None
    assert found["seq"] == 1


def test_an_event_behind_the_end_is_named(trail: Organization) -> None:
    owner = Owner(trail)
    owner.do(
        f"INSERT INTO bridge.audit_events SELECT organization_id, {EVENTS + 1}, gen_random_uuid(), at, action,"
        " 'planted', environment, actor_kind, subject_id, personal, details, hash, sha256('')"
        f" FROM bridge.audit_events WHERE organization_id = :o AND seq = {EVENTS}"
    )
    with database.tenant(owner.id) as connection:
        *_, before, planted = chain._links(connection, owner.id)
    made = planted.expected_hash(owner.id, before.hash).hex()
    fits = f"hash = '\\x{made}' WHERE organization_id = :o AND seq = {EVENTS + 1}"
    owner.do(f"UPDATE bridge.audit_events SET {fits}")
    found = fault(trail)
    assert found is not None
    assert (found["seq"], found["problem"]) == (
        EVENTS + 1,
        f"{EVENTS} events were written; here are more, or others",
    )


def test_a_trail_that_was_tampered_with_says_so_to_whoever_acts_and_can_be_exported(trail: Organization) -> None:
    Owner(trail).do(
        f"INSERT INTO bridge.audit_events SELECT organization_id, {EVENTS + 1}, gen_random_uuid(), at, action,"
        " 'planted', environment, actor_kind, subject_id, personal, details, hash, sha256('planted')"
        f" FROM bridge.audit_events WHERE organization_id = :o AND seq = {EVENTS}"
    )
    with pytest.raises(TrailDamaged, match="bridge audit verify"):
        write(trail, "refused")
    exported = run("audit", "export", "-o", trail.slug, "--format", "jsonl")
    assert exported.exit_code == 0, exported.output
    told = [json.loads(line) for line in exported.stdout.splitlines()]
    assert [each["seq"] for each in told] == list(range(EVENTS + 1, 0, -1))
    assert [each["actor"] for each in told[:2]] == ["(altered)", "anna"]


def test_a_persons_key_that_was_altered_is_told_as_what_it_is(trail: Organization) -> None:
    Owner(trail).do(
        "ALTER TABLE bridge.audit_subjects NO FORCE ROW LEVEL SECURITY",
        "UPDATE bridge.audit_subjects SET sealed_key = set_byte(sealed_key, 40, get_byte(sealed_key, 40) # 1)"
        " WHERE organization_id = :o",
        "ALTER TABLE bridge.audit_subjects FORCE ROW LEVEL SECURITY",
    )
    with acting(Actor("user", "anna")), pytest.raises(TrailDamaged, match="bridge vault verify"):
        write(trail, "refused")


def test_an_organization_that_was_deleted_with_its_trail_is_named(trail: Organization, ledger: Path) -> None:
    assert run("audit", "checkpoint").exit_code == 0
    with psycopg.connect(database.owner_url()) as connection:
        connection.execute("ALTER TABLE bridge.organizations NO FORCE ROW LEVEL SECURITY")
        connection.execute("DELETE FROM bridge.organizations WHERE organization_id = %s", (trail.organization_id,))
        connection.execute("ALTER TABLE bridge.organizations FORCE ROW LEVEL SECURITY")
    told = run("audit", "verify")
    assert told.exit_code == 1
    assert (
        f"organization {trail.organization_id} is gone; at a checkpoint its trail had {EVENTS} events"
        in told.stderr
    )


def test_a_trail_that_was_cut_off_is_named(trail: Organization) -> None:
    Owner(trail).do(f"DELETE FROM bridge.audit_events WHERE organization_id = :o AND seq > {EVENTS - 2}")
    found = fault(trail)
    assert found is not None
    assert (found["seq"], found["problem"]) == (EVENTS - 1, f"the trail ends here; {EVENTS} events were written")


@pytest.mark.parametrize("appended", [0, 1, 5])
def test_a_trail_cut_off_and_made_to_fit_does_not_fit_its_checkpoints(
    trail: Organization, ledger: Path, appended: int
) -> None:
    done = run("audit", "checkpoint")
    assert done.exit_code == 0, done.output
    assert fault(trail) is None
    owner = Owner(trail)
    with database.tenant(owner.id) as connection:
        kept = next(each for each in chain._links(connection, owner.id) if each.seq == EVENTS - 2)
    owner.do(
        f"DELETE FROM bridge.audit_events WHERE organization_id = :o AND seq > {kept.seq}",
        owner.end(kept.seq, kept.hash),
    )
    for number in range(appended):
        write(trail, f"other-{number}")
    found = fault(trail)
    assert found is not None
    if appended < 2:
        assert (found["seq"], found["problem"]) == (
            kept.seq + appended + 1,
            f"the trail ends here; at a checkpoint it had {EVENTS} events",
        )
    else:
        assert (found["seq"], found["problem"]) == (EVENTS, "it is not the event that stood here at a checkpoint")


def test_a_trail_made_anew_does_not_fit_its_checkpoints(trail: Organization, ledger: Path) -> None:
    run("audit", "checkpoint")
    owner = Owner(trail)
    owner.do("UPDATE bridge.audit_events SET target = 'other' WHERE organization_id = :o AND seq = 3")
    owner.rechain(3)
    found = fault(trail)
    assert found is not None
    assert (found["seq"], found["problem"]) == (EVENTS, "it is not the event that stood here at a checkpoint")


@pytest.mark.parametrize("left", [None, 0, 1])
def test_a_trail_that_is_cut_off_with_its_checkpoints_is_missed_for_ever(
    trail: Organization, ledger: Path, left: int | None
) -> None:
    for number in range(3):
        write(trail, f"more-{number}")
        checkpoints.write([trail.organization_id])
    assert run("audit", "verify", "-o", trail.slug).exit_code == 0
    owner = Owner(trail)
    owner.do("DELETE FROM bridge.audit_events WHERE organization_id = :o AND seq > 6")
    owner.rechain(3)
    lines = ledger.read_text().splitlines(keepends=True)
    if left is None:
        ledger.unlink()
    else:
        ledger.write_text("".join(lines[:left]))

    def told() -> str:
        done = run("audit", "verify", "-o", trail.slug)
        assert done.exit_code == 1
        return done.stderr

    assert f"{ledger}: {'behind line 1 lines were taken out' if left else 'its lines are gone'}" in told()
    write(trail, "as if nothing had been")
    assert checkpoints.write([trail.organization_id]) == 1
    assert f"{ledger}: before line {(left or 0) + 1} something was taken out" in told()
    ledger.write_text("".join(lines) + ledger.read_text().splitlines(keepends=True)[-1])
    assert "taken out" not in told(), "whoever puts the lines back has all of them"


def test_a_checkpoint_that_we_did_not_sign_is_named_and_counts_for_nothing(
    trail: Organization, ledger: Path
) -> None:
    run("audit", "checkpoint")
    lines = [json.loads(line) for line in ledger.read_text().splitlines()]
    number = next(n for n, line in enumerate(lines) if line["organization_id"] == str(trail.organization_id))
    assert ledger.stat().st_mode & 0o777 == 0o600
    lines[number]["seq"] += 1
    ledger.write_text("".join(json.dumps(line) + "\n" for line in lines) + "no json\n")
    done = run("audit", "verify", "-o", trail.slug)
    assert done.exit_code == 1
    assert f"{ledger}: line {number + 1} does not bear our signature" in done.stderr
    assert f"{ledger}: line {len(lines) + 1} does not" in done.stderr
    assert fault_of_text(done) == []


@pytest.mark.parametrize("change", ["taken out", "exchanged", "repeated"])
def test_checkpoints_that_were_taken_out_or_moved_are_missed(
    trail: Organization, ledger: Path, change: str
) -> None:
    for number in range(3):
        write(trail, f"more-{number}")
        assert checkpoints.write([trail.organization_id]) == 1
    first, second, third = ledger.read_text().splitlines(keepends=True)
    assert checkpoints.read().problems == {}
    kept = {"taken out": [first, third], "exchanged": [first, third, second], "repeated": [first, second, second]}
    ledger.write_text("".join(kept[change]))
    done = run("audit", "verify", "-o", trail.slug)
    assert done.exit_code == 1
    told = "before line 3" if change == "repeated" else "before line 2"
    assert f"{ledger}: {told} something was taken out, or put in another order" in done.stderr


def test_a_line_that_was_put_in_harms_none_of_ours(trail: Organization, ledger: Path) -> None:
    checkpoints.write([trail.organization_id])
    with ledger.open("a") as opened:
        opened.write("{}\n")
    write(trail, "more")
    checkpoints.write([trail.organization_id])
    assert list(checkpoints.read().problems) == [2]
    assert len(checkpoints.read().marks[trail.organization_id]) == 2


def test_lines_from_before_they_were_chained_are_believed_at_the_beginning_only(
    trail: Organization, ledger: Path, settings: Settings
) -> None:
    checkpoints.write([trail.organization_id])
    said = json.loads(ledger.read_text())
    del said["signature"], said["previous"]
    signature = signing.current(settings).sign(checkpoints._signed(said))
    old = json.dumps({**said, "signature": b64encode(signature).decode()}) + "\n"
    ledger.write_text(old)
    for kept in settings.keys_dir.glob("audit-last.*"):
        kept.unlink()
    write(trail, "more")
    checkpoints.write([trail.organization_id])
    assert checkpoints.read().problems == {}
    with ledger.open("a") as opened:
        opened.write(old)
    assert checkpoints.read().problems == {3: "line 3 is not chained to the one before"}


def test_a_signing_key_that_is_gone_is_told_and_not_replaced_until_somebody_says_so(
    trail: Organization, ledger: Path, settings: Settings
) -> None:
    checkpoints.write([trail.organization_id])
    file = settings.keys_dir / signing.KEY_FILE
    kept = file.read_bytes()
    file.unlink()
    try:
        write(trail, "more")
        refused = run("audit", "checkpoint")
        assert refused.exit_code != 0
        assert "bridge audit new-signing-key" in str(refused.exception) + refused.output
        assert not file.exists()
        told = run("audit", "verify", "-o", trail.slug)
        assert told.exit_code == 1
        assert f"{file} is gone" in told.stderr
        assert fault_of_text(told) == []
        assert run("audit", "new-signing-key", "--yes").exit_code == 0
        assert file.stat().st_mode & 0o777 == 0o600
        assert file.read_bytes() != kept
        assert checkpoints.write([trail.organization_id]) == 1
        assert checkpoints.read().problems == {}, "the former key's line is believed on"
        assert len(checkpoints.read().marks[trail.organization_id]) == 2
        events = json.loads(run("audit", "list", "-o", trail.slug, "--json").stdout)
        assert events[0]["action"] == "audit.signing_key_changed"
    finally:
        file.write_bytes(kept)


def fault_of_text(done: Result) -> list[str]:
    """Lines about trails, not about the file."""
    return [line for line in done.stderr.splitlines() if not line.startswith("checkpoints: ")]


def test_a_trail_that_has_not_grown_gets_no_other_checkpoint(trail: Organization, ledger: Path) -> None:
    assert checkpoints.write([trail.organization_id]) == 1
    assert checkpoints.write([trail.organization_id]) == 0
    write(trail, "one more")
    assert checkpoints.write([trail.organization_id]) == 1
    assert len(ledger.read_text().splitlines()) == 2


def test_a_long_trail_is_verified_in_pieces(organization: Organization, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain, "CHUNK", 3)
    for number in range(8):
        write(organization, f"thing-{number}")
    assert chain.verify(organization.organization_id).events == 9
    Owner(organization).do("DELETE FROM bridge.audit_events WHERE organization_id = :o AND seq = 4")
    found = chain.verify(organization.organization_id).fault
    assert found is not None
    assert found.seq == 4
