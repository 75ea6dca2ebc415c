"""Tokens over HTTP, and where browsers come back to."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Path, Query
from fastapi.responses import HTMLResponse
from pydantic import BaseModel

from continuitybridge import tokens
from continuitybridge.errors import NotAllowed, NotFound
from continuitybridge.organizations.access import Caller, CallerDep
from continuitybridge.organizations.matrix import Action, needs
from continuitybridge.tokens import connect as connecting
from continuitybridge.tokens.kept import Place
from continuitybridge.tokens.seats import seat

router = APIRouter(tags=["tokens"])

Organization = Annotated[str | None, Query(max_length=64, description="Slug; needed unless one has exactly one")]
Environment = Annotated[str, Path(max_length=16, description="dev, test, staging or prod")]
Name = Annotated[str, Path(max_length=64, description="The connection")]

REFRESH_WAIT_S = 10.0
"""So long a request waits for another token; a call that takes longer goes on without it."""

_DONE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Connected</title>
<p>The account is connected. This window may be closed.</p></html>
"""


class StoredToken(BaseModel):
    """How the token of a connection stands; of the token itself nothing. `state`: missing (none was needed yet, or
    nobody has connected the account), active, refreshing, or reconnect: it gets none by itself any more, `problem`
    says why."""

    environment: str
    connection: str
    type: str
    grant: str | None
    state: str
    obtained_at: datetime | None
    expires_at: datetime | None
    renewable: bool
    problem: str | None


class Begun(BaseModel):
    """What to do: open `address` as the user who asked; for a device code, type `user_code` there, and poll every
    `interval_s` seconds."""

    connect_id: UUID
    address: str
    user_code: str | None
    interval_s: int | None
    expires_at: datetime


class Connect(BaseModel):
    """`status`: pending, connected, denied, expired or failed."""

    connect_id: UUID
    environment: str
    connection: str
    status: str
    problem: str | None
    interval_s: int | None
    expires_at: datetime


@router.get("/tokens", summary="Connections' tokens, and how they stand", openapi_extra=needs(Action.TOKEN_READ))
def list_tokens(
    caller: CallerDep,
    organization: Organization = None,
    environment: Annotated[str | None, Query(max_length=16)] = None,
) -> list[StoredToken]:
    found = tokens.list_tokens(caller.chosen(organization).organization_id, environment)
    return [StoredToken.model_validate(each, from_attributes=True) for each in found]


@router.post(
    "/tokens/{environment}/{name}/refresh",
    summary="Obtain another token now",
    openapi_extra=needs(Action.TOKEN_CHANGE),
)
def refresh_token(
    caller: CallerDep, environment: Environment, name: Name, organization: Organization = None
) -> StoredToken:
    owner = caller.chosen(organization).organization_id
    with seat(owner):
        found = tokens.refresh(owner, environment, name, wait_s=REFRESH_WAIT_S)
    return StoredToken.model_validate(found, from_attributes=True)


@router.delete(
    "/tokens/{environment}/{name}",
    summary="Forget a token, and revoke it",
    openapi_extra=needs(Action.TOKEN_CHANGE),
)
def revoke_token(
    caller: CallerDep, environment: Environment, name: Name, organization: Organization = None
) -> StoredToken:
    owner = caller.chosen(organization).organization_id
    with seat(owner):
        found = tokens.revoke(owner, environment, name)
    return StoredToken.model_validate(found, from_attributes=True)


@router.post(
    "/tokens/{environment}/{name}/connect",
    summary="Begin to connect the account of a connection",
    openapi_extra=needs(Action.TOKEN_CHANGE),
)
def connect_account(
    caller: CallerDep, environment: Environment, name: Name, organization: Organization = None
) -> Begun:
    _is_person(caller)
    place = Place(caller.chosen(organization).organization_id, environment, name)
    with seat(place.organization_id):
        begun = connecting.begin(place, caller.user_name)
    return Begun.model_validate(begun, from_attributes=True)


@router.post(
    "/tokens/connects/{connect}/poll",
    summary="Whether an account is connected by now",
    openapi_extra=needs(Action.TOKEN_CHANGE),
)
def poll_connect(caller: CallerDep, connect: UUID, organization: Organization = None) -> Connect:
    owner = caller.chosen(organization).organization_id
    with seat(owner):
        found = connecting.poll(owner, connect, caller.user_name)
    return Connect.model_validate(found, from_attributes=True)


@router.get(
    "/oauth/callback",
    summary="Where an authorization server sends the browser back to",
    response_class=HTMLResponse,
    openapi_extra=needs(Action.TOKEN_CHANGE),
)
def callback(
    caller: CallerDep,
    state: Annotated[str, Query(max_length=200)],
    code: Annotated[str | None, Query(max_length=8192)] = None,
    error: Annotated[str | None, Query(max_length=200)] = None,
) -> HTMLResponse:
    _is_person(caller)
    organization_id = connecting.organization_of(state)
    place = next((each for each in caller.organizations() if each.organization_id == organization_id), None)
    if place is None:
        raise NotFound("this is not, or no longer, being connected by you: begin again")
    caller.check(place)
    # Taken before the state is used: who is told to come again loads the same address once more.
    with seat(organization_id):
        connecting.finish(state, caller.user_name, code=code, error=error)
    return HTMLResponse(_DONE, headers={"cache-control": "no-store", "referrer-policy": "no-referrer"})


def _is_person(caller: Caller) -> None:
    if caller.by_api_key:
        raise NotAllowed("accounts are connected by people: sign in as a user")
