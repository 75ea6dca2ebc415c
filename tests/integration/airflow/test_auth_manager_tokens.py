"""What the auth manager puts around FAB's: tokens that end with a user's sessions and ask for his second factor,
the ids of DAGs as Airflow's table has them, errors as problem details, the middlewares. FAB's own part of it is
Airflow's; signing in with both is tried in the system tests."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import httpx
import pyotp
import pytest
from anyio import to_thread
from fastapi import FastAPI, HTTPException
from jwt import InvalidTokenError
from sqlalchemy import Engine, create_engine
from sqlalchemy.orm import scoped_session, sessionmaker
from sqlalchemy.pool import StaticPool

from continuitybridge import database, organizations, sessions
from continuitybridge.errors import Unavailable
from continuitybridge.organizations import Organization
from continuitybridge.sign_in import second_factor
from continuitybridge.sign_in.attempt import attempting


@pytest.fixture(scope="module")
def access() -> Any:
    """The module; imported here, because that imports Airflow, which takes seconds."""
    from continuitybridge.airflow import auth_manager

    return auth_manager


@pytest.fixture
def manager(access: Any) -> Any:
    return access.OrganizationAuthManager()


@pytest.fixture
def person() -> Any:
    """A user as FAB keeps him."""
    return SimpleNamespace(id=7, username=f"user-{uuid4().hex[:8]}", password="a hash", roles=[])


@pytest.fixture
def fab(access: Any, monkeypatch: pytest.MonkeyPatch, person: Any) -> dict[str, Any]:
    """What FAB was asked, and what it answers."""
    asked: dict[str, Any] = {"user": person, "app": FastAPI()}

    def create_token(self: Any, headers: Any, body: Any) -> Any:
        asked["token"] = (headers, body)
        return asked["user"]

    def deserialize_user(self: Any, token: Any) -> Any:
        asked["deserialized"] = token
        return person

    def is_authorized_custom_view(self: Any, **given: Any) -> bool:
        asked["view"] = given
        return bool(given["resource_name"] == "My Profile")

    of_fab = access.FabAuthManager
    monkeypatch.setattr(of_fab, "create_token", create_token)
    monkeypatch.setattr(of_fab, "deserialize_user", deserialize_user)
    monkeypatch.setattr(of_fab, "is_authorized_custom_view", is_authorized_custom_view)
    monkeypatch.setattr(of_fab, "get_fastapi_app", lambda self: asked["app"])
    monkeypatch.setattr(of_fab, "get_fastapi_middlewares", lambda self: [("of FAB", {})])
    return asked


def test_a_token_holds_until_the_password_or_the_sessions_end(manager: Any, fab: Any, person: Any) -> None:
    token = manager.serialize_user(person)
    assert token["sub"] == "7"
    assert len(token["bridge_since"]) == 32
    assert manager.serialize_user(person) == token
    assert manager.deserialize_user(token) is person
    assert fab["deserialized"] == token
    for other in ({"sub": "7"}, {**token, "bridge_since": None}, {**token, "bridge_since": "x" * 32}):
        with pytest.raises(ValueError, match="sessions ended"):
            manager.deserialize_user(other)
    for changed in ({"id": 8}, {"password": "another"}, {"password": None}):
        assert manager.serialize_user(SimpleNamespace(**{**vars(person), **changed})) != token
    nameless = SimpleNamespace(**{**vars(person), "password": None})
    assert manager.serialize_user(nameless) == manager.serialize_user(
        SimpleNamespace(**{**vars(person), "password": ""})
    )
    with database.platform() as connection:
        sessions.end_all(connection, person.username)
    with pytest.raises(ValueError, match="sessions ended"):
        manager.deserialize_user(token)
    assert manager.deserialize_user(manager.serialize_user(person)) is person


def test_a_stamp_is_another_with_another_signing_key(
    manager: Any, person: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow.configuration import conf

    asked = []

    def secret(section: str, key: str) -> str:
        asked.append((section, key))
        return "one" if len(asked) < 3 else "two"

    monkeypatch.setattr(conf, "get_mandatory_value", secret)
    first, again, other = (manager.serialize_user(person)["bridge_since"] for _ in range(3))
    assert first == again != other
    assert set(asked) == {("api_auth", "jwt_secret")}


def test_a_token_is_given_for_password_and_second_factor(
    access: Any, manager: Any, fab: Any, person: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    removed: list[bool] = []
    monkeypatch.setattr(access.settings, "Session", SimpleNamespace(remove=lambda: removed.append(True)))
    assert manager.create_token(headers={"a": "b"}, body={"username": "u"}) is person
    assert fab["token"] == ({"a": "b"}, {"username": "u"})
    assert removed == [True]
    app = pyotp.TOTP(second_factor.begin(person.username).secret)
    second_factor.confirm(person.username, app.now())
    needed, wrong = second_factor.CodeNeeded.code, second_factor.WrongCode.code
    bodies: tuple[tuple[dict[str, Any], str], ...] = (
        ({}, needed),
        ({"code": 7}, needed),
        ({"code": "000"}, wrong),
    )
    for body, code in bodies:
        with pytest.raises(HTTPException) as refused, attempting() as attempt:
            manager.create_token(headers={}, body=body)
        # A code that is missing is no failure; a wrong one is.
        assert (attempt.signed_in, attempt.undecided) == (None, code == needed)
        assert refused.value.status_code == 401
        said: Any = refused.value.detail
        assert set(said) == {"code", "detail"}
        assert said["code"] == code
        assert said["detail"]
    later = app.at(int(time.time()) + 30)
    with attempting() as attempt:
        assert manager.create_token(headers={}, body={"code": later}) is person
    assert (attempt.signed_in, attempt.undecided) == (person.username, False)
    # Whom FAB does not know needs no code.
    fab["user"] = None
    assert manager.create_token(headers={}, body={}) is None
    monkeypatch.setattr(access.settings, "Session", None)
    assert manager.create_token(headers={}, body={}) is None


async def test_what_is_refused_while_signing_in_is_a_problem_document(manager: Any, fab: Any) -> None:
    app = manager.get_fastapi_app()
    assert app is fab["app"]

    @app.get("/fails")
    def fails() -> None:
        raise Unavailable("the database does not answer", retry_after_s=7)

    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://airflow") as client:
        answer = await client.get("/fails")
    assert answer.status_code == 503
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["retry-after"] == "7"
    assert answer.json()["status"] == 503
    fab["app"] = None
    assert manager.get_fastapi_app() is None


def test_fabs_own_pages_are_for_fab_to_decide(manager: Any, fab: Any, person: Any) -> None:
    assert manager.is_authorized_custom_view(method="GET", resource_name="My Profile", user=person) is True
    assert manager.is_authorized_custom_view(method="PUT", resource_name="Users", user=person) is False
    assert fab["view"] == {"method": "PUT", "resource_name": "Users", "user": person}


def test_the_guard_stands_before_airflow_and_headers_before_the_guard(manager: Any, fab: Any) -> None:
    first, *ours = manager.get_fastapi_middlewares()
    assert first == ("of FAB", {})
    assert [(each.__name__, options) for each, options in ours] == [
        ("IntakeShortcutMiddleware", {}),
        ("GuardMiddleware", {}),
        ("SecurityHeadersMiddleware", {}),
    ]


@pytest.fixture
def airflows_tables(access: Any, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """Those of Airflow that are asked here, for every thread."""
    engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
    for model in (access.DagModel, access.RevokedToken):
        model.__table__.create(engine)
    monkeypatch.setattr(access.settings, "Session", scoped_session(sessionmaker(engine)))
    return engine


async def test_a_token_is_its_users_until_it_is_revoked_or_his_sessions_end(
    manager: Any, fab: Any, person: Any, airflows_tables: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__API_AUTH__JWT_SECRET", secrets.token_urlsafe(64))
    token, other = manager.generate_jwt(person), manager.generate_jwt(person)
    assert await manager.get_user_from_token(token) is person
    assert fab["deserialized"]["sub"] == "7"
    with pytest.raises(InvalidTokenError):
        await manager.get_user_from_token(f"{token[:-8]}AAAAAAAA")
    await to_thread.run_sync(manager.revoke_token, token)
    with pytest.raises(InvalidTokenError, match="the token was revoked"):
        await manager.get_user_from_token(token)
    assert await manager.get_user_from_token(other) is person
    with database.platform() as connection:
        sessions.end_all(connection, person.username)
    with pytest.raises(InvalidTokenError, match="sessions ended"):
        await manager.get_user_from_token(other)


@pytest.fixture
def dags(access: Any, airflows_tables: Engine) -> Callable[..., None]:
    """What puts DAGs into Airflow's table."""
    engine, table = airflows_tables, access.DagModel.__table__

    def add(*dag_ids: str) -> None:
        with engine.begin() as connection:
            for dag_id in dag_ids:
                connection.execute(
                    table.insert().values(
                        dag_id=dag_id,
                        bundle_name="b",
                        max_active_tasks=1,
                        max_consecutive_failed_dag_runs=0,
                        has_task_concurrency_limits=False,
                    )
                )

    return add


def test_the_ids_of_a_members_dags_are_read_from_airflows_table(
    manager: Any, dags: Callable[..., None], make_organization: Callable[[], Organization]
) -> None:
    mine, theirs = make_organization(), make_organization()
    reader = SimpleNamespace(username=f"user-{uuid4().hex[:8]}", roles=[])
    organizations.add_member(mine.organization_id, reader.username, "customer_user")
    own = f"{mine.slug}.dev.orders"
    every = {own, f"{theirs.slug}.dev.orders", "maintenance", f"{mine.slug}.dev", f"{mine.slug}x.dev.orders"}
    dags(*every)
    assert manager.get_authorized_dag_ids(user=reader) == {own}
    assert manager.get_authorized_dag_ids(user=reader, method="PUT") == set()
    root = SimpleNamespace(username="root", roles=[SimpleNamespace(name="Admin")])
    assert manager.get_authorized_dag_ids(user=root) == every
    assert manager.get_authorized_dag_ids(user=SimpleNamespace(username="nobody")) == set()
