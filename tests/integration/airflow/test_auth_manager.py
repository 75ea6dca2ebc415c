"""Who may do what in Airflow: the whole table, asked of the auth manager itself. A real Airflow asks it in
tests/system/airflow/test_airflow_access.py."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from anyio import to_thread

from continuitybridge import api_keys, database, organizations
from continuitybridge.audit.reading import Filter, search
from continuitybridge.deployments import suspension
from continuitybridge.organizations import Organization
from continuitybridge.vault import Keyring

METHODS = ("GET", "POST", "PUT", "DELETE")
RUNS = {"RUN", "TASK_INSTANCE", "HITL_DETAIL"}
"""What of a DAG its writers change."""
OTHERS = ("backfill", "asset", "asset_alias", "configuration", "connection", "pool", "variable")


@pytest.fixture(scope="module")
def access() -> Any:
    """The module; imported here, because that imports Airflow, which takes seconds."""
    from continuitybridge.airflow import auth_manager

    return auth_manager


@pytest.fixture
def manager(access: Any) -> Any:
    return access.OrganizationAuthManager()


def user(name: str | None = None, *roles: str) -> Any:
    """A user as FAB keeps him."""
    held = [SimpleNamespace(name=role) for role in roles or ("Member",)]
    return SimpleNamespace(id=7, username=name or f"user-{uuid4().hex[:8]}", roles=held)


def member(organization: Organization, role: str) -> Any:
    made = user()
    organizations.add_member(organization.organization_id, made.username, role)
    return made


def dag(organization: Organization) -> Any:
    return SimpleNamespace(id=f"{organization.slug}.dev.orders")


def allowed(manager: Any, who: Any, details: Any) -> set[tuple[str, str]]:
    """(method, entity) of what somebody may do; the DAG itself is the entity `""`."""
    from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity

    entities: list[Any] = [None, *DagAccessEntity]
    return {
        (method, entity.name if entity else "")
        for method in METHODS
        for entity in entities
        if manager.is_authorized_dag(method=method, user=who, access_entity=entity, details=details)
    }


def everything(*methods: str, without: tuple[str, ...] = ()) -> set[tuple[str, str]]:
    from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity

    names = {"", *(entity.name for entity in DagAccessEntity)} - set(without)
    return {(method, name) for method in methods for name in names}


READS = ("GET",)


@pytest.mark.parametrize("role", ["customer_user", "customer_admin", "consultant"])
def test_a_member_has_his_organizations_dags_as_far_as_his_role_goes(
    manager: Any, make_organization: Callable[[], Organization], role: str
) -> None:
    mine, theirs = make_organization(), make_organization()
    who = member(mine, role)
    reads = everything("GET", without=("AUDIT_LOG",))
    writes = {("PUT", "")} | {(method, entity) for method in METHODS[1:] for entity in RUNS}
    assert allowed(manager, who, dag(mine)) == (reads if role == "customer_user" else reads | writes)
    assert allowed(manager, who, dag(theirs)) == set()
    assert allowed(manager, who, SimpleNamespace(id="maintenance")) == set()
    assert allowed(manager, who, SimpleNamespace(id=f"{mine.slug}.dev")) == set()
    assert allowed(manager, who, SimpleNamespace(id=f"{mine.slug}.dev.orders.more")) == set()
    # Lists; their rows are filtered.
    assert allowed(manager, who, None) == reads
    assert allowed(manager, who, SimpleNamespace(id=None)) == reads


def test_who_belongs_nowhere_has_nothing_and_a_superadmin_all(manager: Any, organization: Organization) -> None:
    nobody, nameless, root = user(), SimpleNamespace(roles=()), user(None, "Public", "Admin")
    for details in (dag(organization), None):
        assert allowed(manager, nobody, details) == set()
        assert allowed(manager, nameless, details) == set()
        assert allowed(manager, root, details) == everything(*METHODS)


def test_what_is_no_dags_is_the_superadmins(manager: Any, organization: Organization) -> None:
    admin, root = member(organization, "customer_admin"), user(None, "Admin")
    for kind in OTHERS:
        for method in METHODS:
            asked = getattr(manager, f"is_authorized_{kind}")
            assert asked(method=method, user=root) is True
            assert asked(method=method, user=admin) is False


def test_of_views_and_menus_a_member_has_those_that_show_dags(manager: Any, organization: Organization) -> None:
    from airflow.api_fastapi.auth.managers.models.resource_details import AccessView
    from airflow.api_fastapi.common.types import MenuItem

    reader, nobody, root = member(organization, "customer_user"), user(), user(None, "Admin")

    def views(who: Any) -> set[AccessView]:
        return {view for view in AccessView if manager.is_authorized_view(access_view=view, user=who)}

    assert views(reader) == {AccessView.WEBSITE, AccessView.PLUGINS}
    assert views(nobody) == set()
    assert views(root) == set(AccessView)
    items = list(MenuItem)
    assert set(manager.filter_authorized_menu_items(items, reader)) == {MenuItem.DAGS, MenuItem.REQUIRED_ACTIONS}
    assert manager.filter_authorized_menu_items(items, nobody) == []
    assert manager.filter_authorized_menu_items(items, root) == items


def test_ids_of_dags_are_filtered_by_organization_and_level(
    manager: Any, make_organization: Callable[[], Organization]
) -> None:
    mine, theirs = make_organization(), make_organization()
    reader, admin = member(mine, "customer_user"), member(mine, "customer_admin")
    ids = {dag(mine).id, dag(theirs).id, "maintenance", f"{mine.slug}.dev"}
    assert manager.filter_authorized_dag_ids(dag_ids=ids, user=reader) == {dag(mine).id}
    assert manager.filter_authorized_dag_ids(dag_ids=ids, user=reader, method="PUT") == set()
    assert manager.filter_authorized_dag_ids(dag_ids=ids, user=admin, method="PUT") == {dag(mine).id}
    assert manager.filter_authorized_dag_ids(dag_ids=ids, user=user(None, "Admin")) == ids
    assert manager.get_authorized_dag_ids(user=user()) == set()


def test_in_a_suspended_organization_nothing_is_changed(manager: Any, organization: Organization) -> None:
    admin = member(organization, "customer_admin")
    suspension.suspend(organization.organization_id, by="tester")
    assert allowed(manager, admin, dag(organization)) == everything("GET", without=("AUDIT_LOG",))


@pytest.mark.parametrize("scope", ["read", "write"])
@pytest.mark.parametrize("superadmin", [False, True])
def test_a_key_reaches_its_organization_and_no_further_than_its_scope_and_its_user(
    access: Any, manager: Any, make_organization: Callable[[], Organization], scope: Any, superadmin: bool
) -> None:
    mine, other = make_organization(), make_organization()
    who = user(None, "Admin") if superadmin else member(mine, "customer_admin")
    if not superadmin:
        organizations.add_member(other.organization_id, who.username, "customer_admin")
    key = api_keys.create(mine.organization_id, "k", user_name=who.username, scope=scope, by="tester")
    holder = api_keys.verify(key.key)
    assert holder is not None
    with api_keys.held(holder):
        assert access.levels_of(who.username, superadmin) == {
            mine.slug: access.Level.WRITE if scope == "write" else access.Level.READ
        }
        assert ("PUT", "") not in allowed(manager, who, dag(other))
        assert (("PUT", "") in allowed(manager, who, dag(mine))) == (scope == "write")
        assert manager.is_authorized_connection(method="GET", user=who) is False
        assert access.levels_of(f"nobody-{uuid4().hex[:8]}") == {}


def test_a_change_of_membership_by_another_process_holds_at_the_next_request(
    access: Any, manager: Any, organization: Organization
) -> None:
    who, owner = member(organization, "customer_admin"), organization.organization_id

    def elsewhere(change: str) -> None:
        # By the table alone, of which this process hears nothing.
        with database.platform() as connection:
            connection.execute(change, {"organization": owner, "user": who.username})

    def may_write() -> bool:
        with access.asking_once():
            return ("PUT", "") in allowed(manager, who, dag(organization))

    assert may_write()
    elsewhere(
        "UPDATE bridge.memberships SET role = 'customer_user'"
        " WHERE organization_id = %(organization)s AND user_name = %(user)s"
    )
    assert not may_write()
    elsewhere("DELETE FROM bridge.memberships WHERE organization_id = %(organization)s AND user_name = %(user)s")
    with access.asking_once():
        assert allowed(manager, who, dag(organization)) == set()


async def test_within_one_request_memberships_are_asked_for_once_and_of_each_person(
    access: Any, organization: Organization, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    real = organizations.memberships

    def memberships(name: str) -> Any:
        asked.append(name)
        return real(name)

    monkeypatch.setattr(access.organizations, "memberships", memberships)
    one, other = member(organization, "customer_user").username, user().username
    with access.asking_once():
        expected = {organization.slug: access.Level.READ}
        for _ in range(2):
            assert await to_thread.run_sync(access.levels_of, one) == expected
            assert access.levels_of(other) == {}
        assert asked == [one, other]
    for _ in range(2):
        access.levels_of(one)
    assert asked == [one, other, one, one]
    # Who has no name is nobody, and not asked for.
    assert access._levels(SimpleNamespace()) == {}
    assert len(asked) == 4


def test_who_does_something_about_dags_enters_their_organizations_where_he_is_a_consultant(
    access: Any, make_organization: Callable[[], Organization]
) -> None:
    his, another_of_his, administered = (make_organization() for _ in range(3))
    name = user().username
    for organization, role in (
        (his, "consultant"),
        (another_of_his, "consultant"),
        (administered, "customer_admin"),
    ):
        organizations.add_member(organization.organization_id, name, role)
    about = [dag(his).id, f"{his.slug}.prod.more", dag(administered).id, "maintenance"]
    access.enter_organizations(name, about, "192.0.2.7")

    def told(organization: Organization) -> list[tuple[Any, ...]]:
        found = search(organization.organization_id, Filter(action="consultant"), keys=Keyring.open())
        return [(each.action, each.actor_kind, each.actor, each.address) for each in found]

    assert told(his) == [("consultant.entered", "user", name, "192.0.2.7")]
    assert told(another_of_his) == told(administered) == []
