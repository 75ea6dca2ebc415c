"""An organization begins with everything it needs; who has several says where he works, and it is told there."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest
from click.testing import CliRunner

from continuitybridge import invitations, organizations
from continuitybridge.cli import bridge
from continuitybridge.organizations import Organization, Role, quotas, visits
from continuitybridge.organizations.tiers import Resource

from .conftest import SignIn, User


def slug() -> str:
    return f"org-{uuid4().hex[:12]}"


def entries(organization: Organization) -> list[tuple[str, str]]:
    done = CliRunner().invoke(
        bridge, ["audit", "list", "-o", organization.slug, "--action", "consultant", "--json"]
    )
    assert done.exit_code == 0, done.output
    return [(each["action"], each["actor"]) for each in reversed(json.loads(done.output))]


def test_one_request_makes_an_organization_whose_administrator_can_come_in(sign_in: SignIn) -> None:
    boss, name = sign_in(superadmin=True), slug()
    body = {"slug": name, "name": "Acme", "admin_email": "anna@acme.example", "tier": "starter"}
    answer = boss.post("/bridge/organizations", json={**body, "environments": ["prod", "test"]})
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    shown = made["organization"]
    assert (shown["slug"], shown["tier"], shown["environments"]) == (name, "starter", ["test", "prod"])
    assert made["storage_prefix"] == f"{shown['organization_id']}/"
    found = organizations.by_slug(name)
    allowed = {each.resource: each.allowed for each in quotas.quotas(found.organization_id)}
    assert allowed[Resource.FLOWS] == 20
    joined = invitations.accept(made["invitation"], f"anna-{name}")
    assert (joined.slug, joined.role) == (name, Role.CUSTOMER_ADMIN)
    listed = {each["slug"]: each["status"] for each in boss.get("/bridge/organizations").json()}
    assert listed[name] == "active"
    again = boss.post("/bridge/organizations", json=body)
    assert (again.status_code, again.json()["field"]) == (409, "slug")


@pytest.mark.parametrize(
    ("field", "wrong"),
    [("admin_email", "nobody"), ("slug", "Acme"), ("tier", "gold"), ("environments", ["production"])],
)
def test_what_is_wrong_is_named_and_nothing_is_made(sign_in: SignIn, field: str, wrong: object) -> None:
    boss, name = sign_in(superadmin=True), slug()
    body = {"slug": name, "name": "Acme", "admin_email": "anna@acme.example", field: wrong}
    answer = boss.post("/bridge/organizations", json=body)
    assert (answer.status_code, (field if field != "admin_email" else "email") in answer.text) == (422, True)
    assert name not in {each.slug for each in organizations.list_all()}
    assert sign_in().post("/bridge/organizations", json=body).status_code in (403, 422)


def test_onboarding_by_command_prints_the_invitation_once() -> None:
    name = slug()
    arguments = [
        "organization",
        "onboard",
        name,
        "--name",
        "Acme",
        "--admin-email",
        "anna@acme.example",
        "-e",
        "dev",
    ]
    done = CliRunner().invoke(bridge, arguments)
    assert done.exit_code == 0, done.output
    found = invitations.find(done.output.splitlines()[0])
    assert (found.organization, found.email, found.role) == (name, "anna@acme.example", "customer_admin")
    assert CliRunner().invoke(bridge, arguments).exit_code == 2


def test_a_consultant_chooses_where_he_works_and_each_organization_is_told_that_he_came(
    make_organization: Callable[[], Organization], sign_in: SignIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, other = make_organization(), make_organization(), make_organization()
    user = sign_in({first: "consultant", second: "consultant"})

    def place(of: User = user) -> int:
        return of.get("/bridge/audit").status_code

    assert place() == 422
    assert user.client.put(f"/bridge/session/organization/{other.slug}").status_code == 404
    chosen = user.client.put(f"/bridge/session/organization/{first.slug}")
    assert (chosen.status_code, chosen.json()["role"]) == (200, "consultant")
    assert place() == 200
    told = [("consultant.entered", user.name), ("consultant.chose", user.name)]
    assert entries(first) == told
    assert (entries(second), entries(other)) == ([], [])
    # By its name he comes in too, and is told of once while he is there.
    for _ in range(3):
        assert user.get(f"/bridge/flows?organization={second.slug}").status_code == 200
    assert entries(second) == told[:1]
    assert user.client.put(f"/bridge/session/organization/{second.slug}").status_code == 200
    assert user.get("/bridge/flows").status_code == 200
    assert entries(second) == told
    # After an absence he enters anew.
    monkeypatch.setattr(visits, "AWAY", visits.AWAY * 0)
    monkeypatch.setattr(visits, "LOOK_EVERY_S", 0.0)
    time.sleep(0.01)
    assert user.get(f"/bridge/flows?organization={first.slug}").status_code == 200
    assert entries(first) == [*told, told[0]]
    # What he chose ends with his assignment.
    organizations.remove_member(second.organization_id, user.name)
    assert user.get(f"/bridge/flows?organization={second.slug}").status_code == 404
    assert user.get("/bridge/flows").status_code == 200


def test_members_are_not_told_of(make_organization: Callable[[], Organization], sign_in: SignIn) -> None:
    mine = make_organization()
    assert sign_in({mine: "customer_admin"}).get("/bridge/audit").status_code == 200
    assert entries(mine) == []
