"""Identity providers that hang, fail or change what they say of themselves, over real HTTP."""

from __future__ import annotations

import gc
import gzip
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import requests
from flask import Flask, session

from continuitybridge.airflow import provider_calls, single_sign_on
from continuitybridge.airflow.single_sign_on import ProviderFailed, Providers
from continuitybridge.identity_providers import IdentityProvider
from continuitybridge.settings import Settings
from continuitybridge.sign_in.identities import Claims, NotLet
from openid_provider import OpenIdProvider


@pytest.fixture
def there() -> OpenIdProvider:
    return OpenIdProvider(person={"sub": "one", "email": "one@example.com", "email_verified": True})


@pytest.fixture
def app() -> Iterator[Flask]:
    made = Flask(__name__)
    made.secret_key = "of this test"
    with made.app_context():
        yield made


def known(there: OpenIdProvider, folder: Path, **more: Any) -> tuple[Providers, IdentityProvider]:
    secret = folder / "secret"
    secret.write_text(there.client_secret)
    secret.chmod(0o600)
    provider = IdentityProvider(
        name="acme",
        issuer=there.issuer,
        client_id=there.client_id,
        client_secret_file=secret,
        email_domains=("example.com",),
        **more,
    )
    settings = Settings(oidc_providers=(provider,), public_url="https://bridge.example")
    return Providers(settings), provider


def begin(app: Flask, providers: Providers, provider: IdentityProvider) -> str:
    with app.test_request_context("/"):
        return str(providers.begin(provider).headers["location"])


def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a provider said of itself is old at once, and it may be asked again."""
    monkeypatch.setattr(single_sign_on, "KEPT_S", -1)
    monkeypatch.setattr(single_sign_on, "PAUSE_S", 0)


def test_what_was_known_is_used_while_a_provider_fails(
    app: Flask, there: OpenIdProvider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    providers, provider = known(there, tmp_path)
    assert begin(app, providers, provider).startswith(f"{there.issuer}/authorize?")
    later(monkeypatch)
    for lie in ({"issuer": "https://other.example"}, {"authorization_endpoint": "http://other.example/"}):
        there.describe = lambda given, lie=lie: {**given, **lie}  # type: ignore[misc]
        assert begin(app, providers, provider).startswith(f"{there.issuer}/authorize?")
    there.describe = lambda given: {**given, "authorization_endpoint": f"{there.issuer}/new"}
    assert begin(app, providers, provider).startswith(f"{there.issuer}/new?")


def test_a_provider_that_hangs_holds_one_thread_and_is_left_alone_for_a_while(
    app: Flask, there: OpenIdProvider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provider_calls, "TIMEOUT_S", 0.6)
    monkeypatch.setattr(single_sign_on, "WAIT_S", 0.05)
    asked = []

    def hang(given: dict[str, Any]) -> dict[str, Any]:
        asked.append(1)
        time.sleep(1)
        return given

    there.describe = hang
    providers, provider = known(there, tmp_path)

    def fail(_: int) -> float:
        started = time.monotonic()
        with pytest.raises(ProviderFailed), app.test_request_context("/"):
            providers.begin(provider)
        return time.monotonic() - started

    with ThreadPoolExecutor(4) as pool:
        took = sorted(pool.map(fail, range(4)))
    assert took[2] < 0.4 < took[3]
    assert fail(0) < 0.2
    assert len(asked) == 1


def come_back(app: Flask, there: OpenIdProvider, providers: Providers, provider: IdentityProvider) -> Claims:
    with app.test_request_context("/"):
        place = str(providers.begin(provider).headers["location"])
        kept = dict(session)
    query = {name: values[0] for name, values in parse_qs(urlsplit(place).query).items()}
    back = urlsplit(there.authorize(query))
    with app.test_request_context(f"{back.path}?{back.query}"):
        assert not providers.was_begun(provider, query["state"])
        session.update(kept)
        assert providers.was_begun(provider, query["state"])
        assert not providers.was_begun(provider, "x")
        assert not providers.was_begun(provider, None)
        return providers.claims(provider)


@pytest.mark.parametrize(
    ("address", "part"),
    [
        ("/.well-known/openid-configuration", "head"),
        ("/.well-known/openid-configuration", "body"),
        ("/token", "head"),
        ("/keys", "body"),
        ("/userinfo", "head"),
    ],
)
def test_a_provider_that_drips_holds_a_thread_no_longer_than_one_that_is_silent(
    app: Flask, there: OpenIdProvider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str, part: str
) -> None:
    monkeypatch.setattr(provider_calls, "TIMEOUT_S", 0.3)
    providers, provider = known(there, tmp_path)
    there.drips = {address: part}
    del there.person["email"]
    started = time.monotonic()
    with pytest.raises(ProviderFailed):
        come_back(app, there, providers, provider)
    assert time.monotonic() - started < 1


def test_all_that_is_asked_about_one_sign_in_is_bounded_together(
    app: Flask, there: OpenIdProvider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(single_sign_on, "TOTAL_S", 0.3)
    providers, provider = known(there, tmp_path)
    begin(app, providers, provider)
    there.drips = {"/keys": "head"}
    started = time.monotonic()
    with pytest.raises(ProviderFailed):
        come_back(app, there, providers, provider)
    assert time.monotonic() - started < 1
    assert there.tokens == 1


@pytest.mark.parametrize("address", ["/.well-known/openid-configuration", "/keys"])
def test_more_than_an_answer_may_be_is_not_read(
    app: Flask, there: OpenIdProvider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    providers, provider = known(there, tmp_path)
    later(monkeypatch)
    there.padding = {address: "x" * provider_calls.MAX_ANSWER_BYTES}
    with pytest.raises(ProviderFailed):
        come_back(app, there, providers, provider)
    there.padding = {address: "x" * (provider_calls.MAX_ANSWER_BYTES - 10_000)}
    assert come_back(app, there, providers, provider).subject == "one"


@pytest.mark.parametrize(
    ("encoding", "pack", "taken"),
    [
        ("gzip", gzip.compress, True),
        ("deflate", zlib.compress, True),
        ("gzip", lambda body: gzip.compress(body + b" " * provider_calls.MAX_ANSWER_BYTES), False),
        ("gzip", lambda body: gzip.compress(body)[:-9], False),
        ("gzip", lambda body: body, False),
        ("br", lambda body: body, False),
    ],
)
def test_an_answer_that_is_packed_unasked_is_unpacked_within_its_bound(
    app: Flask, there: OpenIdProvider, tmp_path: Path, encoding: str, pack: Callable[[bytes], bytes], taken: bool
) -> None:
    providers, provider = known(there, tmp_path)
    there.packs = encoding, pack
    if taken:
        assert come_back(app, there, providers, provider).subject == "one"
    else:
        with pytest.raises(ProviderFailed, match="DecodingError"):
            begin(app, providers, provider)


def test_a_request_that_is_given_up_leaves_nothing_behind(
    there: OpenIdProvider, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(provider_calls, "TIMEOUT_S", 0.1)
    there.padding = {"/keys": "x" * provider_calls.MAX_ANSWER_BYTES}
    there.drips = {"/token": "body"}
    with provider_calls.BoundedSession() as asking:
        for address, refused in (("/keys", requests.ConnectionError), ("/token", requests.Timeout)):
            with pytest.raises(refused):
                asking.get(f"{there.issuer}{address}")
    gc.collect()
    assert "Task was destroyed" not in caplog.text


def test_what_went_wrong_at_a_provider_stands_in_the_log(
    app: Flask, there: OpenIdProvider, tmp_path: Path
) -> None:
    providers, provider = known(there, tmp_path)
    there.padding = {"/.well-known/openid-configuration": "x" * provider_calls.MAX_ANSWER_BYTES}
    with pytest.raises(ProviderFailed, match=r"acme at http.*at most 1000000 bytes"):
        begin(app, providers, provider)
    speaks_plainly = there.issuer.replace("http:", "https:")
    for issuer, why in (
        ("http://127.0.0.1:1", "ConnectError"),
        ("https://login.acme.invalid", "login.acme.invalid.*ConnectError"),
        (speaks_plainly, "SSL"),
    ):
        with pytest.raises(ProviderFailed, match=why) as failed:
            single_sign_on._described(provider.model_copy(update={"issuer": issuer}))
        assert "\n" not in failed.value.detail


def test_what_comes_back_holds_what_is_required(app: Flask, there: OpenIdProvider, tmp_path: Path) -> None:
    providers, provider = known(there, tmp_path, required_claims={"hd": "corp.example"})
    with pytest.raises(NotLet, match="hd"):
        come_back(app, there, providers, provider)
    there.person["hd"] = "corp.example"
    assert come_back(app, there, providers, provider).subject == "one"


@pytest.mark.parametrize(
    ("by", "told", "verified"),
    [
        ("email_verified", {"email_verified": True}, True),
        ("email_verified", {"email_verified": "true"}, True),
        ("email_verified", {}, False),
        ("email_verified", {"email_verified": None}, False),
        ("email_verified", {"xms_edov": True}, False),
        ("xms_edov", {"xms_edov": True}, True),
        ("xms_edov", {"xms_edov": "1"}, True),
        ("xms_edov", {"xms_edov": 1}, True),
        ("xms_edov", {}, False),
        ("xms_edov", {"xms_edov": False}, False),
        ("xms_edov", {"xms_edov": "0"}, False),
        ("xms_edov", {"xms_edov": ["1"]}, False),
        ("xms_edov", {"email_verified": True}, False),
        ("xms_edov", {"xms_edov": True, "email_verified": False}, False),
        ("directory", {}, True),
        ("directory", {"email_verified": True}, True),
        ("directory", {"email_verified": False}, False),
        ("directory", {"email_verified": "false"}, False),
        ("directory", {"email_verified": "no"}, False),
    ],
)
def test_an_address_is_verified_by_what_the_operator_says_and_by_nothing_else(
    app: Flask, there: OpenIdProvider, tmp_path: Path, by: str, told: dict[str, Any], verified: bool
) -> None:
    providers, provider = known(there, tmp_path, email_verified_by=by)
    there.person = {"sub": "one", "email": "one@example.com", **told}
    found = come_back(app, there, providers, provider)
    assert (found.email, found.email_verified) == ("one@example.com", verified)


def test_what_the_userinfo_endpoint_tells_verifies_no_address_and_shows_no_second_factor(
    app: Flask, there: OpenIdProvider, tmp_path: Path
) -> None:
    factor = {"second_factor": {"amr": ["mfa"]}}
    providers, provider = known(there, tmp_path, email_verified_by="xms_edov", **factor)
    more = {"sub": "one", "email": "one@example.com", "xms_edov": True, "amr": ["mfa"]}
    for signed in ({}, {"xms_edov": True}):
        there.person, there.at_userinfo = {"sub": "one", **signed}, more
        found = come_back(app, there, providers, provider)
        assert (found.email, found.email_verified, found.second_factor) == ("one@example.com", False, False)
    there.person = {**more}
    found = come_back(app, there, providers, provider)
    assert (found.email_verified, found.second_factor) == (True, True)
    # What it denies is believed.
    providers, provider = known(there, tmp_path, email_verified_by="directory")
    there.person, there.at_userinfo = {"sub": "one"}, {**more, "email_verified": False}
    assert not come_back(app, there, providers, provider).email_verified


@pytest.mark.parametrize(
    ("counts", "told", "shown"),
    [
        ({}, {"amr": ["mfa"]}, False),
        ({"amr": ["mfa", "hwk"]}, {"amr": ["pwd", "mfa"]}, True),
        ({"amr": ["mfa"]}, {"amr": ["pwd"]}, False),
        ({"amr": ["mfa"]}, {"amr": [["mfa"], {"mfa": True}, None, True]}, False),
        ({"amr": ["mfa"]}, {"acr": "mfa"}, False),
        ({"amr": ["mfa"]}, {}, False),
        ({"acr": ["2", "3"]}, {"acr": "2"}, True),
        ({"acr": ["2", "3"]}, {"acr": "23"}, False),
        ({"acr": ["2", "3"]}, {"acr": 2}, False),
        ({"acr": ["2"], "amr": ["mfa"]}, {"acr": "1", "amr": ["mfa"]}, True),
    ],
)
def test_a_second_factor_of_the_providers_counts_as_the_operator_says(
    app: Flask,
    there: OpenIdProvider,
    tmp_path: Path,
    counts: dict[str, list[str]],
    told: dict[str, Any],
    shown: bool,
) -> None:
    providers, provider = known(there, tmp_path, second_factor=counts)
    there.person |= told
    assert come_back(app, there, providers, provider).second_factor is shown
