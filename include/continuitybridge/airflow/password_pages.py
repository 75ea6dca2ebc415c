"""FAB's pages that change a password. One's own is asked for once more, so that a session that somebody else holds
changes nothing here; the trails tell of each change."""

from __future__ import annotations

from typing import Any

from airflow.providers.fab.auth_manager.views.user_edit import CustomResetMyPasswordView, CustomResetPasswordView
from flask import flash, g, make_response, redirect, request
from flask_appbuilder.fieldwidgets import BS3PasswordFieldWidget
from flask_appbuilder.forms import DynamicForm
from flask_appbuilder.validators import PasswordComplexityValidator
from wtforms import PasswordField
from wtforms.validators import DataRequired, EqualTo, Length

from continuitybridge.actor import current_actor
from continuitybridge.sign_in import events
from continuitybridge.sign_in.failures import Failures

CHANGED = "password.changed"


class OwnPasswordForm(DynamicForm):
    """As FAB's, with the password of now before the new one."""

    current = PasswordField(
        "Current password", validators=[DataRequired(), Length(max=1024)], widget=BS3PasswordFieldWidget()
    )
    password = PasswordField(
        "New password",
        validators=[DataRequired(), PasswordComplexityValidator()],
        widget=BS3PasswordFieldWidget(),
    )
    conf_password = PasswordField(
        "The new password once more",
        validators=[EqualTo("password", message="The passwords must match")],
        widget=BS3PasswordFieldWidget(),
    )


class OwnPasswordView(CustomResetMyPasswordView):
    """Of whoever is signed in."""

    form = OwnPasswordForm
    form_title = "Change your password"

    def form_post(self, form: DynamicForm) -> Any:
        """Wrong guesses count as failed sign-ins do."""
        name, failures = g.user.username, Failures.open()
        who = name.casefold(), current_actor().address or ""
        if wait_s := failures.begin(*who):
            answer = make_response("Too many sign-ins failed: try again later\n", 429)
            answer.headers["Retry-After"], answer.content_type = str(wait_s), "text/plain; charset=utf-8"
            return answer
        if self.appbuilder.sm.check_credentials(name, form.current.data) is None:
            events.tell(name, "sign_in.failed", way="password change")
            flash("The current password is wrong", "warning")
            return redirect(request.url)
        failures.failed_not(*who)
        super().form_post(form)
        events.tell(name, CHANGED)
        return None


class OthersPasswordView(CustomResetPasswordView):
    """Of any user, for superadmins."""

    def form_post(self, form: DynamicForm) -> None:
        super().form_post(form)
        user = self.appbuilder.sm.get_user_by_id(request.args.get("pk"))
        events.tell(user.username, CHANGED, by=g.user.username)
