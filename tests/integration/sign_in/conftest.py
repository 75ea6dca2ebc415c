"""The sign-in pages over HTTP, a mail server that takes what they send, and a table of accounts where Airflow's
stands (its adapter is tried with a real Airflow in the system tests)."""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from uuid import uuid4

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import Mount

from continuitybridge import mail, organizations
from continuitybridge.airflow.security_headers import SecurityHeadersMiddleware
from continuitybridge.errors import NotAuthenticated
from continuitybridge.organizations import Organization
from continuitybridge.runtime.ports import free_port
from continuitybridge.settings import Settings, get_settings
from continuitybridge.sign_in import Account, check_password
from continuitybridge.sign_in.failures import Failures, MemoryStorage
from continuitybridge.sign_in.pages import Pages
from mail_server import MailServer, mail_server

PASSWORD = "plum lantern orbit quiver"


@dataclass
class Table:
    """`sign_in.Accounts` in memory."""

    accounts: dict[str, Account] = field(default_factory=dict)
    passwords: dict[str, str] = field(default_factory=dict)

    def by_email(self, email: str) -> Account | None:
        return next((each for each in self.accounts.values() if each.email.lower() == email.lower()), None)

    def by_name(self, user_name: str) -> Account | None:
        return self.accounts.get(user_name)

    def named(self, name: str) -> str | None:
        found = next((each for each in self.accounts if each.lower() == name.lower()), None)
        return found or next((each.user_name for each in self.accounts.values() if each.email == name), None)

    def verify(self, name: str, password: str) -> Account | None:
        # Airflow too knows people however their names are spelled.
        user_name = next(each for each in self.accounts if each.lower() == name.lower())
        right = self.accounts[user_name].active and self.passwords[user_name] == password
        return self.accounts[user_name] if right else None

    def make(self, *, user_name: str, email: str, first_name: str, last_name: str, password: str) -> Account:
        check_password(password, (user_name, email, first_name, last_name))
        self.accounts[user_name] = Account(user_name, email, True, first_name)
        self.passwords[user_name] = password
        return self.accounts[user_name]

    def remove(self, user_name: str) -> None:
        del self.accounts[user_name]

    def set_password(self, user_name: str, password: str) -> None:
        check_password(password, (user_name,))
        self.passwords[user_name] = password

    def sign_in(self, user_name: str, *, secure: bool) -> Sequence[str]:
        if not self.accounts[user_name].active:
            raise NotAuthenticated("the account is not active")
        return [f"_token=of-{user_name}; Path=/; HttpOnly; SameSite=Lax" + ("; Secure" if secure else "")]

    def deactivate(self, account: Account) -> None:
        self.accounts[account.user_name] = replace(account, active=False)


@dataclass
class World:
    """What a test works with."""

    table: Table
    server: MailServer
    http: httpx.Client

    def person(self, organization: Organization | None = None) -> Account:
        name = f"person-{uuid4().hex[:10]}"
        self.table.accounts[name] = Account(name, f"{name}@example.com", True, "Anna")
        self.table.passwords[name] = PASSWORD
        if organization is not None:
            organizations.add_member(organization.organization_id, name, "customer_user")
        return self.table.accounts[name]

    def ask(self, purpose: str, email: str, **more: object) -> httpx.Response:
        return self.http.post(f"/bridge/sign-in/{purpose}", json={"email": email}, **more)  # type: ignore[arg-type]

    def mailed(self, address: str, within_s: float = 5.0) -> str | None:
        """The token of the newest mail to this address; None when none comes."""
        deadline = time.monotonic() + within_s
        before = len(self.server.to(address))
        while time.monotonic() < deadline:
            mail.deliver_due()
            found = self.server.to(address)
            if len(found) > before:
                text = str(found[-1].get_body(("plain",)).get_content())  # type: ignore[union-attr]
                match = re.search(r"https://bridge\.example/bridge/sign-in/[a-z-]+#(\S+)", text)
                return match[1] if match else ""
            time.sleep(0.02)
        return None

    def token(self, purpose: str, account: Account) -> str:
        """Ask for a link and get it."""
        assert self.ask(purpose, account.email).status_code == 202
        token = self.mailed(account.email)
        assert token
        return token

    def send(self, page: str, **form: str) -> httpx.Response:
        return self.http.post(
            f"/bridge/sign-in/{page}",
            data=form,
            headers={"accept": "text/html", "origin": "https://bridge.example"},
            follow_redirects=False,
        )


@contextlib.contextmanager
def serving(app: Starlette) -> Iterator[str]:
    """The application in a real server; gives its address."""
    port = free_port()
    running = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning", access_log=False))
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    while not running.started:
        assert thread.is_alive()
        time.sleep(0.01)
    yield f"http://127.0.0.1:{port}"
    running.should_exit = True
    thread.join(10)


@pytest.fixture
def world(settings: Settings) -> Iterator[World]:
    with mail_server() as server:
        given = {
            "BRIDGE_SMTP_HOST": "127.0.0.1",
            "BRIDGE_SMTP_PORT": str(server.port),
            "BRIDGE_SMTP_SECURITY": "none",
            "BRIDGE_SMTP_FROM": "bridge@example.com",
            "BRIDGE_PUBLIC_URL": "https://bridge.example",
        }
        os.environ.update(given)
        get_settings.cache_clear()
        table = Table()
        pages = Pages(table, Failures(MemoryStorage())).app()
        app = Starlette(
            routes=[Mount("/bridge/sign-in", pages)], middleware=[Middleware(SecurityHeadersMiddleware)]
        )
        with serving(app) as url, httpx.Client(base_url=url, timeout=30) as client:
            yield World(table, server, client)
        for name in given:
            del os.environ[name]
        get_settings.cache_clear()
