from __future__ import annotations

from collections.abc import Callable
from uuid import uuid4

import pytest

from continuitybridge import database, organizations, sessions
from continuitybridge.audit.reading import Filter, search
from continuitybridge.errors import ConfigurationError, Conflict, NotFound
from continuitybridge.organizations import Organization, Role, membership
from continuitybridge.vault import Keyring

MakeOrganization = Callable[[], Organization]


def test_an_organization_is_found_by_its_slug_with_a_data_key_of_its_own(organization, keyring) -> None:
    assert organizations.by_slug(organization.slug) == organization
    sealed = keyring.encrypt(organization.organization_id, "test", "1", b"order")
    assert keyring.decrypt(organization.organization_id, "test", "1", sealed) == b"order"


def test_a_taken_slug_is_refused_and_leaves_nothing_behind(organization: Organization) -> None:
    before = organizations.list_all()
    with pytest.raises(Conflict):
        organizations.create(organization.slug, "Another")
    assert organizations.list_all() == before


@pytest.mark.parametrize("slug", ["", "Acme", "1acme", "a.b", "a_b", "a/b", "é", "a" * 41])
def test_a_slug_that_could_not_stand_in_a_dag_id_is_refused(slug: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        organizations.create(slug, "Acme")
    assert refused.value.facts["field"] == "slug"


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        " anna",
        "anna ",
        "an\nna",
        "anna\0",
        "an\u202ena",
        "\ud800",
        "a" * 257,
    ],
)
def test_what_nobody_can_sign_in_by_becomes_no_member(organization: Organization, name: str) -> None:
    for verb in (
        lambda: organizations.add_member(organization.organization_id, name, "customer_user"),
        lambda: membership.limit_assigned(name, 1),
    ):
        with pytest.raises(ConfigurationError) as refused:
            verb()
        assert refused.value.facts["field"] == "user_name"
    assert organizations.members(organization.organization_id) == []


def test_user_names_and_addresses_become_members_however_they_look(organization: Organization) -> None:
    names = {"anna", "Anna Özil", "acme\\anna", "anna@acme.example", "anna@corp", "jörg@müller.example"}
    names |= {"anna@firma.local", "svc@localhost", "anna@", "a b@c.d", "می\u200cخواهم", "a" * 256}
    for name in names:
        organizations.add_member(organization.organization_id, name, "customer_user")
    assert {each.user_name for each in organizations.members(organization.organization_id)} == names


def test_a_member_that_there_is_gets_another_role_whatever_his_name(organization: Organization) -> None:
    owner, name = organization.organization_id, " an\tna "
    with database.platform() as connection:
        connection.execute(
            "INSERT INTO bridge.memberships (organization_id, user_name, role) VALUES (%s, %s, 'customer_admin')",
            (owner, name),
        )
    organizations.add_member(owner, name, "customer_user")
    assert [(each.user_name, each.role) for each in organizations.members(owner)] == [(name, "customer_user")]


def test_the_same_membership_again_changes_nothing(organization: Organization) -> None:
    owner, name = organization.organization_id, f"user-{uuid4().hex[:8]}"
    organizations.add_member(owner, name, "customer_user")
    organizations.add_member(owner, name, "customer_user")
    assert sessions.since(name) is None
    organizations.add_member(owner, name, "customer_admin")
    assert sessions.since(name) is not None
    told = search(owner, Filter(action="member"), keys=Keyring.open())
    assert [(each.action, each.details["role"]) for each in reversed(told)] == [
        ("member.added", "customer_user"),
        ("member.added", "customer_admin"),
    ]


def test_an_unknown_environment_is_refused_with_the_valid_ones() -> None:
    with pytest.raises(ConfigurationError, match="dev, test, staging, prod"):
        organizations.create(f"org-{uuid4().hex[:8]}", "Acme", environments=["production"])


def test_a_user_sees_his_own_memberships_only(make_organization: MakeOrganization) -> None:
    ours, theirs = make_organization(), make_organization()
    anna, bert = f"anna-{uuid4().hex[:8]}", f"bert-{uuid4().hex[:8]}"
    organizations.add_member(ours.organization_id, anna, Role.CUSTOMER_ADMIN)
    organizations.add_member(theirs.organization_id, bert, Role.CUSTOMER_USER)
    assert [(m.slug, m.role) for m in organizations.memberships(anna)] == [(ours.slug, Role.CUSTOMER_ADMIN)]
    assert [(m.slug, m.role) for m in organizations.memberships(bert)] == [(theirs.slug, Role.CUSTOMER_USER)]


def test_a_changed_role_holds_at_once_and_an_ended_membership_is_gone(organization: Organization) -> None:
    anna = f"anna-{uuid4().hex[:8]}"
    organizations.add_member(organization.organization_id, anna, "customer_user")
    organizations.add_member(organization.organization_id, anna, "customer_admin")
    assert organizations.memberships(anna)[0].role is Role.CUSTOMER_ADMIN
    organizations.remove_member(organization.organization_id, anna)
    assert organizations.memberships(anna) == []
    with pytest.raises(NotFound):
        organizations.remove_member(organization.organization_id, anna)


def test_an_unknown_role_is_refused_with_the_valid_ones(organization: Organization) -> None:
    with pytest.raises(ConfigurationError, match="customer_admin"):
        organizations.add_member(organization.organization_id, "anna", "admin")
