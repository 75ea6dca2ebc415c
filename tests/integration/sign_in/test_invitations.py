"""Invitations by mail: who opens one becomes a member, as somebody new or with the account that he has."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from continuitybridge import api_keys, invitations, organizations
from continuitybridge.errors import TooManyRequests
from continuitybridge.organizations import Organization

from .conftest import PASSWORD, World


def invited(world: World, organization: Organization, address: str) -> str:
    """The token in the mail."""
    invitations.invite(organization.organization_id, address, "customer_user", by="the-admin")
    token = world.mailed(address)
    assert token
    return token


def roles(user_name: str) -> list[tuple[str, str]]:
    return [(each.slug, each.role.value) for each in organizations.memberships(user_name)]


def test_somebody_new_chooses_a_password_and_is_a_member(world: World, organization: Organization) -> None:
    address = f"new-{organization.slug}@example.com"
    token = invited(world, organization, address)
    shown = world.send("invitation", token=token)
    assert shown.status_code == 200
    assert organization.name in shown.text
    assert address in shown.text
    names = {"first_name": "<Ada>", "last_name": "Byron"}
    weak = world.send("join", token=token, **names, password=address, again=address)
    assert weak.status_code == 422
    assert "&lt;Ada&gt;" in weak.text, "what was typed stays, and is no markup"
    assert roles(address) == []
    done = world.send("join", token=token, **names, password=PASSWORD, again=PASSWORD)
    assert (done.status_code, done.headers["set-cookie"].split(";")[0]) == (303, f"_token=of-{address}")
    assert roles(address) == [(organization.slug, "customer_user")]
    again = world.send("join", token=token, **names, password=PASSWORD, again=PASSWORD)
    assert again.status_code == 404
    assert world.send("invitation", token=token).status_code == 404


def test_whoever_has_an_account_joins_by_its_password(world: World, organization: Organization) -> None:
    person = world.person()
    token = invited(world, organization, person.email)
    assert "Your password" in world.send("invitation", token=token).text
    names = {"first_name": "A", "last_name": "B"}
    taken_over = world.send("join", token=token, **names, password="x" * 30, again="x" * 30)
    assert taken_over.status_code == 404
    wrong = world.send("join-with-account", token=token, password="wrong")
    assert wrong.status_code == 422
    assert roles(person.user_name) == []
    done = world.send("join-with-account", token=token, password=PASSWORD)
    assert done.status_code == 303
    assert roles(person.user_name) == [(organization.slug, "customer_user")]


def test_passwords_are_not_guessed_by_an_invitation(world: World, organization: Organization) -> None:
    person = world.person()
    token = invited(world, organization, person.email)
    answers = [world.send("join-with-account", token=token, password=f"guess-{n}").status_code for n in range(6)]
    assert answers == [422] * 5 + [429]
    assert world.send("join-with-account", token=token, password=PASSWORD).status_code == 429
    assert roles(person.user_name) == []


@pytest.mark.parametrize("how", ["revoked", "suspended"])
def test_an_invitation_that_holds_no_more_makes_nobody(world: World, organization: Organization, how: str) -> None:
    address = f"late-{organization.slug}@example.com"
    token = invited(world, organization, address)
    if how == "revoked":
        [open_] = invitations.list_invitations(organization.organization_id)
        invitations.revoke(organization.organization_id, open_.invitation_id, by="the-admin")
    else:
        from continuitybridge import deployments

        deployments.suspend(organization.organization_id, by="test", reason="")
    done = world.send("join", token=token, first_name="A", last_name="B", password=PASSWORD, again=PASSWORD)
    assert done.status_code == (404 if how == "revoked" else 403)
    assert world.table.by_email(address) is None
    assert roles(address) == []


@pytest.mark.parametrize("left", ["membership", "API key"])
def test_nobody_takes_the_rights_that_an_account_has_left(
    world: World, make_organization: Callable[[], Organization], left: str
) -> None:
    theirs, mine = make_organization(), make_organization()
    address = f"left-{mine.slug}@example.com"
    if left == "membership":
        organizations.add_member(theirs.organization_id, address.title(), "customer_admin")
    else:
        made = api_keys.create(theirs.organization_id, "nightly", user_name=address, by="test")
    token = invited(world, mine, address)
    form = {"first_name": "A", "last_name": "B", "password": PASSWORD, "again": PASSWORD}
    assert world.send("join", token=token, **form).status_code == 409
    assert world.table.by_email(address) is None
    assert roles(address) == []
    if left == "membership":
        organizations.remove_member(theirs.organization_id, address.title())
    else:
        api_keys.revoke(theirs.organization_id, made.shown.key_id, by="test")
    assert world.send("join", token=token, **form).status_code == 303
    assert roles(address) == [(mine.slug, "customer_user")]


def test_nobodys_mailbox_is_filled_with_invitations(
    world: World, make_organization: Callable[[], Organization]
) -> None:
    mine, other = make_organization().organization_id, make_organization().organization_id
    address = f"{mine.hex}@example.com"
    for _ in range(invitations.MAX_A_DAY):
        last = invitations.invite(mine, address, "customer_user", by="the-admin")
    with pytest.raises(TooManyRequests) as refused:
        invitations.invite(mine, address.upper(), "customer_user", by="the-admin")
    assert 86_000 < refused.value.facts["retry_after_s"] <= 86_400
    assert world.send("invitation", token=last.token).status_code == 200, "the last one goes on holding"
    invitations.invite(mine, f"b{address}", "customer_user", by="the-admin")
    invitations.invite(other, address, "customer_user", by="the-admin")
