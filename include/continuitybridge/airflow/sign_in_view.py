"""FAB's sign-in page with our ways in: passwords, identity providers, and the second factor behind both."""

from __future__ import annotations

import logging
import time
from typing import Any

from airflow.providers.fab.www.views import get_safe_url, redirect
from flask import current_app, flash, g, get_flashed_messages, render_template, request, session, url_for
from flask_appbuilder import expose
from flask_appbuilder.security.forms import LoginForm_db
from flask_appbuilder.security.views import AuthDBView
from flask_login import login_user

from continuitybridge import mail
from continuitybridge.actor import current_actor
from continuitybridge.airflow.single_sign_on import ProviderFailed
from continuitybridge.airflow.stamps import CLAIM, holds, stamp
from continuitybridge.browser_headers import PAGES
from continuitybridge.errors import BridgeError, Unavailable
from continuitybridge.settings import get_settings
from continuitybridge.sign_in import attempt, events, identities, second_factor
from continuitybridge.sign_in.failures import LINKS_OF_ADDRESS, Failures
from continuitybridge.sign_in.letters import PREFIX, address_of
from continuitybridge.sign_in.pages import FOR_SECOND_FACTOR
from continuitybridge.sign_in.verbs import second_factor_token

PENDING = "_bridge_pending"
NEXT = "_bridge_next"
PROVING = "_bridge_proving"
"""Whether a person goes to a provider to prove who he is, for a second factor, and not to sign in."""
PENDING_S = 300
"""How long after the password the code of the second factor may come. Another sign-in that is only begun, as
others' pages can have a browser do, does not end the wait; one that succeeds does."""

log = logging.getLogger(__name__)


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
        form = LoginForm_db()
        if not form.validate_on_submit():
            return self._sign_in_page(form)
        next_url = get_safe_url(request.args.get("next", ""))
        user = self.appbuilder.sm.auth_user_db(form.username.data, form.password.data)
        if not user:
            flash(str(self.invalid_login_message), "warning")
            return redirect(self.appbuilder.get_url_for_login_with(next_url))
        if second_factor.must_enrol(user.username):
            attempt.undecided()
            return self._enrolment_wanted(user, "password")
        if second_factor.is_enrolled(user.username):
            attempt.undecided()
            return self._code_wanted(user, form.username.data, next_url, "password")
        return self._signed_in(user, next_url)

    @expose("/login/<provider>")
    def begin_elsewhere(self, provider: str) -> Any:
        """Send the browser to an identity provider."""
        proving = FOR_SECOND_FACTOR in request.args
        if not proving and g.user is not None and g.user.is_authenticated:
            return redirect(self.appbuilder.get_url_for_index)
        found = self.appbuilder.sm.identity_providers.get(provider)
        if found is None:
            return self._refused("There is no such provider")
        next_url = request.args.get("next", "")
        session[NEXT], session[PROVING] = next_url, proving
        try:
            return self.appbuilder.sm.identity_providers.begin(found)
        except ProviderFailed as error:
            log.error("%s", error.detail)
            return self._refused(f"{found.label or found.name} does not answer as it should: try again later")

    @expose("/oauth-authorized/<provider>")
    def come_back(self, provider: str) -> Any:
        """Take whom an identity provider sent back. That fails for an address as often as links
        do. Wrong passwords lock nobody out here; wrong codes of the second factor behind it count."""
        if not session.get(PROVING) and g.user is not None and g.user.is_authenticated:
            return redirect(self.appbuilder.get_url_for_index)
        found = self.appbuilder.sm.identity_providers.get(provider)
        if found is None:
            return self._refused("There is no such provider")
        from continuitybridge.airflow.accounts import AirflowAccounts

        # Other sites' pages can have a browser come here, and must lock nobody out by it.
        if not self.appbuilder.sm.identity_providers.was_begun(found, request.args.get("state")):
            log.warning("a sign-in by %s was refused: this browser did not begin it", found.name)
            return self._refused(f"{found.shown} was refused: begin here")
        if told := request.args.get("error"):
            log.warning("a sign-in by %s was refused there: %s", found.name, ascii(told[:100]))
            return self._refused(f"{found.shown} came to nothing there: try again later")
        failures, address = Failures.open(), current_actor().address or ""
        if wait_s := failures.take(LINKS_OF_ADDRESS, address):
            return self._too_many(wait_s)
        try:
            claims = self.appbuilder.sm.identity_providers.claims(found)
            account = identities.account_of(claims, found, AirflowAccounts())
        except (ProviderFailed, Unavailable) as error:
            failures.give_back(LINKS_OF_ADDRESS, address)
            log.error("%s", error.detail)
            return self._refused(f"{found.label or found.name} does not answer as it should: try again later")
        except BridgeError as error:
            log.warning("a sign-in by %s was refused: %s", found.name, error.detail)
            return self._refused(f"{found.shown} was refused. Ask your administrator for an invitation")
        failures.give_back(LINKS_OF_ADDRESS, address)
        user = self.appbuilder.sm.find_user(username=account.user_name)
        next_url = get_safe_url(session.pop(NEXT, ""))
        if session.pop(PROVING, False):
            return self._to_enrolment(user)
        self.appbuilder.sm._rotate_session_id()
        by = {"way": identities.WAY, "provider": found.name}
        if claims.second_factor:
            by["second_factor"] = found.name
        elif second_factor.must_enrol(user.username):
            return self._enrolment_wanted(user, identities.WAY)
        elif second_factor.is_enrolled(user.username):
            return self._code_wanted(user, user.username, next_url, identities.WAY)
        failures.forget(account.user_name.casefold(), address)
        self.appbuilder.sm.update_user_auth_stat(user, True)
        events.tell(user.username, "sign_in.succeeded", **by)
        return self._signed_in(user, next_url)

    @staticmethod
    def _enrolment_wanted(user: Any, way: str) -> Any:
        """An organization of his requires what he has not: he is led there, and gets nothing else before. What he
        has just signed in by proves who he is; not everybody has a password."""
        events.tell(user.username, "sign_in.failed", way=way, why="no second factor")
        return SignInView._to_enrolment(user)

    @staticmethod
    def _to_enrolment(user: Any) -> Any:
        return redirect(address_of("second-factor/begin", second_factor_token(user.username)))

    def _code_wanted(self, user: Any, name: str, next_url: str, way: str) -> Any:
        """The page that asks for the code; what `_second_step` needs is kept in the session."""
        until = int(time.time()) + PENDING_S
        session[PENDING] = {
            "user": user.username, CLAIM: stamp(user), "until": until, "next": next_url, "way": way
        }  # fmt: skip
        return self._uncached(self.code_template, username=name)

    def _refused(self, text: str) -> Any:
        flash(text, "warning")
        return redirect(self.appbuilder.get_url_for_login)

    def _too_many(self, wait_s: int) -> Any:
        flash("Too many sign-ins failed: try again later", "warning")
        answer = self._sign_in_page(LoginForm_db())
        answer.status_code, answer.headers["Retry-After"] = 429, str(wait_s)
        return answer

    def _second_step(self) -> Any:
        pending = session.get(PENDING) or {}
        user = self.appbuilder.sm.find_user(username=pending.get("user"))
        if user is None or not user.is_active or pending["until"] < time.time() or not holds(pending[CLAIM], user):
            session.pop(PENDING, None)
            attempt.undecided()
            flash("Too late: sign in once more", "warning")
            return redirect(self.appbuilder.get_url_for_login_with(""))
        # Failures are counted by the name beside the code.
        name = request.form.get("username", "").strip().lower()
        if name not in (user.username.lower(), (user.email or "").lower()):
            session.pop(PENDING, None)
            attempt.undecided()
            return redirect(self.appbuilder.get_url_for_login_with(""))
        try:
            second_factor.after_password(user.username, request.form["code"], way=pending["way"])
        except second_factor.CodeNeeded:
            attempt.undecided()
            return self._uncached(self.code_template, username=name)
        except second_factor.WrongCode as error:
            flash(error.detail, "warning")
            return self._uncached(self.code_template, username=name)
        self.appbuilder.sm._rotate_session_id()
        return self._signed_in(user, pending["next"])

    @staticmethod
    def _signed_in(user: Any, next_url: str) -> Any:
        session.pop(PENDING, None)
        login_user(user, remember=False)
        attempt.succeeded(user.username)
        return redirect(next_url)

    def _sign_in_page(self, form: Any) -> Any:
        providers = [
            (each.shown, url_for(".begin_elsewhere", provider=each.name, next=request.args.get("next")))
            for each in self.appbuilder.sm.identity_providers
        ]
        return self._uncached(self.login_template, form=form, by_mail=mail.is_set_up(), providers=providers)

    def _uncached(self, template: str, **content: Any) -> Any:
        # FAB's sentences come with a full stop, ours without.
        problem = ". ".join(str(each).rstrip(".") for each in get_flashed_messages())
        here = f"{get_settings().public_path}{PREFIX}"
        answer = current_app.make_response(render_template(template, here=here, problem=problem, **content))
        for name, value in PAGES:
            answer.headers[name.decode()] = value.decode()
        answer.headers["Cache-Control"] = "no-store"
        return answer
