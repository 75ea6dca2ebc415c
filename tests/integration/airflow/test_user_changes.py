"""What ends here with a change of Airflow's user, however it is made."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any
from uuid import uuid4

import pytest
from damaged_trail import planted_event
from sealing_world import passphrase, vault
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from continuitybridge import database, invitations, organizations, sessions
from continuitybridge.audit.reading import Filter, search
from continuitybridge.errors import NotFound
from continuitybridge.invitations import NewInvitation
from continuitybridge.organizations import Organization
from continuitybridge.settings import Settings, get_settings
from continuitybridge.sign_in import tokens
from continuitybridge.sign_in.tokens import Purpose
from continuitybridge.vault import Keyring

__all__ = ["passphrase"]

PURPOSES: tuple[Purpose, ...] = ("link", "reset", "enrol")


@pytest.fixture
def airflow(settings: Settings) -> Iterator[Session]:
    """A table of users, as Airflow keeps them."""
    from airflow.providers.fab.auth_manager.models import User

    from continuitybridge.airflow import user_changes

    user_changes.install()
    engine = create_engine("sqlite://")
    User.metadata.create_all(engine)
    with Session(engine) as session:
        yield session


def with_links(airflow: Session) -> tuple[Any, list[str]]:
    """A user, and a link of his of each purpose."""
    from airflow.providers.fab.auth_manager.models import User

    name = f"person-{uuid4().hex[:10]}"
    user = User(
        username=name, email=f"{name}@example.com", first_name="A", last_name="B", active=True, password="hash 1"
    )
    airflow.add(user)
    airflow.commit()
    with database.platform() as connection:
        return user, [tokens.issue(connection, purpose, name) for purpose in PURPOSES]


def test_with_a_new_password_end_the_links_that_were_given_before(airflow: Session) -> None:
    user, links = with_links(airflow)
    # By one of them, say, in a transaction that goes on.
    with database.platform() as connection:
        tokens.use(connection, links[1], "reset")
        user.password = "hash 2"
        airflow.commit()
    for purpose, link in zip(PURPOSES, links, strict=True):
        with pytest.raises(NotFound):
            tokens.find(link, purpose)


def test_a_new_password_needs_no_second_connection_where_its_links_have_ended(airflow: Session) -> None:
    user, links = with_links(airflow)
    # As a reset by a link does it, with all other connections of the process in use.
    with ExitStack() as others, database.platform() as connection:
        tokens.end_all(connection, user.username)
        for _ in range(get_settings().database_pool_size - 1):
            others.enter_context(database.platform())
        with tokens.ended_here(user.username):
            user.password = "hash 2"
            airflow.commit()
    for purpose, link in zip(PURPOSES, links, strict=True):
        with pytest.raises(NotFound):
            tokens.find(link, purpose)


def test_who_is_deactivated_does_not_come_back_by_an_invitation_of_his(
    airflow: Session, make_organization: Callable[[], Organization]
) -> None:
    user, _ = with_links(airflow)
    where, elsewhere = make_organization().organization_id, make_organization().organization_id
    organizations.add_member(where, user.username, "customer_admin")
    of_his = invitations.invite(where, "himself@example.com", "customer_user", by=user.username)
    # As a superadmin, say: he is no member there.
    first = invitations.invite(elsewhere, "first@example.com", "customer_admin", by=user.username)
    user.last_name = "C"
    airflow.commit()
    assert invitations.find(of_his.token).email == "himself@example.com"
    user.active = False
    airflow.commit()
    with pytest.raises(NotFound):
        invitations.find(of_his.token)
    assert invitations.find(first.token).email == "first@example.com"


def test_a_trail_that_was_tampered_with_keeps_nobody_from_being_deactivated(
    airflow: Session, make_organization: Callable[[], Organization]
) -> None:
    user, links = with_links(airflow)
    damaged, whole = make_organization(), make_organization()
    of_his = []
    for each in (damaged, whole):
        organizations.add_member(each.organization_id, user.username, "customer_admin")
        of_his.append(
            invitations.invite(each.organization_id, "himself@example.com", "customer_user", by=user.username)
        )
    user.active = False
    with planted_event(damaged):
        airflow.commit()
    all_has_ended(user.username, links[0], of_his)
    told = search(whole.organization_id, Filter(action="member.invitation_revoked"), keys=Keyring.open())
    assert len(told) == 1


def test_a_key_that_is_away_keeps_nobody_from_being_deactivated(
    airflow: Session, organization: Organization, passphrase: str
) -> None:
    user, links = with_links(airflow)
    organizations.add_member(organization.organization_id, user.username, "customer_admin")
    of_his = invitations.invite(
        organization.organization_id, "himself@example.com", "customer_user", by=user.username
    )
    vault("seal")
    Keyring.open().forget()
    user.active = False
    airflow.commit()
    all_has_ended(user.username, links[0], [of_his])


def all_has_ended(name: str, link: str, invited: list[NewInvitation]) -> None:
    assert sessions.since(name) is not None
    with pytest.raises(NotFound):
        tokens.find(link, PURPOSES[0])
    for each in invited:
        with pytest.raises(NotFound):
            invitations.find(each.token)


def test_with_the_account_s_activity_end_its_sessions_and_its_links(airflow: Session) -> None:
    user, links = with_links(airflow)
    name = user.username
    user.first_name = "C"
    airflow.commit()
    assert sessions.since(name) is None
    assert tokens.find(links[2], "enrol") == name
    for active in (False, True):
        user.active = active
        airflow.commit()
    assert sessions.since(name) is not None
    for purpose, link in zip(PURPOSES, links, strict=True):
        with pytest.raises(NotFound):
            tokens.find(link, purpose)
