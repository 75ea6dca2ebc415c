"""What is done with connections' tokens: resolving, listing, refreshing (ahead, too), revoking."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from psycopg.rows import class_row

from continuitybridge import connections, database
from continuitybridge.connections import Definition
from continuitybridge.connections.auth import JwtAuth, OAuth2Auth, revealed
from continuitybridge.errors import BridgeError, NotFound, Unavailable
from continuitybridge.nodes.base import ConnectionInfo
from continuitybridge.tokens import oauth, obtaining, store
from continuitybridge.tokens.calls import Failed, Refused
from continuitybridge.tokens.kept import Place, Token
from continuitybridge.tokens.signing import sign
from continuitybridge.vault.keyring import Cipher, Keyring

LOOK_UP_WAIT_S = 4.0
"""So long somebody who looks a connection up waits for its token, beside others who look up others."""
USED_ON_S = 2.0
"""So often another is asked for while a token is used in its last minute."""
AHEAD_S = 300
"""Tokens that end within so many seconds are refreshed ahead."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StoredToken:
    """How a connection's token stands; of the token itself nothing. `state`: `missing` (none was needed yet, or
    nobody has connected the account), `active`, `refreshing`, `reconnect`."""

    environment: str
    connection: str
    type: str
    grant: str | None
    state: str
    obtained_at: datetime | None
    expires_at: datetime | None
    renewable: bool
    problem: str | None


def resolve(
    organization_id: UUID,
    environment: str,
    name: str,
    keys: Cipher,
    *,
    refused: int | None = None,
    wait_s: float | None = LOOK_UP_WAIT_S,
) -> ConnectionInfo:
    """A connection with a credential that holds, for the node that delivers by it: of a token the token alone,
    never what it was obtained with. Raises `NotFound`, `ReconnectNeeded` and `Unavailable`."""
    found = connections.read(organization_id, environment, name, keys)
    auth = found.auth
    if auth.type not in connections.NEEDS_TOKEN:
        return ConnectionInfo(name, found.base_url, found.headers, revealed(auth), found.until)
    if isinstance(auth, JwtAuth):
        return _bearing(found, sign(auth), auth.header, auth.prefix)
    place = Place(organization_id, environment, name)
    token = obtaining.access_token(place, found, keys, refused=refused, wait_s=wait_s)
    if isinstance(auth, OAuth2Auth):
        return _bearing(found, token, auth.header, auth.prefix)
    return _bearing(found, token, "Cookie", "", tuple(auth.expired_statuses))


def _bearing(
    found: Definition, token: Token, header: str, prefix: str, renew_on: tuple[int, ...] = (401,)
) -> ConnectionInfo:
    shown = {"type": "api_key", "header": header, "value": f"{prefix} {token.value}".strip()}
    if (header.lower(), prefix) == ("authorization", "Bearer"):
        shown = {"type": "bearer", "token": token.value}
    until = token.fresh_until
    if until is not None and token.expires_at is not None:
        # One that is used on because no other is to be had: not asked for again with each message.
        until = min(token.expires_at, max(until, time.time() + USED_ON_S))
    if found.until is not None:
        # What it is made with stands outside, and may be another then.
        until = found.until if until is None else min(until, found.until)
    return ConnectionInfo(found.name, found.base_url, found.headers, shown, until, token.generation, renew_on)


def list_tokens(organization_id: UUID, environment: str | None = None) -> list[StoredToken]:
    """The organization's connections that need tokens, and how those stand, by environment and name."""
    with (
        database.tenant(organization_id) as connection,
        connection.cursor(row_factory=class_row(StoredToken)) as cursor,
    ):
        cursor.execute(
            "SELECT c.environment, c.name AS connection, c.settings->>'auth' AS type,"
            " c.settings->>'grant' AS grant, CASE WHEN t.state = 'active' AND t.ciphertext IS NULL"
            " THEN 'missing' ELSE coalesce(t.state, 'missing') END AS state, t.obtained_at, t.expires_at,"
            " coalesce(t.renewable, false) AS renewable, t.problem"
            " FROM bridge.connections c LEFT JOIN bridge.tokens t ON t.organization_id = c.organization_id"
            " AND t.environment = c.environment AND t.connection = c.name"
            " WHERE c.organization_id = %(organization)s AND c.settings->>'auth' IN ('oauth2', 'cookie')"
            " AND (%(environment)s::text IS NULL OR c.environment = %(environment)s)"
            " ORDER BY c.environment, c.name",
            {"organization": organization_id, "environment": environment},
        )
        return cursor.fetchall()


def one(organization_id: UUID, environment: str, name: str) -> StoredToken:
    """How one connection's token stands. Raises `NotFound` where the connection needs none."""
    found = next((each for each in list_tokens(organization_id, environment) if each.connection == name), None)
    if found is None:
        raise NotFound(
            f"no connection {name!r} in {environment} that needs a token", field="connection", value=name
        )
    return found


def refresh(
    organization_id: UUID, environment: str, name: str, keys: Cipher | None = None, *, wait_s: float | None = None
) -> StoredToken:
    """Obtain another token now, and wait for it at most `wait_s` (`BRIDGE_TOKEN_WAIT_S`). A connection in
    `reconnect` is tried once more where nobody is needed for that. Raises `ReconnectNeeded`, `Unavailable`,
    `NotFound`."""
    keys = keys or Keyring.open()
    one(organization_id, environment, name)
    definition = connections.read(organization_id, environment, name, keys)
    obtaining.access_token(
        Place(organization_id, environment, name), definition, keys, ahead=True, again=True, wait_s=wait_s
    )
    found = one(organization_id, environment, name)
    if found.problem is not None:
        # What is held is used on meanwhile.
        raise Unavailable(f"no other token for the connection {name!r} now: {found.problem}", connection=name)
    return found


def revoke(organization_id: UUID, environment: str, name: str, keys: Cipher | None = None) -> StoredToken:
    """Forget the token, and tell the authorization server where it takes that (RFC 7009). An account that a
    person connected has to be connected again; another grant obtains a new token when one is needed next. Where
    the server does not answer, the token is forgotten all the same, and the log says so."""
    keys = keys or Keyring.open()
    one(organization_id, environment, name)
    definition = connections.read(organization_id, environment, name, keys)
    place = Place(organization_id, environment, name)
    held = store.drop(place, keys, definition)
    if held is not None and isinstance(definition.auth, OAuth2Auth):
        token, hint = (held.refresh, "refresh_token") if held.refresh else (held.access, "access_token")
        try:
            oauth.revoke(definition.auth, token, hint)
        except (Refused, Failed) as error:
            log.warning("the authorization server did not take the revocation for %s: %s", place, error.reason)
    return one(organization_id, environment, name)


_DUE = """
SELECT t.organization_id, t.environment, t.connection FROM bridge.tokens t
JOIN bridge.organizations o USING (organization_id)
WHERE o.status = 'active' AND (t.retry_at IS NULL OR t.retry_at <= now()) AND (
    (t.state = 'active' AND t.renewable AND t.expires_at < now() + make_interval(secs => %(ahead_s)s)
     AND now() >= t.obtained_at + (t.expires_at - t.obtained_at) / 2)
    OR (t.state = 'refreshing' AND t.lease_until < now()))
ORDER BY t.expires_at
"""


def due() -> list[Place]:
    """The tokens, of all organizations that are active, which end within `AHEAD_S` (a short one when half of its
    time is over), and those whose last attempt ended without a word. Those that end first come first."""
    with database.relay() as connection:
        return [Place(*row) for row in connection.execute(_DUE, {"ahead_s": AHEAD_S}).fetchall()]


def refresh_ahead(place: Place, keys: Cipher, *, wait_s: float) -> str:
    """Refresh a token that is due, and wait for it so long. Gives `refreshed`, or the code of what
    kept it from that (`unavailable` also while the call goes on)."""
    try:
        definition = connections.read(*place, keys)
        obtaining.access_token(place, definition, keys, ahead=True, wait_s=wait_s)
    except BridgeError as error:
        return error.code
    return "refreshed"
