"""Mails: sent when what they tell of is committed, again while the server does not take them, and not for ever."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from email.message import EmailMessage
from pathlib import Path
from secrets import token_urlsafe
from uuid import uuid4

import psycopg
import pytest
from click.testing import CliRunner
from damaged_trail import planted_event
from sealing_world import passphrase, vault

from certificates import self_signed
from continuitybridge import database, invitations, mail
from continuitybridge.audit.reading import Filter, search
from continuitybridge.cli import bridge
from continuitybridge.errors import ConfigurationError
from continuitybridge.mail import Letter
from continuitybridge.organizations import Organization
from continuitybridge.settings import Settings, get_settings
from continuitybridge.vault import Keyring, rotation
from mail_server import MailServer, mail_server

__all__ = ["passphrase"]

Configure = Callable[..., Settings]


@pytest.fixture
def configure(settings: Settings) -> Iterator[Configure]:
    """Sets settings of the mail server for this test."""
    set_: list[str] = []

    def configure(**given: object) -> Settings:
        given = {"from": "ContinuityBridge <bridge@example.com>", "host": "127.0.0.1", "security": "none", **given}
        for name, value in given.items():
            set_.append(f"BRIDGE_SMTP_{name.upper()}")
            os.environ[set_[-1]] = str(value)
        get_settings.cache_clear()
        return get_settings()

    yield configure
    for name in set_:
        os.environ.pop(name, None)
    get_settings.cache_clear()


@pytest.fixture
def server(configure: Configure) -> Iterator[MailServer]:
    """A mail server that the settings name."""
    _nothing_waits()
    with mail_server() as running:
        configure(port=running.port)
        yield running


def _nothing_waits() -> None:
    with database.platform() as connection:
        connection.execute("DELETE FROM bridge.mails")


def letter(to: str = "", **given: object) -> Letter:
    content = {"kind": "trial", "subject": "A trial", "paragraphs": ("First.", "Second <b>& last</b>.")}
    return Letter(to=to or f"{uuid4().hex}@example.com", **{**content, **given})  # type: ignore[arg-type]


def post(organization: Organization | None, written: Letter, **given: timedelta) -> None:
    with database.platform() as connection:
        mail.put(connection, organization and organization.organization_id, written, **given)


def all_is_due() -> None:
    with database.platform() as connection:
        connection.execute("UPDATE bridge.mails SET due_at = now() WHERE status = 'waiting'")


def state() -> mail.outbox.Mail:
    return mail.listing(1)[0]


def part(message: EmailMessage, kind: str) -> str:
    body = message.get_body((kind,))
    assert isinstance(body, EmailMessage)
    return str(body.get_content())


def test_a_mail_says_the_same_as_text_and_as_html(server: MailServer, organization: Organization) -> None:
    written = letter(button=("Go on", "https://bridge.example/x?a=1&b=2"), closing=("Small print.",))
    with database.tenant(organization.organization_id) as connection:
        mail.put(connection, organization.organization_id, written)
    assert mail.deliver_due() == 1
    [message] = server.to(written.to)
    assert message["From"] == "ContinuityBridge <bridge@example.com>"
    assert message["Subject"] == "A trial"
    assert message["Message-ID"] == f"<{state().mail_id}@example.com>"
    assert message["Auto-Submitted"] == "auto-generated"
    text, html = part(message, "plain"), part(message, "html")
    for expected in ("Second <b>& last</b>.", "Go on:\nhttps://bridge.example/x?a=1&b=2\n", "Small print."):
        assert expected in text.replace("\r\n", "\n")
    for expected in ("Second &lt;b&gt;&amp; last&lt;/b&gt;.", 'href="https://bridge.example/x?a=1&amp;b=2"'):
        assert expected in html
    assert state().status == "sent"
    assert mail.deliver_due() == 0
    assert len(server.to(written.to)) == 1


def test_what_fails_sends_nothing(server: MailServer) -> None:
    def fail() -> None:
        with database.platform() as connection:
            mail.put(connection, None, letter())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert mail.deliver_due() == 0
    assert server.mails == []


def test_the_database_holds_neither_whom_to_nor_what_in_clear(server: MailServer) -> None:
    written = letter(
        subject="A subject nobody reads", button=("Go", f"https://bridge.example/{token_urlsafe(24)}")
    )
    post(None, written)
    with psycopg.connect(database.owner_url()) as connection:
        connection.execute("ALTER TABLE bridge.mails NO FORCE ROW LEVEL SECURITY")
        [(row,)] = connection.execute("SELECT m::text FROM bridge.mails m").fetchall()
        [(content,)] = connection.execute("SELECT content FROM bridge.mails").fetchall()
        connection.rollback()
    assert written.button is not None
    for clear in (written.to, written.subject, written.button[1]):
        assert clear not in row
        assert clear.encode() not in content
    assert mail.deliver_due() == 1
    with database.platform() as connection:
        assert connection.execute("SELECT content FROM bridge.mails").fetchall() == [(None,)]


def test_a_server_that_is_away_delays_and_loses_nothing(configure: Configure) -> None:
    _nothing_waits()
    with mail_server() as gone:
        port = gone.port
    configure(port=port)
    written = letter()
    post(None, written)
    for _ in range(mail.outbox.MAX_TRIES + 1):
        assert mail.deliver_due() == 0
        assert (state().status, state().tries) == ("waiting", 0)
        all_is_due()
    assert "Error" in (state().problem or "")
    with mail_server(port=port) as back:
        assert mail.deliver_due() == 1
        assert len(back.to(written.to)) == 1


def test_a_mail_that_is_not_taken_for_now_is_tried_again_and_given_up_at_last(
    server: MailServer, organization: Organization
) -> None:
    server.answer = lambda recipient: "451 4.7.1 later"
    post(organization, letter())
    for number in range(1, mail.outbox.MAX_TRIES):
        assert mail.deliver_due() == 0
        assert (state().status, state().tries) == ("waiting", number)
        assert mail.deliver_due() == 0
        assert state().tries == number, "not before its time"
        all_is_due()
    assert mail.deliver_due() == 0
    assert (state().status, state().problem) == ("dead", "the recipient was refused (451 4.7.1)")
    [event] = search(organization.organization_id, Filter(action="mail.given_up"), keys=Keyring.open())
    assert event.target == str(state().mail_id)


def test_one_that_is_refused_for_good_is_given_up_and_holds_up_no_other(
    server: MailServer, organization: Organization
) -> None:
    refused, taken = letter(), letter()
    server.answer = lambda recipient: "550 5.1.1 no such user" if recipient == refused.to else "250 OK"
    post(organization, refused)
    post(organization, taken)
    assert mail.deliver_due() == 1
    assert [len(server.to(each.to)) for each in (refused, taken)] == [0, 1]
    assert sorted(each.status for each in mail.listing(2)) == ["dead", "sent"]


def test_a_mail_that_is_too_late_is_not_sent(server: MailServer) -> None:
    post(None, letter(), valid_for=timedelta(seconds=0.2))
    time.sleep(0.3)
    assert mail.deliver_due() == 0
    assert state().status == "dead"


def test_a_trail_that_was_tampered_with_holds_up_nobodys_mails(
    server: MailServer, make_organization: Callable[[], Organization], caplog: pytest.LogCaptureFixture
) -> None:
    damaged, other = make_organization(), make_organization()
    late, refused, taken = letter(), letter(), letter()
    server.answer = lambda recipient: "550 5.1.1 no such user" if recipient == refused.to else "250 OK"
    post(damaged, late, valid_for=timedelta(0))
    post(damaged, refused)
    post(other, taken)
    with planted_event(damaged):
        assert mail.deliver_due() == 1
    assert len(server.to(taken.to)) == 1
    assert sorted(each.status for each in mail.listing(3)) == ["dead", "dead", "sent"]
    told = [each.message for each in caplog.records if "is not told that mail" in each.message]
    assert len(told) == 2
    assert all(str(damaged.organization_id) in each for each in told)


def test_a_password_goes_by_tls_only_and_the_certificate_is_checked(configure: Configure, tmp_path: Path) -> None:
    _nothing_waits()
    certificate, secret = self_signed(tmp_path), tmp_path / "password"
    secret.write_text(token_urlsafe(12) + "\n")
    secret.chmod(0o600)
    with mail_server(certificate=certificate, key=certificate, password=secret.read_text().strip()) as server:
        given = {"port": server.port, "security": "starttls", "user": "bridge", "password_file": secret}
        configure(**given)
        post(None, letter())
        assert mail.deliver_due() == 0
        assert "CERTIFICATE_VERIFY_FAILED" in (state().problem or "")
        configure(**given, ca_file=certificate)
        all_is_due()
        assert mail.deliver_due() == 1
        assert server.signed_in == ["bridge"]
        secret.chmod(0o644)
        post(None, letter())
        assert mail.deliver_due() == 0
        assert "chmod 600" in (state().problem or "")
    with pytest.raises(ConfigurationError, match="no password in clear"):
        configure(**{**given, "security": "none"})


def test_mails_open_after_the_master_key_was_rotated(server: MailServer) -> None:
    post(None, letter())
    rotation.rotate_master_key()
    assert all(each.problem is None for each in rotation.check())
    assert "(platform)" in {each.organization for each in rotation.check()}
    assert mail.deliver_due() == 1


def test_a_mail_waits_while_the_master_key_is_sealed(server: MailServer, passphrase: str) -> None:
    post(None, letter())
    vault("seal")
    Keyring.open().forget()
    assert mail.deliver_due() == 0
    assert (state().status, state().tries, "sealed" in (state().problem or "")) == ("waiting", 0, True)
    assert vault("unseal", "--passphrase-file", "-", given=f"{passphrase}\n").exit_code == 0
    all_is_due()
    assert mail.deliver_due() == 1


def test_a_domain_in_letters_of_any_script_is_written_to_by_its_name_at_mail_servers(
    server: MailServer, organization: Organization
) -> None:
    made = invitations.invite(organization.organization_id, "anna@Bücher.example", "customer_user", by="test")
    assert mail.deliver_due() == 1
    [sent] = server.to("anna@xn--bcher-kva.example")
    assert made.token in part(sent, "plain")
    # One that looks like another is another.
    invitations.invite(
        organization.organization_id, "anna@\N{CYRILLIC SMALL LETTER A}cme.example", "customer_user", by="t"
    )
    assert mail.deliver_due() == 1
    assert server.to("anna@acme.example") == []


@pytest.mark.parametrize(
    "address",
    [
        *("nobody", "a@b\r\nBcc: c@d", "@example.com", "a@", "a b@example.com", ""),
        "zoë@example.com",
        "a@b\N{BULLET}.example",
    ],
)
def test_an_address_that_is_none_is_refused(server: MailServer, address: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        post(None, Letter(kind="trial", to=address, subject="x", paragraphs=()))
    assert refused.value.facts["field"] == "email"


def test_the_command_sends_a_mail_or_says_why_not(server: MailServer) -> None:
    done = CliRunner().invoke(bridge, ["mail", "test", "operator@example.com"])
    assert done.exit_code == 0, done.output
    assert len(server.to("operator@example.com")) == 1
    server.answer = lambda recipient: "550 5.7.1 relaying denied"
    refused = CliRunner().invoke(bridge, ["mail", "test", "operator@example.com"])
    assert refused.exit_code == 2
    assert "550 5.7.1" in refused.output
