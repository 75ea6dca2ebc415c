"""Links by mail: they sign in or choose a new password, once, for whom they were sent to."""

from __future__ import annotations

import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import psycopg
import pytest

from continuitybridge import database
from continuitybridge.audit.reading import Event, Filter, search
from continuitybridge.organizations import Organization
from continuitybridge.sign_in.accounts import Account
from continuitybridge.sign_in.failures import MAILS_OF_ACCOUNT, MAILS_OF_ADDRESS
from continuitybridge.vault import Keyring

from .conftest import PASSWORD, World

NEW = "copper meadow violin thirteen"


def events(organization: Organization, action: str = "sign_in") -> list[Event]:
    return search(organization.organization_id, Filter(action=action), keys=Keyring.open())


def test_a_link_signs_in_once_and_the_trail_tells_of_it(world: World, organization: Organization) -> None:
    person = world.person(organization)
    token = world.token("link", person)
    page = world.http.get("/bridge/sign-in/confirm", headers={"accept": "text/html"})
    assert page.status_code == 200
    assert world.http.get("/bridge/sign-in/confirm").status_code == 200, "opening it uses nothing up"
    done = world.send("confirm", token=token)
    assert done.status_code == 303
    assert done.headers["location"] == "/"
    assert done.headers["set-cookie"] == f"_token=of-{person.user_name}; Path=/; HttpOnly; SameSite=Lax; Secure"
    again = world.send("confirm", token=token)
    assert again.status_code == 404
    assert "set-cookie" not in again.headers
    [event] = events(organization)
    assert (event.action, event.actor, event.details) == ("sign_in.succeeded", person.user_name, {"way": "link"})
    assert event.address == "127.0.0.1"


def test_of_two_at_once_one_is_signed_in(world: World) -> None:
    token = world.token("link", world.person())
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: world.send("confirm", token=token).status_code, range(6)))
    assert sorted(answers) == [303, 404, 404, 404, 404, 404]


def test_a_newer_link_ends_the_older_and_each_ends_with_its_time(world: World) -> None:
    person = world.person()
    first, second = world.token("link", person), world.token("link", person)
    assert world.send("confirm", token=first).status_code == 404
    with database.platform() as connection:
        connection.execute(
            "UPDATE bridge.sign_in_tokens SET expires_at = expires_at - %s WHERE user_name = %s",
            (timedelta(minutes=15, seconds=1), person.user_name),
        )
    assert world.send("confirm", token=second).status_code == 404


def test_a_link_is_for_one_purpose(world: World) -> None:
    person = world.person()
    assert world.send("confirm", token=world.token("reset", person)).status_code == 404
    link = world.token("link", person)
    assert world.send("new-password", token=link, password=NEW, again=NEW).status_code == 404


def test_nobody_is_told_who_has_an_account_not_by_the_clock_either(world: World) -> None:
    person, gone = world.person(), world.person()
    world.table.deactivate(gone)

    def timed(address: str) -> float:
        begun = time.perf_counter()
        answer = world.ask("link", address)
        assert answer.status_code == 202
        assert answer.json() == {"detail": "if an account has this address, a mail is on its way"}
        return time.perf_counter() - begun

    known = [timed(person.email) for _ in range(4)]
    unknown = [timed(f"nobody-{number}@example.com") for number in range(4)]
    inactive = [timed(gone.email) for _ in range(4)]
    assert max(statistics.median(each) for each in (known, unknown, inactive)) < 0.1, "no look-up is waited for"
    assert world.mailed(person.email)
    assert world.mailed(gone.email, within_s=0.3) is None
    assert world.server.to("nobody-1@example.com") == []


def test_who_is_deactivated_meanwhile_is_not_signed_in(world: World, organization: Organization) -> None:
    person = world.person(organization)
    token = world.token("link", person)
    world.table.deactivate(person)
    assert world.send("confirm", token=token).status_code == 401
    assert [event.action for event in events(organization)] == ["sign_in.failed"]


def test_an_account_gets_so_many_mails_and_an_address_may_ask_so_often(world: World) -> None:
    person = world.person()
    for _ in range(MAILS_OF_ACCOUNT.amount + 3):
        assert world.ask("link", person.email).status_code == 202
    while world.mailed(person.email, within_s=0.5) is not None:
        pass
    with psycopg.connect(database.owner_url()):
        assert len(world.server.to(person.email)) == MAILS_OF_ACCOUNT.amount
    answers = [
        world.ask("link", f"n{number}@example.com").status_code for number in range(MAILS_OF_ADDRESS.amount)
    ]
    assert answers.count(429) == MAILS_OF_ACCOUNT.amount + 3


def test_an_address_that_guesses_links_is_stopped(world: World) -> None:
    answers = [world.send("confirm", token=f"{number:040}").status_code for number in range(25)]
    assert answers == [404] * 20 + [429] * 5


def test_the_database_holds_no_link(world: World) -> None:
    token = world.token("link", world.person())
    with database.platform() as connection:
        rows = connection.execute("SELECT t::text FROM bridge.sign_in_tokens t").fetchall()
    assert rows
    assert all(token not in row[0] for row in rows)


def test_a_new_password_is_chosen_once_and_a_mail_says_so(world: World, organization: Organization) -> None:
    person = world.person(organization)
    token, link = world.token("reset", person), world.token("link", person)
    weak = world.send("new-password", token=token, password="password1234", again="password1234")
    assert weak.status_code == 422
    assert "too easily guessed" in weak.text
    different = world.send("new-password", token=token, password=NEW, again=NEW + "x")
    assert different.status_code == 422
    assert world.table.passwords[person.user_name] == PASSWORD
    done = world.send("new-password", token=token, password=NEW, again=NEW)
    assert done.status_code == 200
    assert world.table.passwords[person.user_name] == NEW
    assert world.send("new-password", token=token, password=PASSWORD, again=PASSWORD).status_code == 404
    assert world.send("confirm", token=link).status_code == 404, "links of before end too"
    assert world.mailed(person.email) == ""
    assert "was changed" in world.server.to(person.email)[-1]["subject"]
    assert [event.action for event in events(organization, "password")] == ["password.reset"]


@pytest.mark.parametrize(
    "password",
    [
        "short",
        "elevenchars",
        "password1234",
        "qwertyuiop123",
        "aaaaaaaaaaaaaa",
        "{name}",
        "{name}1",
        "x" * 300,
    ],
)
def test_passwords_that_are_guessed_early_are_not_taken(world: World, password: str) -> None:
    person = world.person()
    given = password.format(name=person.user_name)
    token = world.token("reset", person)
    assert world.send("new-password", token=token, password=given, again=given).status_code == 422
    assert world.table.passwords[person.user_name] == PASSWORD


@pytest.mark.parametrize("origin", ["https://evil.example", "null"])
def test_a_form_of_somebody_elses_page_is_not_taken(world: World, origin: str) -> None:
    token = world.token("link", world.person())
    forged = world.http.post("/bridge/sign-in/confirm", data={"token": token}, headers={"origin": origin})
    assert forged.status_code == 403
    assert "set-cookie" not in forged.headers


def test_pages_run_no_script_of_others_and_are_kept_by_nobody(world: World) -> None:
    for page in ("", "forgotten", "confirm", "new-password", "invitation", "nothing"):
        answer = world.http.get(f"/bridge/sign-in/{page}", headers={"accept": "text/html"})
        assert answer.status_code == (404 if page == "nothing" else 200), page
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["cache-control"] == "no-store"
        assert "<script src" in answer.text
        assert "style=" not in answer.text
        assert '<html lang="en">' in answer.text
    for name in ("sign_in.css", "sign_in.js"):
        assert world.http.get(f"/bridge/sign-in/static/{name}").status_code == 200
    assert world.http.get("/bridge/sign-in/static/..%2fpages.py").status_code == 404


def test_what_is_wrong_with_a_form_is_said_and_what_it_held_is_not(world: World) -> None:
    secret = "a-secret-token"
    answer = world.http.post("/bridge/sign-in/confirm", json={"token": secret, "more": secret})
    assert answer.status_code == 422
    assert {each["field"] for each in answer.json()["problems"]} == {"token", "more"}
    assert secret not in answer.text
    assert world.http.post("/bridge/sign-in/link", content=b"x" * 20_000).status_code == 413


def test_accounts_are_found_however_the_address_is_spelled(world: World) -> None:
    person: Account = world.person()
    assert world.ask("link", person.email.upper()).status_code == 202
    assert world.mailed(person.email)
