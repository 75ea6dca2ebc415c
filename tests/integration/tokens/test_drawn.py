"""Connections whose credential is a stored secret: tokens are obtained with it, and a new version of it counts."""

from __future__ import annotations

import secrets as random
from collections.abc import Callable
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat

from continuitybridge import connections, secrets, tokens
from continuitybridge.errors import ConfigurationError, ReconnectNeeded
from continuitybridge.nodes.base import ConnectionInfo
from continuitybridge.organizations import Organization
from continuitybridge.vault.keyring import Keyring
from token_server import TokenServer


@pytest.fixture
def resolve(organization: Organization, keyring: Keyring) -> Callable[..., ConnectionInfo]:
    return lambda **how: tokens.resolve(organization.organization_id, "dev", "erp", keyring, wait_s=20, **how)


@pytest.fixture
def draw(organization: Organization, provider: TokenServer) -> Callable[..., None]:
    """Makes a secret `shop` and the connection `erp` that draws on it."""

    def make(type: str, value: dict[str, Any], **more: Any) -> None:
        secrets.put(organization.organization_id, "dev", "shop", type, value, "anna")
        auth = {"type": "secret", "secret": "shop", **({"with": more} if more else {})}
        definition = {"base_url": f"{provider.url}/api", "auth": auth}
        connections.put(organization.organization_id, "dev", "erp", definition, "anna")

    return make


def client(provider: TokenServer, **more: Any) -> dict[str, Any]:
    """What a secret of type oauth2 says of the provider's client."""
    return {
        "client_id": provider.client_id,
        "client_secret": provider.client_secret,
        "token_url": f"{provider.url}/token",
        **more,
    }


def test_a_token_is_obtained_with_the_client_of_a_secret(
    organization: Organization,
    provider: TokenServer,
    draw: Callable[..., None],
    resolve: Callable[..., ConnectionInfo],
) -> None:
    draw("oauth2", client(provider, scope="all", audience="erp"), scope="orders")
    found = resolve()
    assert found.auth["token"] in provider.valid
    [call] = provider.calls
    assert (call.form["grant_type"], call.form["scope"], call.form["audience"]) == (
        "client_credentials",
        "orders",
        "erp",
    )
    [listed] = tokens.list_tokens(organization.organization_id)
    assert (listed.type, listed.grant, listed.state) == ("oauth2", "client_credentials", "active")
    [stored] = connections.list_connections(organization.organization_id)
    assert (stored.settings["auth"], stored.settings["secret"]) == ("oauth2", "shop")


def test_a_new_version_of_the_secret_ends_what_the_old_one_could_not_do(
    organization: Organization,
    provider: TokenServer,
    draw: Callable[..., None],
    resolve: Callable[..., ConnectionInfo],
) -> None:
    draw("oauth2", client(provider) | {"client_secret": "wrong" * 4})
    with pytest.raises(ReconnectNeeded):
        resolve()
    asked = len(provider.calls)
    with pytest.raises(ReconnectNeeded):
        resolve()
    assert len(provider.calls) == asked
    secrets.put(organization.organization_id, "dev", "shop", "oauth2", client(provider), "anna")
    assert resolve().auth["token"] in provider.valid


@pytest.mark.parametrize("algorithm", ["HS256", "ES256"])
def test_a_token_is_signed_with_the_key_of_a_secret(
    draw: Callable[..., None], resolve: Callable[..., ConnectionInfo], algorithm: str
) -> None:
    value: dict[str, Any] = {"algorithm": algorithm, "issuer": "bridge", "audience": "erp", "key_id": "k1"}
    public: Any
    if algorithm == "HS256":
        public = value["secret"] = random.token_urlsafe(32)
    else:
        key, passphrase = ec.generate_private_key(ec.SECP256R1()), random.token_urlsafe()
        sealed = BestAvailableEncryption(passphrase.encode())
        value["private_key"] = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, sealed).decode()
        value["passphrase"], public = passphrase, key.public_key()
    draw("jwt", value, lifetime_s=300, claims={"tenant": "7"})
    token = resolve().auth["token"]
    claims = jwt.decode(token, public, [algorithm], audience="erp", issuer="bridge")
    assert (claims["tenant"], claims["exp"] - claims["iat"]) == ("7", 300)
    assert jwt.get_unverified_header(token)["kid"] == "k1"


def test_a_session_is_logged_in_to_with_a_secret(
    provider: TokenServer, draw: Callable[..., None], resolve: Callable[..., ConnectionInfo]
) -> None:
    draw(
        "cookie",
        {"cookie_name": "sid", "cookie_secret": provider.password},
        login_url=f"{provider.url}/login",
        fields={"user": "anna", "password": {"from": "cookie_secret"}},
    )
    found = resolve()
    assert found.auth["value"].startswith(f"sid={next(iter(provider.sessions))}")


@pytest.mark.parametrize(
    ("type", "value", "more", "told"),
    [
        ("custom", {"pin": "1234"}, {}, "takes one of type api_key, cookie, jwt, oauth2"),
        ("oauth2", None, {"client_id": "other"}, "client_id: the secret 'shop' says that already"),
        ("oauth2", None, {"grant": "device_code"}, "needs device_authorization_url"),
        ("oauth2", None, {"lifetime": 3}, "lifetime"),
        ("api_key", {"api_key": "abcdef"}, {"header": "X"}, "header: the secret 'shop' says that already"),
        (
            "cookie",
            {"cookie_name": "sid", "cookie_secret": "abcdef"},
            {"login_url": "https://erp.example/", "fields": {"password": {"from": "domain"}}},
            "valid is {from: …} of cookie_secret, session_secret",
        ),
    ],
)
def test_what_the_secret_cannot_give_is_refused_when_the_connection_is_set(
    provider: TokenServer,
    draw: Callable[..., None],
    type: str,
    value: dict[str, Any] | None,
    more: dict[str, Any],
    told: str,
) -> None:
    with pytest.raises(ConfigurationError) as refused:
        draw(type, client(provider) if value is None else value, **more)
    assert told in str(refused.value)
    assert provider.client_secret not in str(refused.value)


def test_a_secret_of_another_type_under_the_name_is_told(
    organization: Organization,
    provider: TokenServer,
    draw: Callable[..., None],
    resolve: Callable[..., ConnectionInfo],
) -> None:
    draw("oauth2", client(provider))
    secrets.remove(organization.organization_id, "dev", "shop", "anna")
    secrets.put(organization.organization_id, "dev", "shop", "api_key", {"api_key": "abcdef"}, "anna")
    with pytest.raises(ConfigurationError, match="set the connection again"):
        resolve()
