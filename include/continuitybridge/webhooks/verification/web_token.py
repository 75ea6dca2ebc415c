"""JSON Web Tokens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Self

import orjson
from pydantic import Field, model_validator

from continuitybridge.errors import ConfigurationError
from continuitybridge.nodes.base import hints
from continuitybridge.webhooks.verification._credential import bearer
from continuitybridge.webhooks.verification._jwks import KeySet
from continuitybridge.webhooks.verification._signing import Signing
from continuitybridge.webhooks.verification.base import Example, Received, VerificationSettings, text_key
from continuitybridge.webhooks.verification.keyed_hash import HEADER_NAME

MAX_TOKEN_BYTES = 16 * 1024
MIN_RSA_BITS = 2048
MAX_KEYS_TRIED = 8

Algorithm = Literal[
    "HS256",
    "HS384",
    "HS512",
    "RS256",
    "RS384",
    "RS512",
    "PS256",
    "PS384",
    "PS512",
    "ES256",
    "ES384",
    "ES512",
    "EdDSA",
]
LOOPBACK = r"http://(127\.0\.0\.1|localhost|\[::1\])(:\d+)?/"


class JwtSettings(VerificationSettings):
    type: Literal["jwt"] = Field(default="jwt", description="The way's name.")
    jwks_url: str | None = Field(
        default=None,
        pattern=rf"^(https://[^\s/@]+/|{LOOPBACK})\S*$",
        description="Address of the authorization server's key set (RFC 7517), by HTTPS; plain HTTP on this "
        "machine only. Without it the endpoint's secret is the key.",
        json_schema_extra=hints(placeholder="https://login.example.com/.well-known/jwks.json"),
    )
    algorithms: list[Algorithm] = Field(
        default=[],
        description="Algorithms that are taken, of one family: HS…, or the others. Without it `RS256` and `ES256` "
        "with `jwks_url`, else `HS256`.",
    )
    issuer: str | None = Field(default=None, description="What `iss` must be.")
    audience: str | None = Field(
        default=None,
        description="What `aud` must be or contain. Needed with `jwks_url`: the server signs tokens for others "
        "too.",
    )
    claims: dict[str, str | int | bool] = Field(
        default_factory=dict, description="Further claims that must be there, with these values."
    )
    leeway_s: int = Field(
        default=60, ge=0, le=300, description="How far clocks may differ, in seconds, for `exp`, `nbf` and `iat`."
    )
    header: str = Field(
        default="Authorization",
        pattern=HEADER_NAME,
        description="Header with the token; in `Authorization` behind `Bearer`.",
        json_schema_extra=hints(advanced=True),
    )

    def addresses(self) -> Iterable[tuple[str, str]]:
        return () if self.jwks_url is None else (("jwks_url", self.jwks_url),)

    @property
    def effective_algorithms(self) -> tuple[str, ...]:
        return tuple(self.algorithms) or (("RS256", "ES256") if self.jwks_url else ("HS256",))

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        symmetric = {name.startswith("HS") for name in self.effective_algorithms}
        if len(symmetric) > 1:
            raise ValueError(
                "algorithms: HS… and the others cannot be mixed: a public key would pass for a secret"
            )
        if self.jwks_url and True in symmetric:
            raise ValueError("algorithms: a key set holds public keys, and HS… needs a secret")
        if self.jwks_url and not self.audience:
            raise ValueError("audience is needed with jwks_url: the server signs tokens for others too")
        return self


class Jwt(Signing[JwtSettings]):
    """`Authorization: Bearer <token>` with a JSON Web Token (RFC 7519): three parts, signed, not encrypted.

    The key is that of `jwks_url` which the token names (fetched, kept for 10 minutes, fetched again for an
    unknown id); or the endpoint's secret: for HS… made here or given, for the others the issuer's public key as
    PEM, given. Only the algorithms of `algorithms` are taken, which are of one family; never `none`, and never a
    public key as an HMAC secret.

    `exp` is needed and must lie ahead; `nbf` and `iat` must not; `iss`, `aud` and `claims` are needed as
    configured, and a token for an audience is refused where none is configured. Nothing binds the token to the
    body: send it over TLS only.
    """

    name = "jwt"
    label = "JWT"
    summary = "A JSON Web Token signed by an authorization server (JWKS) or with the endpoint's secret."
    Settings = JwtSettings
    headers = ("authorization",)
    scheme = 'Bearer error="invalid_token"'
    prepares = True
    examples = (
        Example(
            "Signed with the endpoint's secret",
            settings={"issuer": "erp", "audience": "orders"},
            secret="an-hs256-secret-of-at-least-32-bytes",  # noqa: S106
            headers={
                b"authorization": b"Bearer eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9"
                b".eyJpc3MiOiJlcnAiLCJhdWQiOiJvcmRlcnMiLCJpYXQiOjE3OTAwMDAwMDAsImV4cCI6MTc5MDAwMDMwMH0"
                b".lpySKI2sc-PAjfCvR0HkwFr-41TBrM95N5RxqTf1YDU"
            },
        ),
    )

    def __init__(self, settings: JwtSettings) -> None:
        super().__init__(settings)
        self._algorithms = settings.effective_algorithms
        self._symmetric = self._algorithms[0].startswith("HS")
        self._set = KeySet.of(settings.jwks_url) if settings.jwks_url else None
        self._header = settings.header.lower()
        self.headers = (self._header,)
        self.origin = "none" if self._set else "made" if self._symmetric else "given"

    def takes_get(self) -> bool:
        return True

    def key(self, secret: str) -> Any:
        raw = text_key(secret.strip(), "a JWT key")
        if self._symmetric:
            if b"-----BEGIN" in raw or raw.startswith(b"ssh-"):
                raise ConfigurationError("the secret of an HS… token is no public key", field="secret")
            return raw
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.serialization import load_pem_public_key

        try:
            return load_pem_public_key(raw)
        except (ValueError, UnsupportedAlgorithm):
            raise ConfigurationError("the key is no PEM of a public key", field="secret") from None

    def weakness(self, secret: str) -> str | None:
        return super().weakness(secret) if self._symmetric else None

    async def prepare(self, received: Received, keys: Sequence[Any]) -> None:
        if self._set is not None:
            await self._set.ensure(self._head(self._token(received)).get("kid"))

    def verify(self, received: Received, keys: Sequence[Any], now: float) -> None:
        token = self._token(received)
        head = self._head(token)
        if head.get("alg") not in self._algorithms:
            raise self.refused("the token's algorithm is not taken here")
        if "crit" in head or "b64" in head:
            raise self.refused("the token needs an extension that is not known here")
        candidates = self._keys_of(head) if self._set is not None else keys
        self._check_claims(self._signed_claims(token, head["alg"], candidates), now)

    def _token(self, received: Received) -> bytes:
        value = received.headers.get(self._header.encode(), b"")
        token = bearer(value) if self._header == "authorization" else value.strip()
        if not token or len(token) > MAX_TOKEN_BYTES or token.count(b".") != 2:
            raise self.refused(f"a token is needed in {self.settings.header}")
        return token

    def _head(self, token: bytes) -> dict[str, Any]:
        import jwt

        try:
            head = jwt.get_unverified_header(token)
        except (jwt.PyJWTError, ValueError, RecursionError):
            raise self.refused("the token cannot be read") from None
        if not isinstance(head.get("kid", ""), str):
            raise self.refused("the token cannot be read")
        return head

    def _keys_of(self, head: Mapping[str, Any]) -> Iterable[Any]:
        """The key set's keys that may have signed a token with this head."""
        import jwt

        assert self._set is not None  # noqa: S101  (by whom it is called)
        for data in self._set.named(head.get("kid"))[:MAX_KEYS_TRIED]:
            if data.get("alg", head["alg"]) != head["alg"]:
                continue
            try:
                yield jwt.PyJWK(dict(data), algorithm=head["alg"]).key
            except (jwt.PyJWTError, ValueError, TypeError, KeyError):
                continue

    def _signed_claims(self, token: bytes, algorithm: str, keys: Iterable[Any]) -> dict[str, Any]:
        import jwt

        for key in keys:
            if getattr(key, "key_size", MIN_RSA_BITS) < MIN_RSA_BITS and algorithm[:2] in ("RS", "PS"):
                continue
            try:
                payload = jwt.PyJWS().decode(token, key, algorithms=[algorithm])
            except (jwt.PyJWTError, ValueError, TypeError):
                continue
            try:
                claims = orjson.loads(payload)
            except ValueError:
                break
            if isinstance(claims, dict):
                return claims
        raise self.refused("the token's signature does not match")

    def _check_claims(self, claims: Mapping[str, Any], now: float) -> None:
        settings = self.settings
        expires = self._instant(claims, "exp")
        if expires is None or now >= expires + settings.leeway_s:
            raise self.refused("the token has no exp, or is past it")
        for name in ("nbf", "iat"):
            begins = self._instant(claims, name)
            if begins is not None and begins > now + settings.leeway_s:
                raise self.refused(f"the token's {name} lies ahead")
        if settings.issuer is not None and claims.get("iss") != settings.issuer:
            raise self.refused("the token is another issuer's")
        audience = claims.get("aud")
        if audience is not None or settings.audience is not None:
            given = audience if isinstance(audience, list) else [audience]
            if settings.audience is None or settings.audience not in given:
                raise self.refused("the token is for another audience")
        for name, value in settings.claims.items():
            found = claims.get(name)
            if type(found) is not type(value) or found != value:
                raise self.refused(f"the token's {name} is not what is needed")

    def _instant(self, claims: Mapping[str, Any], name: str) -> float | None:
        value = claims.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.refused(f"the token's {name} is no number")
        return float(value)
