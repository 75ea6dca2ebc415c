"""FAB's security manager with our rules: which passwords are taken, sessions that end, the second factor."""

from __future__ import annotations

import secrets
from typing import Any

from airflow.providers.fab.auth_manager.security_manager.override import FabAirflowSecurityManagerOverride
from airflow.providers.fab.auth_manager.views.user import CustomUserDBModelView
from airflow.providers.fab.www.views import redirect
from flask import current_app, flash, g, has_request_context, request, session
from flask_appbuilder.exceptions import PasswordComplexityValidationError
from flask_login import user_logged_in
from jinja2 import ChoiceLoader, PackageLoader, PrefixLoader

from continuitybridge.airflow import user_changes
from continuitybridge.airflow.password_pages import OthersPasswordView, OwnPasswordView
from continuitybridge.airflow.sign_in_view import SignInView
from continuitybridge.airflow.single_sign_on import Providers
from continuitybridge.airflow.stamps import CLAIM, holds, stamp
from continuitybridge.errors import BridgeError, Conflict
from continuitybridge.sign_in import WeakPassword, check_password, events, second_factor


def check_password_of_form(password: str) -> None:
    """What FAB's forms ask; raises FAB's `PasswordComplexityValidationError`."""
    user = getattr(g, "user", None) if has_request_context() else None
    own = user is not None and user.is_authenticated and request.path.endswith("/resetmypassword/form")
    try:
        check_password(password, _names(user) if own else ())
    except WeakPassword as error:
        raise PasswordComplexityValidationError(error.detail) from error


class UsersView(CustomUserDBModelView):
    """FAB's page of users, where nobody is renamed (see `user_changes`)."""

    edit_columns = [each for each in CustomUserDBModelView.edit_columns if each != "username"]  # noqa: RUF012


class BridgeSecurityManager(FabAirflowSecurityManagerOverride):
    """See the module."""

    authdbview = SignInView
    userdbmodelview = UsersView
    resetmypasswordview = OwnPasswordView
    resetpasswordview = OthersPasswordView

    def __init__(self, appbuilder: Any) -> None:
        super().__init__(appbuilder)
        user_changes.install()
        app = current_app._get_current_object()  # type: ignore[attr-defined]
        own = PackageLoader("continuitybridge.airflow")
        shared = PrefixLoader({"sign_in": PackageLoader("continuitybridge.sign_in")})
        app.jinja_loader = ChoiceLoader([own, shared, *([app.jinja_loader] if app.jinja_loader else [])])
        app.register_error_handler(BridgeError, _refused)
        user_logged_in.connect(_remember_stamp, app)
        self.identity_providers = Providers()

    def load_user(self, pk: int) -> Any:
        user = super().load_user(pk)
        if user is not None and has_request_context() and not holds(session.get(CLAIM), user):
            return None
        return user

    def add_user(
        self,
        username: str,
        first_name: str,
        last_name: str,
        email: str,
        role: Any = None,
        password: str = "",
        hashed_password: str = "",
        groups: Any = None,
    ) -> Any:
        """As FAB's; who has no password given gets one that nobody knows. Raises `WeakPassword`."""
        if not hashed_password:
            # FAB takes the empty text for a password.
            password = password or secrets.token_urlsafe(32)
            check_password(password, (username, email, first_name, last_name))
        return super().add_user(username, first_name, last_name, email, role, password, hashed_password, groups)

    def update_user(self, user: Any) -> bool:
        """As FAB's. Raises `Conflict` for another user name."""
        try:
            user_changes.refuse_another_name(user)
        except Conflict:
            self.session.rollback()
            raise
        return bool(super().update_user(user))

    def reset_password(self, userid: int, password: str) -> bool:
        """As FAB's. Raises `WeakPassword`."""
        user = self.get_user_by_id(userid)
        if user is not None:
            check_password(password, _names(user))
        return bool(super().reset_password(userid, password))

    def _hash_password(self, password: str) -> str:
        # Every other way that there is to a new password (FAB's user API) comes here.
        check_password(password)
        return str(super()._hash_password(password))

    def auth_user_db(self, username: str, password: str, rotate_session_id: bool = True) -> Any:
        user = super().auth_user_db(username, password, rotate_session_id)
        if user:
            if not second_factor.is_enrolled(user.username) and not second_factor.is_required(user.username):
                events.tell(user.username, "sign_in.succeeded", way="password")
        elif (known := self.find_user(username=username) or self.find_user(email=username)) is not None:
            events.tell(known.username, "sign_in.failed", way="password")
        return user

    def check_credentials(self, user_name: str, password: str) -> Any:
        """The active user whose password it is; None. Takes as long when there is none."""
        return super().auth_user_db(user_name, password, rotate_session_id=False)


def _names(user: Any) -> tuple[str, ...]:
    return tuple(filter(None, (user.username, user.email, user.first_name, user.last_name)))


def _remember_stamp(_: Any, user: Any, **__: Any) -> None:
    session[CLAIM] = stamp(user)


def _refused(error: BridgeError) -> Any:
    if not isinstance(error, WeakPassword):
        raise error
    flash(error.detail, "warning")
    return redirect(request.url)
