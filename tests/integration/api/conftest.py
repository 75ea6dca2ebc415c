"""A real server with everything mounted as an api-server mounts it, and users whose tokens are made for the test.

Only the sign-in is the test's own: a table of tokens stands where Airflow's does. Its adapter is tried with a real
Airflow in the system tests.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import httpx
import orjson
import pytest
import uvicorn
from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.routing import Mount

from continuitybridge import api, deployments, organizations
from continuitybridge.airflow.old_addresses import OldAddressesMiddleware
from continuitybridge.airflow.same_origin import SameOriginMiddleware
from continuitybridge.airflow.security_headers import SecurityHeadersMiddleware
from continuitybridge.flows.load import load_flow
from continuitybridge.guard.middleware import GuardMiddleware
from continuitybridge.organizations import Organization
from continuitybridge.settings import Settings


@dataclass
class Server:
    """A running server and its sign-in table."""

    url: str
    users: dict[str, api.SignedIn] = field(default_factory=dict)

    async def authenticate(self, request: Request) -> api.SignedIn | None:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return self.users.get(token)
        return self.users.get("cookie " + request.cookies.get("_token", ""))

    def named(self, name: str) -> str | None:
        """Of `sign_in.Accounts`: whoever signed in here is known, however his name is spelled."""
        names = (each.user_name for each in list(self.users.values()))
        return next((each for each in names if each.lower() == name.lower()), None)

    def verify(self, name: str, password: str) -> None:
        """Of `sign_in.Accounts`: nobody here has a password."""


def serve(server: Server, port: int, root_path: str = "") -> tuple[uvicorn.Server, threading.Thread]:
    """Everything that is mounted in an api-server, in one that is bare. `root_path`: as Airflow gives it to its
    own, where the public address has a path."""
    routes = [
        Mount(prefix, app, name=name) for name, prefix, app in api.mounts(server.authenticate, accounts=server)
    ]

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        # As Airflow's own: it runs the lifespans of mounted FastAPI applications, and of no others.
        async with contextlib.AsyncExitStack() as stack:
            for route in routes:
                if isinstance(route.app, FastAPI):
                    await stack.enter_async_context(route.app.router.lifespan_context(route.app))
            yield

    first_to_last = (SecurityHeadersMiddleware, GuardMiddleware, SameOriginMiddleware, OldAddressesMiddleware)
    middlewares = [Middleware(each) for each in first_to_last]
    app = FastAPI(routes=routes, lifespan=lifespan, middleware=middlewares, root_path=root_path, openapi_url=None)
    running = uvicorn.Server(
        uvicorn.Config(app, port=port, log_level="warning", access_log=False, proxy_headers=False)
    )
    thread = threading.Thread(target=lambda: asyncio.run(running.serve()), daemon=True)
    thread.start()
    deadline = time.monotonic() + 30
    while not running.started:
        assert thread.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return running, thread


@contextlib.contextmanager
def serving(users: dict[str, api.SignedIn], root_path: str = "") -> Iterator[Server]:
    """A server for a while."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    described = Server(f"http://127.0.0.1:{port}{root_path}", users)
    running, thread = serve(described, port, root_path)
    yield described
    running.should_exit = True
    thread.join(30)


@pytest.fixture(scope="session")
def server(settings: Settings) -> Iterator[Server]:
    with serving({}) as running:
        yield running


@dataclass
class User:
    """A user with a client that bears his token."""

    name: str
    client: httpx.Client

    def get(self, path: str, **given: Any) -> httpx.Response:
        return self.client.get(path, **given)

    def post(self, path: str, **given: Any) -> httpx.Response:
        return self.client.post(path, **given)


SignIn = Callable[..., User]


@pytest.fixture
def sign_in(server: Server) -> Iterator[SignIn]:
    """Makes a user, a member of organizations (organization → role), and signs him in."""
    made: list[httpx.Client] = []

    def sign_in(roles: dict[Organization, str] | None = None, *, superadmin: bool = False) -> User:
        name, token = f"user-{uuid4().hex[:12]}", secrets.token_urlsafe(24)
        for organization, role in (roles or {}).items():
            organizations.add_member(organization.organization_id, name, role)
        server.users[token] = api.SignedIn(name, superadmin=superadmin)
        client = httpx.Client(
            base_url=server.url, headers={"authorization": f"Bearer {token}"}, timeout=60, verify=False
        )
        made.append(client)
        return User(name, client)

    yield sign_in
    for client in made:
        client.close()


@pytest.fixture
def stranger(server: Server) -> Iterator[httpx.Client]:
    """A client without credentials."""
    with httpx.Client(base_url=server.url, timeout=60, verify=False) as client:
        yield client


def flow_text(name: str = "orders", version: str = "1.0.0", slug: str | None = "orders", **extra: Any) -> str:
    """A flow with a webhook (or none) that notes what comes."""
    trigger = (
        {"id": "in", "type": "webhook_trigger", "config": {"slug": slug, "verification": "api_key"}}
        if slug
        else {"id": "in", "type": "manual_trigger"}
    )
    return orjson.dumps(
        {
            "flow": name,
            "version": version,
            "triggers": [trigger],
            "steps": [{"id": "note", "type": "logger", "config": {"message": "got {{ message.id }}"}}],
            **extra,
        }
    ).decode()


@dataclass
class Deployed:
    """An organization with the flow `orders` deployed in dev."""

    organization: Organization
    secret: str

    def send(self, client: httpx.Client, body: bytes = b"{}", key: str | None = None) -> str:
        """Send a message to its webhook; gives the id."""
        headers = {"content-type": "application/json", "x-api-key": self.secret}
        if key:
            headers["idempotency-key"] = key
        response = client.post(f"/bridge/hooks/{self.organization.slug}/dev/orders", content=body, headers=headers)
        assert response.status_code == 202, response.text
        message_id: str = response.json()["id"]
        return message_id


@pytest.fixture
def deployed(make_organization: Callable[[], Organization]) -> Callable[[], Deployed]:
    """Makes an organization with a flow."""

    def make() -> Deployed:
        organization = make_organization()
        done = deployments.deploy(organization.organization_id, "dev", load_flow(flow_text()), "tester")
        return Deployed(organization, done.new_secrets["orders"])

    return make
