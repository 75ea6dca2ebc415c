"""A real mail server on 127.0.0.1 for tests: takes mails, or answers what it is told to."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path
from typing import Any

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, Envelope, LoginPassword, Session


@dataclass
class MailServer:
    """`mails` are those it took. `answer(recipient)` decides (default: `250 OK`)."""

    mails: list[EmailMessage] = field(default_factory=list)
    recipients: list[str] = field(default_factory=list)
    answer: Callable[[str], str] = lambda recipient: "250 OK"
    signed_in: list[str] = field(default_factory=list)
    password: str | None = None
    port: int = 0

    async def handle_RCPT(
        self, server: Any, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        answer = self.answer(address)
        if answer.startswith("250"):
            envelope.rcpt_tos.append(address)
        return answer

    async def handle_DATA(self, server: Any, session: Session, envelope: Envelope) -> str:
        parsed = message_from_bytes(envelope.content or b"", policy=policy.default)
        assert isinstance(parsed, EmailMessage)
        self.mails.append(parsed)
        self.recipients.extend(envelope.rcpt_tos)
        return "250 OK"

    def authenticate(self, server: Any, session: Session, envelope: Envelope, how: str, data: Any) -> AuthResult:
        assert isinstance(data, LoginPassword)
        right = data.password.decode() == self.password
        if right:
            self.signed_in.append(data.login.decode())
        return AuthResult(success=right, handled=True)

    def to(self, address: str) -> list[EmailMessage]:
        return [mail for mail in self.mails if mail["To"] == address]


@contextlib.contextmanager
def mail_server(
    *, port: int = 0, certificate: Path | None = None, key: Path | None = None, password: str | None = None
) -> Iterator[MailServer]:
    """It runs; with a certificate and its key it offers STARTTLS, with a password it wants to know who sends."""
    server = MailServer(password=password)
    context = None
    if certificate is not None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate, key)
    controller = Controller(
        server,
        hostname="127.0.0.1",
        port=port or _free_port(),
        tls_context=context,
        require_starttls=context is not None,
        authenticator=server.authenticate,
        auth_required=password is not None,
    )
    controller.start()
    server.port = controller.port
    try:
        yield server
    finally:
        controller.stop()


def _free_port() -> int:
    from continuitybridge.runtime.ports import free_port

    return free_port()
