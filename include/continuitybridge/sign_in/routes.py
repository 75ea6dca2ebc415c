"""Oneself over HTTP: its sessions and its second factor."""

from __future__ import annotations

from typing import cast

import segno
from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, SecretStr

from continuitybridge.errors import ConfigurationError, Conflict, NotAllowed, TooManyRequests, Unavailable
from continuitybridge.organizations.access import Caller, CallerDep
from continuitybridge.organizations.matrix import Action, needs
from continuitybridge.sign_in import forms, second_factor, verbs
from continuitybridge.sign_in.accounts import Accounts
from continuitybridge.sign_in.failures import Failures

router = APIRouter(prefix="/me", tags=["me"])


class SecondFactor(BaseModel):
    """Whether one signs in with a second factor."""

    enrolled: bool


class Password(BaseModel):
    """One's password once more: a session that somebody else holds changes nothing here."""

    model_config = ConfigDict(extra="forbid")

    password: SecretStr = Field(min_length=1, max_length=1024)


class Code(BaseModel):
    """A code of the authenticator app."""

    model_config = ConfigDict(extra="forbid")

    code: str = Field(min_length=1, max_length=64)


class Proof(Password, Code):
    """Both."""


class Begun(BaseModel):
    """What the app needs, shown this once: `uri` (otpauth) is what the QR code `qr` (SVG) holds."""

    secret: str
    uri: str
    qr: str


class RecoveryCodes(BaseModel):
    """Each stands for a code once; they are not shown again."""

    recovery_codes: list[str]


@router.post(
    "/end-sessions",
    summary="Sign out everywhere",
    status_code=204,
    openapi_extra=needs(Action.SELF_MANAGE),
)
def end_sessions(caller: CallerDep) -> None:
    verbs.end_sessions(_person(caller))


@router.get("/second-factor", summary="Whether one has a second factor", openapi_extra=needs(Action.SELF_READ))
def get_second_factor(caller: CallerDep) -> SecondFactor:
    return SecondFactor(enrolled=second_factor.is_enrolled(caller.user_name))


@router.post(
    "/second-factor",
    summary="Begin with a second factor: get its secret",
    status_code=201,
    openapi_extra=needs(Action.SELF_MANAGE),
)
def begin_second_factor(request: Request, caller: CallerDep, given: Password) -> Begun:
    name = _proven(request, caller, given.password)
    begun = second_factor.begin(name)
    return Begun(secret=begun.secret, uri=begun.uri, qr=qr(begun.uri))


@router.post(
    "/second-factor/confirm",
    summary="Have the second factor count, by a code of it",
    openapi_extra=needs(Action.SELF_MANAGE),
)
def confirm_second_factor(request: Request, caller: CallerDep, given: Code) -> RecoveryCodes:
    name, ways = _person(caller), verbs.Ways(_accounts(request), Failures.open())
    try:
        return RecoveryCodes(recovery_codes=ways.confirm_begun(name, given.code, forms.address(request)))
    except second_factor.WrongCode as error:
        # Who asks is known: he is not told to sign in.
        raise ConfigurationError(error.detail, field="code") from error


@router.post(
    "/second-factor/remove",
    summary="Do without a second factor from now on",
    status_code=204,
    openapi_extra=needs(Action.SELF_MANAGE),
)
def remove_second_factor(request: Request, caller: CallerDep, given: Proof) -> None:
    name = _proven(request, caller, given.password)
    ways = verbs.Ways(_accounts(request), Failures.open())
    try:
        ways.pass_second_factor(name, given.code, forms.address(request), way="second factor")
    except second_factor.WrongCode as error:
        raise ConfigurationError(error.detail, field="code") from error
    if second_factor.is_required(name):
        raise Conflict("an organization of yours requires a second factor")
    second_factor.remove(name, by=name)


def qr(uri: str) -> str:
    """The QR code of an address, as SVG."""
    return segno.make(uri, error="m").svg_inline(scale=4, border=2, omitsize=True)


def _person(caller: Caller) -> str:
    if caller.by_api_key:
        raise NotAllowed("sessions and second factors are managed by their person: sign in as a user")
    return caller.user_name


def _accounts(request: Request) -> Accounts:
    found = getattr(request.app.state, "accounts", None)
    if found is None:
        raise Unavailable("there are no accounts here")
    return cast("Accounts", found)


def _proven(request: Request, caller: Caller, password: SecretStr) -> str:
    """The caller's name, when it is his password; wrong ones count as failed sign-ins do."""
    name, failures, accounts = _person(caller), Failures.open(), _accounts(request)
    who = name.casefold(), forms.address(request)
    if wait_s := failures.begin(*who):
        raise TooManyRequests("too many sign-ins failed: try again later", retry_after_s=wait_s)
    if accounts.verify(name, password.get_secret_value()) is None:
        raise ConfigurationError("the password is wrong", field="password")
    failures.failed_not(*who)
    return name
