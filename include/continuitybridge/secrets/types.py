"""What a secret of each type holds.

Field names are as written here or in camelCase (`access_key` or `accessKey`). All of a secret is encrypted; fields
that are `SecretStr` are never shown again, the others are shown to who may manage secrets.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

import orjson
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_ssh_private_key
from pydantic import AnyHttpUrl, BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator
from pydantic.alias_generators import to_camel

from continuitybridge.errors import ConfigurationError

MAX_BYTES = 64 * 1024
"""Largest secret, as JSON."""

Text = Annotated[str, Field(min_length=1, max_length=1_000)]
Secret = Annotated[SecretStr, Field(min_length=1)]
Port = Annotated[int, Field(ge=1, le=65_535)]


class SecretValue(BaseModel):
    """Base of all types; `TYPE` is the type's name."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, hide_input_in_errors=True, alias_generator=to_camel, populate_by_name=True
    )
    TYPE: ClassVar[str]

    def to_json(self) -> bytes:
        """All fields in clear, for encryption only."""
        return orjson.dumps({"type": self.TYPE, "value": self.revealed()})

    def revealed(self) -> dict[str, Any]:
        """All fields that are set, in clear, by their names in Python."""
        found = {**dict(self), **(self.__pydantic_extra__ or {})}
        return {name: _plain(value) for name, value in found.items() if value is not None}

    def shown(self) -> dict[str, Any]:
        """What may be shown: fields that are no secret; of the others that they are set."""
        found = {**dict(self), **(self.__pydantic_extra__ or {})}
        return {
            name: "(set)" if isinstance(value, SecretStr) else _plain(value)
            for name, value in found.items()
            if value is not None
        }


def _plain(value: Any) -> Any:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    return str(value) if isinstance(value, AnyHttpUrl) else value


def _one_of(model: BaseModel, *names: str) -> None:
    if all(getattr(model, name) is None for name in names):
        raise ValueError(f"one of {' and '.join(names)} is needed")


class Smtp(SecretValue):
    """A mail server that is signed in to. `security`: `starttls` (port 587), `tls` from the first byte (465), or
    `none`."""

    TYPE = "smtp"
    password: Secret
    username: Text | None = None
    host: Text | None = None
    port: Port | None = None
    security: Literal["starttls", "tls", "none"] = "starttls"


class AzureBlob(SecretValue):
    """A storage account of Azure: its key, or a shared access signature's address."""

    TYPE = "azure_blob"
    account_name: Text
    account_key: Secret
    sas_url: Secret | None = None


class _FileTransfer(SecretValue):
    password: Secret | None = None
    private_key: Secret | None = None
    passphrase: Secret | None = None
    username: Text | None = None
    host: Text | None = None
    port: Port | None = None

    @model_validator(mode="after")
    def _way_in(self) -> Self:
        _one_of(self, "password", "private_key")
        if self.private_key is not None:
            _check_private_key(self.private_key, self.passphrase)
        return self


class Sftp(_FileTransfer):
    """A server of files over SSH: a password or a private key (OpenSSH or PEM). `host_key` is the server's public
    key, as in known_hosts without the name."""

    TYPE = "sftp"
    host_key: Text | None = None


class Ftp(_FileTransfer):
    """A server of files over FTP or FTPS."""

    TYPE = "ftp"


class Database(SecretValue):
    """A database: a password with its place, or a whole connection string (`postgresql://…`)."""

    TYPE = "database"
    password: Secret | None = None
    connection_string: Secret | None = None
    ssl_cert: Secret | None = None
    username: Text | None = None
    host: Text | None = None
    port: Port | None = None
    database: Text | None = None

    @model_validator(mode="after")
    def _way_in(self) -> Self:
        _one_of(self, "password", "connection_string")
        return self


class ApiKey(SecretValue):
    """A key that a service gave. `header` carries it (X-API-Key unless said otherwise); `test_url` answers 2xx to
    a request that bears it, and is what `bridge secret test` asks."""

    TYPE = "api_key"
    api_key: Secret
    api_secret: Secret | None = None
    header: Annotated[str, Field(pattern=r"^[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}$")] = "X-API-Key"
    test_url: AnyHttpUrl | None = None


class RabbitMq(SecretValue):
    """A RabbitMQ server: a connection's URL, or user name and password."""

    TYPE = "rabbitmq"
    connection_url: Secret | None = None
    username: Text | None = None
    password: Secret | None = None
    vhost: Text | None = None
    host: Text | None = None
    port: Port | None = None

    @model_validator(mode="after")
    def _way_in(self) -> Self:
        if self.connection_url is None and (self.username is None or self.password is None):
            raise ValueError("connection_url, or username and password, are needed")
        return self


class Kafka(SecretValue):
    """Kafka brokers (`host:port`, several joined by commas), by SASL, by a client's certificate, or both."""

    TYPE = "kafka"
    brokers: Text
    username: Text | None = None
    password: Secret | None = None
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = None
    ssl_cert: Secret | None = None
    ssl_key: Secret | None = None

    @model_validator(mode="after")
    def _way_in(self) -> Self:
        if (self.username is None) != (self.password is None):
            raise ValueError("username and password go together")
        if (self.ssl_cert is None) != (self.ssl_key is None):
            raise ValueError("ssl_cert and ssl_key go together")
        if self.username is None and self.ssl_cert is None:
            raise ValueError("username and password, or ssl_cert and ssl_key, are needed")
        return self


class OAuth2(SecretValue):
    """A client of an OAuth 2.0 authorization server (RFC 6749)."""

    TYPE = "oauth2"
    client_id: Text
    client_secret: Secret
    token_url: AnyHttpUrl
    authorization_url: AnyHttpUrl | None = None
    scope: Text | None = None
    redirect_uri: AnyHttpUrl | None = None
    audience: Text | None = None


class Jwt(SecretValue):
    """What JSON Web Tokens are signed with (RFC 7518): `secret` for HS algorithms, at least as long as the hash
    (RFC 7518, 3.2); `private_key` (PEM) for the others."""

    TYPE = "jwt"
    algorithm: Literal["HS256", "HS512", "RS256", "RS512", "ES256"]
    secret: Secret | None = None
    private_key: Secret | None = None
    passphrase: Secret | None = None
    issuer: Text | None = None
    audience: Text | None = None
    key_id: Text | None = None

    @model_validator(mode="after")
    def _key_of_the_algorithm(self) -> Self:
        if self.algorithm.startswith("HS"):
            least = int(self.algorithm[2:]) // 8
            if self.secret is None or self.private_key is not None:
                raise ValueError(f"{self.algorithm} needs secret, and no private_key")
            if len(self.secret.get_secret_value().encode()) < least:
                raise ValueError(f"secret: {self.algorithm} needs {least} bytes or more")
        else:
            if self.private_key is None or self.secret is not None:
                raise ValueError(f"{self.algorithm} needs private_key, and no secret")
            _check_private_key(self.private_key, self.passphrase)
        return self


class Cookie(SecretValue):
    """A session cookie (RFC 6265) and what it is signed with."""

    TYPE = "cookie"
    cookie_name: Annotated[str, Field(pattern=r"^[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}$")]
    cookie_secret: Secret
    session_secret: Secret | None = None
    domain: Text | None = None
    path: Text = "/"
    secure: bool = True
    http_only: bool = True
    same_site: Literal["strict", "lax", "none"] = "lax"


class Custom(SecretValue):
    """Anything else: texts by names of one's own choice, all of them secret."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, SecretStr] = Field(init=False)

    TYPE = "custom"

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.__pydantic_extra__:
            raise ValueError("at least one field is needed")
        return self


TYPES: Mapping[str, type[SecretValue]] = {
    each.TYPE: each
    for each in (
        *(Smtp, AzureBlob, Sftp, Ftp, Database, ApiKey, RabbitMq, Kafka, OAuth2, Jwt, Cookie),
        Custom,
    )
}
"""Type → its fields."""


def parse(type: str, value: Mapping[str, Any]) -> SecretValue:
    """The secret of that type; raises `ConfigurationError` naming each bad field, never what it held."""
    known(type)
    try:
        found = TYPES[type].model_validate(dict(value))
    except ValidationError as error:
        problems = [
            {"field": ".".join(map(str, item["loc"])) or "value", "message": item["msg"]}
            for item in error.errors(include_input=False, include_url=False, include_context=False)
        ]
        text = "; ".join(f"{item['field']}: {item['message']}" for item in problems)
        raise ConfigurationError(f"the secret is no valid {type}: {text}", problems=problems) from None
    if len(found.to_json()) > MAX_BYTES:
        raise ConfigurationError(f"a secret has at most {MAX_BYTES} bytes", field="value")
    return found


def secret_fields(type: str) -> frozenset[str]:
    """The fields of a type that are never shown; none for a type whose names are free."""
    return frozenset(
        name for name, field in TYPES[type].model_fields.items() if "SecretStr" in str(field.annotation)
    )


def known(type: str) -> None:
    """Raise `ConfigurationError` for a type that there is not."""
    if type not in TYPES:
        raise ConfigurationError(
            f"type {type!r} is not known", field="type", value=type, valid=", ".join(sorted(TYPES))
        )


def from_json(text: bytes) -> SecretValue:
    """What `to_json` gave."""
    stored = orjson.loads(text)
    return TYPES[stored["type"]].model_validate(stored["value"])


def _check_private_key(key: SecretStr, passphrase: SecretStr | None) -> None:
    """Raise ValueError for what is no private key, or not one of this passphrase."""
    text = key.get_secret_value().encode()
    password = None if passphrase is None else passphrase.get_secret_value().encode()
    load = load_ssh_private_key if b"OPENSSH PRIVATE KEY" in text else load_pem_private_key
    try:
        load(text, password)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ValueError(
            "private_key is no private key in PEM or OpenSSH form that the passphrase opens"
        ) from None
