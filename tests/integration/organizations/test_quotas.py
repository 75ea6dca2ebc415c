"""What an organization may have and begin: refused by the database where it would go beyond."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import orjson
import pytest
from click.testing import CliRunner

from continuitybridge import database, deployments, organizations, systems
from continuitybridge.cli import bridge
from continuitybridge.connections import verbs as connections
from continuitybridge.errors import AllowanceExhausted, ConfigurationError, QuotaExceeded, Unavailable
from continuitybridge.flows.load import load_flow
from continuitybridge.inbox import allowance, batches, holds
from continuitybridge.inbox.accept import Acceptance, accept
from continuitybridge.inbox.accept.aio import GroupCommit
from continuitybridge.organizations import Organization, quotas
from continuitybridge.organizations.tiers import LIMITS, Resource, Tier, limits_of
from continuitybridge.vault.keyring import Keyring


@pytest.fixture
def free(settings: object) -> Organization:
    """An organization of the lowest tier."""
    slug = f"org-{uuid4().hex[:12]}"
    return organizations.create(slug, slug, tier="free")


def deploy(
    organization: Organization,
    name: str,
    version: str = "1.0.0",
    environment: str = "dev",
    slug: str | None = None,
) -> None:
    webhook = {"id": "in", "type": "webhook_trigger", "config": {"slug": slug, "verification": "api_key"}}
    flow = {
        "flow": name,
        "version": version,
        "triggers": [{"id": "in", "type": "manual_trigger"} if slug is None else webhook],
        "steps": [{"id": "note", "type": "logger", "config": {"message": version}}],
    }
    deployments.deploy(organization.organization_id, environment, load_flow(orjson.dumps(flow).decode()), "tester")


def acceptance(organization: Organization, **given: object) -> Acceptance:
    return Acceptance(organization.organization_id, "dev", "orders", "1.0.0", "api", b"{}", **given)  # type: ignore[arg-type]


def connect(organization: Organization, environment: str, name: str, address: str = "https://a.example") -> None:
    connections.put(organization.organization_id, environment, name, {"base_url": address}, "test")


def used(organization: Organization, resource: Resource) -> int:
    found = {each.resource: each.used for each in quotas.quotas(organization.organization_id)}
    return found[resource]


def test_each_tier_allows_at_least_what_the_one_below_does() -> None:
    for resource, allowed in LIMITS.items():
        assert len(allowed) == len(Tier), resource
        known = [each if each is not None else 10**18 for each in allowed]
        assert known == sorted(known), resource
    assert limits_of(Tier.FREE)[Resource.FLOWS] == 5
    assert limits_of(Tier.PROFESSIONAL)[Resource.MESSAGES_PER_HOUR] == 20 * 2_000
    bounded = {
        Resource.CONCURRENT_RUNS: 100,
        Resource.API_CALLS_PER_MINUTE: 1_000,
        Resource.DATA_RETENTION_DAYS: 365,
    }
    assert limits_of(Tier.ENTERPRISE) == {**dict.fromkeys(Resource), **bounded}


def test_a_flow_beyond_the_limit_is_refused_with_resource_limit_and_use(free: Organization) -> None:
    for n in range(5):
        deploy(free, f"flow-{n}")
    with pytest.raises(QuotaExceeded) as refused:
        deploy(free, "one-more")
    assert (refused.value.facts["resource"], refused.value.facts["allowed"], refused.value.facts["used"]) == (
        "flows",
        5,
        5,
    )
    # What is there is no new use: another environment, another version, another start.
    deploy(free, "flow-0", environment="prod")
    deploy(free, "flow-0", version="1.1.0")
    deployments.set_status(free.organization_id, "dev", "flow-1", "disable", "tester")
    deployments.set_status(free.organization_id, "dev", "flow-1", "enable", "tester")
    # A flow that is taken out makes room; coming back it needs room.
    deployments.set_status(free.organization_id, "dev", "flow-2", "remove", "tester")
    deploy(free, "one-more")
    with pytest.raises(QuotaExceeded):
        deploy(free, "flow-2", version="2.0.0")
    assert used(free, Resource.FLOWS) == 5


def test_versions_connections_and_members_have_limits(free: Organization) -> None:
    for n in range(10):
        deploy(free, "orders", version=f"1.{n}.0")
    with pytest.raises(QuotaExceeded, match="versions_per_flow"):
        deploy(free, "orders", version="2.0.0")
    for name in ("one", "two"):
        connect(free, "dev", name, "https://a.example")
    connect(free, "dev", "two", "https://b.example")
    with pytest.raises(QuotaExceeded, match="connections"):
        connect(free, "prod", "one", "https://a.example")
    for n in range(5):
        organizations.add_member(free.organization_id, f"user-{n}", "customer_user")
    organizations.add_member(free.organization_id, "user-0", "customer_admin")
    with pytest.raises(QuotaExceeded, match="members"):
        organizations.add_member(free.organization_id, "user-5", "customer_user")


def place_system(organization: Organization, n: int) -> None:
    owner = organization.organization_id
    systems.put_ecosystem(owner, "erp", kind="erp", name="ERP", by="test")
    systems.put_system(owner, "dev", f"system-{n}", ecosystem="erp", name="S", by="test")


MADE: dict[Resource, Callable[[Organization, int], object]] = {
    Resource.FLOWS: lambda organization, n: deploy(organization, f"flow-{n}"),
    Resource.VERSIONS_PER_FLOW: lambda organization, n: deploy(organization, "flow", version=f"1.0.{n}"),
    Resource.ENDPOINTS: lambda organization, n: deploy(organization, f"flow-{n}", slug=f"slug-{n}"),
    Resource.CONNECTIONS: lambda organization, n: connect(organization, "dev", f"c{n}"),
    Resource.MEMBERS: lambda organization, n: organizations.add_member(
        organization.organization_id, f"member-{n}", "customer_user"
    ),
    Resource.SYSTEM_INSTANCES: place_system,
}


@pytest.mark.parametrize("resource", MADE)
def test_twenty_at_once_take_the_places_that_there_are(free: Organization, resource: Resource) -> None:
    allowed = limits_of(Tier.FREE)[resource]
    assert allowed is not None

    def attempt(n: int) -> bool:
        try:
            MADE[resource](free, n)
        except QuotaExceeded as refused:
            facts = refused.facts
            assert (facts["resource"], facts["allowed"], facts["used"]) == (resource, allowed, allowed)
            return False
        return True

    with ThreadPoolExecutor(20) as pool:
        assert sum(pool.map(attempt, range(20))) == allowed
    assert used(free, resource) == allowed
    # What there is stays when less is allowed, and no more is made.
    quotas.agree(free.organization_id, resource, allowed - 1)
    assert used(free, resource) == allowed
    with pytest.raises(QuotaExceeded) as refused:
        MADE[resource](free, 21)
    assert (refused.value.facts["allowed"], refused.value.facts["used"]) == (allowed - 1, allowed)


def test_one_organizations_use_is_not_anothers(free: Organization, organization: Organization) -> None:
    for n in range(5):
        deploy(free, f"flow-{n}")
        deploy(organization, f"flow-{n}")
    deploy(organization, "one-more")
    assert used(organization, Resource.FLOWS) == 6


def test_the_tier_changes_and_what_was_agreed_upon_stays(free: Organization) -> None:
    quotas.agree(free.organization_id, "flows", 1)
    deploy(free, "one")
    with pytest.raises(QuotaExceeded):
        deploy(free, "two")
    quotas.set_tier(free.organization_id, "enterprise")
    found = {each.resource: each for each in quotas.quotas(free.organization_id)}
    assert (found[Resource.FLOWS].allowed, found[Resource.FLOWS].agreed) == (1, True)
    assert (found[Resource.MEMBERS].allowed, found[Resource.MEMBERS].agreed) == (None, False)
    quotas.as_tier(free.organization_id)
    deploy(free, "two")
    for wrong in ("flow", ""):
        with pytest.raises(ConfigurationError):
            quotas.agree(free.organization_id, wrong, 1)
    with pytest.raises(ConfigurationError):
        quotas.set_tier(free.organization_id, "gold")


def test_the_application_cannot_change_its_own_limits(free: Organization) -> None:
    import psycopg

    for statement in (
        "UPDATE bridge.organization_limits SET allowed = NULL",
        "INSERT INTO bridge.organization_limits SELECT bridge.current_organization(), 'x', 1",
        "DELETE FROM bridge.organization_limits",
        "DELETE FROM bridge.quota_windows",
        "UPDATE bridge.organizations SET tier = 'enterprise'",
    ):
        with (
            pytest.raises(psycopg.errors.InsufficientPrivilege),
            database.tenant(free.organization_id) as connection,
        ):
            connection.execute(statement)


def test_messages_beyond_the_allowance_are_refused_before_they_are_accepted(
    free: Organization, keyring: Keyring
) -> None:
    quotas.agree(free.organization_id, "messages_per_hour", 3)
    first = accept(acceptance(free, idempotency_key="first"), keyring)
    for _ in range(2):
        accept(acceptance(free), keyring)
    with pytest.raises(AllowanceExhausted) as refused:
        accept(acceptance(free), keyring)
    assert refused.value.facts["resource"] == "messages_per_hour"
    assert (refused.value.facts["allowed"], refused.value.facts["used"]) == (3, 3)
    assert 0 < refused.value.facts["retry_after_s"] <= 3600
    # One that was accepted is known for ever.
    again = accept(acceptance(free, idempotency_key="first"), keyring)
    assert (again.message_id, again.duplicate) == (first.message_id, True)
    with database.tenant(free.organization_id) as connection:
        assert connection.execute("SELECT count(*) FROM bridge.messages").fetchone() == (3,)


def test_the_day_ends_what_the_hour_allows(free: Organization, keyring: Keyring) -> None:
    quotas.agree(free.organization_id, "messages_per_day", 1)
    accept(acceptance(free), keyring)
    with pytest.raises(AllowanceExhausted) as refused:
        accept(acceptance(free), keyring)
    assert refused.value.facts["resource"] == "messages_per_day"


def test_a_new_hour_begins_at_nothing(free: Organization, keyring: Keyring) -> None:
    quotas.agree(free.organization_id, "messages_per_hour", 1)
    accept(acceptance(free), keyring)
    with database.relay() as connection:
        connection.execute(
            "UPDATE bridge.quota_windows SET starts_at = starts_at - interval '1 hour'"
            " WHERE organization_id = %s AND resource = 'messages_per_hour'",
            (free.organization_id,),
        )
    assert used(free, Resource.MESSAGES_PER_HOUR) == 0
    accept(acceptance(free), keyring)
    assert used(free, Resource.MESSAGES_PER_HOUR) == 1
    assert used(free, Resource.MESSAGES_PER_DAY) == 2


def test_two_processes_that_take_webhooks_accept_exactly_what_is_allowed(
    free: Organization, keyring: Keyring
) -> None:
    quotas.agree(free.organization_id, "messages_per_hour", 200)

    async def run() -> list[int]:
        async with GroupCommit(keyring) as first, GroupCommit(keyring) as second:

            async def send(commits: GroupCommit) -> int:
                try:
                    await commits.submit(acceptance(free))
                except AllowanceExhausted:
                    return 0
                return 1

            # One after the other: what one holds back, the other cannot have.
            return [sum([await send(commits) for _ in range(240)]) for commits in (first, second)]

    taken = asyncio.run(run())
    with database.tenant(free.organization_id) as connection:
        assert connection.execute("SELECT count(*) FROM bridge.messages").fetchone() == (sum(taken),)
    assert sum(taken) == 200
    assert used(free, Resource.MESSAGES_PER_HOUR) == 200


def test_who_cannot_be_counted_is_told_to_come_again_instead_of_waiting_for_ever(
    free: Organization, keyring: Keyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(allowance, "TAKE_TIMEOUT_S", 0.3)

    async def send() -> bool:
        async with GroupCommit(keyring) as commits:
            try:
                await asyncio.wait_for(commits.submit(acceptance(free)), 10)
            except Unavailable:
                return False
            return True

    assert asyncio.run(send())
    with database.relay() as connection:
        connection.execute(
            "SELECT FROM bridge.quota_windows WHERE organization_id = %s FOR UPDATE", (free.organization_id,)
        )
        assert not asyncio.run(send())
    assert asyncio.run(send())


def test_what_a_process_took_and_did_not_need_is_given_back(free: Organization, keyring: Keyring) -> None:
    async def run() -> None:
        async with GroupCommit(keyring) as commits:
            await commits.submit(acceptance(free, idempotency_key="a"))
            await commits.submit(acceptance(free, idempotency_key="a"))
            assert used(free, Resource.MESSAGES_PER_HOUR) > 1

    asyncio.run(run())
    assert used(free, Resource.MESSAGES_PER_HOUR) == used(free, Resource.MESSAGES_PER_DAY) == 1


def test_batches_wait_when_the_runs_are_used_up_and_their_messages_stay_accepted(
    free: Organization, keyring: Keyring
) -> None:
    deploy(free, "orders")
    quotas.agree(free.organization_id, "runs_per_hour", 1)

    def dispatched() -> int:
        with database.relay() as connection:
            others = connection.execute(
                "SELECT organization_id, environment, flow FROM bridge.deployments WHERE organization_id <> %s",
                (free.organization_id,),
            ).fetchall()
        found = batches.dispatch_ready(max_messages=1, max_open_per_flow=10, paused=others)
        return sum(each.organization_id == free.organization_id for each in found)

    for _ in range(2):
        accept(acceptance(free), keyring)
    assert [dispatched(), dispatched()] == [1, 0]
    with database.tenant(free.organization_id) as connection:
        states = connection.execute("SELECT state, batch_id IS NULL FROM bridge.messages ORDER BY 2").fetchall()
    assert states == [("accepted", False), ("accepted", True)]
    with pytest.raises(AllowanceExhausted, match="runs per hour"):
        batches.adopt(
            f"{free.slug}.dev.orders",
            "manual__1",
            organization_id=free.organization_id,
            environment="dev",
            flow="orders",
            version="1.0.0",
            acceptances=[acceptance(free)],
            keys=keyring,
        )
    quotas.agree(free.organization_id, "runs_per_hour", 2)
    assert dispatched() == 1


def test_no_more_runs_are_begun_than_may_be_under_way_and_the_rest_waits(
    free: Organization, organization: Organization, keyring: Keyring
) -> None:
    """The lowest tier: two."""
    for each in (free, organization):
        for name in ("orders", "stock", "returns"):
            deploy(each, name)
            accept(Acceptance(each.organization_id, "dev", name, "1.0.0", "api", b"{}"), keyring)

    def dispatched(owner: Organization) -> list[batches.Batch]:
        with database.relay() as connection:
            others = connection.execute(
                "SELECT organization_id, environment, flow FROM bridge.deployments"
                " WHERE organization_id <> ALL(%s)",
                ([free.organization_id, organization.organization_id],),
            ).fetchall()
        found = batches.dispatch_ready(max_messages=1, max_open_per_flow=10, paused=others)
        begun.extend(found)
        return [each for each in begun if each.organization_id == owner.organization_id]

    begun: list[batches.Batch] = []
    assert len(dispatched(free)) == 2
    assert len(dispatched(organization)) == 3
    assert len(dispatched(free)) == 2
    assert used(free, Resource.CONCURRENT_RUNS) == 2
    assert used(free, Resource.RUNS_PER_HOUR) == 2
    first = next(each for each in begun if each.organization_id == free.organization_id)
    batches.release(first)
    assert len(dispatched(free)) == 3


@pytest.mark.parametrize("how", ["removed", "paused"])
def test_runs_that_airflow_does_not_begin_keep_no_other_flow_from_its_runs(
    free: Organization, keyring: Keyring, how: str
) -> None:
    """Those of a flow that was removed or is paused stay queued in Airflow."""
    owner = free.organization_id
    for name in ("orders", "stock", "returns"):
        deploy(free, name)
        accept(Acceptance(owner, "dev", name, "1.0.0", "api", b"{}"), keyring)

    def dispatched() -> list[str]:
        with database.relay() as connection:
            others = connection.execute(
                "SELECT organization_id, environment, flow FROM bridge.deployments WHERE organization_id <> %s",
                (owner,),
            ).fetchall()
        return [each.flow for each in batches.dispatch_ready(paused=others)]

    first, second = dispatched()
    assert dispatched() == []
    for name in (first, second):
        if how == "removed":
            deployments.set_status(owner, "dev", name, "remove", "tester")
        else:
            holds.hold(owner, "dev", name, "pause", by="tester")
    [third] = dispatched()
    assert {first, second, third} == {"orders", "stock", "returns"}
    assert used(free, Resource.CONCURRENT_RUNS) == 1


@pytest.fixture
def command() -> Callable[..., str]:
    def run(*arguments: str, status: int = 0) -> str:
        done = CliRunner().invoke(bridge, ["quota", *arguments])
        assert done.exit_code == status, done.output
        return done.output

    return run


def test_the_commands_show_and_change(free: Organization, command: Callable[..., str]) -> None:
    assert "flows" in command("list", "-o", free.slug)
    command("agree", "-o", free.slug, "flows", "7")
    command("agree", "-o", free.slug, "members", "unlimited")
    shown = {each["resource"]: each for each in orjson.loads(command("list", "-o", free.slug, "--json"))}
    assert (shown["flows"]["allowed"], shown["members"]["allowed"]) == (7, None)
    command("reset", "-o", free.slug)
    command("set-tier", "-o", free.slug, "starter")
    shown = {each["resource"]: each for each in orjson.loads(command("list", "-o", free.slug, "--json"))}
    assert (shown["flows"]["allowed"], shown["members"]["allowed"]) == (20, 10)
    assert "few" in command("agree", "-o", free.slug, "flows", "few", status=2)
    assert "a number from 0 to" in command("agree", "-o", free.slug, "flows", "9" * 20, status=2)


def test_the_reference_page_is_what_the_tiers_say(command: Callable[..., str]) -> None:
    page = Path(__file__).parents[3] / "docs" / "quotas.md"
    assert command("tiers", "--markdown") == page.read_text(), "run: make docs"
