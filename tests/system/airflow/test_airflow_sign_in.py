"""Signing in to Airflow: guessing is stopped at every way in, and a token ends with its user's password."""

from __future__ import annotations

import re
from collections.abc import Callable

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


def by_token(trial: Trial, path: str) -> Try:
    def attempt(name: str, password: str) -> httpx.Response:
        return httpx.post(f"{trial.url}{path}", json={"username": name, "password": password}, timeout=60)

    return attempt


def by_form(trial: Trial) -> Try:
    def attempt(name: str, password: str) -> httpx.Response:
        with httpx.Client(base_url=trial.url, timeout=60) as browser:
            page = browser.get("/auth/login/")
            token = re.search(r'name="csrf_token"[^>]*value="([^"]+)"', page.text)
            form = {"username": name, "password": password, "csrf_token": token[1] if token else ""}
            return browser.post("/auth/login/", data=form)

    return attempt


def ways(trial: Trial) -> dict[str, Try]:
    return {
        "token": by_token(trial, "/auth/token"),
        "cli": by_token(trial, "/auth/token/cli"),
        "form": by_form(trial),
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


def test_what_is_no_sign_in_is_bounded(trial: Trial) -> None:
    answer = httpx.post(f"{trial.url}/auth/token", content=b"x" * 100_000, timeout=60)
    assert answer.status_code == 413


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
