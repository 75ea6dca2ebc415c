"""What authorization servers answer beside what the standard says: none of it costs an account its token, or the
server a flood."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from tokens_world import events, row

from continuitybridge import tokens
from continuitybridge.errors import DeliveryFailed, ReconnectNeeded, Unavailable
from continuitybridge.organizations import Organization
from continuitybridge.tokens import connect as connecting
from continuitybridge.tokens.kept import Place
from continuitybridge.vault.keyring import Keyring
from token_server import TokenServer

TOKEN = {"access_token": "at-1", "token_type": "Bearer", "refresh_token": "rt-2"}
YEAR_S = 365 * 86_400


@pytest.mark.parametrize(
    ("answer", "lifetime_s"),
    [
        ({**TOKEN, "expires_in": "3600"}, 3600),
        ({**TOKEN, "expires_in": "3600.0"}, 3600),
        ({**TOKEN, "expires_in": 3599.9}, 3600),
        ({**TOKEN, "expires_in": 10**30}, YEAR_S),
        # Nobody said when it ends: it holds until it is refused.
        (TOKEN, None),
        *(({**TOKEN, "expires_in": each}, None) for each in (0, -5, "-5", None, "", "1 hour", [3600], True)),
        (b'{"access_token": "at-1", "refresh_token": "rt-2", "expires_in": NaN}', None),
        (b'{"access_token": "at-1", "refresh_token": "rt-2", "expires_in": 1e999}', None),
        ({**TOKEN, "error": None, "scope": ["orders", "stock"]}, None),
        (b"\xef\xbb\xbf" + json.dumps(TOKEN).encode(), None),
        (b'{"access_token": "at-1", "refresh_token": "rt-2", "company": "K\xf6ln"}', None),
        (b"access_token=at-1&refresh_token=rt-2&expires_in=3600", 3600),
    ],
)
def test_a_token_is_kept_whatever_stands_beside_it(
    organization: Organization,
    provider: TokenServer,
    connect: Callable[..., str],
    keyring: Keyring,
    answer: Any,
    lifetime_s: float | None,
) -> None:
    connect("refresh_token")
    provider.before = lambda call: (200, answer)
    for _ in range(3):
        found = tokens.resolve(organization.organization_id, "dev", "erp", keyring, wait_s=5)
        assert found.auth["token"] == "at-1"
    assert len(provider.grants()) == 1
    [ends] = row(organization, "extract(epoch FROM expires_at - obtained_at)::float8")
    assert ends == (None if lifetime_s is None else pytest.approx(lifetime_s, abs=1))
    tokens.resolve(organization.organization_id, "dev", "erp", keyring, wait_s=5, refused=found.token)
    assert provider.calls[-1].form["refresh_token"] == "rt-2"


@pytest.mark.parametrize(
    "answer",
    [
        b"<html><body>Back in five minutes</body></html>",
        b"",
        b"[]",
        b"5",
        b"[" * 100_000,
        {},
        {"status": "maintenance"},
        {"error": {"message": "try again", "code": 2}},
        {"error": "ratelimited"},
        {"access_token": ""},
        {"access_token": "at-1\r\nx-injected: yes"},
        {"access_token": "t\u00f6ken"},
    ],
)
def test_an_answer_without_a_token_that_refuses_nothing_costs_no_account_its_connection(
    organization: Organization, provider: TokenServer, connect: Callable[..., str], keyring: Keyring, answer: Any
) -> None:
    connect("refresh_token")
    provider.before = lambda call: (200, answer)
    with pytest.raises(Unavailable):
        tokens.resolve(organization.organization_id, "dev", "erp", keyring, wait_s=5)
    assert row(organization, "state") == ("active",)
    assert len(provider.grants()) == 1
    assert events(organization, "token.reconnect_needed") == 0


def test_an_error_is_one_with_a_status_of_success_too(
    organization: Organization, provider: TokenServer, connect: Callable[..., str], keyring: Keyring
) -> None:
    connect("refresh_token")
    provider.before = lambda call: (200, {"ok": False, "error": "invalid_grant"})
    for _ in range(2):
        with pytest.raises(ReconnectNeeded, match="invalid_grant"):
            tokens.resolve(organization.organization_id, "dev", "erp", keyring, wait_s=5)
    assert len(provider.grants()) == 1
    assert events(organization, "token.reconnect_needed") == 1


@pytest.mark.parametrize(
    ("changed", "begins"),
    [
        ({}, True),
        ({"expires_in": "600", "interval": "7"}, True),
        ({"interval": 10**12}, True),
        ({"interval": "often"}, True),
        ({"expires_in": "NaN"}, False),
        ({"expires_in": -1}, False),
        ({"user_code": None}, False),
        ({"device_code": {"a": 1}}, False),
        ({"verification_uri": "javascript:alert(1)"}, False),
        ({"verification_uri_complete": "data:text/html,x"}, False),
        ({"verification_uri_complete": 5}, False),
    ],
)
def test_what_a_person_is_to_do_for_a_device_code_can_be_done(
    organization: Organization,
    provider: TokenServer,
    connect: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    changed: dict[str, Any],
    begins: bool,
) -> None:
    connect("device_code", device_authorization_url=f"{provider.url}/device")
    answered = TokenServer._post

    def post(server: TokenServer, call: Any) -> Any:
        status, body = answered(server, call)
        return status, {**body, **changed}

    monkeypatch.setattr(TokenServer, "_post", post)
    place = Place(organization.organization_id, "dev", "erp")
    if not begins:
        with pytest.raises(DeliveryFailed, match="was not connected"):
            connecting.begin(place, "anna")
        return
    begun = connecting.begin(place, "anna")
    assert begun.address == f"{provider.url}/activate"
    assert 1 <= (begun.interval_s or 0) <= 300
    assert 590 < begun.expires_at.timestamp() - time.time() <= 600
