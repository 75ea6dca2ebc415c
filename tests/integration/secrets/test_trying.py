"""Trying a secret where it belongs, against servers that are real."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from secrets import token_urlsafe
from typing import Any
from urllib.parse import parse_qs, urlsplit

import asyncssh
import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, LoginPassword

from continuitybridge import database, secrets
from continuitybridge.organizations import Organization
from continuitybridge.secrets.trying import Tried, try_secret
from http_server import HttpServer

KEY, PASSWORD = token_urlsafe(), token_urlsafe()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self._answer(200 if self.headers["X-Shop-Key"] == KEY else 401, b"{}")

    def do_POST(self) -> None:
        form = parse_qs(self.rfile.read(int(self.headers["content-length"])).decode())
        from base64 import b64decode

        pair = b64decode(self.headers["authorization"].removeprefix("Basic ")).decode()
        if pair == f"client:{KEY}" and form["grant_type"] == ["client_credentials"]:
            self._answer(200, b'{"access_token": "x", "token_type": "Bearer"}')
        else:
            self._answer(401, b'{"error": "invalid_client"}')

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def web() -> Iterator[str]:
    server = HttpServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def mail() -> Iterator[int]:
    def known(server: Any, session: Any, envelope: Any, mechanism: str, given: Any) -> AuthResult:
        right = isinstance(given, LoginPassword) and given.password == PASSWORD.encode()
        return AuthResult(success=right, handled=False)

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    controller = Controller(
        None, hostname="127.0.0.1", port=port, authenticator=known, auth_required=True, auth_require_tls=False
    )
    controller.start()
    yield port
    controller.stop()


class SftpServer:
    """A real one, in a thread of its own."""

    def __init__(self, directory: Path) -> None:
        self.host_key = asyncssh.generate_private_key("ssh-ed25519")
        self.client_key = asyncssh.generate_private_key("ssh-ed25519")
        self.passwords: list[str] = []
        self._loop = asyncio.new_event_loop()
        self._ready, self._ending = threading.Event(), asyncio.Event()
        self._directory = directory
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),), daemon=True)
        self._thread.start()
        assert self._ready.wait(20)

    async def _serve(self) -> None:
        outer = self

        class Doors(asyncssh.SSHServer):
            def password_auth_supported(self) -> bool:
                return True

            def validate_password(self, username: str, password: str) -> bool:
                outer.passwords.append(password)
                return (username, password) == ("bridge", PASSWORD)

        known = asyncssh.import_authorized_keys(self.client_key.export_public_key().decode())
        server = await asyncssh.listen(
            "127.0.0.1",
            0,
            server_factory=Doors,
            server_host_keys=[self.host_key],
            authorized_client_keys=known,
            sftp_factory=lambda channel: asyncssh.SFTPServer(channel, chroot=str(self._directory)),
        )
        self.port = server.get_port()
        self._ready.set()
        await self._ending.wait()
        server.close()
        await server.wait_closed()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._ending.set)
        self._thread.join(20)


@pytest.fixture(scope="module")
def sftp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SftpServer]:
    server = SftpServer(tmp_path_factory.mktemp("sftp"))
    yield server
    server.close()


def public(key: asyncssh.SSHKey) -> str:
    return key.export_public_key().decode().strip()


def test_a_server_of_files_is_signed_in_to_by_password_or_key(
    organization: Organization, sftp: SftpServer
) -> None:
    given = {"host": "127.0.0.1", "port": sftp.port, "username": "bridge", "hostKey": public(sftp.host_key)}
    right = tried(organization, "sftp", {"password": PASSWORD, **given})
    assert (right.ok, right.detail) == (True, "signed in, at /")
    wrong = tried(organization, "sftp", {"password": "other", **given})
    assert (wrong.ok, "PermissionDenied" in wrong.detail) == (False, True)
    for passphrase in (None, PASSWORD):
        key = sftp.client_key.export_private_key(passphrase=passphrase, rounds=1).decode()
        by_key = {"privateKey": key, **({"passphrase": passphrase} if passphrase else {}), **given}
        assert tried(organization, "sftp", by_key).ok is True
    stranger = asyncssh.generate_private_key("ssh-ed25519").export_private_key().decode()
    assert tried(organization, "sftp", {"privateKey": stranger, **given}).ok is False


def test_no_password_is_shown_to_a_server_of_files_that_nobody_knows(
    organization: Organization, sftp: SftpServer
) -> None:
    sftp.passwords.clear()
    given = {"password": PASSWORD, "host": "127.0.0.1", "port": sftp.port, "username": "bridge"}
    unknown = tried(organization, "sftp", given)
    assert (unknown.ok, public(sftp.host_key) in unknown.detail) == (None, True)
    other = public(asyncssh.generate_private_key("ssh-ed25519"))
    another = tried(organization, "sftp", {**given, "hostKey": other})
    assert (another.ok, "another key" in another.detail) == (False, True)
    assert tried(organization, "sftp", {**given, "hostKey": "x"}).ok is False
    assert sftp.passwords == []


def tried(organization: Organization, type: str, value: dict[str, Any]) -> Tried:
    o = organization.organization_id
    secrets.put(o, "dev", "it", type, value, "anna")
    found = try_secret(o, "dev", "it", "anna")
    assert not any(isinstance(each, str) and each in found.detail for each in (KEY, PASSWORD))
    return found


def test_an_api_key_is_sent_to_its_test_address(organization: Organization, web: str) -> None:
    given = {"header": "X-Shop-Key", "testUrl": f"{web}/me"}
    assert tried(organization, "api_key", {"apiKey": KEY, **given}).ok is True
    wrong = tried(organization, "api_key", {"apiKey": "other", **given})
    assert (wrong.ok, "401" in wrong.detail) == (False, True)
    assert tried(organization, "api_key", {"apiKey": KEY}).ok is None


def test_an_oauth_client_gets_a_token(organization: Organization, web: str) -> None:
    given = {"clientId": "client", "tokenUrl": f"{web}/token"}
    assert tried(organization, "oauth2", {"clientSecret": KEY, **given}).ok is True
    wrong = tried(organization, "oauth2", {"clientSecret": "other", **given})
    assert (wrong.ok, "invalid_client" in wrong.detail) == (False, True)


def test_a_mail_server_is_signed_in_to(organization: Organization, mail: int) -> None:
    given = {"host": "127.0.0.1", "port": mail, "username": "bridge", "security": "none"}
    assert tried(organization, "smtp", {"password": PASSWORD, **given}).ok is True
    wrong = tried(organization, "smtp", {"password": "other", **given})
    assert (wrong.ok, "535" in wrong.detail) == (False, True)


def test_a_database_is_signed_in_to_unless_it_is_the_platforms_own(
    organization: Organization, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = database.owner_url()
    own = tried(organization, "database", {"connectionString": url})
    assert (own.ok, "platform" in own.detail) == (False, True)
    # The same server, as if it were another's.
    from continuitybridge.egress import Policy, parse_rules
    from continuitybridge.secrets import trying

    monkeypatch.setattr(trying, "egress_policy", lambda: Policy(parse_rules("127.0.0.0/8")))
    right = tried(organization, "database", {"connectionString": url})
    assert (right.ok, "PostgreSQL 1" in right.detail) == (True, True)
    wrong = tried(organization, "database", {"connectionString": url.replace(":", ":x", 2).replace(":x", ":", 1)})
    assert wrong.ok is False
    # What the server says of it names parts of the string.
    user, password = f"reader_{token_urlsafe(6)}", token_urlsafe()
    string = f"postgresql://{user}:{password}@{urlsplit(url).netloc.rpartition('@')[2]}/stock_of_acme"
    stranger = tried(organization, "database", {"connectionString": string})
    assert (stranger.ok, "[scrubbed]" in stranger.detail) == (False, True)
    for part in (user, password, "stock_of_acme", "127.0.0.1"):
        assert part not in stranger.detail
    for more in ("?sslkey=/etc/passwd", "?host=/tmp", "?service=x"):
        assert tried(organization, "database", {"connectionString": url.split("?")[0] + more}).ok is False
    assert tried(organization, "database", {"connectionString": "mysql://x:y@db.example/z"}).ok is None


@pytest.mark.parametrize(
    ("type", "value"),
    [
        ("api_key", {"apiKey": KEY, "testUrl": "http://169.254.169.254/latest"}),
        ("oauth2", {"clientId": "c", "clientSecret": KEY, "tokenUrl": "http://10.0.0.1/token"}),
        ("smtp", {"password": PASSWORD, "username": "u", "host": "192.168.0.1"}),
        ("sftp", {"password": PASSWORD, "username": "u", "host": "10.0.0.1"}),
        ("database", {"password": PASSWORD, "username": "u", "host": "10.0.0.1"}),
    ],
)
def test_nothing_is_tried_in_the_platforms_network(
    organization: Organization, type: str, value: dict[str, Any]
) -> None:
    found = tried(organization, type, value)
    assert (found.ok, "BRIDGE_EGRESS_ALLOW" in found.detail) == (False, True)


def test_what_does_not_answer_is_said_and_what_cannot_be_tried_too(organization: Organization) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        gone = tried(organization, "api_key", {"apiKey": KEY, "testUrl": f"http://127.0.0.1:{port}/"})
    assert gone.ok is False
    with database.tenant(organization.organization_id) as connection:
        connection.execute("DELETE FROM bridge.secrets")
    assert tried(organization, "custom", {"pin": KEY}).ok is None
