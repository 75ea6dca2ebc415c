"""Who belongs to an organization is its administrators' to say, as far as each may; invitations hold once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import pytest
from click.testing import CliRunner

from continuitybridge import api, api_keys, database, invitations, organizations
from continuitybridge.audit import reading
from continuitybridge.cli import bridge
from continuitybridge.errors import ConfigurationError, Conflict, NotFound, OrganizationSuspended, QuotaExceeded
from continuitybridge.organizations import Organization, quotas
from continuitybridge.vault import Keyring

from .conftest import Server, SignIn, User

MakeOrganization = Callable[[], Organization]


def at(organization: Organization, rest: str) -> str:
    return f"/bridge/organizations/{organization.slug}/{rest}"


def roles(organization: Organization) -> dict[str, str]:
    return {each.user_name: each.role.value for each in organizations.members(organization.organization_id)}


def invited(
    user: User, organization: Organization, role: str = "customer_user", email: str = ""
) -> dict[str, Any]:
    body = {"email": email or f"{uuid4().hex[:8]}@acme.example", "role": role}
    answer = user.post(at(organization, "invitations"), json=body)
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


def test_an_invitation_makes_a_member_once_and_is_known_by_its_hash_only(
    organization: Organization, sign_in: SignIn
) -> None:
    admin = sign_in({organization: "customer_admin"})
    made = invited(admin, organization, email="Anna@Acme.Example")
    assert (made["email"], made["role"], made["state"]) == ("anna@acme.example", "customer_user", "open")
    token = made["token"]
    found = invitations.find(token)
    assert (found.organization, found.email, found.created_by) == (organization.slug, made["email"], admin.name)
    with database.tenant(organization.organization_id) as connection:
        row = connection.execute("SELECT * FROM bridge.invitations").fetchone()
    assert hashlib.sha256(token.encode()).digest() in row
    assert token not in str(row)

    with ThreadPoolExecutor(4) as pool:

        def attempt(n: int) -> bool:
            try:
                invitations.accept(token, f"anna-{n}-{organization.slug}")
            except NotFound:
                return False
            return True

        assert sum(pool.map(attempt, range(4))) == 1
    assert sorted(roles(organization).values()) == ["customer_admin", "customer_user"]
    [shown] = admin.get(at(organization, "invitations")).json()
    assert shown["state"] == "accepted"
    assert "token" not in shown
    for spent in (token, token + "x", "", "cbi_"):
        with pytest.raises(NotFound):
            invitations.find(spent)
    assert admin.client.delete(at(organization, f"invitations/{shown['invitation_id']}")).status_code == 409
    trail = admin.get(f"/bridge/audit?organization={organization.slug}&action=member").json()
    text = json.dumps(trail)
    assert "member.invited" in text
    assert "member.joined" in text
    assert token not in text


def test_revoked_expired_and_replaced_invitations_do_not_hold(organization: Organization, sign_in: SignIn) -> None:
    admin = sign_in({organization: "customer_admin"})
    first = invited(admin, organization, email="anna@acme.example")
    second = invited(admin, organization, email="anna@acme.example")
    ended = admin.client.delete(at(organization, f"invitations/{second['invitation_id']}"))
    assert (ended.status_code, ended.json()["state"]) == (200, "revoked")
    third = invited(admin, organization, email="anna@acme.example")
    with pytest.raises(NotFound):
        invitations.accept(first["token"], "anna")
    with pytest.raises(NotFound):
        invitations.accept(second["token"], "anna")
    import psycopg

    with psycopg.connect(database.owner_url()) as connection:
        connection.execute("ALTER TABLE bridge.invitations NO FORCE ROW LEVEL SECURITY")
        connection.execute(
            "UPDATE bridge.invitations SET expires_at = now() WHERE invitation_id = %s", (third["invitation_id"],)
        )
        connection.execute("ALTER TABLE bridge.invitations FORCE ROW LEVEL SECURITY")
    with pytest.raises(NotFound):
        invitations.accept(third["token"], "anna")
    states = [each["state"] for each in admin.get(at(organization, "invitations")).json()]
    assert states == ["expired", "revoked", "revoked"]
    for email in ("anna", "@acme.example", "a b@acme.example"):
        answer = admin.post(at(organization, "invitations"), json={"email": email})
        assert (answer.status_code, "email" in answer.text) == (422, True)


def test_invitations_take_members_places_and_a_suspended_organization_takes_nobody_in(
    make_organization: MakeOrganization,
) -> None:
    mine = make_organization()
    owner = mine.organization_id
    quotas.agree(owner, "members", 2)
    organizations.add_member(owner, "boss", "customer_admin")
    made = invitations.invite(owner, "anna@acme.example", "customer_user", by="test")
    with pytest.raises(QuotaExceeded) as refused:
        invitations.invite(owner, "bert@acme.example", "customer_user", by="test")
    assert (refused.value.facts["resource"], refused.value.facts["used"]) == ("members", 2)
    made = invitations.invite(owner, "anna@acme.example", "customer_user", by="test")
    assert CliRunner().invoke(bridge, ["organization", "suspend", mine.slug]).exit_code == 0
    with pytest.raises(OrganizationSuspended):
        invitations.accept(made.token, "anna")
    assert CliRunner().invoke(bridge, ["organization", "resume", mine.slug]).exit_code == 0
    assert invitations.accept(made.token, "anna").role == "customer_user"
    # Whoever is more already stays it.
    quotas.agree(owner, "members", 3)
    again = invitations.invite(owner, "boss@acme.example", "customer_user", by="test")
    assert invitations.accept(again.token, "boss").role == "customer_admin"


@pytest.mark.parametrize(
    ("role", "may"),
    [
        ("customer_admin", {"customer_user"}),
        ("consultant", {"customer_user", "customer_admin"}),
        ("superadmin", {"customer_user", "customer_admin", "consultant"}),
    ],
)
def test_each_gives_and_takes_the_roles_below_his(
    organization: Organization, sign_in: SignIn, role: str, may: set[str]
) -> None:
    user = sign_in(superadmin=True) if role == "superadmin" else sign_in({organization: role})
    others = {
        each: sign_in({organization: each}).name for each in ("consultant", "customer_admin", "customer_user")
    }
    for wanted in others:
        body = {"email": f"{wanted}@acme.example", "role": wanted}
        answer = user.post(at(organization, "invitations"), json=body)
        assert answer.status_code == (201 if wanted in may else 403), wanted
        if wanted not in may:
            put = user.client.put(at(organization, f"members/{others['customer_user']}"), json={"role": wanted})
            assert put.status_code == 403, wanted
            theirs = invitations.invite(organization.organization_id, "x@acme.example", wanted, by="test").shown
            path = at(organization, f"invitations/{theirs.invitation_id}")
            assert user.client.delete(path).status_code == 403, wanted
    sign_in({organization: "customer_admin"})
    for held, name in others.items():
        answer = user.client.delete(at(organization, f"members/{name}"))
        assert answer.status_code == (200 if held in may else 403), held
    # Nobody is made a member who was not asked, but by the superadmin; nobody at all who is not there.
    known = sign_in().name
    for name in (f"{known}-2", f"\N{CYRILLIC SMALL LETTER U}{known[1:]}", f"{known}%20"):
        answer = user.client.put(at(organization, f"members/{name}"), json={"role": "customer_user"})
        assert answer.status_code == 404, name
    answer = user.client.put(at(organization, f"members/{known.upper()}"), json={"role": "customer_user"})
    assert answer.status_code == (200 if role == "superadmin" else 404)
    assert (known in roles(organization)) == (role == "superadmin")
    assert known.upper() not in roles(organization)


def test_the_last_administrator_stays_and_of_two_who_leave_at_once_one_stays(
    organization: Organization, sign_in: SignIn
) -> None:
    anna, bert = (sign_in({organization: "customer_admin"}) for _ in range(2))
    with ThreadPoolExecutor(2) as pool:
        left = list(
            pool.map(lambda user: user.client.delete(at(organization, f"members/{user.name}")), (anna, bert))
        )
    assert sorted(each.status_code for each in left) == [200, 409]
    [last] = roles(organization)
    stayed = anna if anna.name == last else bert
    demoted = stayed.client.put(at(organization, f"members/{last}"), json={"role": "customer_user"})
    assert (demoted.status_code, "last administrator" in demoted.text) == (409, True)
    boss = sign_in(superadmin=True)
    organizations.add_member(organization.organization_id, "carla", "customer_admin")
    demoted = stayed.client.put(at(organization, f"members/{last}"), json={"role": "customer_user"})
    assert demoted.status_code == 200
    assert (
        stayed.client.put(at(organization, f"members/{last}"), json={"role": "customer_admin"}).status_code == 403
    )
    assert boss.client.delete(at(organization, "members/carla")).status_code == 200


@pytest.mark.parametrize("how", ["removed", "by his role", "as by the superadmin"])
def test_who_is_no_administrator_any_more_does_not_come_back_by_an_invitation_of_his(
    organization: Organization, sign_in: SignIn, how: str
) -> None:
    owner = organization.organization_id
    rogue, boss = sign_in({organization: "consultant"}), sign_in(superadmin=True)
    admin = sign_in({organization: "customer_admin"})
    to_user, to_admin = (invited(rogue, organization, role) for role in ("customer_user", "customer_admin"))
    of_another = invited(admin, organization)
    path = at(organization, f"members/{rogue.name}")
    if how == "removed":
        assert boss.client.delete(path).status_code == 200
    elif how == "by his role":
        organizations.change_role(owner, rogue.name, "customer_admin", by="boss")
    else:
        assert boss.client.put(path, json={"role": "customer_admin"}).status_code == 200
    with pytest.raises(NotFound):
        invitations.accept(to_admin["token"], f"again-{uuid4().hex[:8]}")
    # What he may give now too goes on; what others gave goes on anyway.
    if how == "removed":
        with pytest.raises(NotFound):
            invitations.accept(to_user["token"], f"again-{uuid4().hex[:8]}")
    else:
        invitations.accept(to_user["token"], f"colleague-{uuid4().hex[:8]}")
    invitations.accept(of_another["token"], f"colleague-{uuid4().hex[:8]}")
    wanted = reading.Filter(action="member.invitation_revoked")
    ended = reading.search(owner, wanted, keys=Keyring.open())
    assert len(ended) == (2 if how == "removed" else 1)


def test_members_are_not_managed_by_keys(organization: Organization, server: Server, sign_in: SignIn) -> None:
    admin = sign_in({organization: "customer_admin"})
    key = api_keys.create(
        organization.organization_id, "program", user_name=admin.name, scope="write", by=admin.name
    )
    token = admin.client.headers["authorization"].partition(" ")[2]
    server.users[token] = api.SignedIn(admin.name, api_key=api_keys.verify(key.key))
    assert admin.get(at(organization, "members")).status_code == 200
    body = {"email": "anna@acme.example"}
    assert admin.post(at(organization, "invitations"), json=body).status_code == 403
    assert admin.client.delete(at(organization, f"members/{admin.name}")).status_code == 403


def test_invitations_by_command(organization: Organization) -> None:
    def run(*arguments: str, status: int = 0) -> str:
        done = CliRunner().invoke(bridge, ["invitation", *arguments, "-o", organization.slug])
        assert done.exit_code == status, done.output
        return done.output

    made = run("create", "anna@acme.example", "--role", "customer_admin", "--days", "2")
    token, _, told = made.partition("\n")
    assert "shown this once" in told
    [shown] = json.loads(run("list", "--json"))
    assert (shown["email"], shown["role"], token in str(shown)) == ("anna@acme.example", "customer_admin", False)
    assert "open" in run("list")
    run("revoke", shown["invitation_id"])
    with pytest.raises(NotFound):
        invitations.find(token)
    run("create", "nobody", status=2)
    run("create", "anna@acme.example", "--days", "31", status=2)


def test_a_wrong_role_and_a_member_who_is_none_are_refused(organization: Organization) -> None:
    with pytest.raises(ConfigurationError, match="customer_admin"):
        invitations.invite(organization.organization_id, "anna@acme.example", "boss", by="test")
    with pytest.raises(NotFound):
        organizations.change_role(organization.organization_id, "nobody", "customer_user", by="test")
    organizations.add_member(organization.organization_id, "anna", "customer_admin")
    with pytest.raises(Conflict):
        organizations.change_role(organization.organization_id, "anna", "customer_user", by="test")
