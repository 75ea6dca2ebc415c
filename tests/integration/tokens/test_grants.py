"""Each way to a token, against a real server over HTTP, as nodes and people use it."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import Any

import httpx
import jwt
import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from tokens_world import age, events, row

from continuitybridge import connections, database, tokens
from continuitybridge.cli import bridge
from continuitybridge.errors import ConfigurationError, NotFound, ReconnectNeeded, Unavailable
from continuitybridge.nodes.base import ConnectionInfo
from continuitybridge.organizations import Organization
from continuitybridge.settings import get_settings
from continuitybridge.tokens import connect as connecting
from continuitybridge.vault.keyring import Keyring
from token_server import TokenServer


@pytest.fixture
def resolve(organization: Organization, keyring: Keyring) -> Callable[..., ConnectionInfo]:
    return lambda **how: tokens.resolve(organization.organization_id, "dev", "erp", keyring, wait_s=20, **how)


def pem(key: Any) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


@pytest.mark.parametrize("client_auth", ["basic", "post"])
def test_client_credentials_are_shown_as_declared_and_the_token_is_kept(
    provider: TokenServer, connect: Callable[..., str], resolve: Callable[..., ConnectionInfo], client_auth: str
) -> None:
    connect(client_auth=client_auth, scope="orders", parameters={"audience": "erp"})
    found = [resolve() for _ in range(3)]
    assert {each.auth["token"] for each in found} == provider.valid
    assert found[0].expires_at == pytest.approx(time.time() + 3600 - 60, abs=5)
    [call] = provider.calls
    shown = {"client_id", "client_secret"} if client_auth == "post" else set()
    assert call.form.keys() == {"grant_type", "scope", "audience"} | shown
    assert ("authorization" in call.headers) == (client_auth == "basic")
    assert provider.client_secret not in repr(found)


def test_a_refused_token_is_replaced_once_and_no_flood_of_refusals_floods_the_provider(
    provider: TokenServer, connect: Callable[..., str], resolve: Callable[..., ConnectionInfo]
) -> None:
    connect()
    first = resolve()
    second = resolve(refused=first.token)
    assert second.token > first.token
    assert resolve(refused=first.token) == second
    assert resolve(refused=second.token) == second
    assert len(provider.grants()) == 2


def test_a_rotated_refresh_token_is_used_and_the_declared_one_only_first(
    organization: Organization,
    provider: TokenServer,
    connect: Callable[..., str],
    resolve: Callable[..., ConnectionInfo],
) -> None:
    first = provider.refresh_token
    connect("refresh_token")
    for _ in range(3):
        resolve()
        age(organization)
    sent = [call.form["refresh_token"] for call in provider.calls]
    assert sent[0] == first
    assert len(set(sent)) == 3
    with database.tenant(organization.organization_id) as connection:
        [(stored,)] = connection.execute("SELECT t::text FROM bridge.tokens t").fetchall()
    assert provider.refresh_token not in bytes.fromhex(row(organization, "encode(ciphertext, 'hex')")[0]).decode(
        "latin-1"
    )
    assert all(token not in stored for token in provider.valid)


def test_what_the_provider_refuses_is_asked_once_told_once_and_cleared_by_another_credential(
    organization: Organization,
    provider: TokenServer,
    connect: Callable[..., str],
    resolve: Callable[..., ConnectionInfo],
    caplog: pytest.LogCaptureFixture,
) -> None:
    good = provider.refresh_token
    connect("refresh_token", refresh_token="rt-of-somebody-else")
    for _ in range(5):
        with pytest.raises(ReconnectNeeded, match=r"'erp' .*invalid_grant") as refused:
            resolve()
        assert refused.value.facts["connection"] == "erp"
    assert len(provider.calls) == 1
    assert events(organization, "token.reconnect_needed") == 1
    assert [record.message for record in caplog.records if "connected again" in record.message][1:] == []
    done = CliRunner().invoke(bridge, ["token", "list", "-o", organization.slug])
    assert "reconnect" in done.output
    assert "invalid_grant" in done.output
    assert tokens.due() == [] or all(place[0] != organization.organization_id for place in tokens.due())
    connect("refresh_token", refresh_token=good)
    assert resolve().auth["token"] in provider.valid
    connect(client_secret="wrong" * 5)
    with pytest.raises(ReconnectNeeded, match="invalid_client"):
        resolve()
    assert "wrong" not in str(row(organization, "problem"))


def test_an_account_is_connected_by_code_with_pkce_once_and_by_whom_began(
    organization: Organization,
    provider: TokenServer,
    connect: Callable[..., str],
    resolve: Callable[..., ConnectionInfo],
) -> None:
    connect("authorization_code", authorization_url=f"{provider.url}/authorize?tenant=7", scope="read write")
    with pytest.raises(ReconnectNeeded, match="bridge connection connect erp"):
        resolve()
    place = tokens.Place(organization.organization_id, "dev", "erp")
    begun = connecting.begin(place, "anna")
    back = httpx.get(begun.address).headers["location"]
    asked = httpx.URL(begun.address).params
    came = httpx.URL(back).params
    assert back.startswith("http://127.0.0.1:8080/bridge/oauth/callback?")
    assert (asked["tenant"], asked["scope"], asked["code_challenge_method"]) == ("7", "read write", "S256")
    for user, state in (("bert", came["state"]), ("anna", came["state"] + "x"), ("anna", "nonsense")):
        with pytest.raises(NotFound):
            connecting.finish(state, user, code=came["code"], error=None)
    connecting.finish(came["state"], "anna", code=came["code"], error=None)
    assert resolve().auth["token"] in provider.valid
    assert connecting.poll(organization.organization_id, begun.connect_id, "anna").status == "connected"
    with pytest.raises(NotFound):
        connecting.finish(came["state"], "anna", code=came["code"], error=None)
    age(organization)
    assert resolve().auth["token"] in provider.valid
    assert provider.grants() == ["authorization_code", "refresh_token"]
    assert events(organization, "token.connected") == 1
    late = connecting.begin(place, "anna")
    with database.tenant(organization.organization_id) as connection:
        connection.execute("UPDATE bridge.token_connects SET expires_at = now()")
    with pytest.raises(NotFound):
        connecting.finish(httpx.URL(late.address).params["state"], "anna", code="x", error=None)


def test_a_device_code_is_polled_as_slowly_as_the_server_wants(
    organization: Organization,
    provider: TokenServer,
    connect: Callable[..., str],
    resolve: Callable[..., ConnectionInfo],
) -> None:
    connect("device_code", device_authorization_url=f"{provider.url}/device")
    place = tokens.Place(organization.organization_id, "dev", "erp")
    provider.device["says"] = ["authorization_pending", "slow_down"]
    begun = connecting.begin(place, "anna")
    assert (begun.user_code, begun.interval_s) == ("WDJB-MJHT", 1)

    def poll(*, waited: bool) -> connecting.Connect:
        if waited:
            with database.tenant(organization.organization_id) as connection:
                connection.execute("UPDATE bridge.token_connects SET poll_at = now()")
        return connecting.poll(organization.organization_id, begun.connect_id, "anna")

    assert [poll(waited=False).status for _ in range(3)] == ["pending"] * 3
    assert provider.device["polls"] == 0
    assert [poll(waited=True).interval_s for _ in range(2)] == [1, 6]
    assert poll(waited=False).status == "pending"
    assert provider.device["polls"] == 2
    assert poll(waited=True).status == "connected"
    assert resolve().auth["token"] in provider.valid
    for says, status in (("expired_token", "expired"), ("access_denied", "denied")):
        provider.device = {"says": [says]}
        begun = connecting.begin(place, "anna")
        assert poll(waited=True).status == status


@pytest.mark.parametrize("algorithm", ["HS256", "RS256", "ES256"])
def test_a_token_is_signed_here(
    organization: Organization, resolve: Callable[..., ConnectionInfo], algorithm: str
) -> None:
    key: Any = secrets.token_urlsafe(32)
    public = key
    if algorithm != "HS256":
        private = (
            ec.generate_private_key(ec.SECP256R1())
            if algorithm == "ES256"
            else rsa.generate_private_key(65537, 2048)
        )
        key, public = pem(private), private.public_key()
    auth = {
        "type": "jwt",
        "algorithm": algorithm,
        "key": key,
        "key_id": "k1",
        "issuer": "bridge",
        "audience": "erp",
        "claims": {"tenant": "7"},
        "lifetime_s": 300,
    }
    definition = {"base_url": "http://127.0.0.1:9", "auth": auth}
    connections.put(organization.organization_id, "dev", "erp", definition, "anna")
    found = resolve()
    claims = jwt.decode(found.auth["token"], public, [algorithm], audience="erp", issuer="bridge")
    assert claims["tenant"] == "7"
    assert claims["exp"] - claims["iat"] == 300
    assert jwt.get_unverified_header(found.auth["token"])["kid"] == "k1"
    assert found.expires_at == pytest.approx(claims["exp"] - 60, abs=2)
    assert resolve().auth["token"] != found.auth["token"]


def test_an_assertion_is_exchanged_for_a_token(
    provider: TokenServer, connect: Callable[..., str], resolve: Callable[..., ConnectionInfo]
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    assertion = {"type": "jwt", "algorithm": "ES256", "key": pem(key), "issuer": "robot", "subject": "robot"}
    connect("jwt_bearer", assertion=assertion, client_id=None, client_secret=None)
    assert resolve().auth["token"] in provider.valid
    [call] = provider.calls
    url = f"{provider.url}/token"
    assert jwt.decode(call.form["assertion"], key.public_key(), ["ES256"], audience=url)["sub"] == "robot"


def test_a_session_is_logged_in_to_kept_and_renewed(
    organization: Organization, provider: TokenServer, resolve: Callable[..., ConnectionInfo]
) -> None:
    def put(password: str) -> None:
        auth = {
            "type": "cookie",
            "login_url": f"{provider.url}/login",
            "fields": {"user": "anna", "password": password},
            "cookies": ["sid"],
            "expired_statuses": [401, 403],
        }
        definition = {"base_url": f"{provider.url}/api", "auth": auth}
        connections.put(organization.organization_id, "dev", "erp", definition, "anna")

    put(provider.password)
    found = resolve()
    assert found.auth["header"] == "Cookie"
    assert found.auth["value"] == f"sid={next(iter(provider.sessions))}; seen=yes"
    assert found.renew_on == (401, 403)
    assert resolve() == found
    assert resolve(refused=found.token).auth["value"] != found.auth["value"]
    assert len(provider.sessions) == 2
    put("wrong" * 5)
    with pytest.raises(ReconnectNeeded, match="logging in"):
        resolve()


def test_a_token_that_is_revoked_is_gone_here_and_there(
    organization: Organization,
    provider: TokenServer,
    connect: Callable[..., str],
    resolve: Callable[..., ConnectionInfo],
) -> None:
    connect("refresh_token", revocation_url=f"{provider.url}/revoke")
    resolve()
    last = provider.refresh_token
    done = CliRunner().invoke(bridge, ["token", "revoke", "erp", "-o", organization.slug, "-e", "dev"])
    assert done.exit_code == 0, done.output
    assert provider.calls[-1].form == {"token": last, "token_type_hint": "refresh_token"}
    with pytest.raises(ReconnectNeeded, match="revoked"):
        resolve()
    assert row(organization, "ciphertext") == (None,)
    connections.remove(organization.organization_id, "dev", "erp")
    assert tokens.list_tokens(organization.organization_id) == []


def test_an_answer_that_names_no_error_and_an_address_that_is_not_called_may_pass(
    organization: Organization,
    provider: TokenServer,
    connect: Callable[..., str],
    resolve: Callable[..., ConnectionInfo],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def may_be_asked_again() -> None:
        assert row(organization, "state") == ("active",)
        with database.tenant(organization.organization_id) as connection:
            connection.execute("UPDATE bridge.tokens SET retry_at = now()")

    connect("refresh_token")
    provider.before = lambda call: (403, {})
    with pytest.raises(Unavailable, match="answered 403"):
        resolve()
    may_be_asked_again()
    provider.before = lambda call: None
    with monkeypatch.context() as patched:
        patched.setenv("BRIDGE_EGRESS_ALLOW", "")
        get_settings.cache_clear()
        with pytest.raises(Unavailable, match="is not called"):
            resolve()
    get_settings.cache_clear()
    may_be_asked_again()
    assert resolve().auth["token"] in provider.valid
    age(organization)
    provider.before = lambda call: (403, {"error": "access_denied"})
    with pytest.raises(ReconnectNeeded, match="access_denied"):
        resolve()


def test_a_refresh_by_hand_asks_once_more_where_no_person_is_needed(
    organization: Organization,
    provider: TokenServer,
    connect: Callable[..., str],
    resolve: Callable[..., ConnectionInfo],
) -> None:
    def refresh() -> Result:
        return CliRunner().invoke(bridge, ["token", "refresh", "erp", "-o", organization.slug, "-e", "dev"])

    connect()
    provider.before = lambda call: (401, {"error": "invalid_client"})
    for _ in range(2):
        with pytest.raises(ReconnectNeeded):
            resolve()
    assert "invalid_client" in refresh().output
    assert len(provider.calls) == 2
    provider.before = lambda call: None
    with pytest.raises(ReconnectNeeded):
        resolve()
    assert refresh().exit_code == 0
    assert resolve().auth["token"] in provider.valid
    connect("refresh_token", refresh_token="rt-of-somebody-else")
    for _ in range(2):
        assert "invalid_grant" in refresh().output
    assert len(provider.calls) == 4


@pytest.mark.parametrize("kind", ["oauth2", "cookie"])
def test_a_token_stays_with_the_host_that_it_was_obtained_for(
    organization: Organization, provider: TokenServer, resolve: Callable[..., ConnectionInfo], kind: str
) -> None:
    def put(base_url: str, **auth: Any) -> None:
        definition = provider.oauth()
        if kind == "cookie":
            fields = {"user": provider.user_name, "password": provider.password}
            definition["auth"] = {"type": "cookie", "login_url": f"{provider.url}/login", "fields": fields}
            definition["auth"]["cookies"] = ["sid"]
        definition = {"base_url": base_url, "auth": {**definition["auth"], **auth}}
        connections.put(organization.organization_id, "dev", "erp", definition, "bert")

    put(f"{provider.url}/api")
    held = resolve().auth
    put(f"{provider.url}/other")
    assert resolve().auth == held
    unknown = {"client_secret": "unknown" * 5} if kind == "oauth2" else {"lifetime_s": 60}
    put("https://elsewhere.example/api", **unknown)
    with pytest.raises(ReconnectNeeded):
        resolve()
    assert len(provider.calls) == 2


def test_a_token_is_not_shown_to_a_revocation_server_that_was_named_later(
    organization: Organization, provider: TokenServer, connect: Callable[..., str], resolve: Callable[..., Any]
) -> None:
    elsewhere = TokenServer()
    try:
        for url in (f"{provider.url}/revoke", f"{elsewhere.url}/revoke"):
            connect()
            resolve()
            connect(client_secret="unknown" * 5, revocation_url=url)
            tokens.revoke(organization.organization_id, "dev", "erp")
        assert elsewhere.calls == []
        assert [call.path for call in provider.calls] == ["/token", "/revoke", "/token"]
    finally:
        elsewhere.close()


def test_what_is_due_is_refreshed_ahead_and_each_by_itself(
    make_organization: Callable[[], Organization], provider: TokenServer, keyring: Keyring
) -> None:
    def due_in(seconds: float) -> Organization:
        organization = make_organization()
        connections.put(organization.organization_id, "dev", "erp", provider.oauth(), "anna")
        tokens.resolve(organization.organization_id, "dev", "erp", keyring, wait_s=20)
        age(organization, seconds)
        return organization

    early, soon, refused = due_in(3000), due_in(200), due_in(100)
    connections.put(refused.organization_id, "dev", "erp", provider.oauth(client_secret="no" * 9), "anna")
    mine = {each.organization_id: each for each in (early, soon, refused)}
    due = [place for place in tokens.due() if place.organization_id in mine]
    assert [mine[place.organization_id] for place in due] == [refused, soon]
    assert [tokens.refresh_ahead(place, keyring, wait_s=20) for place in due] == ["reconnect-needed", "refreshed"]
    assert [place for place in tokens.due() if place.organization_id in mine] == []


@pytest.mark.parametrize(
    ("auth", "field"),
    [
        (
            {"type": "oauth2", "grant": "client_credentials", "token_url": "https://login.example/token"},
            "client_id",
        ),
        (
            {"type": "oauth2", "grant": "authorization_code", "client_id": "x", "client_secret": "canary-secret"},
            "token_url",
        ),
        (
            {"type": "oauth2", "grant": "client_credentials", "client_id": "x", "client_secret": "canary-secret"}
            | {"token_url": "http://login.example/token"},
            "https",
        ),
        ({"type": "jwt", "algorithm": "RS256", "key": "canary-secret"}, "no key for RS256"),
        (
            {
                "type": "cookie",
                "login_url": "https://10.0.0.1/x",
                "fields": {"p": "canary-secret"},
                "cookies": ["s"],
            },
            "login_url",
        ),
    ],
)
def test_what_cannot_work_is_refused_when_it_is_set_and_no_secret_repeated(
    organization: Organization, auth: dict[str, Any], field: str
) -> None:
    definition = {"base_url": "https://erp.example", "auth": auth}
    with pytest.raises(ConfigurationError, match=field) as refused:
        connections.put(organization.organization_id, "dev", "erp", definition, "anna")
    assert "canary" not in str(refused.value) + repr(refused.value.facts)
