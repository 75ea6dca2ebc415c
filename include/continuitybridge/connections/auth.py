"""How HTTP connections authenticate: one model for each way. Those with a token or a session of their own
(`NEEDS_TOKEN`) are the room `tokens`' to obtain; here stands what is declared of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AnyHttpUrl,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    TypeAdapter,
    field_validator,
    model_validator,
)

NEEDS_TOKEN = ("oauth2", "jwt", "cookie")
"""Types whose credential is obtained or made when it is needed, and ends."""

_HEADER = r"^[!#$%&'*+.^_`|~0-9A-Za-z-]+$"
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
_MIN_HMAC_BYTES = 32


class Declared(BaseModel):
    """Base of all that a connection declares."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class NoAuth(Declared):
    """The destination asks for nothing."""

    type: Literal["none"] = "none"


class BasicAuth(Declared):
    """User name and password (RFC 7617)."""

    type: Literal["basic"] = "basic"
    username: str
    password: SecretStr


class BearerAuth(Declared):
    """A bearer token (RFC 6750)."""

    type: Literal["bearer"] = "bearer"
    token: SecretStr


class ApiKeyAuth(Declared):
    """A key in a header of the destination's choice."""

    type: Literal["api_key"] = "api_key"
    header: str = Field(default="X-API-Key", pattern=_HEADER)
    value: SecretStr


class _TokenAuth(Declared):
    """Where a token goes in each request: `<header>: <prefix> <token>`."""

    header: str = Field(default="Authorization", pattern=_HEADER)
    prefix: str = Field(default="Bearer", pattern=r"^[!-~]*$")


Grant = Literal["client_credentials", "refresh_token", "authorization_code", "device_code", "jwt_bearer"]


class OAuth2Auth(_TokenAuth):
    """Access tokens of an authorization server (RFC 6749; device code RFC 8628; JWT bearer RFC 7523).

    `client_auth` says how the client shows its secret: `basic` in `Authorization`, `post` in the body, `none` for
    a public client. With `authorization_code` and `device_code` a person connects the account once; with
    `refresh_token` the first one is given here. `parameters` go with every request for a token."""

    type: Literal["oauth2"] = "oauth2"
    grant: Grant
    token_url: AnyHttpUrl
    client_id: str = Field(default="", max_length=1000)
    client_secret: SecretStr | None = None
    client_auth: Literal["basic", "post", "none"] = "basic"
    authorization_url: AnyHttpUrl | None = None
    device_authorization_url: AnyHttpUrl | None = None
    revocation_url: AnyHttpUrl | None = None
    scope: str = ""
    refresh_token: SecretStr | None = None
    parameters: dict[str, str] = Field(default_factory=dict)
    authorization_parameters: dict[str, str] = Field(default_factory=dict)
    assertion: JwtAuth | None = None

    @field_validator("token_url", "authorization_url", "device_authorization_url", "revocation_url")
    @classmethod
    def _is_safe(cls, url: AnyHttpUrl | None) -> AnyHttpUrl | None:
        return _https(url)

    @model_validator(mode="after")
    def _has_what_it_needs(self) -> Self:
        needed = {
            "client_credentials": ("client_id",),
            "refresh_token": ("client_id", "refresh_token"),
            "authorization_code": ("client_id", "authorization_url"),
            "device_code": ("client_id", "device_authorization_url"),
            "jwt_bearer": ("assertion",),
        }[self.grant]
        missing = [name for name in needed if not getattr(self, name)]
        if self.client_auth != "none" and self.client_secret is None and self.grant != "jwt_bearer":
            missing.append("client_secret (or client_auth: none)")
        if missing:
            raise ValueError(f"the grant {self.grant} needs {', '.join(missing)}")
        return self

    def addresses(self) -> Iterable[tuple[str, str]]:
        """Field and URL of what the platform calls."""
        for name in ("token_url", "device_authorization_url", "revocation_url"):
            if (url := getattr(self, name)) is not None:
                yield f"auth.{name}", str(url)


class JwtAuth(_TokenAuth):
    """A JSON Web Token signed here (RFC 7519), for `lifetime_s` seconds: `key` is the shared secret, or a private
    key as PEM. `iat`, `exp` and a `jti` of its own are set."""

    type: Literal["jwt"] = "jwt"
    algorithm: Literal["HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "PS256", "ES256", "ES384", "EdDSA"]
    key: SecretStr
    key_id: str | None = None
    issuer: str | None = None
    subject: str | None = None
    audience: str | None = None
    claims: dict[str, str | int | bool] = Field(default_factory=dict)
    lifetime_s: int = Field(default=3600, ge=10, le=86_400)

    @model_validator(mode="after")
    def _key_fits(self) -> Self:
        import jwt

        key = self.key.get_secret_value()
        if self.algorithm.startswith("HS") and len(key.encode()) < _MIN_HMAC_BYTES:
            raise ValueError(f"key: an {self.algorithm} secret has at least {_MIN_HMAC_BYTES} bytes")
        try:
            jwt.encode({}, key, self.algorithm)
        except Exception:
            raise ValueError(
                f"key: it is no key for {self.algorithm} (a private key as PEM, no password)"
            ) from None
        if taken := sorted({"iat", "exp", "jti", "iss", "sub", "aud"} & self.claims.keys()):
            raise ValueError(f"claims: {', '.join(taken)} are set by the platform or have fields of their own")
        return self


class CookieAuth(Declared):
    """A session: `fields` are sent to `login_url`, and the cookies that come back go with every request, until
    they end, `lifetime_s` is over, or an answer's status is one of `expired_statuses`: then it logs in again."""

    type: Literal["cookie"] = "cookie"
    login_url: AnyHttpUrl
    content: Literal["form", "json"] = "form"
    fields: dict[str, SecretStr] = Field(min_length=1)
    cookies: list[str] = Field(min_length=1)
    lifetime_s: int = Field(default=3600, ge=10, le=30 * 86_400)
    expired_statuses: list[Annotated[int, Field(ge=300, le=499)]] = [401]

    @field_validator("login_url")
    @classmethod
    def _is_safe(cls, url: AnyHttpUrl) -> AnyHttpUrl:
        _https(url)
        return url

    def addresses(self) -> Iterable[tuple[str, str]]:
        """Field and URL of what the platform calls."""
        yield "auth.login_url", str(self.login_url)


class SecretAuth(Declared):
    """A stored secret of the same environment in the place of a copy: of type `api_key`, its key in the header
    that it names; of type `oauth2`, `jwt` or `cookie`, its fields, and `with` holds what else a connection of that
    type declares (`drawn`)."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    type: Literal["secret"] = "secret"
    secret: str = Field(pattern=r"^[a-z][a-z0-9_-]{0,63}$")
    with_: dict[str, Any] = Field(default_factory=dict, alias="with")


OAuth2Auth.model_rebuild()
Auth = Annotated[
    NoAuth | BasicAuth | BearerAuth | ApiKeyAuth | SecretAuth | OAuth2Auth | JwtAuth | CookieAuth,
    Field(discriminator="type"),
]
_ADAPTER: TypeAdapter[Any] = TypeAdapter(Auth)


def revealed(auth: BaseModel) -> dict[str, Any]:
    """What a model declares as JSON data, its secrets readable: to be encrypted, and nothing else."""
    found: dict[str, Any] = _plain(auth.model_dump(exclude_none=True))
    return found


def from_data(data: dict[str, Any]) -> Any:
    """The model of what `revealed` gave."""
    return _ADAPTER.validate_python(data)


def _plain(value: Any) -> Any:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return value if isinstance(value, str | int | bool | None) else str(value)


def _https(url: AnyHttpUrl | None) -> AnyHttpUrl | None:
    if url is not None and url.scheme != "https" and url.host not in _LOOPBACK:
        raise ValueError("credentials go over https only (http on this machine)")
    return url
