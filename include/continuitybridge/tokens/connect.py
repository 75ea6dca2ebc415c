"""Connecting an account: a person allows it once, and the connection has its token from then on.

With `authorization_code` his browser goes to the authorization server and comes back to `CALLBACK` with a code
(RFC 6749, 4.1; PKCE with S256, RFC 7636). The `state` that goes along is bound to whoever began, is used once, and
holds for `HOLDS_S`; of it and the code verifier the table knows a hash and a ciphertext. With `device_code` he
types a code there that he was shown here, and the server is asked every now and then whether he did (RFC 8628).
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from oauthlib.common import add_params_to_uri
from oauthlib.oauth2 import WebApplicationClient
from psycopg.rows import class_row, dict_row
from uuid6 import uuid7

from continuitybridge import connections, database
from continuitybridge.audit import record
from continuitybridge.connections.auth import OAuth2Auth
from continuitybridge.errors import ConfigurationError, DeliveryFailed, NotFound, Verdict
from continuitybridge.settings import get_settings
from continuitybridge.tokens import oauth, store
from continuitybridge.tokens.calls import Failed, Refused
from continuitybridge.tokens.kept import Obtained, Place
from continuitybridge.vault.columns import EncryptedColumn
from continuitybridge.vault.keyring import Cipher, Keyring

CALLBACK = "/bridge/oauth/callback"
"""Where authorization servers send browsers back to, below the platform's address."""
HOLDS_S = 600.0
SLOWER_S = 5
"""So much longer a server that says `slow_down` is left alone between two questions (RFC 8628, 3.5)."""
LONGEST_DEVICE_S = 3600.0
KEPT = "1 day"
PURPOSE = "token-connect"


@dataclass(frozen=True, slots=True)
class Begun:
    """What to do: open `address`; for a device code, type `user_code` there."""

    connect_id: UUID
    address: str = field(repr=False)
    user_code: str | None
    interval_s: int | None
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class Connect:
    """How connecting an account stands: `status` is pending, connected, denied, expired or failed."""

    connect_id: UUID
    environment: str
    connection: str
    status: str
    problem: str | None
    interval_s: int | None
    expires_at: datetime


def begin(place: Place, user_name: str, *, keys: Cipher | None = None) -> Begun:
    """Begin to connect the account; `user_name` is who is signed in to the platform in the browser that comes
    back. Raises `ConfigurationError` for a grant that nobody connects, `NotFound`, `DeliveryFailed` when the
    server gives no device code."""
    keys = keys or Keyring.open()
    definition = connections.read(*place, keys)
    auth = definition.auth
    if not isinstance(auth, OAuth2Auth) or auth.grant not in ("authorization_code", "device_code"):
        raise ConfigurationError(
            f"the connection {place.connection!r} is not connected by a person",
            field="connection",
            value=place.connection,
            valid="auth type oauth2 with the grant authorization_code or device_code",
        )
    state, redirect_uri, user_code, interval_s, holds_s = None, None, None, None, HOLDS_S
    if auth.grant == "authorization_code":
        client = WebApplicationClient(auth.client_id)
        secret = client.create_code_verifier(64)
        state = f"{place.organization_id.hex}.{secrets.token_urlsafe(32)}"
        redirect_uri = get_settings().external_url + CALLBACK
        asked = {
            "response_type": "code",
            "client_id": auth.client_id,
            "redirect_uri": redirect_uri,
            "state": state,
            "code_challenge": client.create_code_challenge(secret, "S256"),
            "code_challenge_method": "S256",
            **({"scope": auth.scope} if auth.scope else {}),
            **auth.authorization_parameters,
        }
        address = add_params_to_uri(str(auth.authorization_url), list(asked.items()))
    else:
        try:
            given = oauth.device(auth)
        except (Refused, Failed) as error:
            raise _failed(place, error.reason) from None
        secret, user_code, interval_s = given["device_code"], given["user_code"], max(1, given["interval"])
        address = str(given["verification_uri_complete"] or given["verification_uri"])
        holds_s = min(given["expires_in"], LONGEST_DEVICE_S)
    connect_id = uuid7()
    with database.tenant(place.organization_id) as connection:
        connection.execute(
            "DELETE FROM bridge.token_connects WHERE organization_id = %s AND (created_at < now() - %s::interval"
            " OR (environment = %s AND connection = %s AND user_name = %s AND status = 'pending'))",
            (place.organization_id, KEPT, place.environment, place.connection, user_name),
        )
        [(expires_at,)] = connection.execute(
            "INSERT INTO bridge.token_connects (organization_id, connect_id, environment, connection, revision,"
            " user_name, state_hash, ciphertext, redirect_uri, interval_s, poll_at, expires_at)"
            " VALUES (%(organization_id)s, %(connect_id)s, %(environment)s, %(connection)s, %(revision)s,"
            " %(user)s, %(state_hash)s, %(ciphertext)s, %(redirect_uri)s, %(interval_s)s::integer,"
            " now() + make_interval(secs => %(interval_s)s::integer), now() + make_interval(secs => %(holds_s)s))"
            " RETURNING expires_at",
            {
                **place._asdict(),
                "connect_id": connect_id,
                "revision": definition.revision,
                "user": user_name,
                "state_hash": None if state is None else _hash(state),
                "ciphertext": keys.encrypt(place.organization_id, PURPOSE, str(connect_id), secret.encode()),
                "redirect_uri": redirect_uri,
                "interval_s": interval_s,
                "holds_s": holds_s,
            },
        ).fetchall()
        _tell(connection, place, "token.connect_begun", {"grant": auth.grant}, keys)
    return Begun(connect_id, address, user_code, interval_s, expires_at)


def organization_of(state: str) -> UUID:
    """The organization for which a browser comes back. Raises `NotFound` for what is no state of ours."""
    try:
        return UUID(hex=state.partition(".")[0])
    except ValueError:
        raise _unknown() from None


def finish(
    state: str, user_name: str, *, code: str | None, error: str | None, keys: Cipher | None = None
) -> Place:
    """What a browser brought back: the code for a token, or why there is none. Raises `NotFound` alike for a state
    that never was, was used, is over or is somebody else's; `DeliveryFailed` when the server gives no token."""
    keys = keys or Keyring.open()
    organization_id = organization_of(state)
    with database.tenant(organization_id) as connection, connection.cursor(row_factory=dict_row) as cursor:
        # Used now, whatever comes of it: a code is good for one call.
        cursor.execute(
            "UPDATE bridge.token_connects SET state_hash = NULL, status = %s, problem = %s"
            " WHERE organization_id = %s AND state_hash = %s AND user_name = %s AND status = 'pending'"
            " AND expires_at > now() RETURNING *",
            (
                "failed" if code and not error else "denied",
                "it was not finished" if code and not error else "the authorization server sent no code",
                *(organization_id, _hash(state), user_name),
            ),
        )
        row = cursor.fetchone()
    if row is None:
        raise _unknown()
    place = Place(organization_id, row["environment"], row["connection"])
    if not code or error:
        raise _failed(place, "the account's owner or the authorization server refused")
    definition = connections.read(*place, keys)
    if definition.revision != row["revision"] or not isinstance(definition.auth, OAuth2Auth):
        raise _failed(place, "the connection was changed meanwhile: begin again")
    verifier = keys.decrypt(organization_id, PURPOSE, str(row["connect_id"]), bytes(row["ciphertext"])).decode()
    try:
        got = oauth.by_code(definition.auth, code, redirect_uri=row["redirect_uri"], verifier=verifier)
    except (Refused, Failed) as refused:
        _end(place, row["connect_id"], "failed", refused.reason)
        raise _failed(place, refused.reason) from None
    _connected(place, row["connect_id"], definition, got, keys)
    return place


def poll(organization_id: UUID, connect_id: UUID, user_name: str, *, keys: Cipher | None = None) -> Connect:
    """How it stands; for a device code the server is asked, if it may be asked again by now. Raises `NotFound`."""
    keys = keys or Keyring.open()
    with database.tenant(organization_id) as connection, connection.cursor(row_factory=dict_row) as cursor:
        cursor.execute(
            "UPDATE bridge.token_connects SET status = 'expired' WHERE organization_id = %s AND connect_id = %s"
            " AND status = 'pending' AND expires_at <= now()",
            (organization_id, connect_id),
        )
        # Who asks takes the turn: two who poll at once do not ask twice.
        cursor.execute(
            "UPDATE bridge.token_connects SET poll_at = now() + make_interval(secs => interval_s)"
            " WHERE organization_id = %s AND connect_id = %s AND user_name = %s AND status = 'pending'"
            " AND poll_at <= now() RETURNING *",
            (organization_id, connect_id, user_name),
        )
        row = cursor.fetchone()
    if row is not None:
        _ask(Place(organization_id, row["environment"], row["connection"]), row, keys)
    return _stands(organization_id, connect_id, user_name)


def _ask(place: Place, row: dict[str, Any], keys: Cipher) -> None:
    definition = connections.read(*place, keys)
    if definition.revision != row["revision"] or not isinstance(definition.auth, OAuth2Auth):
        _end(place, row["connect_id"], "failed", "the connection was changed meanwhile: begin again")
        return
    device_code = keys.decrypt(place.organization_id, PURPOSE, str(row["connect_id"]), bytes(row["ciphertext"]))
    try:
        got = oauth.by_device_code(definition.auth, device_code.decode())
    except Refused as refused:
        if refused.code == "authorization_pending":
            return
        if refused.code == "slow_down":
            _wait_longer(place, row["connect_id"], SLOWER_S)
            return
        ends = {"expired_token": "expired", "access_denied": "denied"}
        _end(place, row["connect_id"], ends.get(refused.code, "failed"), refused.reason)
    except Failed:
        # RFC 8628, 3.5: after a time-out less often.
        _wait_longer(place, row["connect_id"], row["interval_s"])
    else:
        _connected(place, row["connect_id"], definition, got, keys)


def _connected(
    place: Place, connect_id: UUID, definition: connections.Definition, got: Obtained, keys: Cipher
) -> None:
    with database.tenant(place.organization_id) as connection:
        store.connected(connection, place, definition, got, keys)
        connection.execute(
            "UPDATE bridge.token_connects SET status = 'connected', problem = NULL"
            " WHERE organization_id = %s AND connect_id = %s",
            (place.organization_id, connect_id),
        )
        _tell(connection, place, "token.connected", {"lasting": got.refresh is not None}, keys)


def _end(place: Place, connect_id: UUID, status: str, problem: str) -> None:
    with database.tenant(place.organization_id) as connection:
        connection.execute(
            "UPDATE bridge.token_connects SET status = %s, problem = %s, state_hash = NULL"
            " WHERE organization_id = %s AND connect_id = %s AND status IN ('pending', 'failed')",
            (status, problem[:300], place.organization_id, connect_id),
        )


def _wait_longer(place: Place, connect_id: UUID, seconds: int) -> None:
    with database.tenant(place.organization_id) as connection:
        connection.execute(
            "UPDATE bridge.token_connects SET interval_s = least(interval_s + %(more)s, 300),"
            " poll_at = now() + make_interval(secs => least(interval_s + %(more)s, 300))"
            " WHERE organization_id = %(organization_id)s AND connect_id = %(connect_id)s",
            {"more": seconds, "organization_id": place.organization_id, "connect_id": connect_id},
        )


def _stands(organization_id: UUID, connect_id: UUID, user_name: str) -> Connect:
    with (
        database.tenant(organization_id) as connection,
        connection.cursor(row_factory=class_row(Connect)) as cursor,
    ):
        cursor.execute(
            "SELECT connect_id, environment, connection, status, problem, interval_s, expires_at"
            " FROM bridge.token_connects WHERE organization_id = %s AND connect_id = %s AND user_name = %s",
            (organization_id, connect_id, user_name),
        )
        found = cursor.fetchone()
    if found is None:
        raise _unknown()
    return found


def _tell(connection: Any, place: Place, action: str, details: dict[str, Any], keys: Cipher) -> None:
    record(
        connection,
        place.organization_id,
        action,
        place.connection,
        environment=place.environment,
        details=details,
        keys=keys,
    )


def _hash(state: str) -> bytes:
    return hashlib.sha256(state.encode()).digest()


def _unknown() -> NotFound:
    return NotFound("this is not, or no longer, being connected by you: begin again")


def _failed(place: Place, reason: str) -> DeliveryFailed:
    return DeliveryFailed(
        f"the account of the connection {place.connection!r} was not connected: {reason}",
        verdict=Verdict.TERMINAL,
        connection=place.connection,
    )


COLUMNS = (
    EncryptedColumn("token_connects", "ciphertext", ("connect_id",), PURPOSE, lambda row: str(row["connect_id"])),
)
"""What of the table `token_connects` is encrypted."""
