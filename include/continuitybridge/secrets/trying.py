"""Trying a secret where it belongs: signing in once, and changing nothing there.

Where it may connect to, the process's egress policy says, as for everything that a tenant wrote down.
"""

from __future__ import annotations

import asyncio
import os
import re
import ssl
from base64 import b64encode
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote_plus, urlencode
from uuid import UUID

import certifi
import orjson

from continuitybridge import database
from continuitybridge.audit import record
from continuitybridge.egress.connecting import judged, open_socket
from continuitybridge.errors import BridgeError, EgressRefused
from continuitybridge.nodes import hidden
from continuitybridge.nodes.http.address import parse
from continuitybridge.nodes.http.client import Client
from continuitybridge.nodes.http.wire import ExchangeFailed, RawAnswer
from continuitybridge.secrets import references, types, verbs
from continuitybridge.settings import egress_policy
from continuitybridge.vault.keyring import Cipher, Keyring

TIMEOUT_S = 10.0
MAX_ANSWER_BYTES = 64 * 1024
_SMTP_PORTS = {"starttls": 587, "tls": 465, "none": 25}
_IN_CONNECTION_STRING = frozenset(
    {"host", "port", "user", "password", "dbname", "sslmode", "connect_timeout", "application_name"}
)
"""What of a connection string is followed: nothing that names a file or a socket of this machine."""


_SHORT = 3
"""Values of so many characters and more are not repeated."""
_SAID_ANYWAY = frozenset({"none", "tls", "starttls", "X-API-Key"})
"""Words of the types themselves."""


@dataclass(frozen=True, slots=True)
class Tried:
    """`ok` None: secrets of this type, or this one, cannot be tried; `detail` says why, or what was answered."""

    ok: bool | None
    detail: str


class _Failed(Exception):
    """The other side said no; the text says what."""


class _NotTestable(Exception):
    """There is nothing to ask."""


def try_secret(
    organization_id: UUID, environment: str, name: str, by: str, *, keys: Cipher | None = None
) -> Tried:
    """Sign in with the current version of a secret, within `TIMEOUT_S`. Leaves an audit event. Raises as
    `verbs.resolve`. Not for a thread that runs an event loop."""
    keys = keys or Keyring.open()
    found = verbs.stored(organization_id, environment, name, keys)
    if not isinstance(found, references.Referred):
        tried = asyncio.run(_tried(found, found.shown()))
    elif (why := references.not_tried(found)) is not None:
        tried = Tried(None, why)
    else:
        value = references.value_of(organization_id, environment, name, found)
        tried = asyncio.run(_tried(value, found.reference.fields))
    with database.tenant(organization_id) as connection:
        details = {"type": found.TYPE, "ok": tried.ok}
        record(
            connection,
            organization_id,
            "secret.tried",
            name,
            environment=environment,
            details=details,
            by=by,
            keys=keys,
        )
    return tried


async def _tried(secret: types.SecretValue, known: Mapping[str, Any]) -> Tried:
    way = _WAYS.get(type(secret))
    if way is None:
        return Tried(None, f"secrets of type {secret.TYPE} cannot be tried")
    try:
        async with asyncio.timeout(TIMEOUT_S):
            detail = await way(secret)
    except _NotTestable as error:
        return Tried(None, _without(secret, known, str(error)))
    except TimeoutError:
        return Tried(False, f"no answer within {TIMEOUT_S:g} s")
    except (BridgeError, EgressRefused) as error:
        return Tried(False, _without(secret, known, error.detail))
    except (_Failed, ExchangeFailed, ssl.SSLError, OSError, ValueError) as error:
        return Tried(False, _without(secret, known, str(error) or type(error).__name__))
    return Tried(True, _without(secret, known, detail))


def _without(secret: types.SecretValue, known: Mapping[str, Any], text: str) -> str:
    """One line of what was answered, in which nothing is repeated but what is `known` to who asks: of a secret
    what may be shown, of a reference what stands in itself."""
    told = {str(value) for value in known.values()} - {"(set)"}
    values = {str(value) for value in secret.revealed().values()} - told - _SAID_ANYWAY
    for value in hidden.forms(values, least=_SHORT, all_parts=True):
        if value in told:
            continue
        pattern = re.escape(value)
        if value not in values:
            # A part may be a word that stands in others.
            pattern = rf"(?<!\w){pattern}(?!\w)"
        text = re.sub(pattern, "[scrubbed]", text, flags=re.IGNORECASE)
    return " ".join(text.split())[:300]


async def _smtp(secret: types.Smtp) -> str:
    import aiosmtplib

    if secret.host is None or secret.username is None:
        raise _NotTestable("host and username are needed to try it")
    port = secret.port or _SMTP_PORTS[secret.security]
    client = aiosmtplib.SMTP(
        hostname=secret.host,
        port=None,
        sock=await open_socket(egress_policy(), secret.host, port),
        use_tls=secret.security == "tls",
        start_tls=secret.security == "starttls",
        tls_context=_mail_context() if secret.security != "none" else None,
        timeout=TIMEOUT_S,
    )
    try:
        await client.connect()
        await client.login(secret.username, secret.password.get_secret_value())
    except aiosmtplib.SMTPException as error:
        raise _Failed(f"{type(error).__name__}: {error}") from None
    finally:
        with suppress(aiosmtplib.SMTPException, OSError):
            await client.quit()
        client.close()
    return "signed in"


def _mail_context() -> ssl.SSLContext:
    """The authorities that the HTTP client believes, without its protocol, which a mail server does not speak."""
    context = ssl.create_default_context(cafile=os.environ.get("SSL_CERT_FILE") or certifi.where())
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


async def _database(secret: types.Database) -> str:
    import psycopg
    from psycopg.conninfo import conninfo_to_dict

    place: dict[str, Any] = {
        "host": secret.host,
        "port": secret.port,
        "user": secret.username,
        "dbname": secret.database,
        "password": None if secret.password is None else secret.password.get_secret_value(),
    }
    if secret.connection_string is not None:
        text = secret.connection_string.get_secret_value()
        if not text.startswith(("postgresql://", "postgres://")):
            raise _NotTestable("only databases of PostgreSQL (postgresql://…) can be tried")
        try:
            given = conninfo_to_dict(text)
        except psycopg.Error:
            raise _Failed("the connection string cannot be read") from None
        if unknown := sorted(given.keys() - _IN_CONNECTION_STRING):
            raise _Failed(f"the connection string says more than is followed: {', '.join(unknown)}")
        place |= {name: value for name, value in given.items() if value is not None}
    host, port = place["host"], int(place["port"] or 5432)
    if not host or place["user"] is None:
        raise _NotTestable("host and user are needed to try it")
    if "," in str(host) or str(host).startswith(("/", "@")):
        raise _Failed("one host is needed, by name or address")
    [*infos] = await judged(egress_policy(), host, port)
    address = str(infos[0][4][0])
    try:
        connection = await psycopg.AsyncConnection.connect(
            **{name: value for name, value in place.items() if value is not None},
            hostaddr=address,
            passfile="/dev/null",
            gssencmode="disable",
            sslcert="/dev/null",
        )
    except psycopg.Error as error:
        raise _Failed(str(error)) from None
    async with connection:
        row = await (await connection.execute("SELECT current_setting('server_version')")).fetchone()
    return f"signed in to PostgreSQL {row[0] if row else ''}".strip()


async def _sftp(secret: types.Sftp) -> str:
    import asyncssh

    if secret.host is None or secret.username is None:
        raise _NotTestable("host and username are needed to try it")
    port = secret.port or 22
    if secret.host_key is None:
        # Nothing is shown to a server that nobody knows.
        shown = await asyncssh.get_server_host_key(
            secret.host, sock=await open_socket(egress_policy(), secret.host, port), config=None
        )
        key = shown.export_public_key().decode().strip() if shown is not None else "none"
        raise _NotTestable(f"host_key is needed to try it; the server shows: {key}")
    try:
        known = asyncssh.import_public_key(secret.host_key)
    except asyncssh.KeyImportError:
        raise _Failed("host_key is no public key as in known_hosts without the name") from None
    keys = None
    if secret.private_key is not None:
        passphrase = None if secret.passphrase is None else secret.passphrase.get_secret_value()
        keys = [asyncssh.import_private_key(secret.private_key.get_secret_value(), passphrase)]
    try:
        connection = await asyncssh.connect(
            secret.host,
            sock=await open_socket(egress_policy(), secret.host, port),
            username=secret.username,
            password=None if secret.password is None else secret.password.get_secret_value(),
            client_keys=keys,
            known_hosts=([known], [], []),
            # Nothing of this machine: no ~/.ssh, no agent, no ticket.
            config=None,
            agent_path=None,
            gss_host=None,
        )
        async with connection, connection.start_sftp_client() as client:
            where = await client.realpath(".")
    except asyncssh.HostKeyNotVerifiable:
        raise _Failed("the server shows another key than host_key") from None
    except asyncssh.Error as error:
        raise _Failed(f"{type(error).__name__}: {error.reason}") from None
    return f"signed in, at {where!s}"


async def _api_key(secret: types.ApiKey) -> str:
    if secret.test_url is None:
        raise _NotTestable("test_url is needed to try it")
    answer = await _ask("GET", str(secret.test_url), {secret.header: secret.api_key.get_secret_value()})
    if not 200 <= answer.status < 300:
        raise _Failed(f"{secret.test_url} answered {answer.status}")
    return f"{secret.test_url} answered {answer.status}"


async def _oauth2(secret: types.OAuth2) -> str:
    """A token for the client itself (RFC 6749, 4.4); it is thrown away."""
    pair = ":".join(quote_plus(each) for each in (secret.client_id, secret.client_secret.get_secret_value()))
    form = {"grant_type": "client_credentials", "scope": secret.scope, "audience": secret.audience}
    answer = await _ask(
        "POST",
        str(secret.token_url),
        {
            "Authorization": f"Basic {b64encode(pair.encode()).decode()}",
            "Content-Type": "application/x-www-form-urlencoded",
        },
        urlencode({name: value for name, value in form.items() if value is not None}).encode(),
    )
    said = _json(answer.content)
    if answer.status != 200 or "access_token" not in said:
        error = str(said.get("error", "no access token"))[:100]
        raise _Failed(f"the token endpoint answered {answer.status}: {error}")
    return "the token endpoint gave a token"


async def _ask(method: str, url: str, headers: Mapping[str, str], content: bytes | None = None) -> RawAnswer:
    for value in headers.values():
        if not value.isascii() or not value.isprintable():
            raise _Failed("a header's value has characters that headers do not take")
    lines = "".join(f"{name}: {value}\r\n" for name, value in {"Accept": "application/json", **headers}.items())
    client = Client(verify=True)
    try:
        return await client.send(
            method, parse(url), lines, content, lambda status, given: (MAX_ANSWER_BYTES, True)
        )
    finally:
        await client.aclose()


def _json(content: bytes) -> Mapping[str, Any]:
    try:
        said = orjson.loads(content)
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


_WAYS: Mapping[type[types.SecretValue], Callable[[Any], Awaitable[str]]] = {
    types.Smtp: _smtp,
    types.Sftp: _sftp,
    types.Database: _database,
    types.ApiKey: _api_key,
    types.OAuth2: _oauth2,
}
