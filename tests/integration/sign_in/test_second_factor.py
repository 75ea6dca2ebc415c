"""The second factor at links and invitations, and what its codes are worth."""

from __future__ import annotations

import re
import time
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pyotp
import pytest

from continuitybridge import database, invitations, sessions
from continuitybridge.audit.reading import Filter, search
from continuitybridge.errors import Conflict
from continuitybridge.organizations import Organization
from continuitybridge.sign_in import second_factor
from continuitybridge.sign_in.second_factor import CodeNeeded, WrongCode
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


def test_a_right_password_does_not_make_guessed_codes_forgotten(world: World) -> None:
    person = world.person()
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
def test_a_second_factor_is_set_up_on_a_page_by_ones_password(world: World, how: str) -> None:
    person = world.person()
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
