"""The row of a token: who may call, what is stored, and what is given up. Every verb is one short transaction.

An attempt is numbered when its lease is taken, which is committed before the call. What an attempt brought is
stored only over what an earlier one brought, so that of two answers the one that was asked for last stays; a lease
alone decides nothing.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import orjson
import psycopg
from psycopg.rows import dict_row

from continuitybridge import connections, database
from continuitybridge.audit import record
from continuitybridge.connections import Definition
from continuitybridge.connections.auth import revealed
from continuitybridge.errors import NotFound, ReconnectNeeded, Unavailable
from continuitybridge.settings import get_settings
from continuitybridge.tokens import calls
from continuitybridge.tokens.kept import Obtained, Place, Token, fresh_until
from continuitybridge.vault.columns import EncryptedColumn, FingerprintColumn
from continuitybridge.vault.keyring import Cipher

PURPOSE = "token"
"""What the ciphertext's associated data says it is for."""
REFUSED_AGAIN_S = 10.0
"""A destination that refuses tokens has another obtained at most so often."""
RETRY_S = 1.0
"""First wait after a call that failed and may pass; doubles."""
LONGEST_RETRY_S = 60.0
DOUBT_S = 900.0
"""So long credentials that stand in a store outside may be refused before that stands: of the two places in which
they are changed, one is the first."""
LONGEST_ASKED_S = 3600.0
"""Longest `Retry-After` that is kept to."""
_PROBLEM_CHARACTERS = 300

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to call. `abandoned`: the attempt before ended without a word, and its answer may be lost."""

    attempt: int
    generation: int
    owner: str
    refresh: str | None = field(repr=False)
    abandoned: bool


@dataclass(frozen=True, slots=True)
class Wait:
    """Somebody else calls."""


def identity(definition: Definition) -> bytes:
    """What a token was obtained with, and whom it is shown to; another one makes the stored token nobody's. Who
    may set a connection need not know the client's secret, and could send the token to a server of his own."""
    declared = revealed(definition.auth)
    for name in ("client_secret", "header", "prefix", "revocation_url", "expired_statuses", "lifetime_s"):
        declared.pop(name, None)
    shown_to = {calls.origin(definition.base_url)}
    if (url := getattr(definition.auth, "revocation_url", None)) is not None:
        # The authorization server itself knows its tokens.
        shown_to |= {calls.origin(str(url))} - {calls.origin(str(declared["token_url"]))}
    declared["shown_to"] = sorted(shown_to)
    return orjson.dumps(declared, option=orjson.OPT_SORT_KEYS)


def needs_person(definition: Definition) -> bool:
    """Whether somebody has to bring another token when there is none any more."""
    return getattr(definition.auth, "grant", "") in ("authorization_code", "device_code", "refresh_token")


def begin(
    place: Place,
    definition: Definition,
    keys: Cipher,
    owner: str,
    *,
    refused: int | None,
    ahead: bool,
    again: bool = False,
) -> Token | Lease | Wait:
    """The token if it may be used, the lease if one has to be obtained, else that somebody is at it.

    `refused` is the generation that a destination did not take; `ahead` wants a new one before the old ends;
    `again` asks also where the last answer stands, if no person is needed for another (what was wrong may have
    been put right at the authorization server). Raises `ReconnectNeeded`, and `Unavailable` while the last failure
    is too fresh.
    """
    with database.tenant(place.organization_id) as connection:
        row = _locked(connection, place)
        now: datetime = row["now"]
        held = _held(place, row, definition, keys)
        stands = row["state"] == "reconnect" and row["revision"] == definition.revision
        if stands and (needs_person(definition) or not again):
            raise reconnect(place, row["problem"] or "")
        token = None if held is None else _token(row, held)
        lives = token is not None and (token.expires_at is None or now.timestamp() < token.expires_at)
        if refused is not None and token is not None and token.generation <= refused:
            if row["refused_at"] is not None and now - row["refused_at"] < timedelta(seconds=REFUSED_AGAIN_S):
                return token
            wanted = True
        else:
            refused = None
            wanted = ahead or token is None or _is_old(token, now)
        if token is not None and not wanted:
            return token
        usable = token is not None and lives and refused is None
        if row["lease_until"] is not None and row["lease_until"] > now:
            return token if usable and token is not None else Wait()
        if row["retry_at"] is not None and row["retry_at"] > now and row["revision"] == definition.revision:
            if usable and token is not None:
                return token
            raise Unavailable(
                f"no token for the connection {place.connection!r} now: {row['problem']}",
                connection=place.connection,
                retry_after_s=round((row["retry_at"] - now).total_seconds(), 1),
            )
        _update(
            connection,
            place,
            "state = 'refreshing', attempt = attempt + 1, revision = %(revision)s, lease_owner = %(owner)s,"
            " lease_until = %(now)s + make_interval(secs => %(lease_s)s),"
            " doubted_since = CASE WHEN revision = %(revision)s THEN doubted_since END,"
            " refused_at = CASE WHEN %(refused)s THEN %(now)s ELSE refused_at END",
            owner=owner,
            now=now,
            lease_s=get_settings().token_lease_s,
            refused=refused is not None,
            revision=definition.revision,
        )
    return Lease(
        row["attempt"] + 1,
        row["generation"],
        owner,
        held.refresh if held is not None else _first_refresh(definition),
        abandoned=row["state"] == "refreshing",
    )


def extend(place: Place, lease: Lease) -> None:
    """The call goes on. A lease that somebody else took meanwhile stays his."""
    with database.tenant(place.organization_id) as connection:
        _update(
            connection,
            place,
            "lease_until = CASE WHEN attempt = %(attempt)s AND lease_owner = %(owner)s"
            " THEN clock_timestamp() + make_interval(secs => %(lease_s)s) ELSE lease_until END",
            lease_s=get_settings().token_lease_s,
            attempt=lease.attempt,
            owner=lease.owner,
        )


def save(place: Place, lease: Lease, definition: Definition, got: Obtained, keys: Cipher) -> bool:
    """Store what the attempt brought. False: a later attempt's, or a person's doing, stands already. An answer
    that comes late, when the lease is another's or the token was given up, is stored all the same: there is no
    later one."""
    with database.tenant(place.organization_id) as connection:
        row = _locked(connection, place)
        mine = row["lease_owner"] == lease.owner and row["attempt"] == lease.attempt
        if lease.attempt <= row["generation"]:
            if mine:
                _release(connection, place)
            return False
        _store(connection, place, row["now"], lease.attempt, definition, got, keys, release=mine)
        details = {"generation": lease.attempt, "late": not mine, "after_loss": lease.abandoned}
        record(
            connection,
            place.organization_id,
            "token.refreshed",
            place.connection,
            environment=place.environment,
            details=details,
            keys=keys,
        )
    return True


def give_up(place: Place, lease: Lease, reason: str, keys: Cipher) -> None:
    """The answer stands: nobody asks again until somebody connects the account or changes the connection. Told of
    once, by who finds it first. Where another attempt has brought a token meanwhile, or is under way, nothing is
    given up."""
    with database.tenant(place.organization_id) as connection:
        row = _locked(connection, place)
        if row["attempt"] != lease.attempt or row["lease_owner"] != lease.owner:
            return
        if row["generation"] != lease.generation:
            _release(connection, place)
            return
        if lease.abandoned:
            reason += "; the answer of the attempt before was lost with its process"
        _update(
            connection,
            place,
            "state = 'reconnect', problem = %(problem)s, lease_owner = NULL, lease_until = NULL, retry_at = NULL,"
            " renewable = false",
            problem=reason[:_PROBLEM_CHARACTERS],
        )
        connections.announce(connection, place.organization_id, place.environment)
        record(
            connection,
            place.organization_id,
            "token.reconnect_needed",
            place.connection,
            environment=place.environment,
            details={"reason": reason[:_PROBLEM_CHARACTERS]},
            keys=keys,
        )
    log.warning(
        "the connection %s of organization %s has to be connected again: %s", place, place.organization_id, reason
    )


def doubt(place: Place, lease: Lease) -> bool:
    """The credentials, which stand in a store outside, are refused: whether that has been so for longer than
    `DOUBT_S` with what they are now. A refusal that comes when another attempt is under way, or brought a token,
    says nothing."""
    with database.tenant(place.organization_id) as connection:
        row = _locked(connection, place)
        if row["attempt"] != lease.attempt or row["lease_owner"] != lease.owner:
            return False
        # Without failures a token was obtained last: what was doubted before that is over.
        if row["doubted_since"] is None or row["failures"] == 0:
            _update(connection, place, "doubted_since = %(now)s", now=row["now"])
            return DOUBT_S <= 0
        since: datetime = row["doubted_since"]
        return bool(row["now"] - since >= timedelta(seconds=DOUBT_S))


def put_off(place: Place, lease: Lease, reason: str, retry_after_s: float | None, keys: Cipher) -> float:
    """The call failed and may pass: nobody asks again for a while. Gives in how many seconds."""
    with database.tenant(place.organization_id) as connection:
        row = _locked(connection, place)
        if row["attempt"] != lease.attempt or row["lease_owner"] != lease.owner:
            return 0.0
        backoff_s = min(LONGEST_RETRY_S, RETRY_S * 2.0 ** min(int(row["failures"]), 10))
        wait_s = max(backoff_s, min(retry_after_s or 0.0, LONGEST_ASKED_S))
        _update(
            connection,
            place,
            "state = 'active', lease_owner = NULL, lease_until = NULL, failures = failures + 1,"
            " problem = %(problem)s, retry_at = clock_timestamp() + make_interval(secs => %(wait_s)s)",
            problem=reason[:_PROBLEM_CHARACTERS],
            wait_s=wait_s,
        )
        if row["failures"] == 0:
            record(
                connection,
                place.organization_id,
                "token.refresh_failed",
                place.connection,
                environment=place.environment,
                details={"reason": reason[:_PROBLEM_CHARACTERS]},
                keys=keys,
            )
    return wait_s


def connected(
    connection: psycopg.Connection[Any], place: Place, definition: Definition, got: Obtained, keys: Cipher
) -> None:
    """Store what a person's connecting brought, in the caller's transaction (application role). Answers of
    attempts that are under way are of before, and dropped."""
    row = _locked(connection, place)
    _store(connection, place, row["now"], row["attempt"] + 1, definition, got, keys, release=True)
    connections.announce(connection, place.organization_id, place.environment)


def drop(place: Place, keys: Cipher, definition: Definition) -> Obtained | None:
    """Forget the token, and give what it was; what is under way brings nothing any more. Where only a person can
    bring another, the connection is to be connected again."""
    with database.tenant(place.organization_id) as connection:
        row = _locked(connection, place)
        held = _held(place, row, definition, keys)
        _update(
            connection,
            place,
            "attempt = attempt + 1, generation = attempt + 1, ciphertext = NULL, obtained_at = NULL,"
            " expires_at = NULL, lease_owner = NULL, lease_until = NULL, retry_at = NULL, failures = 0,"
            " doubted_since = NULL, renewable = false, revision = %(revision)s, state = %(state)s,"
            " problem = %(problem)s",
            revision=definition.revision,
            state="reconnect" if needs_person(definition) else "active",
            problem="its token was revoked" if needs_person(definition) else None,
        )
        connections.announce(connection, place.organization_id, place.environment)
        record(
            connection,
            place.organization_id,
            "token.revoked",
            place.connection,
            environment=place.environment,
            keys=keys,
        )
    return held


def reconnect(place: Place, reason: str) -> ReconnectNeeded:
    """The error of a connection that has no token and gets none by itself."""
    return ReconnectNeeded(
        f"the connection {place.connection!r} in {place.environment} has to be connected again"
        f" (`bridge connection connect {place.connection}`), or its credentials put right: {reason}",
        connection=place.connection,
        reason=reason,
    )


# -- rows ---------------------------------------------------------------------------------------------------

_HERE = "organization_id = %(organization_id)s AND environment = %(environment)s AND connection = %(connection)s"


def _locked(connection: psycopg.Connection[Any], place: Place) -> dict[str, Any]:
    """The row, made if need be, and ours until the transaction ends; `now` is the database's clock after that."""
    with connection.cursor(row_factory=dict_row) as cursor:
        for _ in range(2):
            cursor.execute(f"SELECT * FROM bridge.tokens WHERE {_HERE} FOR UPDATE", place._asdict())  # noqa: S608
            row = cursor.fetchone()
            if row is not None:
                row["now"] = connection.execute("SELECT clock_timestamp()").fetchall()[0][0]
                return row
            # The connection is looked up, not just referred to: it may have been removed a moment ago.
            cursor.execute(
                "INSERT INTO bridge.tokens (organization_id, environment, connection)"
                " SELECT organization_id, environment, name FROM bridge.connections"
                " WHERE organization_id = %(organization_id)s AND environment = %(environment)s"
                " AND name = %(connection)s FOR KEY SHARE ON CONFLICT DO NOTHING",
                place._asdict(),
            )
    raise NotFound(f"no connection {place.connection!r} in {place.environment}", connection=place.connection)


def _held(place: Place, row: dict[str, Any], definition: Definition, keys: Cipher) -> Obtained | None:
    if row["ciphertext"] is None:
        return None
    if not keys.matches(place.organization_id, identity(definition), bytes(row["grant_fingerprint"])):
        return None
    return Obtained.from_json(
        keys.decrypt(place.organization_id, PURPOSE, _bound_to(place, row["generation"]), bytes(row["ciphertext"]))
    )


def _token(row: dict[str, Any], held: Obtained) -> Token:
    ends = None if row["expires_at"] is None else row["expires_at"].timestamp()
    return Token(held.access, row["generation"], fresh_until(row["obtained_at"].timestamp(), ends), ends)


def _is_old(token: Token, now: datetime) -> bool:
    return token.fresh_until is not None and now.timestamp() >= token.fresh_until


def _first_refresh(definition: Definition) -> str | None:
    declared = getattr(definition.auth, "refresh_token", None)
    return None if declared is None else str(declared.get_secret_value())


def _release(connection: psycopg.Connection[Any], place: Place) -> None:
    _update(connection, place, "state = 'active', lease_owner = NULL, lease_until = NULL")


def _update(connection: psycopg.Connection[Any], place: Place, assignments: str, **values: Any) -> None:
    query = f"UPDATE bridge.tokens SET {assignments} WHERE {_HERE}"  # noqa: S608  (our own words)
    connection.execute(query, {**place._asdict(), **values})


def _store(
    connection: psycopg.Connection[Any],
    place: Place,
    now: datetime,
    generation: int,
    definition: Definition,
    got: Obtained,
    keys: Cipher,
    *,
    release: bool,
) -> None:
    ends = None if got.lifetime_s is None else now + timedelta(seconds=got.lifetime_s)
    _update(
        connection,
        place,
        "generation = %(generation)s, attempt = greatest(attempt, %(generation)s), ciphertext = %(ciphertext)s,"
        " grant_fingerprint = %(fingerprint)s, revision = %(revision)s, renewable = %(renewable)s,"
        " obtained_at = %(now)s, expires_at = %(ends)s, failures = 0, retry_at = NULL, problem = NULL,"
        " doubted_since = NULL, state = CASE WHEN %(release)s OR lease_owner IS NULL THEN 'active' ELSE state END,"
        " lease_until = CASE WHEN %(release)s THEN NULL ELSE lease_until END,"
        " lease_owner = CASE WHEN %(release)s THEN NULL ELSE lease_owner END",
        generation=generation,
        ciphertext=keys.encrypt(place.organization_id, PURPOSE, _bound_to(place, generation), got.to_json()),
        fingerprint=keys.fingerprint(place.organization_id, identity(definition)),
        revision=definition.revision,
        renewable=got.refresh is not None or not needs_person(definition),
        now=now,
        ends=ends,
        release=release,
    )


def _bound_to(place: Place, generation: int) -> str:
    return f"{place.environment}/{place.connection}/{generation}"


COLUMNS: tuple[EncryptedColumn | FingerprintColumn, ...] = (
    EncryptedColumn(
        "tokens",
        "ciphertext",
        ("environment", "connection"),
        PURPOSE,
        lambda row: f"{row['environment']}/{row['connection']}/{row['generation']}",
        more=("generation",),
    ),
    FingerprintColumn("tokens", "grant_fingerprint", ("environment", "connection")),
)
"""What of the table `tokens` is encrypted."""
