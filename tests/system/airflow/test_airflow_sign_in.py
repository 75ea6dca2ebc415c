"""Signing in to Airflow: guessing is stopped at every way in, and a token ends with its user's password."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from trial import Trial

SET_PASSWORD = """
import os
from continuitybridge.runtime.environment import process_environment
from continuitybridge.settings import get_settings
os.environ.update(process_environment(get_settings()))
from airflow.providers.fab.www.app import create_app
app = create_app(enable_plugins=False)
with app.app_context():
    manager = app.appbuilder.sm
    manager.reset_password(manager.find_user(username={name!r}).id, {password!r})
"""

Try = Callable[[str, str], httpx.Response]


_addresses = (f"127.0.1.{number}" for number in range(1, 255))


def client(trial: Trial, address: str) -> httpx.Client:
    """What is refused to an address is refused to none of the other tests."""
    return httpx.Client(base_url=trial.url, timeout=60, transport=httpx.HTTPTransport(local_address=address))


def by_token(trial: Trial, path: str, address: str) -> Try:
    def attempt(name: str, password: str) -> httpx.Response:
        with client(trial, address) as program:
            return program.post(path, json={"username": name, "password": password})

    return attempt


def csrf(page: httpx.Response) -> str:
    token = re.search(r'name="csrf_token"[^>]*value="([^"]+)"', page.text)
    return token[1] if token else ""


def by_form(trial: Trial, address: str) -> Try:
    def attempt(name: str, password: str) -> httpx.Response:
        with client(trial, address) as browser:
            form = {"username": name, "password": password, "csrf_token": csrf(browser.get("/auth/login/"))}
            return browser.post("/auth/login/", data=form, headers={"origin": trial.url})

    return attempt


def ways(trial: Trial) -> dict[str, Try]:
    """All from one address, which no other caller gets."""
    address = next(_addresses)
    return {
        "token": by_token(trial, "/auth/token", address),
        "cli": by_token(trial, "/auth/token/cli", address),
        "form": by_form(trial, address),
    }


@pytest.mark.parametrize("way", ["token", "cli", "form"])
def test_after_five_failures_no_way_in_takes_a_guess_for_that_name(trial: Trial, way: str) -> None:
    name = f"guessed-by-{way}"
    password = trial.accounts([name])[name]
    every = ways(trial)
    for number in range(5):
        answer = every[way](name, f"guess-{number}")
        assert answer.status_code != 429, number
    for other in every.values():
        for guess in ("another", password):
            refused = other(name, guess)
            assert refused.status_code == 429
            assert 0 < int(refused.headers["retry-after"]) <= 900
            assert "_token" not in refused.cookies
    free = f"free-of-{way}"
    assert every["token"](free, trial.accounts([free])[free]).status_code == 201


@pytest.mark.parametrize("way", ["token", "cli"])
def test_a_success_forgets_the_failures_before_it(trial: Trial, way: str) -> None:
    name = f"forgetful-by-{way}"
    password = trial.accounts([name])[name]
    attempt = ways(trial)[way]
    for _ in range(3):
        for number in range(4):
            assert attempt(name, f"guess-{number}").status_code != 429
        assert attempt(name, password).status_code == 201


@pytest.mark.parametrize("way", ["token", "form"])
def test_guesses_at_once_are_counted_like_guesses_one_by_one(trial: Trial, way: str) -> None:
    name = f"rushed-by-{way}"
    password = trial.accounts([name])[name]
    attempt = ways(trial)[way]
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda number: attempt(name, f"guess-{number}").status_code, range(24)))
    assert answers.count(429) == 19, answers
    assert attempt(name, password).status_code == 429


def test_sign_ins_at_once_with_the_right_password_all_succeed(trial: Trial) -> None:
    name = "busy-script"
    password = trial.accounts([name])[name]
    attempt = ways(trial)["token"]
    with ThreadPoolExecutor(12) as pool:
        answers = set(pool.map(lambda _: attempt(name, password).status_code, range(60)))
    assert answers == {201}


def test_an_accounts_e_mail_address_and_another_spelling_are_no_way_around(trial: Trial) -> None:
    name = "spelled"
    password = trial.accounts([name])[name]
    every = ways(trial)
    attempt = every["token"]
    names = [name, name.upper(), f"{name}@example.com", f"{name}@EXAMPLE.com", f" {name}"]
    for each in names:
        assert attempt(each, "guess").status_code != 429, each
    for each in names:
        assert attempt(each, password).status_code == 429, each
    assert every["form"](f"{name}@example.com", password).status_code == 429


def test_what_is_no_sign_in_is_bounded(trial: Trial) -> None:
    answer = httpx.post(f"{trial.url}/auth/token", content=b"x" * 100_000, timeout=60)
    assert answer.status_code == 413


def test_whoever_is_signed_in_forgets_nobody_elses_failures(trial: Trial) -> None:
    member, victim = "posting-member", "posted-victim"
    passwords = trial.accounts([member, victim])
    with client(trial, next(_addresses)) as browser:
        headers = {"origin": trial.url}
        page = browser.get("/auth/login/")
        form = {"csrf_token": csrf(page), "password": passwords[member]}
        assert browser.post("/auth/login/", data={**form, "username": member}, headers=headers).status_code == 302
        for number in range(4):
            guess = {"username": victim, "password": f"guess-{number}"}
            assert browser.post("/auth/token", json=guess, headers=headers).status_code == 401
        again = browser.post("/auth/login/", data={**form, "username": victim}, headers=headers)
        assert again.status_code == 302
        for status in (401, 429):
            guess = {"username": victim, "password": "guess"}
            assert browser.post("/auth/token", json=guess, headers=headers).status_code == status


@pytest.mark.parametrize(
    ("path", "content", "kind"),
    [
        (
            "/auth/login/",
            b'--b\r\nContent-Disposition: form-data; name="username"\r\n\r\nadmin\r\n--b--\r\n',
            "multipart/form-data; boundary=b",
        ),
        ("/auth/login/", b'{"username": "admin", "password": "guess"}', "application/json"),
        ("/auth/token", b"username=admin&password=guess", "application/x-www-form-urlencoded"),
        ("/auth/token", b'{"username": "admin", "password": "guess"}', ""),
    ],
)
def test_a_sign_in_that_could_not_be_counted_under_its_name_is_not_looked_at(
    trial: Trial, path: str, content: bytes, kind: str
) -> None:
    with client(trial, next(_addresses)) as program:
        headers = {"content-type": kind, "origin": trial.url} if kind else {"origin": trial.url}
        answer = program.post(path, content=content, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported-media-type")


@pytest.mark.parametrize("field", ["username", "password"])
@pytest.mark.parametrize("what", ["\\u0000", "\\ud800"])
def test_what_the_database_takes_in_no_text_is_refused_as_input(trial: Trial, field: str, what: str) -> None:
    given = {"username": "admin", "password": "guess"}
    body = ", ".join(f'"{each}": "{value}{what if each == field else ""}"' for each, value in given.items())
    with client(trial, next(_addresses)) as program:
        for path in ("/auth/token", "/auth/token/cli"):
            answer = program.post(path, content=f"{{{body}}}", headers={"content-type": "application/json"})
            assert (answer.status_code, answer.json()["field"]) == (422, field), path
        form = {each: value + ("\0" if each == field else "") for each, value in given.items()}
        answer = program.post("/auth/login/", data=form, headers={"origin": trial.url})
        assert answer.status_code == 422


@pytest.mark.parametrize(
    "address", ["/auth/api/v1/security/login", "/auth//api/v1/security/login", "/auth//api//v1/security/login"]
)
def test_fabs_own_way_in_is_none_however_its_address_is_written(trial: Trial, address: str) -> None:
    password = (trial.state_dir / "keys" / "admin.password").read_text().strip()
    given = {"username": "admin", "password": password, "provider": "db", "refresh": True}
    with httpx.Client(base_url=trial.url, timeout=60, follow_redirects=True) as stranger:
        answer = stranger.post(address, json=given)
        assert (answer.status_code, answer.json()) == (401, {"detail": "Not authenticated"})


def test_a_token_and_a_key_of_before_a_password_change_hold_no_more(trial: Trial) -> None:
    tenant, name = trial.organization(), "changer"
    password = trial.accounts([name])[name]
    trial.bridge("organization", "member", "add", "-o", tenant.slug, name, "--role", "customer_admin")
    trial.sign_in(name, password)
    before = trial._clients[name]
    paths = ("/api/v2/dags", "/ui/dags", "/bridge/me")
    assert [before.get(path).status_code for path in paths] == [200] * 3
    trial.python(SET_PASSWORD.format(name=name, password=password + "-new"))
    assert [before.get(path).status_code for path in paths] == [401] * 3
    trial.sign_in(name, password + "-new")
    assert [trial._clients[name].get(path).status_code for path in paths] == [200] * 3
    trial.python(SET_PASSWORD.format(name=name, password=password + "-new"))
    assert [trial._clients[name].get(path).status_code for path in paths] == [401] * 3, (
        "a salt of its own each time"
    )
