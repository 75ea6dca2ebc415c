"""Account, organization, ecosystem, environment, system: what there is, what leads where, and how many."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import pytest
from click.testing import CliRunner
from damaged_trail import planted_event

from continuitybridge import database, invitations, lifecycle, organizations, systems
from continuitybridge.cli import bridge
from continuitybridge.connections import verbs as connections
from continuitybridge.errors import ConfigurationError, Conflict, NotFound, QuotaExceeded
from continuitybridge.organizations import Organization, accounts, quotas
from continuitybridge.organizations.tiers import Resource
from continuitybridge.vault import Keyring


def command(*arguments: str, status: int = 0) -> str:
    done = CliRunner().invoke(bridge, list(arguments))
    assert done.exit_code == status, done.output
    return done.output


def test_a_system_stands_in_an_environment_and_connections_lead_there(organization: Organization) -> None:
    slug, owner = organization.slug, organization.organization_id
    command("ecosystem", "set", "warehouse", "-o", slug, "--kind", "wms", "--name", "Our warehouse")
    place = ("-o", slug, "-e", "prod")
    command("system", "set", "north", *place, "--ecosystem", "warehouse", "--name", "North")
    connections.put(owner, "prod", "wms", {"base_url": "https://wms.example"}, "test")
    command("system", "connect", "wms", "north", *place)
    [shown] = json.loads(command("system", "list", "-o", slug, "--json"))
    assert shown == {
        "environment": "prod", "system": "north", "ecosystem": "warehouse", "kind": "wms", "name": "North",
        "connections": ["wms"],
    }  # fmt: skip
    # A change of the connection leaves where it leads.
    connections.put(owner, "prod", "wms", {"base_url": "https://other.example"}, "test")
    assert systems.systems(owner)[0].connections == ["wms"]
    with pytest.raises(Conflict, match="connections"):
        systems.remove_system(owner, "prod", "north", by="test")
    with pytest.raises(Conflict, match="systems"):
        systems.remove_ecosystem(owner, "warehouse", by="test")
    assert "1" in command("ecosystem", "list", "-o", slug)
    command("system", "connect", "wms", *place)
    command("system", "remove", "north", *place)
    command("ecosystem", "remove", "warehouse", "-o", slug)
    assert (systems.systems(owner), systems.ecosystems(owner)) == ([], [])
    trail = json.loads(command("audit", "list", "-o", slug, "--json"))
    told = {each["action"] for each in trail}
    assert {"ecosystem.changed", "system.changed", "connection.system_changed", "system.removed"} <= told


def test_what_does_not_exist_is_named_with_what_does(organization: Organization) -> None:
    owner = organization.organization_id
    systems.put_ecosystem(owner, "shop", kind="marketplace", name="Shop", by="test")
    with pytest.raises(ConfigurationError) as refused:
        systems.put_system(owner, "prod", "one", ecosystem="store", name="One", by="test")
    assert (refused.value.facts["field"], refused.value.facts["valid"]) == ("ecosystem", ["shop"])
    with pytest.raises(ConfigurationError) as refused:
        systems.put_system(owner, "qa", "one", ecosystem="shop", name="One", by="test")
    assert (refused.value.facts["field"], refused.value.facts["valid"][0]) == ("environment", "dev")
    with pytest.raises(ConfigurationError, match="3pl"):
        systems.put_ecosystem(owner, "carrier", kind="carrier", name="Carrier", by="test")
    for wrong in ("Shop", "", "a b"):
        with pytest.raises(ConfigurationError):
            systems.put_ecosystem(owner, wrong, kind="erp", name="x", by="test")
    with pytest.raises(NotFound):
        systems.connect(owner, "prod", "nothing", None, by="test")


def test_systems_have_a_quota_and_another_organizations_do_not_count(
    make_organization: Callable[[], Organization],
) -> None:
    mine, other = make_organization(), make_organization()
    for each in (mine, other):
        quotas.set_tier(each.organization_id, "starter")
        systems.put_ecosystem(each.organization_id, "erp", kind="erp", name="ERP", by="test")
    owner = mine.organization_id

    def add(name: str, environment: str = "prod", to: Organization = mine) -> None:
        systems.put_system(to.organization_id, environment, name, ecosystem="erp", name=name, by="test")

    add("one")
    add("one", "test")
    add("one")
    with pytest.raises(QuotaExceeded) as refused:
        add("two")
    facts = refused.value.facts
    assert (facts["resource"], facts["allowed"], facts["used"]) == ("system_instances", 2, 2)
    add("one", to=other)
    found = {each.resource: each.used for each in quotas.quotas(owner)}
    assert found[Resource.SYSTEM_INSTANCES] == 2


def test_an_account_holds_as_many_organizations_as_it_may(make_organization: Callable[[], Organization]) -> None:
    first, second = make_organization(), make_organization()
    account = f"account-{uuid4().hex[:8]}"
    command("account", "set", account, "--name", "Acme Group", "--max-organizations", "1")
    command("account", "assign", account, "-o", first.slug)
    command("account", "assign", account, "-o", first.slug)
    command("account", "set", account, "--name", "Acme Group", "--max-organizations", "0")
    command("account", "assign", account, "-o", first.slug)
    command("account", "set", account, "--name", "Acme Group", "--max-organizations", "1")
    with pytest.raises(QuotaExceeded) as refused:
        accounts.assign(second.organization_id, account)
    facts = refused.value.facts
    assert (facts["resource"], facts["allowed"], facts["used"]) == ("organizations", 1, 1)
    [shown] = [each for each in json.loads(command("account", "list", "--json")) if each["account"] == account]
    assert (shown["organizations"], shown["max_organizations"]) == ([first.slug], 1)
    command("account", "remove", account, status=2)
    command("account", "assign", "-o", first.slug)
    accounts.assign(second.organization_id, account)
    accounts.assign(second.organization_id, None)
    command("account", "remove", account)
    with pytest.raises(NotFound):
        accounts.assign(second.organization_id, account)
    assert organizations.by_slug(second.slug).slug == second.slug


def test_an_accounts_ecosystems_and_systems_are_counted_over_all_its_organizations(
    make_organization: Callable[[], Organization],
) -> None:
    first, second, other = (make_organization() for _ in range(3))
    account = f"acc-{uuid4().hex[:8]}"
    command("account", "set", account, "--name", "One", "--max-ecosystems", "2", "--max-systems", "3")
    for each in (first, second):
        accounts.assign(each.organization_id, account)
        systems.put_ecosystem(each.organization_id, "erp", kind="erp", name="ERP", by="test")
    for each in (first, second):
        with pytest.raises(QuotaExceeded) as refused:
            systems.put_ecosystem(each.organization_id, "wms", kind="wms", name="WMS", by="test")
        facts = refused.value.facts
        assert (facts["resource"], facts["allowed"], facts["used"]) == ("account_ecosystems", 2, 2)
    # What is there already may be changed, and nobody else is counted or refused.
    systems.put_ecosystem(first.organization_id, "erp", kind="erp", name="Another name", by="test")
    systems.put_ecosystem(other.organization_id, "wms", kind="wms", name="WMS", by="test")
    for each, environment in ((first, "dev"), (first, "prod"), (second, "dev")):
        systems.put_system(each.organization_id, environment, "one", ecosystem="erp", name="One", by="test")
    with pytest.raises(QuotaExceeded) as refused:
        systems.put_system(second.organization_id, "prod", "one", ecosystem="erp", name="One", by="test")
    facts = refused.value.facts
    assert (facts["resource"], facts["allowed"], facts["used"]) == ("account_systems", 3, 3)
    systems.put_system(first.organization_id, "dev", "one", ecosystem="erp", name="Two", by="test")
    [shown] = [each for each in json.loads(command("account", "list", "--json")) if each["account"] == account]
    assert (shown["max_ecosystems"], shown["max_systems"]) == (2, 3)
    # So may it when less is agreed upon than there is.
    command("account", "set", account, "--name", "One", "--max-ecosystems", "1", "--max-systems", "1")
    systems.put_ecosystem(first.organization_id, "erp", kind="erp", name="A third name", by="test")
    systems.put_system(first.organization_id, "dev", "one", ecosystem="erp", name="Three", by="test")
    with pytest.raises(QuotaExceeded):
        systems.put_system(second.organization_id, "prod", "one", ecosystem="erp", name="One", by="test")
    command("account", "set", account, "--name", "One")
    systems.put_ecosystem(second.organization_id, "wms", kind="wms", name="WMS", by="test")


def test_of_two_organizations_that_take_an_accounts_last_place_at_once_one_gets_it(
    make_organization: Callable[[], Organization],
) -> None:
    members = [make_organization() for _ in range(4)]
    account = f"acc-{uuid4().hex[:8]}"
    accounts.put(account, "One", max_organizations=None, max_ecosystems=1)
    for each in members:
        accounts.assign(each.organization_id, account)

    def attempt(organization: Organization) -> bool:
        try:
            systems.put_ecosystem(organization.organization_id, "erp", kind="erp", name="ERP", by="test")
        except QuotaExceeded:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(attempt, members)) == 1


def test_a_consultant_gets_as_many_organizations_as_he_may_have(
    make_organization: Callable[[], Organization], airflow_user: Callable[..., str]
) -> None:
    first, second, third = (make_organization() for _ in range(3))
    name = airflow_user(f"con-{uuid4().hex[:8]}")
    command("person", "limit", name, "--max-organizations", "1")
    organizations.add_member(first.organization_id, name, "consultant")
    organizations.add_member(first.organization_id, name, "consultant")
    organizations.add_member(second.organization_id, name, "customer_user")
    refusals = [
        lambda: organizations.add_member(third.organization_id, name, "consultant"),
        lambda: organizations.change_role(second.organization_id, name, "consultant", by="test"),
    ]
    for refused_verb in refusals:
        with pytest.raises(QuotaExceeded) as refused:
            refused_verb()
        facts = refused.value.facts
        assert (facts["resource"], facts["allowed"], facts["used"]) == ("assigned_organizations", 1, 1)
    organizations.add_member(third.organization_id, f"{name}-2", "consultant")
    # What there is may be said again when less is agreed upon by now.
    command("person", "limit", name, "--max-organizations", "0")
    command("organization", "member", "add", "-o", first.slug, name, "--role", "consultant")
    again = invitations.invite(first.organization_id, f"{name}@example.com", "consultant", by="test")
    assert invitations.accept(again.token, name).role == "consultant"
    assert [each.slug for each in organizations.memberships(name) if each.role == "consultant"] == [first.slug]
    with pytest.raises(QuotaExceeded):
        organizations.add_member(third.organization_id, name, "consultant")
    command("person", "limit", name, "--max-organizations", "3000000000", status=2)
    command("account", "set", "large", "--name", "L", "--max-systems", "3000000000", status=2)
    command("person", "limit", name)
    organizations.add_member(third.organization_id, name, "consultant")


def test_no_organization_keeps_the_limits_of_an_account_or_a_consultant_from_being_set(
    make_organization: Callable[[], Organization], airflow_user: Callable[..., str]
) -> None:
    account, name = f"acc-{uuid4().hex[:8]}", airflow_user(f"con-{uuid4().hex[:8]}")
    accounts.put(account, "One", max_organizations=None)
    damaged, leaving, whole = (make_organization() for _ in range(3))
    for each in (damaged, leaving, whole):
        accounts.assign(each.organization_id, account)
        organizations.add_member(each.organization_id, name, "consultant")
    lifecycle.request_deletion(leaving.slug, confirm=leaving.slug, with_export=False, by="test")
    with database.platform() as connection:
        # As its deletion does, after which whoever does it may be killed.
        connection.execute("SELECT bridge.remove_rows(%s, 'data_keys', 10)", (leaving.organization_id,))
    Keyring.open().forget(leaving.organization_id)
    with planted_event(damaged):
        command("account", "set", account, "--name", "One", "--max-systems", "3")
        command("person", "limit", name, "--max-organizations", "2")
    assert accounts.by_name(account).max_systems == 3
    with pytest.raises(QuotaExceeded):
        organizations.add_member(make_organization().organization_id, name, "consultant")
    trail = json.loads(command("audit", "list", "-o", whole.slug, "--json"))
    assert {"organization.account_limited", "consultant.limited"} <= {each["action"] for each in trail}
    lifecycle.work(leaving.slug)
