"""The caller's rights without a server: the matrix's columns beside the roles, what is left of them in a suspended
organization, which organization is meant, and on whose account it goes."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest

from continuitybridge import api_keys, database, organizations
from continuitybridge.errors import (
    ConfigurationError,
    Conflict,
    NotAllowed,
    NotAuthenticated,
    OrganizationSuspended,
)
from continuitybridge.organizations import Organization, visits
from continuitybridge.organizations.access import Caller, Place, action_of, current_caller
from continuitybridge.organizations.matrix import GRANTABLE, MATRIX, ROLES, Action, Scope, may, needs, rows
from continuitybridge.organizations.roles import Role

PLATFORMS = {"guard.platform", "organization.manage", "airflow.manage"}
ANYBODYS = {"self.read", "self.manage", "reference.read", "health.read"}
ROLES_OF_MEMBERS = ("consultant", "customer_admin", "customer_user")


@pytest.mark.parametrize("action", list(Action))
def test_what_is_no_reading_changes_something_and_is_done_to_an_organization_unless_it_says_otherwise(
    action: Action,
) -> None:
    rule = MATRIX[action]
    verb = action.value.partition(".")[2]
    assert rule.changes is (verb != "read" and action.value not in ANYBODYS)
    expected = (
        Scope.PLATFORM
        if action.value in PLATFORMS
        else Scope.SIGNED_IN
        if action.value in ANYBODYS
        else Scope.ORGANIZATION
    )
    assert rule.scope is expected
    assert needs(action) == {"x-bridge-action": action.value}
    cells = next(row for row in rows() if row[0] == action.value)[3:]
    assert cells == tuple("yes" if may(role, action) else "no" for role in ROLES)


def test_each_role_gives_those_below_it() -> None:
    assert {role: set(given) for role, given in GRANTABLE.items()} == {
        "superadmin": {"consultant", "customer_admin", "customer_user"},
        "consultant": {"customer_admin", "customer_user"},
        "customer_admin": {"customer_user"},
        "customer_user": set(),
    }


def place(role: str, status: str = "active") -> Place:
    return Place(uuid4(), "shop", role, status)


def outcome(caller: Caller, where: Place) -> str:
    try:
        caller.check(where)
    except (NotAllowed, Conflict, OrganizationSuspended) as error:
        return type(error).__name__
    return "may"


@pytest.mark.parametrize("action", [each for each in Action if each.value not in PLATFORMS])
def test_in_a_suspended_organization_only_a_superadmin_changes_something_and_in_one_that_goes_nobody(
    action: Action,
) -> None:
    changes = MATRIX[action].changes
    for role in ("customer_admin", "customer_user"):
        caller, can = Caller("anna", action=action), may(role, action)
        assert outcome(caller, place(role)) == ("may" if can else "NotAllowed")
        suspended = "OrganizationSuspended" if changes else "may"
        assert outcome(caller, place(role, "suspended")) == (suspended if can else "NotAllowed")
        going = "Conflict" if changes else "may"
        assert outcome(caller, place(role, "deleting")) == (going if can else "NotAllowed")
        for status in ("active", "suspended", "deleting"):
            assert caller.allows(place(role, status), action) is (can and (status == "active" or not changes))
    root = Caller("root", superadmin=True, action=action)
    assert outcome(root, place("superadmin", "suspended")) == "may"
    assert outcome(root, place("superadmin", "deleting")) == ("Conflict" if changes else "may")
    assert root.allows(place("superadmin", "suspended"), action)


def test_without_an_action_nothing_is_allowed_and_nobody_is_superadmin_unasked() -> None:
    assert outcome(Caller("root", superadmin=True), place("superadmin")) == "NotAllowed"
    with pytest.raises(NotAllowed):
        Caller("root", superadmin=True).on_platform()
    assert not Caller("anna").superadmin
    assert not Caller("anna").by_api_key


@pytest.mark.parametrize("action", list(Action))
def test_the_platform_itself_is_the_superadmins(action: Action) -> None:
    with pytest.raises(NotAllowed):
        Caller("anna", action=action).on_platform()
    root = Caller("root", superadmin=True, action=action)
    if action.value in PLATFORMS:
        root.on_platform()
    else:
        with pytest.raises(NotAllowed):
            root.on_platform()


@pytest.fixture
def name() -> str:
    return f"user-{uuid4().hex[:8]}"


def entered(organization: Organization, name: str) -> bool:
    with database.tenant(organization.organization_id) as connection:
        row = connection.execute("SELECT FROM bridge.visits WHERE user_name = %s", (name,)).fetchone()
    return row is not None


@pytest.mark.parametrize("role", ROLES_OF_MEMBERS)
def test_that_a_consultant_entered_is_noted_and_of_no_other(
    organization: Organization, name: str, role: str
) -> None:
    organizations.add_member(organization.organization_id, name, role)
    Caller(name, action=Action.FLOW_READ).organization(organization.slug)
    assert entered(organization, name) == (role == "consultant")


def test_a_request_goes_on_the_account_of_the_organization_that_is_meant(
    make_organization: Callable[[], Organization], name: str
) -> None:
    first, second = make_organization(), make_organization()
    assert Caller(name).account(None) is None
    organizations.add_member(first.organization_id, name, "customer_user")
    assert Caller(name).account(None) == first.slug
    assert Caller(name).account(first.slug) == first.slug
    assert Caller(name).account(second.slug) is None
    organizations.add_member(second.organization_id, name, "customer_user")
    assert Caller(name).account(None) is None
    assert Caller(name).account(second.slug) == second.slug
    assert Caller(name, superadmin=True).account(first.slug) is None


def test_which_organization_is_meant_is_the_only_one_or_the_one_that_was_chosen(
    make_organization: Callable[[], Organization], name: str
) -> None:
    mine = [make_organization() for _ in range(2)]

    def chosen(slug: str | None = None, **given: Any) -> str:
        return Caller(name, action=Action.FLOW_READ, **given).chosen(slug).slug

    with pytest.raises(ConfigurationError):
        chosen()
    organizations.add_member(mine[0].organization_id, name, "consultant")
    assert chosen() == mine[0].slug
    organizations.add_member(mine[1].organization_id, name, "consultant")
    with pytest.raises(ConfigurationError) as refused:
        chosen()
    assert set(refused.value.facts["valid"]) == {each.slug for each in mine}
    assert chosen(mine[1].slug) == mine[1].slug
    for each in mine:
        caller = Caller(name)
        caller.choose(place_of(caller, each))
        assert chosen() == each.slug
    with pytest.raises(ConfigurationError):
        chosen(superadmin=True)
    with pytest.raises(NotAllowed):
        Caller(name, action=Action.ORGANIZATION_CHANGE).chosen(mine[0].slug)
    # Not his any more: then it is as if he had not chosen.
    organizations.remove_member(mine[1].organization_id, name)
    assert chosen() == mine[0].slug


def place_of(caller: Caller, organization: Organization) -> Place:
    return next(each for each in caller.organizations() if each.slug == organization.slug)


def test_a_keys_caller_is_in_its_organization_only_and_chooses_none(
    make_organization: Callable[[], Organization], name: str
) -> None:
    own, other = make_organization(), make_organization()
    key = api_keys.create(own.organization_id, "k", user_name=name, scope="write", by="tester")
    organizations.add_member(own.organization_id, name, "customer_admin")
    organizations.add_member(other.organization_id, name, "customer_admin")
    holder = api_keys.verify(key.key)
    assert holder is not None
    caller = Caller(name, api_key=holder, action=Action.FLOW_DEPLOY)
    assert caller.by_api_key
    [where] = caller.organizations()
    assert where == Place(own.organization_id, own.slug, "customer_admin", "active")
    caller.choose(where)
    assert visits.choice(name) is None
    with pytest.raises(NotAllowed):
        caller.grants(where, Role.CUSTOMER_USER)
    # A superadmin's key is an administrator's in its organization, also where he is no member.
    roots = Caller("root", superadmin=True, api_key=holder)
    assert not roots.superadmin
    [where] = roots.organizations()
    assert where == Place(own.organization_id, own.slug, "customer_admin", "active")


def test_a_route_without_a_caller_is_not_answered() -> None:
    scope = {"route": SimpleNamespace(openapi_extra=needs(Action.FLOW_READ))}
    caller = Caller("anna")
    request: Any = SimpleNamespace(state=SimpleNamespace(caller=caller), scope=scope)
    assert current_caller(request) is caller
    assert caller.action is Action.FLOW_READ
    for state in (SimpleNamespace(), SimpleNamespace(caller=None), SimpleNamespace(caller="anna")):
        with pytest.raises(NotAuthenticated):
            current_caller(SimpleNamespace(state=state, scope=scope))  # type: ignore[arg-type]
    for route in (None, object(), SimpleNamespace(openapi_extra=None), SimpleNamespace(openapi_extra={})):
        assert action_of(route) is None
