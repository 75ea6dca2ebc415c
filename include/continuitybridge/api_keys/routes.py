"""API keys over HTTP."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from continuitybridge import api_keys
from continuitybridge.api_keys import verbs
from continuitybridge.errors import NotAllowed
from continuitybridge.organizations.access import Caller, CallerDep, Place
from continuitybridge.organizations.matrix import Action, needs

router = APIRouter(prefix="/api-keys", tags=["api keys"])

Organization = Annotated[str | None, Query(max_length=64, description="Slug; needed unless one has exactly one")]


class ApiKey(BaseModel):
    """A key; of the key itself only its `beginning`. It acts as its user in one organization: reads there, and
    with scope `write` changes what its user may change. `last_used_at` is exact to a minute."""

    key_id: UUID
    name: str
    beginning: str
    user_name: str
    scope: Literal["read", "write"]
    created_at: datetime
    created_by: str
    expires_at: datetime
    last_used_at: datetime | None
    revoked_at: datetime | None


class KeyWanted(BaseModel):
    """A key to be made, for so many `days`."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1, max_length=verbs.MAX_NAME_CHARACTERS)
    scope: Literal["read", "write"] = "read"
    days: int = Field(default=365, ge=1, le=verbs.MAX_DAYS)


class KeyMade(ApiKey):
    """The key itself, shown this once: send it as `Authorization: Bearer <key>` or as `X-API-Key`."""

    key: str


@router.get("", summary="API keys of an organization", openapi_extra=needs(Action.API_KEY_MANAGE))
def list_api_keys(caller: CallerDep, organization: Organization = None) -> list[ApiKey]:
    found = api_keys.list_keys(_place(caller, organization).organization_id)
    return [ApiKey.model_validate(each, from_attributes=True) for each in found]


@router.post(
    "", summary="Make an API key that acts as you", status_code=201, openapi_extra=needs(Action.API_KEY_MANAGE)
)
def create_api_key(caller: CallerDep, wanted: KeyWanted, organization: Organization = None) -> KeyMade:
    place = _place(caller, organization)
    made = api_keys.create(
        place.organization_id,
        wanted.name,
        user_name=caller.user_name,
        scope=wanted.scope,
        days=wanted.days,
        by=caller.user_name,
    )
    shown = ApiKey.model_validate(made.shown, from_attributes=True)
    return KeyMade(key=made.key, **shown.model_dump())


@router.delete("/{key}", summary="Revoke an API key", openapi_extra=needs(Action.API_KEY_MANAGE))
def revoke_api_key(caller: CallerDep, key: UUID, organization: Organization = None) -> ApiKey:
    place = _place(caller, organization)
    revoked = api_keys.revoke(place.organization_id, key, by=caller.user_name)
    return ApiKey.model_validate(revoked, from_attributes=True)


def _place(caller: Caller, organization: str | None) -> Place:
    if caller.by_api_key:
        raise NotAllowed("API keys are managed by people: sign in as a user")
    return caller.chosen(organization)
