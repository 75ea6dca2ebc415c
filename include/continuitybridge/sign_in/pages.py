"""The pages behind the links, and the forms that ask for links, at `/bridge/sign-in`.

Whoever is asked here is not known yet, so that these addresses are public; they stand beside the API and its gate.
Opening a page uses nothing up (mail scanners open links); its button does. A link's token stands behind the `#`,
which the page's script puts into the form; without the script a person pastes it. No form is taken that somebody
else's page sent.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import segno
from anyio import to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.templating import Jinja2Templates
from starlette.types import ASGIApp, Receive, Scope, Send

from continuitybridge import mail, problems
from continuitybridge.actor import Actor, acting
from continuitybridge.errors import BridgeError, ConfigurationError, NotAuthenticated, NotFound, TooManyRequests
from continuitybridge.settings import get_settings
from continuitybridge.sign_in import forms, second_factor
from continuitybridge.sign_in.accounts import Accounts
from continuitybridge.sign_in.failures import MAILS_OF_ADDRESS, Failures
from continuitybridge.sign_in.passwords import MIN_CHARACTERS, WeakPassword
from continuitybridge.sign_in.tokens import Purpose
from continuitybridge.sign_in.verbs import Ways

MAILERS = 2
"""How many requests for links are worked on at once in this process."""

FOR_SECOND_FACTOR = "second-factor"
"""What stands in the query of a provider's address (`/auth/login/<name>`) for who proves there who he is."""

log = logging.getLogger(__name__)
_HERE = Path(__file__).parent


class Pages:
    """The application, see the module."""

    def __init__(self, accounts: Accounts, failures: Failures | None = None) -> None:
        self._accounts = accounts
        self._opened = failures
        self._mailers = ThreadPoolExecutor(MAILERS, thread_name_prefix="bridge-links")
        self._templates = Jinja2Templates(_HERE / "templates")

    def app(self) -> Starlette:
        post, get = ["POST"], ["GET"]
        return Starlette(
            routes=[
                Route("/", self.ask_for_link, methods=get),
                Route("/link", self.send_link, methods=post),
                Route("/confirm", self.confirm_page, methods=get),
                Route("/confirm", self.confirm, methods=post),
                Route("/forgotten", self.ask_for_reset, methods=get),
                Route("/reset", self.send_reset, methods=post),
                Route("/new-password", self.new_password_page, methods=get),
                Route("/new-password", self.new_password, methods=post),
                Route("/invitation", self.invitation_page, methods=get),
                Route("/invitation", self.invitation, methods=post),
                Route("/join", self.join_as_new, methods=post),
                Route("/join-with-account", self.join_as_known, methods=post),
                Route("/second-factor", self.second_factor_page, methods=get),
                Route("/second-factor", self.begin_second_factor, methods=post),
                Route("/second-factor/begin", self.second_factor_signed_in_page, methods=get),
                Route("/second-factor/begin", self.begin_second_factor_signed_in, methods=post),
                Route("/second-factor/confirm", self.confirm_second_factor, methods=post),
                Route("/static/{name}", self.static, methods=get),
            ],
            middleware=[Middleware(_ActingFrom)],
            exception_handlers={BridgeError: self.refused, HTTPException: self.no_such_page},
        )

    # -- asking for a mail ------------------------------------------------------------------------------------

    async def ask_for_link(self, request: Request) -> Response:
        mail.require_set_up()
        return self._page(request, "ask.html", purpose="link")

    async def ask_for_reset(self, request: Request) -> Response:
        mail.require_set_up()
        return self._page(request, "ask.html", purpose="reset")

    async def send_link(self, request: Request) -> Response:
        return await self._send(request, "link")

    async def send_reset(self, request: Request) -> Response:
        return await self._send(request, "reset")

    async def _send(self, request: Request, purpose: Purpose) -> Response:
        """The same answer, as soon, whether anybody has the address: who does is looked up afterwards."""
        mail.require_set_up()
        wanted = await forms.read(request, forms.LinkWanted)
        if wait_s := await to_thread.run_sync(self._failures.take, MAILS_OF_ADDRESS, forms.address(request)):
            raise TooManyRequests("too many links were asked for: try again later", retry_after_s=wait_s)
        if "@" not in wanted.email:
            raise ConfigurationError("an e-mail address looks like name@example.com", field="email")
        self._mailers.submit(self._ways.mail_token, purpose, wanted.email)
        if forms.is_program(request):
            return JSONResponse({"detail": "if an account has this address, a mail is on its way"}, 202)
        return self._page(request, "sent.html", status=202, purpose=purpose)

    # -- by a link --------------------------------------------------------------------------------------------

    async def confirm_page(self, request: Request) -> Response:
        return self._page(request, "confirm.html")

    async def confirm(self, request: Request) -> Response:
        form = await forms.read(request, forms.Confirmed)
        token, address = form.token.get_secret_value(), forms.address(request)
        try:
            account = await to_thread.run_sync(self._ways.confirm_link, token, form.code, address)
        except second_factor.EnrolmentNeeded as error:
            return self._needs_enrolment(request, error)
        except (second_factor.CodeNeeded, second_factor.WrongCode) as error:
            return self._code_again(request, error, "confirm", {"token": token})
        return await self._signed_in(request, account.user_name)

    async def new_password_page(self, request: Request) -> Response:
        return self._page(request, "new_password.html")

    async def new_password(self, request: Request) -> Response:
        form = await forms.read(request, forms.NewPassword)
        token, password = form.token.get_secret_value(), form.password.get_secret_value()
        try:
            forms.require_same(form.password, form.again)
            await to_thread.run_sync(self._ways.reset_password, token, password, forms.address(request))
        except WeakPassword as error:
            return self._page(request, "new_password.html", status=422, token=token, problem=error.detail)
        return self._page(request, "changed.html")

    async def invitation_page(self, request: Request) -> Response:
        return self._page(request, "invitation.html")

    async def invitation(self, request: Request) -> Response:
        form = await forms.read(request, forms.InvitationOpened)
        return await self._invited(request, form.token.get_secret_value())

    async def join_as_new(self, request: Request) -> Response:
        form = await forms.read(request, forms.JoinedAsNew)
        token, password = form.token.get_secret_value(), form.password.get_secret_value()
        names = form.first_name, form.last_name
        try:
            forms.require_same(form.password, form.again)
            account = await to_thread.run_sync(
                self._ways.join_as_new, token, *names, password, forms.address(request)
            )
        except WeakPassword as error:
            return await self._invited(request, token, problem=error.detail, names=names)
        return await self._signed_in(request, account.user_name)

    async def join_as_known(self, request: Request) -> Response:
        form = await forms.read(request, forms.JoinedAsKnown)
        token, password = form.token.get_secret_value(), form.password.get_secret_value()
        try:
            account = await to_thread.run_sync(
                self._ways.join_as_known, token, password, form.code, forms.address(request)
            )
        except second_factor.EnrolmentNeeded as error:
            return self._needs_enrolment(request, error)
        except (second_factor.CodeNeeded, second_factor.WrongCode) as error:
            problem = None if isinstance(error, second_factor.CodeNeeded) else error.detail
            return await self._invited(request, token, problem=problem, code_needed=True)
        except NotAuthenticated as error:
            return await self._invited(request, token, problem=error.detail)
        return await self._signed_in(request, account.user_name)

    async def _invited(
        self,
        request: Request,
        token: str,
        *,
        problem: str | None = None,
        names: tuple[str, str] = ("", ""),
        code_needed: bool = False,
    ) -> Response:
        found, account = await to_thread.run_sync(self._ways.find_invitation, token, forms.address(request))
        return self._page(
            request,
            "join.html",
            status=422 if problem else 200,
            token=token,
            invitation=found,
            known=account is not None,
            problem=problem,
            names=names,
            code_needed=code_needed,
        )

    # -- the second factor ------------------------------------------------------------------------------------

    async def second_factor_page(self, request: Request) -> Response:
        return self._begin_page(request, required="required" in request.query_params)

    def _begin_page(self, request: Request, **content: Any) -> Response:
        providers = [(each.name, each.shown) for each in get_settings().oidc_providers]
        return self._page(request, "second_factor.html", providers=providers, **content)

    async def begin_second_factor(self, request: Request) -> Response:
        form = await forms.read(request, forms.SecondFactorWanted)
        try:
            begun, token = await to_thread.run_sync(
                self._ways.begin_second_factor, form.name, form.password.get_secret_value(), forms.address(request)
            )
        except NotAuthenticated as error:
            return self._begin_page(request, status=422, problem=error.detail, name=form.name)
        return self._page(request, "enrol.html", token=token, begun=begun, qr=qr_address(begun.uri))

    async def second_factor_signed_in_page(self, request: Request) -> Response:
        return self._page(request, "second_factor_signed_in.html")

    async def begin_second_factor_signed_in(self, request: Request) -> Response:
        form = await forms.read(request, forms.SecondFactorSignedIn)
        token = form.token.get_secret_value()
        begun = await to_thread.run_sync(self._ways.begin_second_factor_signed_in, token, forms.address(request))
        return self._page(request, "enrol.html", token=token, begun=begun, qr=qr_address(begun.uri))

    async def confirm_second_factor(self, request: Request) -> Response:
        form = await forms.read(request, forms.Confirmed)
        token = form.token.get_secret_value()
        try:
            codes = await to_thread.run_sync(
                self._ways.confirm_second_factor, token, form.code, forms.address(request)
            )
        except second_factor.WrongCode as error:
            return self._page(request, "enrol.html", status=422, token=token, begun=None, problem=error.detail)
        return self._page(request, "recovery_codes.html", codes=codes)

    # -- what all have in common ------------------------------------------------------------------------------

    @property
    def _failures(self) -> Failures:
        if self._opened is None:
            self._opened = Failures.open()
        return self._opened

    @property
    def _ways(self) -> Ways:
        return Ways(self._accounts, self._failures)

    async def _signed_in(self, request: Request, user_name: str) -> Response:
        if await to_thread.run_sync(second_factor.must_enrol, user_name):
            # A member of an organization that requires it is led there, and gets nothing else before.
            return self._to_enrolment(request)
        secure = request.url.scheme == "https" or get_settings().external_url.startswith("https://")

        def sign_in() -> list[str]:
            return list(self._accounts.sign_in(user_name, secure=secure))

        first_page = f"{get_settings().public_path}/"
        answer = RedirectResponse(first_page, 303, {"cache-control": "no-store"})
        for cookie in await to_thread.run_sync(sign_in):
            answer.headers.append("set-cookie", cookie)
        return answer

    def _needs_enrolment(self, request: Request, error: second_factor.EnrolmentNeeded) -> Response:
        if forms.is_program(request):
            raise error
        return self._to_enrolment(request)

    def _to_enrolment(self, request: Request) -> Response:
        there = f"{request.scope.get('root_path', '')}/second-factor?required"
        return RedirectResponse(there, 303, {"cache-control": "no-store"})

    def _code_again(
        self, request: Request, error: BridgeError, action: str, hidden: Mapping[str, str]
    ) -> Response:
        problem = None if isinstance(error, second_factor.CodeNeeded) else error.detail
        status = 200 if problem is None else 422
        return self._page(request, "code.html", status=status, action=action, hidden=hidden, problem=problem)

    def _page(self, request: Request, template: str, *, status: int = 200, **content: Any) -> Response:
        here = request.scope.get("root_path", "")
        given = {
            "token": "",
            "problem": None,
            "required": False,
            "name": "",
            "here": here,
            "sign_in": f"{get_settings().public_path}/auth/login/",
            "min_characters": MIN_CHARACTERS,
            **content,
        }
        return self._templates.TemplateResponse(
            request, template, {**given, **content}, status, {"cache-control": "no-store"}
        )

    async def static(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in ("sign_in.css", "sign_in.js"):
            raise HTTPException(404)
        return FileResponse(_HERE / "static" / name, headers={"cache-control": "max-age=3600"})

    async def no_such_page(self, request: Request, error: Exception) -> Response:
        status = cast("HTTPException", error).status_code
        return await self.refused(request, NotFound("no such page"), status=status)

    async def refused(self, request: Request, error: Exception, status: int | None = None) -> Response:
        problem = problems.of(error)
        if problem.status >= 500:
            log.error("%s", problem.instance, exc_info=error)
        status = status or problem.status
        headers = {**problem.headers, "cache-control": "no-store"}
        if forms.is_program(request):
            return Response(problem.body(), status, headers, media_type=problems.MEDIA_TYPE)
        page = self._page(request, "refused.html", status=status, content=problem.content)
        page.headers.update(headers)
        return page


def qr_address(uri: str) -> str:
    """The QR code of an address, as a picture's address (data:)."""
    return segno.make(uri, error="m").svg_data_uri(scale=4, border=2)


class _ActingFrom:
    """Says from where the request comes, for the audit trails."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        with acting(Actor("platform", address=forms.address(Request(scope)))):
            await self.app(scope, receive, send)
