"""Signing in by identity providers: OpenID Connect Core 1.0, code flow with PKCE (RFC 7636), by Authlib as FAB
has it, at FAB's addresses. Who the provider says it is, is judged in `sign_in.identities`.

Providers describe themselves (Discovery 1.0); what they say is taken as far as it is expected: their own
issuer, HTTPS addresses, public-key signatures. An ID token is taken with the nonce of this browser's request,
for this client, from this issuer, in its time.
"""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import requests
from authlib.common.errors import AuthlibBaseError
from authlib.integrations.flask_client import OAuth
from authlib.oidc.core import CodeIDToken
from flask import current_app, session
from joserfc.errors import JoseError

from continuitybridge import private_files
from continuitybridge.airflow import provider_calls
from continuitybridge.errors import BridgeError, Verdict
from continuitybridge.identity_providers import SECURE, IdentityProvider
from continuitybridge.settings import Settings, get_settings
from continuitybridge.sign_in.identities import Claims, NotLet

TOTAL_S = 10.0
"""How long a provider may take for all that is asked of it about somebody who came back."""
AT_ONCE = 3
"""How many sign-ins may ask one provider at once: whoever hangs holds no more of this process's threads."""
WAIT_S = 0.5
"""How long others wait for their turn."""
PAUSE_S = 10.0
"""How long a provider is left alone that did not describe itself."""
LEEWAY_S = 60
"""How far clocks may differ."""
KEPT_S = 3600
"""How long what a provider says of itself is used."""
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
"""Signatures by public keys: neither none, nor by a secret that others might know."""
_ADDRESSES = ("authorization_endpoint", "token_endpoint", "jwks_uri", "userinfo_endpoint")

log = logging.getLogger(__name__)


class ProviderFailed(BridgeError):
    """The provider does not answer, or not as OpenID Connect says."""

    code = "identity-provider-failed"
    title = "The identity provider does not answer as it should"
    verdict = Verdict.TRANSIENT


@dataclass(slots=True)
class _Turns:
    """Who asks a provider now. `not_before`: when it may be asked for its description again (monotonic)."""

    describing: threading.Lock = field(default_factory=threading.Lock)
    asking: threading.Semaphore = field(default_factory=lambda: threading.BoundedSemaphore(AT_ONCE))
    not_before: float = float("-inf")


class Providers:
    """The providers of the settings, in FAB's Flask application. Raises `ConfigurationError` for a client
    secret that cannot be read."""

    def __init__(self, settings: Settings | None = None) -> None:
        settings = settings or get_settings()
        self._external_url = settings.external_url
        self._all = {each.name: each for each in settings.oidc_providers}
        self._turns = {name: _Turns() for name in self._all}
        self._oauth = OAuth(current_app) if self._all else None
        for each in self._all.values():
            self._register(each)

    def __iter__(self) -> Any:
        return iter(self._all.values())

    def get(self, name: str) -> IdentityProvider | None:
        return self._all.get(name)

    def begin(self, provider: IdentityProvider) -> Any:
        """The redirect to the provider; what it must bring back is kept in the browser's session. Raises
        `ProviderFailed`."""
        try:
            return self._ready(provider).authorize_redirect(self.callback(provider))
        except requests.RequestException as error:
            raise _failed(provider, error) from error

    def callback(self, provider: IdentityProvider) -> str:
        """The redirect URI, as it is registered there."""
        return f"{self._external_url}/auth/oauth-authorized/{provider.name}"

    def was_begun(self, provider: IdentityProvider, state: str | None) -> bool:
        """Whether this browser began what comes back with this `state`."""
        assert self._oauth is not None  # noqa: S101
        framework = self._oauth.create_client(provider.name).framework
        return bool(state) and framework.get_state_data(session, state) is not None

    def claims(self, provider: IdentityProvider) -> Claims:
        """Who the request that came back says it is. Raises `NotLet` for what does not hold, `ProviderFailed`."""
        turn = self._turns[provider.name].asking
        if not turn.acquire(timeout=WAIT_S):
            raise ProviderFailed(f"{provider.name} has not yet answered those who asked before")
        try:
            with provider_calls.within(TOTAL_S):
                return self._claims(provider)
        finally:
            turn.release()

    def _claims(self, provider: IdentityProvider) -> Claims:
        try:
            client = self._ready(provider)
            token = client.authorize_access_token(
                claims_cls=CodeIDToken,
                claims_options={
                    "iss": {"essential": True, "value": provider.issuer},
                    "aud": {"essential": True, "value": provider.client_id},
                    "nonce": {"essential": True},
                },
                leeway=LEEWAY_S,
                # What is sent there is a secret.
                allow_redirects=False,
            )
            found = token.get("userinfo")
            if not found:
                raise NotLet("the provider sent no ID token")
            for name, wanted in provider.required_claims.items():
                if found.get(name) != wanted:
                    raise NotLet(f"the ID token's {name} is not {wanted!r}")
            return _claims(provider, found, self._with_email(client, token, found))
        except requests.RequestException as error:
            raise _failed(provider, error) from error
        except (AuthlibBaseError, JoseError, ValueError, KeyError, TypeError) as error:
            raise NotLet(f"what the provider sent does not hold: {type(error).__name__} {error}"[:300]) from error

    def _register(self, provider: IdentityProvider) -> None:
        assert self._oauth is not None  # noqa: S101  (there is one where there are providers)
        self._oauth.register(
            provider.name,
            client_cls=provider_calls.BoundedOAuth2App,
            client_id=provider.client_id,
            client_secret=private_files.read(provider.client_secret_file, "BRIDGE_OIDC_PROVIDERS"),
            server_metadata_url=provider.metadata_url,
            client_kwargs={"scope": "openid email profile", "code_challenge_method": "S256"},
        )

    def _ready(self, provider: IdentityProvider) -> Any:
        assert self._oauth is not None  # noqa: S101
        client = self._oauth.create_client(provider.name)
        turns = self._turns[provider.name]
        if _is_fresh(client):
            return client
        # What it said before is used while somebody asks, and while it does not answer.
        if turns.describing.acquire(timeout=0 if _is_described(client) else WAIT_S):
            try:
                if not _is_fresh(client) and time.monotonic() >= turns.not_before:
                    turns.not_before = time.monotonic() + provider_calls.TIMEOUT_S + PAUSE_S
                    client.server_metadata = _expected(provider, _described(provider))
                    turns.not_before = float("-inf")
            except ProviderFailed as error:
                turns.not_before = time.monotonic() + PAUSE_S
                if not _is_described(client):
                    raise
                log.warning("what was known before is used: %s", error.detail)
            finally:
                turns.describing.release()
        if not _is_described(client):
            raise ProviderFailed(f"{provider.name} did not describe itself a moment ago")
        return client

    @staticmethod
    def _with_email(client: Any, token: Mapping[str, Any], found: Mapping[str, Any]) -> Mapping[str, Any]:
        """Some providers tell the address at their userinfo endpoint only (Core 1.0, section 5.3)."""
        if "email" in found or "userinfo_endpoint" not in client.server_metadata:
            return found
        more = client.userinfo(token=token, allow_redirects=False)
        if more.get("sub") != found["sub"]:
            raise NotLet("the userinfo endpoint tells of somebody else")
        return {**more, **found}


def _failed(provider: IdentityProvider, error: Exception) -> ProviderFailed:
    """Says what went wrong, for the log; in one line, whatever the provider sent."""
    why = " ".join(f"{type(error).__name__}: {error}".split())
    return ProviderFailed(f"{provider.name} at {provider.issuer} does not answer: {ascii(why[:300])[1:-1]}")


def _is_described(client: Any) -> bool:
    return "_loaded_at" in client.server_metadata


def _is_fresh(client: Any) -> bool:
    return bool(client.server_metadata.get("_loaded_at", 0) >= time.time() - KEPT_S)


def _described(provider: IdentityProvider) -> dict[str, Any]:
    """What a provider says of itself. Raises `ProviderFailed`."""
    try:
        with provider_calls.within(provider_calls.TIMEOUT_S), provider_calls.BoundedSession() as asking:
            answer = asking.get(provider.metadata_url)
            answer.raise_for_status()
            found = json.loads(answer.content)
    except (requests.RequestException, ValueError, RecursionError) as error:
        raise _failed(provider, error) from error
    if not isinstance(found, dict):
        raise ProviderFailed(f"{provider.name}'s description is no JSON object")
    return found


def _expected(provider: IdentityProvider, found: Mapping[str, Any]) -> dict[str, Any]:
    """What is used of a provider's description. Raises `ProviderFailed`."""
    if found.get("issuer") != provider.issuer:
        raise ProviderFailed(f"{provider.name} calls itself {found.get('issuer')!r}, not {provider.issuer!r}")
    addresses = {name: found[name] for name in _ADDRESSES if name in found}
    for name in _ADDRESSES[:3]:
        if name not in addresses:
            raise ProviderFailed(f"{provider.name} does not tell its {name}")
    for name, address in addresses.items():
        if not isinstance(address, str) or not re.match(SECURE, address.partition("?")[0]):
            raise ProviderFailed(f"{provider.name}'s {name} is no HTTPS address")
    signs = found.get("id_token_signing_alg_values_supported") or ["RS256"]
    ways = found.get("token_endpoint_auth_methods_supported") or ["client_secret_basic"]
    if not isinstance(signs, list) or not isinstance(ways, list):
        raise ProviderFailed(f"{provider.name} lists its ways as no lists")
    return {
        **addresses,
        "issuer": provider.issuer,
        "id_token_signing_alg_values_supported": [each for each in ALGORITHMS if each in signs],
        "token_endpoint_auth_method": (
            "client_secret_post"
            if "client_secret_post" in ways and "client_secret_basic" not in ways
            else "client_secret_basic"
        ),
        "_loaded_at": time.time(),
    }


def _claims(provider: IdentityProvider, token: Mapping[str, Any], found: Mapping[str, Any]) -> Claims:
    """`token`: claims of the ID token; `found`: those, and what the userinfo endpoint told besides."""
    subject, email = found.get("sub"), found.get("email")
    if not isinstance(subject, str) or not 0 < len(subject) <= 255 or not subject.isprintable():
        raise NotLet("the provider names no subject")
    email = email.strip() if isinstance(email, str) and email.isprintable() and len(email) <= 254 else ""
    return Claims(
        issuer=provider.issuer,
        subject=subject,
        email=email,
        email_verified=provider.has_verified_email(token, found),
        first_name=_name(found.get("given_name")),
        last_name=_name(found.get("family_name")),
        second_factor=provider.shows_second_factor(token),
    )


def _name(given: object) -> str:
    return given.strip() if isinstance(given, str) and given.isprintable() else ""
