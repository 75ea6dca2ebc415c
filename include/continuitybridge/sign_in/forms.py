"""What is sent to the pages: forms, and the same as JSON for programs."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar
from urllib.parse import parse_qsl

import orjson
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError
from starlette.requests import Request

from continuitybridge import origins
from continuitybridge.errors import ConfigurationError, NotAllowed, PayloadTooLarge, UnsupportedContent
from continuitybridge.guard.network import sender_of
from continuitybridge.settings import get_settings
from continuitybridge.sign_in.passwords import WeakPassword

MAX_BODY_BYTES = 16 * 1024

Token = Annotated[SecretStr, Field(min_length=20, max_length=100)]
Text = Annotated[str, Field(min_length=1, max_length=64)]
Password = Annotated[SecretStr, Field(min_length=1, max_length=1024)]
Code = Annotated[str, Field(max_length=64)]


class Form(BaseModel):
    model_config = ConfigDict(extra="forbid", str_strip_whitespace=True)


class LinkWanted(Form):
    """Whose address the link is to go to."""

    email: str = Field(min_length=3, max_length=254)


class Confirmed(Form):
    token: Token
    code: Code = ""


class NewPassword(Form):
    token: Token
    password: Password
    again: Password


class InvitationOpened(Form):
    token: Token


class JoinedAsNew(Form):
    token: Token
    first_name: Text
    last_name: Text
    password: Password
    again: Password


class JoinedAsKnown(Form):
    token: Token
    password: Password
    code: Code = ""


class SecondFactorWanted(Form):
    name: Annotated[str, Field(min_length=1, max_length=254)]
    password: Password


class SecondFactorSignedIn(Form):
    token: Token


F = TypeVar("F", bound=Form)


async def read(request: Request, form: type[F]) -> F:
    """The request's form or JSON object. Raises `NotAllowed` when another's page sent it, `ConfigurationError`
    naming the fields that are wrong and never what they held."""
    if origins.is_anothers(dict(request.scope["headers"])):
        raise NotAllowed("the form must be sent from the platform's own page")
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY_BYTES:
            raise PayloadTooLarge(f"a form has at most {MAX_BODY_BYTES} bytes", allowed=MAX_BODY_BYTES)
    try:
        return form.model_validate(_text(_parsed(request, body)))
    except ValidationError as error:
        found = [{"field": ".".join(map(str, each["loc"])), "message": each["msg"]} for each in error.errors()]
        text = "; ".join(f"{each['field']}: {each['message']}" for each in found)
        raise ConfigurationError(f"the form is not valid: {text}", problems=found) from None


def _parsed(request: Request, body: bytes) -> Any:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        if kind == "application/json":
            return orjson.loads(body)
        if kind == "application/x-www-form-urlencoded":
            return dict(parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=20))
    except ValueError:
        raise ConfigurationError("the form cannot be read") from None
    raise UnsupportedContent(
        "a form is sent as application/x-www-form-urlencoded or application/json",
        valid=["application/x-www-form-urlencoded", "application/json"],
    )


def _text(given: Any) -> Any:
    """As it came. Raises `ConfigurationError` for NUL characters, which the database takes in no text."""
    if isinstance(given, dict):
        for field, value in given.items():
            if isinstance(value, str) and "\0" in value:
                raise ConfigurationError("the form is not valid: it holds a NUL character", field=field)
    return given


def is_program(request: Request) -> bool:
    """Whether the answer is for a program, and not a page for a person."""
    accepted = request.headers.get("accept", "")
    return "json" in request.headers.get("content-type", "") or "text/html" not in accepted


def require_same(password: SecretStr, again: SecretStr) -> None:
    """Raises `WeakPassword` when a password was not typed twice alike."""
    if password.get_secret_value() != again.get_secret_value():
        raise WeakPassword("the two passwords are not the same", field="again")


def address(request: Request) -> str:
    """Where the request came from."""
    return str(sender_of(request.scope, get_settings().trusted_networks))
