"""The second factor: codes of an authenticator app (TOTP, RFC 6238: SHA-1, six digits, steps of 30 seconds), and
recovery codes for whoever lost it.

A code of the step before and of the one after is taken too (RFC 6238, 5.2); each step's code holds once. That
wrong codes count as failed sign-ins is for those who call.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from dataclasses import dataclass
from typing import Any

import psycopg
import pyotp

from continuitybridge import database, sessions
from continuitybridge.errors import ConfigurationError, Conflict, NotAuthenticated
from continuitybridge.settings import get_settings
from continuitybridge.sign_in import events
from continuitybridge.vault import PLATFORM
from continuitybridge.vault.columns import EncryptedColumn
from continuitybridge.vault.keyring import Keyring

ISSUER = "ContinuityBridge"
STEP_S = 30
WINDOW = 1
"""Steps that a clock may be off."""
RECOVERY_CODES = 10
_PURPOSE = "totp"
_ALPHABET = "abcdefghjkmnpqrstuvwxyz"
"""No digits: a recovery code is never taken for the app's."""

Connection = psycopg.Connection[Any]


class CodeNeeded(NotAuthenticated):
    """The account has a second factor, and no code came."""

    code = "second-factor-needed"
    title = "A code of the second factor is needed"


class WrongCode(NotAuthenticated):
    """The code is wrong, too old, or was used before."""

    code = "second-factor-wrong"
    title = "The code of the second factor does not hold"


class EnrolmentNeeded(NotAuthenticated):
    """An organization of the person's requires a second factor, and he has none: he sets one up first, by his
    password or by an identity provider of his, and signs in then. Facts: `address`, where he does."""

    code = "second-factor-enrolment-needed"
    title = "A second factor is to be set up first"


@dataclass(frozen=True, slots=True)
class Enrolment:
    """What an authenticator app needs, shown this once; `uri` is for a QR code (otpauth, Key Uri Format).
    `user_name`: whose it will be."""

    secret: str
    uri: str
    user_name: str


def is_enrolled(user_name: str) -> bool:
    """Whether the person signs in with a second factor."""
    with database.platform() as connection:
        row = connection.execute(
            "SELECT FROM bridge.people WHERE user_name = %s AND totp_since IS NOT NULL", (user_name,)
        ).fetchone()
    return row is not None


def is_required(user_name: str) -> bool:
    """Whether an organization of the person's requires one."""
    with database.platform() as connection:
        return _is_required(connection, user_name)


def must_enrol(user_name: str) -> bool:
    """Whether the person is to set one up before he is let in."""
    return not is_enrolled(user_name) and is_required(user_name)


def begin(user_name: str, *, keyring: Keyring | None = None) -> Enrolment:
    """Make a secret, which counts once a code of it was shown (`confirm`). Raises `Conflict` when there is
    one already."""
    secret = pyotp.random_base32()
    sealed = (keyring or Keyring.open()).encrypt(PLATFORM, _PURPOSE, user_name, secret.encode())
    with database.platform() as connection:
        made = connection.execute(
            "INSERT INTO bridge.people AS p (user_name, totp_secret) VALUES (%s, %s)"
            " ON CONFLICT (user_name) DO UPDATE SET totp_secret = excluded.totp_secret, totp_step = 0"
            " WHERE p.totp_since IS NULL",
            (user_name, sealed),
        ).rowcount
    if not made:
        raise Conflict("there is a second factor already: remove it first")
    uri = pyotp.TOTP(secret).provisioning_uri(name=user_name, issuer_name=ISSUER)
    return Enrolment(secret, uri, user_name)


def confirm(user_name: str, code: str, *, keyring: Keyring | None = None) -> list[str]:
    """Have the secret count from now on, once a code of it is right: all sessions end. Gives recovery codes,
    shown this once. Raises `WrongCode`, `ConfigurationError` when nothing was begun, `Conflict` when it counts
    already."""
    codes = [_recovery_code() for _ in range(RECOVERY_CODES)]
    with database.platform() as connection:
        row = _row(connection, user_name)
        if row is None or row[0] is None:
            raise ConfigurationError("begin first: there is no secret to confirm", field="code")
        if row[1] is not None:
            raise Conflict("there is a second factor already")
        step = _step_of(user_name, row[0], code, row[2], keyring)
        connection.execute(
            "UPDATE bridge.people SET totp_since = now(), totp_step = %s WHERE user_name = %s", (step, user_name)
        )
        connection.execute("DELETE FROM bridge.recovery_codes WHERE user_name = %s", (user_name,))
        with connection.cursor() as cursor:
            cursor.executemany(
                "INSERT INTO bridge.recovery_codes (user_name, hash) VALUES (%s, %s)",
                [(user_name, _hash(user_name, each)) for each in codes],
            )
        sessions.end_all(connection, user_name)
        events.record_for(connection, user_name, "second_factor.enrolled")
    return codes


def require(user_name: str, code: str | None, *, keyring: Keyring | None = None) -> None:
    """Nothing where the person has no second factor and needs none; else use the code up. Raises `CodeNeeded`,
    `WrongCode`, `EnrolmentNeeded`."""
    with database.platform() as connection:
        row = _row(connection, user_name)
        if row is None or row[1] is None:
            if _is_required(connection, user_name):
                raise enrolment_needed()
            return
        given = _plain(code or "")
        if not given:
            raise CodeNeeded("this account signs in with a second factor: send its code too")
        if not given.isdigit():
            used = connection.execute(
                "UPDATE bridge.recovery_codes SET used_at = now()"
                " WHERE user_name = %s AND hash = %s AND used_at IS NULL",
                (user_name, _hash(user_name, given)),
            ).rowcount
            if not used:
                raise WrongCode("the recovery code is wrong, or was used before")
            events.record_for(connection, user_name, "second_factor.recovery_code_used")
        else:
            step = _step_of(user_name, row[0], given, row[2], keyring)
            connection.execute("UPDATE bridge.people SET totp_step = %s WHERE user_name = %s", (step, user_name))


def after_password(user_name: str, code: str | None, *, way: str = "password") -> None:
    """The second step behind a right password, or another `way`: as `require`, and the audit trails tell what
    became of it."""
    if not is_enrolled(user_name) and not is_required(user_name):
        return
    try:
        require(user_name, code)
    except EnrolmentNeeded:
        events.tell(user_name, "sign_in.failed", way=way, why="no second factor")
        raise
    except WrongCode:
        events.tell(user_name, "sign_in.failed", way=way, why="second factor")
        raise
    events.tell(user_name, "sign_in.succeeded", way=way)


def remove(user_name: str, *, by: str) -> bool:
    """Sign in without a second factor from now on: all sessions end. Whether there was one. Whoever calls has made
    sure that he may."""
    with database.platform() as connection:
        removed = connection.execute(
            "UPDATE bridge.people SET totp_secret = NULL, totp_since = NULL, totp_step = 0"
            " WHERE user_name = %s AND totp_since IS NOT NULL",
            (user_name,),
        ).rowcount
        connection.execute("DELETE FROM bridge.recovery_codes WHERE user_name = %s", (user_name,))
        if removed:
            sessions.end_all(connection, user_name)
            events.record_for(connection, user_name, "second_factor.removed", by=by)
    return bool(removed)


def enrolment_needed() -> EnrolmentNeeded:
    """The refusal."""
    address = f"{get_settings().external_url}/bridge/sign-in/second-factor"
    return EnrolmentNeeded(
        f"an organization of yours requires a second factor: set it up at {address}, and sign in then",
        address=address,
    )


def _is_required(connection: Connection, user_name: str) -> bool:
    row = connection.execute(
        "SELECT FROM bridge.memberships m JOIN bridge.organizations o USING (organization_id)"
        " WHERE m.user_name = %s AND o.second_factor_required AND o.status <> 'deleting' LIMIT 1",
        (user_name,),
    ).fetchone()
    return row is not None


def _row(connection: Connection, user_name: str) -> tuple[bytes | None, Any, int] | None:
    # Two who show the same code wait for each other, so that it holds once.
    return connection.execute(
        "SELECT totp_secret, totp_since, totp_step FROM bridge.people WHERE user_name = %s FOR UPDATE",
        (user_name,),
    ).fetchone()


def _step_of(user_name: str, sealed: bytes | None, code: str, used: int, keyring: Keyring | None) -> int:
    """The step whose code it is, and which is later than the last one that was used. Raises `WrongCode`."""
    assert sealed is not None  # noqa: S101  (looked at by callers)
    secret = (keyring or Keyring.open()).decrypt(PLATFORM, _PURPOSE, user_name, sealed)
    totp, given, now = pyotp.TOTP(secret.decode()), _plain(code), int(time.time()) // STEP_S
    for step in range(now - WINDOW, now + WINDOW + 1):
        if secrets.compare_digest(totp.generate_otp(step).encode(), given.encode()) and step > used:
            return step
    raise WrongCode("the code is wrong, too old, or was used before")


def _plain(code: str) -> str:
    given = "".join(code.split()).replace("-", "").lower()[:64]
    return given if given.isascii() else "?"


def _recovery_code() -> str:
    """45 bits, which are guessed only through `require`."""
    signs = [secrets.choice(_ALPHABET) for _ in range(10)]
    return f"{''.join(signs[:5])}-{''.join(signs[5:])}"


def _hash(user_name: str, code: str) -> bytes:
    # Slow: the codes are short, and the table may be read by whoever steals a backup.
    return hashlib.scrypt(_plain(code).encode(), salt=user_name.encode(), n=2**12, r=8, p=1, dklen=32)


COLUMNS = (
    EncryptedColumn(
        "people",
        "totp_secret",
        ("user_name",),
        _PURPOSE,
        lambda row: str(row["user_name"]),
        reader="platform",
        writer="platform",
    ),
)
"""Of `vault.columns`."""
