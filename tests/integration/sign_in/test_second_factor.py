"""The second factor at links and invitations, and what its codes are worth."""

from __future__ import annotations

import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from uuid import uuid4

import psycopg
import pyotp
import pytest

from continuitybridge import database, invitations, organizations, sessions
from continuitybridge.audit.reading import Filter, search
from continuitybridge.errors import Conflict
from continuitybridge.organizations import Organization, membership
from continuitybridge.settings import get_settings
from continuitybridge.sign_in import second_factor
from continuitybridge.sign_in.second_factor import CodeNeeded, EnrolmentNeeded, WrongCode
from continuitybridge.sign_in.verbs import second_factor_token
from continuitybridge.vault import Keyring, rotation

from .conftest import PASSWORD, World


def enrolled(user_name: str) -> tuple[pyotp.TOTP, list[str]]:
    """The app, and the recovery codes. The code of now is used up."""
    app = pyotp.TOTP(second_factor.begin(user_name).secret)
    return app, second_factor.confirm(user_name, app.now())


def step(app: pyotp.TOTP, steps: int) -> str:
    return app.at(int(time.time()) + 30 * steps)


def test_nobody_needs_what_he_has_not_confirmed(world: World) -> None:
    name = world.person().user_name
    second_factor.require(name, None)
    first = second_factor.begin(name)
    second_factor.require(name, None)
    app = pyotp.TOTP(second_factor.begin(name).secret)
    with pytest.raises(WrongCode):
        second_factor.confirm(name, pyotp.TOTP(first.secret).now())
    second_factor.confirm(name, app.now())
    with pytest.raises(CodeNeeded):
        second_factor.require(name, None)
    with pytest.raises(Conflict):
        second_factor.begin(name)


def test_codes_of_the_neighbouring_steps_are_taken_each_once_and_no_others(world: World) -> None:
    name = world.person().user_name
    app, _ = enrolled(name)
    for stale in (step(app, 0), step(app, -1), step(app, 3), "", "١٢٣٤٥٦", "12345", "0" * 64):
        with pytest.raises((WrongCode, CodeNeeded)):
            second_factor.require(name, stale)
    code = step(app, 1)
    with ThreadPoolExecutor(4) as pool:
        outcomes = list(pool.map(lambda _: _outcome(name, f" {code[:3]} {code[3:]}"), range(4)))
    assert sorted(outcomes) == ["no", "no", "no", "yes"]


def _outcome(name: str, code: str) -> str:
    try:
        second_factor.require(name, code)
    except WrongCode:
        return "no"
    return "yes"


def test_recovery_codes_hold_once_each_and_the_trail_tells_of_it(world: World, organization: Organization) -> None:
    name = world.person(organization).user_name
    _, codes = enrolled(name)
    assert len(set(codes)) == second_factor.RECOVERY_CODES
    assert [_outcome(name, codes[0].upper()), _outcome(name, codes[0]), _outcome(name, codes[1])] == [
        *("yes", "no", "yes")
    ]
    found = search(organization.organization_id, Filter(action="second_factor"), keys=Keyring.open())
    assert [each.action.partition(".")[2] for each in found] == [
        *("recovery_code_used", "recovery_code_used", "enrolled")
    ]


def test_enrolling_and_removing_end_sessions(world: World) -> None:
    name = world.person().user_name
    assert sessions.since(name) is None
    enrolled(name)
    first = sessions.since(name)
    assert first is not None
    assert second_factor.remove(name, by=name)
    second = sessions.since(name)
    assert second is not None
    assert second > first
    second_factor.require(name, None)
    assert not second_factor.remove(name, by=name)


def test_the_database_holds_neither_secret_nor_recovery_code_and_keys_can_be_rotated(world: World) -> None:
    name = world.person().user_name
    app, codes = enrolled(name)
    with psycopg.connect(database.owner_url()) as connection:
        for table in ("people", "recovery_codes"):
            connection.execute(f"ALTER TABLE bridge.{table} NO FORCE ROW LEVEL SECURITY")
        rows = connection.execute(
            "SELECT p::text, p.totp_secret, c::text FROM bridge.people p JOIN bridge.recovery_codes c"
            " USING (user_name) WHERE user_name = %s",
            (name,),
        ).fetchall()
        connection.rollback()
    assert len(rows) == len(codes)
    for person, sealed, code in rows:
        assert app.secret not in person
        assert app.secret.encode() not in sealed
        assert not any(each.replace("-", "") in code for each in codes)
    rotation.rotate_master_key()
    Keyring.open().forget()
    assert _outcome(name, step(app, 1)) == "yes"


def test_a_link_asks_for_the_code_and_goes_on_holding_until_it_is_right(world: World) -> None:
    person = world.person()
    app, _ = enrolled(person.user_name)
    token = world.token("link", person)
    asked = world.send("confirm", token=token)
    assert asked.status_code == 200
    assert 'autocomplete="one-time-code"' in asked.text
    assert "set-cookie" not in asked.headers
    wrong = world.send("confirm", token=token, code="000000")
    assert (wrong.status_code, "set-cookie" in wrong.headers) == (422, False)
    assert world.send("confirm", token=token, code=step(app, 1)).status_code == 303


def test_wrong_codes_lock_out_like_wrong_passwords(world: World) -> None:
    person = world.person()
    app, _ = enrolled(person.user_name)
    token = world.token("link", person)
    answers = [world.send("confirm", token=token, code=f"{n:06}").status_code for n in range(6)]
    assert answers == [422] * 5 + [429]
    assert world.send("confirm", token=token, code=step(app, 1)).status_code == 429


def test_a_right_password_does_not_make_guessed_codes_forgotten(world: World, organization: Organization) -> None:
    person = world.person(organization)
    app, _ = enrolled(person.user_name)
    token = world.token("link", person)
    for number in range(5):
        assert world.send("confirm", token=token, code=f"{number:06}").status_code == 422
        if number < 4:
            assert world.send("second-factor", name=person.user_name, password=PASSWORD).status_code == 409
    assert world.send("confirm", token=token, code=step(app, 1)).status_code == 429


def test_joining_with_an_account_asks_for_the_code_too(world: World, organization: Organization) -> None:
    person = world.person()
    app, _ = enrolled(person.user_name)
    made = invitations.invite(organization.organization_id, person.email, "customer_user", by="test")
    asked = world.send("join-with-account", token=made.token, password=PASSWORD)
    assert (asked.status_code, "one-time-code" in asked.text) == (200, True)
    assert "set-cookie" not in asked.headers
    done = world.send("join-with-account", token=made.token, password=PASSWORD, code=step(app, 1))
    assert done.status_code == 303


@pytest.mark.parametrize("how", ["email", "capitals"])
def test_a_second_factor_is_set_up_on_a_page_by_ones_password(
    world: World, organization: Organization, how: str
) -> None:
    person = world.person(organization)
    typed = person.email if how == "email" else person.user_name.upper()
    assert world.http.get("/bridge/sign-in/second-factor", headers={"accept": "text/html"}).status_code == 200
    assert world.send("second-factor", name=person.user_name, password="wrong").status_code == 422
    assert world.send("second-factor", name=f"{person.user_name}\0", password=PASSWORD).status_code == 422
    shown = world.send("second-factor", name=typed, password=PASSWORD)
    assert shown.status_code == 200
    assert 'src="data:image/svg+xml' in shown.text
    secret, token = (
        re.search(pattern, shown.text)[1]  # type: ignore[index]
        for pattern in (r"<code>(\w+)</code>", r'name="token" value="([^"]+)"')
    )
    wrong = world.send("second-factor/confirm", token=token, code="000000")
    assert wrong.status_code == 422
    assert secret not in wrong.text
    done = world.send("second-factor/confirm", token=token, code=pyotp.TOTP(secret).now())
    assert done.status_code == 200
    assert done.text.count("<li>") == second_factor.RECOVERY_CODES
    assert second_factor.is_enrolled(person.user_name)
    assert not second_factor.is_enrolled(typed)
    assert world.send("second-factor", name=person.user_name, password=PASSWORD).status_code == 409
    assert world.send("second-factor/confirm", token=token, code="000000").status_code == 404


def test_a_member_without_the_factor_that_his_organization_requires_is_led_there_and_gets_nothing_before(
    world: World, organization: Organization
) -> None:
    owner = organization.organization_id
    person, other, outsider = world.person(organization), world.person(organization), world.person()
    app, _ = enrolled(other.user_name)
    before = {each.user_name: sessions.since(each.user_name) for each in (person, other, outsider)}
    assert membership.require_second_factor(owner, True, by="boss") == 1
    after = {name: sessions.since(name) for name in before}
    assert [name for name in before if after[name] != before[name]] == [person.user_name]
    with pytest.raises(EnrolmentNeeded) as refused:
        second_factor.after_password(person.user_name, None)
    assert refused.value.facts["address"] == "https://bridge.example/bridge/sign-in/second-factor"
    second_factor.after_password(outsider.user_name, None)
    with pytest.raises(CodeNeeded):
        second_factor.after_password(other.user_name, None)

    token = world.token("link", person)
    led = world.send("confirm", token=token)
    there = "/bridge/sign-in/second-factor?required"
    assert (led.status_code, led.headers["location"], "set-cookie" in led.headers) == (303, there, False)
    program = world.http.post("/bridge/sign-in/confirm", json={"token": token})
    assert (program.status_code, program.json()["code"]) == (401, "second-factor-enrolment-needed")
    assert (
        "lets its members in with a second factor only"
        in world.http.get(there, headers={"accept": "text/html"}).text
    )
    shown = world.send("second-factor", name=person.user_name, password=PASSWORD)
    secret, enrol = (
        re.search(pattern, shown.text)[1]  # type: ignore[index]
        for pattern in (r"<code>(\w+)</code>", r'name="token" value="([^"]+)"')
    )
    own = pyotp.TOTP(secret)
    assert world.send("second-factor/confirm", token=enrol, code=own.now()).status_code == 200
    token = world.token("link", person)
    assert world.send("confirm", token=token, code=step(own, 1)).status_code == 303
    assert membership.require_second_factor(owner, True, by="boss") == 0
    told = search(owner, Filter(action="organization.second_factor_changed"), keys=Keyring.open())
    assert [each.details for each in told] == [{"required": True, "signed_out": 1}]
    second_factor.after_password(other.user_name, step(app, 1))


def test_who_has_just_signed_in_elsewhere_sets_a_second_factor_up_without_a_password(
    world: World, organization: Organization
) -> None:
    person, page = world.person(organization), "/bridge/sign-in/second-factor/begin"
    token = second_factor_token(person.user_name)
    opened = world.http.get(page, headers={"accept": "text/html"})
    assert (opened.status_code, "data-token" in opened.text) == (200, True)
    # Opening it begins nothing, and nobody else's token begins anything.
    assert world.send("second-factor/confirm", token=token, code="000000").status_code == 422
    assert world.send("second-factor/begin", token="x" * 43).status_code == 404
    assert world.send("second-factor/begin", token=world.token("link", person)).status_code == 404
    for _ in range(2):
        shown = world.send("second-factor/begin", token=token)
        assert shown.status_code == 200
        assert 'src="data:image/svg+xml' in shown.text
    app = pyotp.TOTP(re.search(r"<code>(\w+)</code>", shown.text)[1])  # type: ignore[index]
    assert world.send("second-factor/confirm", token=token, code=app.now()).status_code == 200
    assert second_factor.is_enrolled(person.user_name)
    # Once: nobody gets another factor by it.
    assert world.send("second-factor/begin", token=token).status_code == 404
    assert world.send("second-factor/begin", token=second_factor_token(person.user_name)).status_code == 409


def test_a_token_to_enrol_by_goes_on_beside_a_later_one_and_ends_with_what_its_person_is(
    world: World, organization: Organization
) -> None:
    person, begin = world.person(organization), "second-factor/begin"
    first, later = second_factor_token(person.user_name), second_factor_token(person.user_name)
    shown = world.send(begin, token=first)
    assert f"account <strong>{person.user_name}</strong>" in shown.text
    code = pyotp.TOTP(re.search(r"<code>(\w+)</code>", shown.text)[1]).now()  # type: ignore[index]
    world.table.deactivate(person)
    assert world.send(begin, token=first).status_code == 404
    assert world.send("second-factor/confirm", token=first, code=code).status_code == 404
    world.table.accounts[person.user_name] = person
    assert world.send("second-factor/confirm", token=first, code=code).status_code == 200
    # Then all have ended.
    assert world.send(begin, token=later).status_code == 404
    left = world.person(organization)
    token = second_factor_token(left.user_name)
    shown = world.send(begin, token=token)
    code = pyotp.TOTP(re.search(r"<code>(\w+)</code>", shown.text)[1]).now()  # type: ignore[index]
    organizations.remove_member(organization.organization_id, left.user_name, by="boss")
    assert world.send(begin, token=token).status_code == 404
    assert world.send("second-factor/confirm", token=token, code=code).status_code == 404
    assert not second_factor.is_enrolled(left.user_name)


def test_who_belongs_to_no_organization_sets_no_second_factor_up(world: World) -> None:
    person = world.person()
    refused = world.send("second-factor", name=person.user_name, password=PASSWORD)
    assert (refused.status_code, "belongs to no organization" in refused.text) == (403, True)
    # Whoever does not know the password is not told.
    assert "organization" not in world.send("second-factor", name=person.user_name, password="wrong").text
    root = world.person()
    world.table.accounts[root.user_name] = replace(root, superadmin=True)
    assert world.send("second-factor", name=root.user_name, password=PASSWORD).status_code == 200


def test_the_page_offers_the_identity_providers_to_whoever_has_no_password(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    page, html = "/bridge/sign-in/second-factor", {"accept": "text/html"}
    assert "/auth/login/" not in world.http.get(page, headers=html).text
    provider = {
        "name": "acme",
        "label": "Ac&me",
        "issuer": "https://login.acme.example",
        "client_id": "bridge",
        "client_secret_file": "/nowhere",
        "email_domains": ["acme.example"],
    }
    monkeypatch.setenv("BRIDGE_OIDC_PROVIDERS", json.dumps([provider]))
    get_settings.cache_clear()
    link = '<a href="/auth/login/acme?second-factor">Sign in with Ac&amp;me instead</a>'
    assert link in world.http.get(page, headers=html).text
    person = world.person()
    assert link in world.send("second-factor", name=person.user_name, password="wrong").text


def test_whoever_joins_an_organization_that_requires_a_factor_sets_one_up_first(
    world: World, organization: Organization
) -> None:
    owner = organization.organization_id
    membership.require_second_factor(owner, True, by="boss")
    known = world.person()
    for form in (
        {"page": "join", "email": f"new-{uuid4().hex[:8]}@example.com"},
        {"page": "join-with-account", "email": known.email},
    ):
        made = invitations.invite(owner, form["email"], "customer_user", by="test")
        names = {"first_name": "A", "last_name": "B", "again": PASSWORD} if form["page"] == "join" else {}
        led = world.send(form["page"], token=made.token, password=PASSWORD, **names)
        there = "/bridge/sign-in/second-factor?required"
        assert (led.status_code, led.headers["location"], "set-cookie" in led.headers) == (303, there, False)
    assert sessions.since(known.user_name) is not None
    added = world.person()
    organizations.add_member(owner, added.user_name, "customer_user")
    assert sessions.since(added.user_name) is not None
    membership.require_second_factor(owner, False, by="boss")
    second_factor.after_password(added.user_name, None)
