"""Signing in by an identity provider, at a real Airflow and with a provider that answers over HTTP."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

import httpx
import pyotp
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from trial import Trial

from openid_provider import OpenIdProvider

MEMBERS = """
from continuitybridge import organizations
owner = organizations.by_slug({slug!r}).organization_id
for name in {names!r}:
    organizations.add_member(owner, name, "customer_user")
"""
INVITE = """
from continuitybridge import invitations, organizations
owner = organizations.by_slug({slug!r}).organization_id
invitations.invite(owner, {email!r}, "customer_user", by="test")
"""
ENROL = """
import pyotp
from continuitybridge.sign_in import second_factor
secret = second_factor.begin({name!r}).secret
second_factor.confirm({name!r}, pyotp.TOTP(secret).now())
print(secret)
"""
DEACTIVATE = """
import os
from continuitybridge.runtime.environment import process_environment
from continuitybridge.settings import get_settings
os.environ.update(process_environment(get_settings()))
from airflow.providers.fab.www.app import create_app
app = create_app(enable_plugins=False)
with app.app_context():
    manager = app.appbuilder.sm
    user = manager.find_user(username={name!r})
    user.active = False
    assert manager.update_user(user)
"""
_number = count(1)
STRANGER = "sso-stranger"
"""Has an account, and belongs to no organization."""


@contextmanager
def browser(trial: Trial, address: str = "") -> Iterator[httpx.Client]:
    transport = httpx.HTTPTransport(local_address=address or f"127.0.3.{next(_number)}")
    headers = {"accept": "text/html,application/json", "origin": trial.url}
    with httpx.Client(base_url=trial.url, timeout=60, transport=transport, headers=headers) as client:
        yield client


@pytest.fixture(scope="module")
def slug(trial: Trial) -> str:
    return trial.organization().slug


@pytest.fixture(scope="module")
def members(trial: Trial, slug: str) -> Iterator[str]:
    names = [f"sso-{uuid4().hex[:8]}" for _ in range(17)]
    trial.accounts([*names, STRANGER])
    trial.python(MEMBERS.format(slug=slug, names=names))
    return iter(names)


@pytest.fixture(scope="module")
def somebody(members: Iterator[str]) -> str:
    """A member whom nothing signs in."""
    return next(members)


@pytest.fixture
def provider(trial: Trial) -> Iterator[OpenIdProvider]:
    """Honest before each test."""
    assert trial.provider is not None
    trial.provider.honest()
    yield trial.provider
    trial.provider.honest()


@pytest.fixture
def name(members: Iterator[str], provider: OpenIdProvider) -> str:
    """A member whom the provider signs in."""
    found = next(members)
    provider.person = person(found)
    return found


def person(name: str, **more: Any) -> dict[str, Any]:
    return {"sub": f"subject-of-{name}", "email": f"{name}@example.com", "email_verified": True, **more}


def go(client: httpx.Client, next_url: str = "") -> httpx.Response:
    """Press the button, and follow until the provider sends the browser back; gives the answer to that."""
    page = client.get("/auth/login/", params={"next": next_url} if next_url else {})
    button = re.search(r'href="(/auth/login/corporate[^"]*)"[^>]*>Sign in with Corporate<', page.text)
    assert button, page.text
    there = client.get(button[1].replace("&amp;", "&"))
    assert there.status_code == 302, there.text
    with httpx.Client(timeout=60) as elsewhere:
        back = elsewhere.get(there.headers["location"])
    return client.get(back.headers["location"])


def is_signed_in(client: httpx.Client) -> bool:
    """As a browser finds out: by Airflow's first page, which gives the token."""
    client.get("/auth/")
    return client.get("/bridge/me").status_code == 200


def refused(client: httpx.Client, answer: httpx.Response) -> str:
    """What the sign-in page tells whoever was refused."""
    assert (answer.status_code, urlsplit(answer.headers["location"]).path) == (302, "/auth/login/"), answer.text
    assert not is_signed_in(client)
    return client.get("/auth/login/").text


def events(trial: Trial, slug: str, name: str, action: str) -> list[dict[str, Any]]:
    listed = trial.bridge("audit", "list", "-o", slug, "--action", action, "--actor", name, "--json")
    found: list[dict[str, Any]] = json.loads(listed.stdout)
    return found


def test_a_member_signs_in_and_the_trail_tells_of_it(
    trial: Trial, slug: str, name: str, provider: OpenIdProvider
) -> None:
    with browser(trial) as client:
        answer = go(client, "/bridge/me")
        assert (answer.status_code, urlsplit(answer.headers["location"]).path) == (302, "/bridge/me")
        assert is_signed_in(client)
        me = client.get("/bridge/me").json()
        assert me["user_name"] == name
        assert slug in json.dumps(me)
        assert client.get("/ui/dags").status_code == 200
        assert client.get("/auth/oauth-authorized/corporate?code=x&state=y").status_code == 302
        trial.bridge("person", "end-sessions", name)
        assert client.get("/bridge/me").status_code == 401
        assert not is_signed_in(client)
        # The second time by the subject: the address may have changed there, and is another account's here.
        provider.person = person(name, email=f"{STRANGER}@example.com")
        go(client)
        assert is_signed_in(client)
        assert client.get("/bridge/me").json()["user_name"] == name
    told = events(trial, slug, name, "sign_in.succeeded")
    assert [each["details"]["provider"] for each in told] == ["corporate"] * 2
    assert str(told[0]["address"]).startswith("127.0.3.")
    assert len(events(trial, slug, name, "identity.linked")) == 1


def claims(**changed: Any) -> Callable[[OpenIdProvider], None]:
    """An ID token with these claims; None: without."""

    def lie(provider: OpenIdProvider) -> None:
        provider.lie = lambda given: {
            key: value for key, value in {**given, **changed}.items() if value is not None
        }

    lie.__name__ = ",".join(f"{key}={value}" for key, value in changed.items())
    return lie


def unsigned(provider: OpenIdProvider) -> None:
    provider.algorithm, provider.key = "none", None


def by_the_public_key(provider: OpenIdProvider) -> None:
    provider.algorithm, provider.key = "HS256", json.dumps(provider.public_key()).encode()


def by_the_client_secret(provider: OpenIdProvider) -> None:
    provider.algorithm, provider.key = "HS256", provider.client_secret.encode()


def expired(provider: OpenIdProvider) -> None:
    provider.lie = lambda given: {**given, "iat": given["iat"] - 3600, "exp": given["exp"] - 3600}


def from_the_future(provider: OpenIdProvider) -> None:
    provider.lie = lambda given: {**given, "iat": given["iat"] + 3600, "exp": given["exp"] + 3600}


def by_another_key(provider: OpenIdProvider) -> None:
    provider.key = rsa.generate_private_key(public_exponent=65537, key_size=2048)


def with_another_state(provider: OpenIdProvider) -> None:
    provider.answer_state = "another-browsers"


@pytest.mark.parametrize(
    ("lie", "why"),
    [
        (with_another_state, "this browser did not begin it"),
        (unsigned, "Algorithm of 'none' is not allowed"),
        (by_the_public_key, "Algorithm of 'HS256' is not allowed"),
        (by_the_client_secret, "Algorithm of 'HS256' is not allowed"),
        (by_another_key, "bad_signature"),
        (claims(nonce="of-another-request"), "nonce"),
        (claims(nonce=None), "nonce"),
        (claims(aud="another-client"), "aud"),
        (claims(aud=None), "aud"),
        (claims(aud=["bridge", "another-client"]), "azp"),
        (claims(iss="https://login.example.com"), "iss"),
        (claims(iss=None), "iss"),
        (expired, "expired"),
        (claims(exp=None), "exp"),
        (from_the_future, "issued in the future"),
        (claims(sub=None), "sub"),
        (claims(email_verified=False), "has not verified"),
        (claims(email_verified=None), "has not verified"),
        (claims(email_verified="yes"), "has not verified"),
        (claims(email="somebody@elsewhere.example"), "does not speak for"),
        (claims(email="somebody@sub.example.com"), "does not speak for"),
        (claims(email="nobody-invited@example.com"), "was not invited"),
        (claims(email=f"{STRANGER}@example.com"), "belongs to no organization"),
    ],
)
def test_what_does_not_hold_signs_nobody_in(
    trial: Trial, somebody: str, provider: OpenIdProvider, lie: Callable[[OpenIdProvider], None], why: str
) -> None:
    provider.person = person(somebody, sub=f"of-nobody-yet-{uuid4().hex}")
    lie(provider)
    with browser(trial) as client:
        assert "was refused" in refused(client, go(client))
    [*_, last] = re.findall(r"a sign-in by corporate was refused: (.*?) \[", trial.log("api-server"))
    assert why in last


def test_what_another_browser_began_is_not_taken(trial: Trial, name: str, provider: OpenIdProvider) -> None:
    with browser(trial) as attacker, browser(trial) as victim:
        there = attacker.get("/auth/login/corporate")
        with httpx.Client() as elsewhere:
            back = elsewhere.get(there.headers["location"])
        assert "was refused" in refused(victim, victim.get(back.headers["location"]))
        assert provider.tokens == 0, "the code is not even shown to the provider"
        query = parse_qs(urlsplit(there.headers["location"]).query)
        assert {"state", "nonce", "code_challenge"} <= set(query)


def test_who_is_somebody_at_the_provider_already_is_not_somebody_elses_there(
    trial: Trial, slug: str, name: str, provider: OpenIdProvider
) -> None:
    with browser(trial) as client:
        go(client)
        assert is_signed_in(client)
    # The address was given to somebody new there.
    provider.person = person(name, sub="whoever-has-the-address-now")
    with browser(trial) as client:
        assert "was refused" in refused(client, go(client))
    assert events(trial, slug, name, "sign_in.failed")[0]["details"]["why"].startswith("the account is linked")
    trial.bridge("person", "unlink", name)
    with browser(trial) as client:
        go(client)
        assert is_signed_in(client)


def test_who_was_invited_joins_by_his_verified_address(trial: Trial, slug: str, provider: OpenIdProvider) -> None:
    name = f"sso-{uuid4().hex[:8]}"
    trial.python(INVITE.format(slug=slug, email=f"{name}@example.com"))
    provider.person = person(name, email_verified=False)
    with browser(trial) as client:
        assert "was refused" in refused(client, go(client))
        provider.person = person(name, given_name="Ines", family_name="Vited")
        go(client)
        assert is_signed_in(client)
        me = client.get("/bridge/me")
        assert me.json()["user_name"] == f"{name}@example.com"
        assert slug in me.text


def test_the_deactivated_do_not_sign_in(trial: Trial, slug: str, name: str, provider: OpenIdProvider) -> None:
    trial.python(DEACTIVATE.format(name=name))
    with browser(trial) as client:
        assert "was refused" in refused(client, go(client))
    assert events(trial, slug, name, "sign_in.failed")[0]["details"]["why"] == "the account is not active"


def test_the_second_factor_and_the_lockout_hold_here_too(
    trial: Trial, slug: str, name: str, provider: OpenIdProvider
) -> None:
    code = pyotp.TOTP(trial.python(ENROL.format(name=name)).split()[-1])
    with browser(trial, "127.0.3.200") as client:
        asked = go(client)
        assert "Code of your authenticator app" in asked.text
        assert not is_signed_in(client)
        go(client)
        asked = go(client)
        form = {"username": name, "csrf_token": re.search(r'name="csrf_token" value="([^"]+)"', asked.text)[1]}  # type: ignore[index]
        action = re.search(r'<form action="([^"]+)"', asked.text)
        assert action
        for number in range(4):
            assert client.post(action[1], data={**form, "code": f"{number:06}"}).status_code == 200
        right = client.post(action[1], data={**form, "code": code.at(int(time.time()) + 30)})
        assert right.status_code == 302
        assert is_signed_in(client)
    with browser(trial, "127.0.3.201") as client:
        asked = go(client)
        form["csrf_token"] = re.search(r'name="csrf_token" value="([^"]+)"', asked.text)[1]  # type: ignore[index]
        for number in range(5):
            assert client.post(action[1], data={**form, "code": f"{number:06}"}).status_code == 200
        # The provider's way stays open; the code behind it waits.
        asked = go(client)
        form["csrf_token"] = re.search(r'name="csrf_token" value="([^"]+)"', asked.text)[1]  # type: ignore[index]
        locked = client.post(action[1], data={**form, "code": code.at(int(time.time()) + 30)})
        assert locked.status_code == 429
        assert 0 < int(locked.headers["retry-after"]) <= 900
        assert not is_signed_in(client)
    assert events(trial, slug, name, "sign_in.succeeded")[0]["details"]["way"] == "identity provider"


def test_who_needs_a_second_factor_sets_it_up_behind_the_provider_without_a_password(
    trial: Trial, name: str, provider: OpenIdProvider
) -> None:
    strict = trial.organization().slug
    trial.bridge("organization", "member", "add", "-o", strict, name, "--role", "customer_user")
    trial.bridge("organization", "require-second-factor", strict)
    with browser(trial) as client:
        led = go(client, "/bridge/me")
        place = urlsplit(led.headers["location"])
        assert (led.status_code, place.path) == (302, "/bridge/sign-in/second-factor/begin")
        assert not is_signed_in(client)
        page = client.get(place.path)
        assert (page.status_code, place.fragment in page.text) == (200, False)
        form = {"token": place.fragment}
        shown = client.post(place.path, data=form)
        code = pyotp.TOTP(re.search(r"<code>(\w+)</code>", shown.text)[1])  # type: ignore[index]
        done = client.post("/bridge/sign-in/second-factor/confirm", data={**form, "code": code.now()})
        assert "recovery codes" in done.text
        assert not is_signed_in(client), "he signs in with it"
        asked = go(client, "/bridge/me")
        form = {"username": name, "csrf_token": re.search(r'name="csrf_token" value="([^"]+)"', asked.text)[1]}  # type: ignore[index]
        # Others' pages can have a browser begin a sign-in; so it ends nothing before it succeeds.
        assert client.get("/auth/login/corporate").status_code == 302
        assert client.get("/auth/login/").status_code == 200
        assert client.get("/auth/oauth-authorized/corporate?state=anothers").status_code == 302
        right = client.post("/auth/login/", data={**form, "code": code.at(int(time.time()) + 30)})
        assert (right.status_code, urlsplit(right.headers["location"]).path) == (302, "/bridge/me")
        assert is_signed_in(client)
    told = events(trial, strict, name, "sign_in")
    assert [(each["action"], each["details"]["way"]) for each in reversed(told)] == [
        ("sign_in.failed", "identity provider"),
        ("sign_in.succeeded", "identity provider"),
    ]
    assert told[-1]["details"]["why"] == "no second factor"


def test_who_has_no_password_proves_who_he_is_at_the_provider_and_sets_a_second_factor_up(
    trial: Trial, name: str, provider: OpenIdProvider
) -> None:
    with browser(trial) as client:
        go(client)
        assert is_signed_in(client)
        page = client.get("/bridge/sign-in/second-factor", headers={"accept": "text/html"})
        way = re.search(r'href="(/auth/login/corporate[^"]*)">Sign in with Corporate instead<', page.text)
        assert way

        def prove() -> httpx.Response:
            with httpx.Client(timeout=60) as elsewhere:
                back = elsewhere.get(client.get(way[1]).headers["location"])
            return client.get(back.headers["location"])

        provider.person = person("nobody-invited")
        assert urlsplit(prove().headers["location"]).path == "/auth/login/"
        provider.person = person(name)
        place = urlsplit(prove().headers["location"])
        assert place.path == "/bridge/sign-in/second-factor/begin"
        assert is_signed_in(client)
        shown = client.post(place.path, data={"token": place.fragment})
        code = pyotp.TOTP(re.search(r"<code>(\w+)</code>", shown.text)[1]).now()  # type: ignore[index]
        done = client.post("/bridge/sign-in/second-factor/confirm", data={"token": place.fragment, "code": code})
        assert "recovery codes" in done.text
        assert not is_signed_in(client)
        assert "Code of your authenticator app" in go(client).text
    with browser(trial) as stranger:
        # Nobody is signed in by that way.
        place = urlsplit(stranger.get(way[1]).headers["location"])
        with httpx.Client(timeout=60) as elsewhere:
            back = elsewhere.get(f"{place.scheme}://{place.netloc}{place.path}?{place.query}")
        led = stranger.get(back.headers["location"])
        assert urlsplit(led.headers["location"]).path == "/bridge/sign-in/second-factor/begin"
        assert not is_signed_in(stranger)


def test_a_second_factor_that_the_provider_asked_for_counts_where_one_is_required_and_where_there_is_one(
    trial: Trial, members: Iterator[str], provider: OpenIdProvider
) -> None:
    strict = trial.organization().slug
    without, enrolled = next(members), next(members)
    for name in (without, enrolled):
        trial.bridge("organization", "member", "add", "-o", strict, name, "--role", "customer_user")
    trial.bridge("organization", "require-second-factor", strict)
    trial.python(ENROL.format(name=enrolled))
    for name in (without, enrolled):
        for shown, let_in in ((["pwd"], False), (["pwd", "mfa"], True)):
            provider.person = person(name, amr=shown)
            with browser(trial) as client:
                go(client)
                assert is_signed_in(client) is let_in
        told = events(trial, strict, name, "sign_in.succeeded")
        assert [each["details"].get("second_factor") for each in told] == ["corporate"]


def test_an_address_that_only_the_userinfo_endpoint_tells_is_taken_of_the_same_subject(
    trial: Trial, name: str, provider: OpenIdProvider
) -> None:
    told = provider.person
    provider.person = {"sub": told["sub"]}
    with browser(trial) as client:
        provider.at_userinfo = {**told, "sub": "somebody-else"}
        assert "was refused" in refused(client, go(client))
        provider.at_userinfo = told
        go(client)
        assert is_signed_in(client)


def test_refusals_are_counted_by_address_when_this_browser_began_them(trial: Trial) -> None:
    with browser(trial, "127.0.3.202") as client:

        def come_back(query: str) -> int:
            there = client.get("/auth/login/corporate").headers["location"]
            state = parse_qs(urlsplit(there).query)["state"][0]
            return client.get(f"/auth/oauth-authorized/corporate?state={state}&{query}").status_code

        for _ in range(21):
            assert client.get("/auth/oauth-authorized/corporate?code=x&state=y").status_code == 302
        assert [come_back("error=temporarily_unavailable") for _ in range(21)] == [302] * 21
        assert "try again later" in client.get("/auth/login/").text
        assert [come_back("code=x") for _ in range(21)] == [302] * 20 + [429]


def test_another_spelling_of_a_name_is_no_other_account_to_whoever_guesses(trial: Trial) -> None:
    name = f"isidor-{uuid4().hex[:8]}"
    trial.accounts([name])
    with browser(trial, "127.0.3.203") as client:

        def guess(spelled: str) -> int:
            return client.post("/auth/token", json={"username": spelled, "password": "wrong"}).status_code

        dotted = "\N{LATIN CAPITAL LETTER I WITH DOT ABOVE}"
        answers = [guess(name.replace("i", each, 1)) for each in (dotted, "i", "I", dotted, "i")]
        assert answers == [401] * 5
        assert [guess(name), guess(name.replace("i", dotted))] == [429, 429]


def test_a_provider_that_is_none_begins_nothing(trial: Trial) -> None:
    with browser(trial) as client:
        for path in ("/auth/login/another", "/auth/oauth-authorized/another?code=x&state=y"):
            assert urlsplit(client.get(path).headers["location"]).path == "/auth/login/"
        assert "There is no such provider" in client.get("/auth/login/").text
