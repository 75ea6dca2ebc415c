"""The postman: takes mails from the outbox to the installation's mail server (RFC 5321, RFC 8314)."""

from __future__ import annotations

import logging
import smtplib
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import localtime, parseaddr
from uuid import UUID

from uuid6 import uuid7

from continuitybridge import private_files
from continuitybridge.errors import ConfigurationError, Unavailable
from continuitybridge.mail import outbox
from continuitybridge.mail.letters import Letter, Rendered, render
from continuitybridge.settings import Settings, get_settings

TIMEOUT_S = 20.0
"""How long the mail server may take for each answer."""
AT_ONCE = 20

log = logging.getLogger(__name__)


def deliver_due(settings: Settings | None = None) -> int:
    """Send what is due; how many the mail server took. A server that does not answer delays, and loses nothing."""
    settings = settings or get_settings()
    if not outbox.is_set_up(settings):
        return 0
    done = 0
    while left := outbox.take(AT_ONCE):
        try:
            with _connected(settings) as server:
                while left:
                    done += _deliver(server, settings, left[0])
                    left.pop(0)
        except (OSError, smtplib.SMTPException, ConfigurationError) as error:
            problem = _said(error)
            log.warning("the mail server %s cannot be used now: %s", settings.smtp_host, problem)
            outbox.postpone(left, problem)
            break
    return done


def send_now(letter: Letter, settings: Settings | None = None) -> None:
    """Send a letter without the outbox, to try the settings. Raises `MailNotSetUp`, `Unavailable` saying why the
    server did not take it, `ConfigurationError`."""
    settings = settings or get_settings()
    outbox.require_set_up(settings)
    try:
        with _connected(settings) as server:
            server.send_message(_message(settings, uuid7(), render(letter)))
    except (OSError, smtplib.SMTPException) as error:
        raise Unavailable(f"the mail server {settings.smtp_host} did not take it: {_said(error)}") from error


def _deliver(server: smtplib.SMTP, settings: Settings, mail: outbox.Taken) -> int:
    """1 when the server took it. Raises when the connection is of no use any more."""
    if mail.rendered is None:
        outbox.failed(mail, mail.problem or "it does not open", for_good=True)
        return 0
    try:
        server.send_message(_message(settings, mail.mail_id, mail.rendered))
    except smtplib.SMTPServerDisconnected:
        raise
    except smtplib.SMTPRecipientsRefused as error:
        [(code, _)] = error.recipients.values()
        _failed(mail, _said(error), for_good=500 <= code < 600)
        with suppress(smtplib.SMTPException):
            server.rset()
        return 0
    except smtplib.SMTPResponseException as error:
        # Greylisting and full mailboxes are 4xx: try again.
        _failed(mail, _said(error), for_good=500 <= error.smtp_code < 600)
        with suppress(smtplib.SMTPException):
            server.rset()
        return 0
    outbox.sent(mail)
    return 1


def _failed(mail: outbox.Taken, problem: str, *, for_good: bool) -> None:
    if outbox.failed(mail, problem, for_good=for_good):
        log.error("mail %s (%s) is given up: %s", mail.mail_id, mail.kind, problem)


def _message(settings: Settings, mail_id: UUID, rendered: Rendered) -> EmailMessage:
    name, sender = parseaddr(settings.smtp_from or "")
    message = EmailMessage(policy=SMTP)
    message["From"] = Address(name, addr_spec=sender)
    message["To"] = Address(addr_spec=rendered.to)
    message["Subject"] = rendered.subject
    message["Date"] = localtime()
    message["Message-ID"] = f"<{mail_id}@{sender.rpartition('@')[2]}>"
    # RFC 3834: no out-of-office answers.
    message["Auto-Submitted"] = "auto-generated"
    message.set_content(rendered.text)
    message.add_alternative(rendered.html, subtype="html")
    return message


@contextmanager
def _connected(settings: Settings) -> Iterator[smtplib.SMTP]:
    host, port = settings.smtp_host or "", settings.smtp_server_port
    context = ssl.create_default_context(cafile=settings.smtp_ca_file)
    # Left to itself the library asks DNS for the machine's full name.
    local = socket.gethostname()
    server: smtplib.SMTP
    if settings.smtp_security == "tls":
        server = smtplib.SMTP_SSL(host, port, local, timeout=TIMEOUT_S, context=context)
    else:
        server = smtplib.SMTP(host, port, local, timeout=TIMEOUT_S)
    try:
        if settings.smtp_security == "starttls":
            server.starttls(context=context)
        if settings.smtp_user is not None:
            server.login(settings.smtp_user, _password(settings))
        yield server
    finally:
        with suppress(OSError, smtplib.SMTPException):
            server.quit()
        server.close()


def _password(settings: Settings) -> str:
    file = settings.smtp_password_file
    if file is None:
        raise ConfigurationError(
            "BRIDGE_SMTP_USER needs BRIDGE_SMTP_PASSWORD_FILE", field="BRIDGE_SMTP_PASSWORD_FILE"
        )
    return private_files.read(file, "BRIDGE_SMTP_PASSWORD_FILE")


def _said(error: Exception) -> str:
    """What the server or the library said, in one line that names no recipient."""
    if isinstance(error, smtplib.SMTPRecipientsRefused):
        [(code, text)] = error.recipients.values()
        return (
            f"the recipient was refused ({code})"
            if not text
            else f"the recipient was refused ({code} {_enhanced(text)})"
        )
    if isinstance(error, smtplib.SMTPResponseException):
        return f"the server answered {error.smtp_code} {_enhanced(error.smtp_error)}".strip()
    if isinstance(error, ConfigurationError):
        return error.detail
    return f"{type(error).__name__}: {error}".split("\n", 1)[0][:300]


def _enhanced(text: bytes | str) -> str:
    """The enhanced status code (RFC 3463) of an answer; the words beside it may name the recipient."""
    said = text.decode("ascii", "replace") if isinstance(text, bytes) else text
    first = said.split(maxsplit=1)[0] if said.strip() else ""
    return first if first.replace(".", "").isdigit() else ""
