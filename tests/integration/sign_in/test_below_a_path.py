"""The sign-in pages, and FAB's, where the public address has a path: no link and no redirect leads out of it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from types import SimpleNamespace
from urllib.parse import urljoin, urlsplit

import pytest
from fastapi import FastAPI
from flask import Flask, g
from starlette.middleware.wsgi import WSGIMiddleware
from starlette.testclient import TestClient

from continuitybridge import database
from continuitybridge.identity_providers import IdentityProvider
from continuitybridge.organizations import Organization, membership
from continuitybridge.settings import get_settings
from continuitybridge.sign_in import tokens
from continuitybridge.sign_in.failures import Failures, MemoryStorage
from continuitybridge.sign_in.pages import Pages

from .conftest import PASSWORD, World

PROVIDER = {
    "name": "acme",
    "issuer": "https://login.acme.example",
    "client_id": "bridge",
    "client_secret_file": "/nowhere",
    "email_domains": ["acme.example"],
}
OURS = "/hub/bridge/sign-in"


def fabs_page() -> Flask:
    """FAB's sign-in page as ours changes it, without the rest of FAB."""
    from jinja2 import ChoiceLoader, PackageLoader, PrefixLoader

    from continuitybridge.airflow.sign_in_view import SignInView

    app = Flask(__name__)
    app.secret_key = "of this test"
    shared = PrefixLoader({"sign_in": PackageLoader("continuitybridge.sign_in")})
    app.jinja_loader = ChoiceLoader([PackageLoader("continuitybridge.airflow"), shared])
    app.jinja_env.globals["csrf_token"] = lambda: ""

    @app.before_request
    def nobody() -> None:
        g.user = None

    view = SignInView()
    fab = SimpleNamespace(sm=SimpleNamespace(identity_providers=[IdentityProvider(**PROVIDER)]))
    app.register_blueprint(view.create_blueprint(fab, endpoint="SignInView"))
    return app


@pytest.fixture
def browser(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    """Of pages that are mounted as in the api-server."""
    monkeypatch.setenv("BRIDGE_PUBLIC_URL", "https://example.com/hub")
    monkeypatch.setenv("BRIDGE_OIDC_PROVIDERS", json.dumps([PROVIDER]))
    get_settings.cache_clear()
    app = FastAPI(root_path="/hub")
    app.mount("/bridge/sign-in", Pages(world.table, Failures(MemoryStorage())).app())
    app.mount("/auth", WSGIMiddleware(fabs_page()))
    headers = {"accept": "text/html", "origin": "https://example.com"}
    with TestClient(app, "https://example.com", follow_redirects=False, headers=headers) as client:
        yield client
    monkeypatch.undo()
    get_settings.cache_clear()


def links(page: str, text: str) -> set[str]:
    """Where a page leads to on this host, and what it loads."""
    found = {
        urlsplit(urljoin(f"https://example.com{page}", each.replace("&amp;", "&")))
        for each in re.findall(r'(?:href|src|action)="([^"]+)"', text)
    }
    return {f"{each.path}?{each.query}".rstrip("?") for each in found if each.netloc == "example.com"}


def test_every_link_of_a_page_stays_below_the_public_path(browser: TestClient) -> None:
    pages = (
        "",
        "/forgotten",
        "/confirm",
        "/new-password",
        "/invitation",
        "/second-factor",
        "/second-factor/begin",
    )
    ahead = {f"{OURS}{each}" for each in (*pages, "/nothing")} | {"/hub/auth/login/"}
    seen: dict[str, str] = {}
    while ahead:
        page = ahead.pop()
        answer = browser.get(page)
        seen[page] = answer.text
        # To a form's own address (405), to a provider, which is none, and nowhere else.
        assert answer.status_code in (200, 307, 404, 405) or "/auth/login/acme" in page, page
        assert (answer.status_code == 404) == (page == f"{OURS}/nothing"), page
        ahead |= links(page, answer.text) - seen.keys()
    assert all(each.startswith("/hub/") for each in seen), sorted(seen)
    assert {"/hub/auth/login/", "/hub/auth/login/acme?second-factor", f"{OURS}/static/sign_in.css"} <= seen.keys()
    assert f"{OURS}/forgotten" in links("/hub/auth/login/", seen["/hub/auth/login/"])


def test_every_answer_to_a_form_stays_below_the_public_path(
    browser: TestClient, world: World, organization: Organization
) -> None:
    person = world.person(organization)

    def token(purpose: tokens.Purpose) -> str:
        with database.platform() as connection:
            return tokens.issue(connection, purpose, person.user_name)

    def sent(page: str, **form: str) -> str:
        """Where it leads."""
        answer = browser.post(f"{OURS}/{page}", data=form)
        assert answer.status_code in (200, 202, 303), answer.text
        found = links(f"{OURS}/{page}", answer.text)
        assert all(each.startswith("/hub/") for each in found)
        return answer.headers.get("location", "")

    assert sent("link", email=person.email) == ""
    assert sent("confirm", token=token("link")) == "/hub/"
    assert sent("new-password", token=token("reset"), password=PASSWORD[::-1], again=PASSWORD[::-1]) == ""
    membership.require_second_factor(organization.organization_id, True, by="boss")
    assert sent("confirm", token=token("link")) == f"{OURS}/second-factor?required"
