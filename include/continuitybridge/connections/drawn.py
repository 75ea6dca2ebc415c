"""Connections that draw on a stored secret: what of the connection's declaration the secret gives, by its type."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from pydantic import ValidationError

from continuitybridge import secrets
from continuitybridge.connections.auth import SecretAuth, from_data
from continuitybridge.errors import ConfigurationError
from continuitybridge.secrets import types

Fields = dict[str, Any]

SENT = ("cookie_secret", "session_secret")
"""What of a secret of type `cookie` a log-in sends: `with.fields` names them as `{"from": "cookie_secret"}`."""


def drawn(auth: SecretAuth, stored: secrets.SecretValue) -> Any:
    """The declaration that the secret and `with` make together. Raises `ConfigurationError` naming the bad field,
    never what it held."""
    make = _WAYS.get(type(stored))
    if make is None:
        valid = ", ".join(sorted(each.TYPE for each in _WAYS))
        raise ConfigurationError(
            f"secret {auth.secret!r} is of type {stored.TYPE}; a connection takes one of type {valid}",
            field="auth.secret",
            value=auth.secret,
            valid=valid,
        )
    given = make(stored, auth.with_)
    if twice := sorted(given.keys() & auth.with_.keys() - {"fields"}):
        raise ConfigurationError(
            f"auth.with: {', '.join(twice)}: the secret {auth.secret!r} says that already", field="auth.with"
        )
    try:
        return from_data({**auth.with_, **given})
    except ValidationError as error:
        told = "; ".join(
            f"{'.'.join(map(str, each['loc'][1:]))}: {each['msg']}"
            for each in error.errors(include_input=False, include_url=False, include_context=False)
        )
        raise ConfigurationError(
            f"the secret {auth.secret!r} and auth.with make no {given['type']}: {told}", field="auth.with"
        ) from None


def _api_key(stored: types.ApiKey, more: Mapping[str, Any]) -> Fields:
    return {"type": "api_key", "header": stored.header, "value": stored.api_key.get_secret_value()}


def _oauth2(stored: types.OAuth2, more: Mapping[str, Any]) -> Fields:
    found: Fields = {
        "type": "oauth2",
        "client_id": stored.client_id,
        "client_secret": stored.client_secret.get_secret_value(),
        "token_url": str(stored.token_url),
    }
    if stored.authorization_url is not None:
        found["authorization_url"] = str(stored.authorization_url)
    # What a connection asks for may be less than all that the client may.
    if stored.scope is not None and "scope" not in more:
        found["scope"] = stored.scope
    if stored.audience is not None and "parameters" not in more:
        found["parameters"] = {"audience": stored.audience}
    if "grant" not in more:
        found["grant"] = "client_credentials"
    return found


def _jwt(stored: types.Jwt, more: Mapping[str, Any]) -> Fields:
    found: Fields = {"type": "jwt", "algorithm": stored.algorithm, "key": _signing_key(stored)}
    for name in ("key_id", "issuer", "audience"):
        if (value := getattr(stored, name)) is not None:
            found[name] = value
    return found


def _signing_key(stored: types.Jwt) -> str:
    if stored.secret is not None:
        return stored.secret.get_secret_value()
    assert stored.private_key is not None  # noqa: S101  (the type says so)
    text = stored.private_key.get_secret_value()
    if stored.passphrase is None:
        return text
    try:
        key = load_pem_private_key(text.encode(), stored.passphrase.get_secret_value().encode())
    except ValueError:
        raise ConfigurationError("a key with a passphrase has to be in PEM form", field="private_key") from None
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def _cookie(stored: types.Cookie, more: Mapping[str, Any]) -> Fields:
    fields = {}
    for name, value in dict(more.get("fields") or {}).items():
        if not isinstance(value, Mapping):
            fields[name] = value
            continue
        wanted = value.get("from") if value.keys() == {"from"} else None
        held = getattr(stored, wanted) if wanted in SENT else None
        if held is None:
            raise ConfigurationError(
                f"auth.with.fields.{name} names nothing of the secret; valid is {{from: …}} of {', '.join(SENT)}",
                field=f"auth.with.fields.{name}",
            )
        fields[name] = held.get_secret_value()
    found: Fields = {"type": "cookie", "fields": fields}
    if "cookies" not in more:
        found["cookies"] = [stored.cookie_name]
    return found


_WAYS: Mapping[type[secrets.SecretValue], Callable[[Any, Mapping[str, Any]], Fields]] = {
    types.ApiKey: _api_key,
    types.OAuth2: _oauth2,
    types.Jwt: _jwt,
    types.Cookie: _cookie,
}
