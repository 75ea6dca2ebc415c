"""FAB's security manager with our rules: which passwords are taken, sessions that end, the second factor."""

from __future__ import annotations

import secrets
import time
from typing import Any

from airflow.providers.fab.auth_manager.security_manager.override import FabAirflowSecurityManagerOverride
from airflow.providers.fab.auth_manager.views.user import CustomUserDBModelView
from airflow.providers.fab.www.views import get_safe_url, redirect
from flask import current_app, flash, g, has_request_context, request, session
from flask_appbuilder import expose
from flask_appbuilder.exceptions import PasswordComplexityValidationError
from flask_appbuilder.security.forms import LoginForm_db
from flask_appbuilder.security.views import AuthDBView
from flask_login import login_user, user_logged_in
from jinja2 import ChoiceLoader, PackageLoader

from continuitybridge import mail
from continuitybridge.airflow import user_changes
from continuitybridge.airflow.stamps import CLAIM, holds, stamp
from continuitybridge.errors import BridgeError, Conflict
from continuitybridge.sign_in import WeakPassword, attempt, check_password, events, second_factor

PENDING = "_bridge_pending"
PENDING_S = 300
"""How long after the password the code of the second factor may come."""


def check_password_of_form(password: str) -> None:
    """What FAB's forms ask; raises FAB's `PasswordComplexityValidationError`."""
    user = getattr(g, "user", None) if has_request_context() else None
    own = user is not None and user.is_authenticated and request.path.endswith("/resetmypassword/form")
    try:
        check_password(password, _names(user) if own else ())
    except WeakPassword as error:
        raise PasswordComplexityValidationError(error.detail) from error


class SignInView(AuthDBView):
    """FAB's form, then the code of the second factor of whoever has one."""

    login_template = "bridge/sign_in.html"
    code_template = "bridge/second_factor.html"

    @expose("/login/", methods=["GET", "POST"])
    def login(self) -> Any:
        if g.user is not None and g.user.is_authenticated:
            attempt.undecided()
            return redirect(self.appbuilder.get_url_for_index)
        if request.method == "POST" and "code" in request.form:
            return self._second_step()
        session.pop(PENDING, None)
        form = LoginForm_db()
        if not form.validate_on_submit():
            return self._uncached(self.login_template, form=form, by_mail=mail.is_set_up())
        next_url = get_safe_url(request.args.get("next", ""))
        user = self.appbuilder.sm.auth_user_db(form.username.data, form.password.data)
        if not user:
            flash(str(self.invalid_login_message), "warning")
            return redirect(self.appbuilder.get_url_for_login_with(next_url))
        if second_factor.is_enrolled(user.username):
            until = int(time.time()) + PENDING_S
            session[PENDING] = {"user": user.username, CLAIM: stamp(user), "until": until, "next": next_url}
            attempt.undecided()
            return self._uncached(self.code_template, username=form.username.data)
        return self._signed_in(user, next_url)

    def _second_step(self) -> Any:
        pending = session.get(PENDING) or {}
        user = self.appbuilder.sm.find_user(username=pending.get("user"))
        if user is None or not user.is_active or pending["until"] < time.time() or not holds(pending[CLAIM], user):
            session.pop(PENDING, None)
            attempt.undecided()
            flash("Too late: sign in once more.", "warning")
            return redirect(self.appbuilder.get_url_for_login_with(""))
        # Failures are counted by the name beside the code.
        name = request.form.get("username", "").strip().lower()
        if name not in (user.username.lower(), (user.email or "").lower()):
            session.pop(PENDING, None)
            attempt.undecided()
            return redirect(self.appbuilder.get_url_for_login_with(""))
        try:
            second_factor.after_password(user.username, request.form["code"])
        except second_factor.CodeNeeded:
            attempt.undecided()
            return self._uncached(self.code_template, username=name)
        except second_factor.WrongCode as error:
            flash(error.detail, "warning")
            return self._uncached(self.code_template, username=name)
        session.pop(PENDING, None)
        self.appbuilder.sm._rotate_session_id()
        return self._signed_in(user, pending["next"])

    @staticmethod
    def _signed_in(user: Any, next_url: str) -> Any:
        login_user(user, remember=False)
        attempt.succeeded(user.username)
        return redirect(next_url)

    def _uncached(self, template: str, **content: Any) -> Any:
        answer = current_app.make_response(
            self.render_template(template, title=self.title, appbuilder=self.appbuilder, **content)
        )
        answer.headers["Cache-Control"] = "no-store"
        return answer


class UsersView(CustomUserDBModelView):
    """FAB's page of users, where nobody is renamed (see `user_changes`)."""

    edit_columns = [each for each in CustomUserDBModelView.edit_columns if each != "username"]  # noqa: RUF012


class BridgeSecurityManager(FabAirflowSecurityManagerOverride):
    """See the module."""

    authdbview = SignInView
    userdbmodelview = UsersView

    def __init__(self, appbuilder: Any) -> None:
        super().__init__(appbuilder)
        user_changes.install()
        app = current_app._get_current_object()  # type: ignore[attr-defined]
        own = PackageLoader("continuitybridge.airflow")
        app.jinja_loader = ChoiceLoader([own, *([app.jinja_loader] if app.jinja_loader else [])])
        app.register_error_handler(BridgeError, _refused)
        user_logged_in.connect(_remember_stamp, app)

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
            if not second_factor.is_enrolled(user.username):
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
