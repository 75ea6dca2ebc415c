"""The outbox: mails stand in the database, encrypted, until they are sent or given up.

At least once: a postman that dies between the server's answer and noting it sends the mail again, with the same
Message-ID. What a transaction writes that fails is never sent.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import orjson
import psycopg
from uuid6 import uuid7

from continuitybridge import database
from continuitybridge.audit import TrailDamaged, record
from continuitybridge.errors import BridgeError, Unavailable, Verdict
from continuitybridge.mail.letters import Letter, Rendered, render
from continuitybridge.settings import Settings, get_settings
from continuitybridge.vault import PLATFORM
from continuitybridge.vault.columns import EncryptedColumn
from continuitybridge.vault.keyring import Keyring

MAX_TRIES = 12
"""Tries until a mail is given up: some five hours."""
FIRST_WAIT_S = 15
MAX_WAIT_S = 3600
CLAIM_S = 300
"""How long a postman has for what it took; then another one takes it."""
SERVER_AWAY_S = 30
"""How soon a mail server that did not answer is asked again."""
KEPT = timedelta(days=30)
"""How long is kept that a mail was sent or given up."""

_PURPOSE = "mail"
Connection = psycopg.Connection[Any]

log = logging.getLogger(__name__)


class MailNotSetUp(Unavailable):
    """The installation has no mail server to send by; trying again does not help."""

    code = "mail-not-set-up"
    title = "The platform cannot send mails: BRIDGE_SMTP_HOST is not set"
    verdict = Verdict.TERMINAL


@dataclass(frozen=True, slots=True)
class Taken:
    """A mail that a postman holds. `tries` counts this one."""

    organization_id: UUID
    mail_id: UUID
    kind: str
    tries: int
    rendered: Rendered | None
    problem: str | None = None


def is_set_up(settings: Settings | None = None) -> bool:
    """Whether mails can be sent at all."""
    return (settings or get_settings()).smtp_host is not None


def require_set_up(settings: Settings | None = None) -> None:
    """Raises `MailNotSetUp`."""
    if not is_set_up(settings):
        raise MailNotSetUp("BRIDGE_SMTP_HOST is not set")


def put(
    connection: Connection,
    organization_id: UUID | None,
    letter: Letter,
    *,
    valid_for: timedelta = timedelta(days=2),
    keyring: Keyring | None = None,
) -> UUID:
    """Write a letter to the outbox in the caller's transaction: an organization's (application or platform role),
    or the platform's own (platform role). It is not sent any more after `valid_for`. Gives the mail's id.

    Raises `ConfigurationError` for an address that none can be written to.
    """
    owner, mail_id = organization_id or PLATFORM, uuid7()
    content = orjson.dumps(asdict(render(letter)))
    sealed = (keyring or Keyring.open()).encrypt(owner, _PURPOSE, str(mail_id), content)
    connection.execute(
        "INSERT INTO bridge.mails (organization_id, mail_id, kind, content, expires_at)"
        " VALUES (%s, %s, %s, %s, now() + %s)",
        (owner, mail_id, letter.kind, sealed, valid_for),
    )
    return mail_id


def take(limit: int) -> list[Taken]:
    """Take mails that are due, for `CLAIM_S`. Those that are too late are given up at once; those whose key cannot
    be had now wait on."""
    with database.platform() as connection:
        _give_up_late(connection)
        rows = connection.execute(
            "UPDATE bridge.mails m SET tries = m.tries + 1, due_at = now() + %s FROM ("
            " SELECT organization_id, mail_id FROM bridge.mails WHERE status = 'waiting' AND due_at <= now()"
            " ORDER BY due_at LIMIT %s FOR UPDATE SKIP LOCKED) d"
            " WHERE (m.organization_id, m.mail_id) = (d.organization_id, d.mail_id)"
            " RETURNING m.organization_id, m.mail_id, m.kind, m.tries, m.content",
            (timedelta(seconds=CLAIM_S), limit),
        ).fetchall()
    keyring = Keyring.open()
    opened: list[Taken] = []
    locked: list[Taken] = []
    problem = ""
    for row in rows:
        try:
            opened.append(_opened(keyring, *row))
        except Unavailable as error:
            # The master key is sealed, or kept where nobody answers now: no mail is given up for that.
            locked.append(Taken(row[0], row[1], row[2], row[3], None))
            problem = error.detail
    if locked:
        postpone(locked, problem)
    return opened


def _opened(
    keyring: Keyring, organization_id: UUID, mail_id: UUID, kind: str, tries: int, content: bytes
) -> Taken:
    try:
        plain = keyring.decrypt(organization_id, _PURPOSE, str(mail_id), content)
    except Unavailable:
        raise
    except BridgeError as error:
        return Taken(organization_id, mail_id, kind, tries, None, error.detail)
    return Taken(organization_id, mail_id, kind, tries, Rendered(**orjson.loads(plain)))


def _give_up_late(connection: Connection) -> None:
    late = connection.execute(
        "UPDATE bridge.mails SET status = 'dead', content = NULL, ended_at = now(),"
        " problem = coalesce(problem || '; ', '') || 'it came too late to be of use'"
        " WHERE status = 'waiting' AND expires_at <= now() AND due_at <= now()"
        " RETURNING organization_id, mail_id, kind, problem"
    ).fetchall()
    for organization_id, mail_id, kind, problem in late:
        _tell(connection, organization_id, mail_id, kind, problem)


def sent(taken: Taken) -> None:
    """It was taken by the mail server."""
    with database.platform() as connection:
        connection.execute(
            "UPDATE bridge.mails SET status = 'sent', content = NULL, ended_at = now(), problem = NULL"
            " WHERE organization_id = %s AND mail_id = %s AND status = 'waiting'",
            (taken.organization_id, taken.mail_id),
        )


def postpone(taken: Sequence[Taken], problem: str) -> None:
    """The mail server could not be asked, or the keys could not: that is no try of those who still wait."""
    with database.platform() as connection, connection.cursor() as cursor:
        cursor.executemany(
            "UPDATE bridge.mails SET tries = tries - 1, due_at = now() + %s, problem = %s"
            " WHERE organization_id = %s AND mail_id = %s AND status = 'waiting'",
            [(timedelta(seconds=SERVER_AWAY_S), problem, each.organization_id, each.mail_id) for each in taken],
        )


def failed(taken: Taken, problem: str, *, for_good: bool = False) -> bool:
    """It was not taken: it waits for the next try, or is given up (then an event in its organization's trail says
    so); returns whether it was given up."""
    dead = for_good or taken.tries >= MAX_TRIES
    with database.platform() as connection:
        if not dead:
            wait_s = min(MAX_WAIT_S, FIRST_WAIT_S * 2 ** (taken.tries - 1))
            connection.execute(
                "UPDATE bridge.mails SET due_at = now() + %s * (0.75 + random() / 2), problem = %s"
                " WHERE organization_id = %s AND mail_id = %s AND status = 'waiting'",
                (timedelta(seconds=wait_s), problem, taken.organization_id, taken.mail_id),
            )
            return False
        ended = connection.execute(
            "UPDATE bridge.mails SET status = 'dead', content = NULL, ended_at = now(), problem = %s"
            " WHERE organization_id = %s AND mail_id = %s AND status = 'waiting'",
            (problem, taken.organization_id, taken.mail_id),
        ).rowcount
        if ended:
            _tell(connection, taken.organization_id, taken.mail_id, taken.kind, problem)
    return True


def _tell(connection: Connection, organization_id: UUID, mail_id: UUID, kind: str, problem: str) -> None:
    if organization_id == PLATFORM:
        return
    details = {"kind": kind, "problem": problem}
    try:
        with connection.transaction():
            record(connection, organization_id, "mail.given_up", str(mail_id), details=details)
    except TrailDamaged as error:
        # One trail that was tampered with must not hold up everybody's mails.
        log.error(
            "organization %s is not told that mail %s was given up: %s", organization_id, mail_id, error.detail
        )


@dataclass(frozen=True, slots=True)
class Mail:
    """A mail as it may be shown: not whom to, nor what."""

    organization_id: UUID
    mail_id: UUID
    kind: str
    status: str
    tries: int
    created_at: datetime
    due_at: datetime
    ended_at: datetime | None
    problem: str | None


def listing(limit: int = 100) -> Sequence[Mail]:
    """The newest mails of the whole platform, newest first."""
    with database.platform() as connection:
        rows = connection.execute(
            "SELECT organization_id, mail_id, kind, status, tries, created_at, due_at, ended_at, problem"
            " FROM bridge.mails ORDER BY created_at DESC, mail_id DESC LIMIT %s",
            (limit,),
        ).fetchall()
    return [Mail(*row) for row in rows]


def forget_ended() -> int:
    """Delete what is said of mails that ended longer than `KEPT` ago; how many."""
    with database.platform() as connection:
        return connection.execute(
            "DELETE FROM bridge.mails WHERE status <> 'waiting' AND ended_at < now() - %s", (KEPT,)
        ).rowcount


COLUMNS = (
    EncryptedColumn(
        "mails",
        "content",
        ("mail_id",),
        _PURPOSE,
        lambda row: str(row["mail_id"]),
        reader="platform",
        writer="platform",
    ),
)
"""What of this room's tables is encrypted."""
