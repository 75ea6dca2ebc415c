"""Airflow's (FAB's) users, as `sign_in` needs them. Used in the api-server, where FAB's Flask application is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from airflow.api_fastapi.app import get_auth_manager, get_cookie_path
from airflow.api_fastapi.auth.managers.base_auth_manager import COOKIE_NAME_JWT_TOKEN
from airflow.providers.fab.auth_manager.api_fastapi.routes.login import _get_flask_app
from airflow.providers.fab.auth_manager.models import User
from airflow.providers.fab.auth_manager.security_manager.override import FabException
from airflow.utils.session import create_session
from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from continuitybridge.airflow import people
from continuitybridge.airflow.roles import MEMBER_ROLE, SUPERADMIN_ROLE
from continuitybridge.errors import Conflict, NotAuthenticated, NotFound
from continuitybridge.sign_in import Account, check_password


class AirflowAccounts:
    """See `sign_in.Accounts`."""

    def by_email(self, email: str) -> Account | None:
        with create_session() as session:
            # Folded by the database as FAB has it done: Python folds some letters otherwise.
            same = func.lower(User.email) == func.lower(email.strip())
            found = session.scalars(select(User).where(same)).all()
            return _account(found[0]) if len(found) == 1 else None

    def by_name(self, user_name: str) -> Account | None:
        with create_session() as session:
            found = _user(session, user_name)
            return None if found is None else _account(found)

    def named(self, name: str) -> str | None:
        return people.find(name)

    def verify(self, name: str, password: str) -> Account | None:
        with flask_app().app_context():
            security = _security()
            try:
                found = security.check_credentials(name, password)
                return None if found is None else _account(found)
            finally:
                security.session.remove()

    def make(self, *, user_name: str, email: str, first_name: str, last_name: str, password: str) -> Account:
        check_password(password, (user_name, email, first_name, last_name))
        with flask_app().app_context():
            security = _security()
            try:
                if security.find_user(username=user_name) or self.by_email(email):
                    raise Conflict("there is an account of this name or address", field="email")
                role = security.find_role(MEMBER_ROLE)
                return _account(security.add_user(user_name, first_name, last_name, email, role, password))
            except FabException as error:
                if isinstance(error.__cause__, IntegrityError):
                    # Somebody was quicker.
                    raise Conflict("there is an account of this name or address", field="email") from error
                raise
            finally:
                security.session.remove()

    def remove(self, user_name: str) -> None:
        with create_session() as session:
            found = _user(session, user_name)
            if found is not None:
                found.roles = []
                session.delete(found)

    def set_password(self, user_name: str, password: str) -> None:
        with flask_app().app_context():
            security = _security()
            try:
                found = security.find_user(username=user_name)
                if found is None or not security.reset_password(found.id, password):
                    raise NotFound(f"no account {user_name!r}")
            finally:
                security.session.remove()

    def sign_in(self, user_name: str, *, secure: bool) -> Sequence[str]:
        from flask_login import login_user

        app, manager = flask_app(), get_auth_manager()
        with app.test_request_context("/auth/login/", base_url="https://bridge" if secure else "http://bridge"):
            security = _security()
            try:
                user = security.find_user(username=user_name)
                if user is None or not user.is_active:
                    raise NotAuthenticated("the account is not active")
                security.update_user_auth_stat(user, True)
                login_user(user, remember=False)
                answer = app.make_response("")
                answer.set_cookie(
                    COOKIE_NAME_JWT_TOKEN,
                    manager.generate_jwt(user),
                    path=get_cookie_path(),
                    secure=secure,
                    httponly=True,
                    samesite="Lax",
                )
                return list(app.process_response(answer).headers.getlist("set-cookie"))
            finally:
                security.session.remove()


def flask_app() -> Any:
    """FAB's Flask application of this api-server."""
    return _get_flask_app()


def _security() -> Any:
    return get_auth_manager().security_manager  # type: ignore[attr-defined]


def _user(session: Session, user_name: str) -> Any:
    return session.scalars(select(User).where(User.username == user_name)).one_or_none()


def _account(user: Any) -> Account:
    superadmin = any(role.name == SUPERADMIN_ROLE for role in user.roles)
    return Account(user.username, user.email, bool(user.is_active), user.first_name or "", superadmin)
