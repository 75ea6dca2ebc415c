"""Stored secrets over HTTP: no route gives a value."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, ConfigDict, Field

from continuitybridge.errors import ConfigurationError
from continuitybridge.organizations.access import CallerDep
from continuitybridge.organizations.matrix import Action, needs
from continuitybridge.secrets import backends, references, reminders, trying, verbs

router = APIRouter(prefix="/secrets", tags=["secrets"])

OrganizationQuery = Annotated[str | None, Query(description="Slug; needed unless one has exactly one")]
Slug = Annotated[str, Path(max_length=64, description="Slug of the organization")]
Environment = Annotated[str, Path(max_length=16, description="dev, test, staging or prod")]
Name = Annotated[str, Path(max_length=64, description="The secret's name")]


class _In(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class StoredSecret(BaseModel):
    """A secret without its value. `version` is the current one, `versions` how many are kept. Where
    `rotate_every_days` is set, `rotation_due_at` follows the last new version."""

    environment: str
    name: str
    type: str
    description: str
    enabled: bool
    version: int
    versions: int
    expires_at: datetime | None
    rotate_every_days: int | None
    rotation_due_at: datetime | None
    last_rotated_at: datetime
    updated_at: datetime
    updated_by: str


class SecretVersion(BaseModel):
    """One version, without its value."""

    version: int
    current: bool
    expires_at: datetime | None
    created_at: datetime
    created_by: str


class ReferenceWanted(_In):
    """Where the value is: in the secret store `backend`, at `path`, which begins behind the organization's
    prefix. There is a JSON object with the type's fields, or, with `field`, the text of that field; `fields` are
    others."""

    backend: str = Field(max_length=64)
    path: str = Field(max_length=200)
    field: str | None = Field(default=None, max_length=64)
    fields: dict[str, str | int | bool] = Field(default_factory=dict)


class SecretWanted(_In):
    """`value` holds the fields of the type, or `reference` says where they are. `rotate_every_days` and
    `description` stay as they are where they are absent."""

    type: str = Field(max_length=32)
    value: dict[str, Any] | None = None
    reference: ReferenceWanted | None = None
    expires_at: datetime | None = None
    rotate_every_days: int | None = Field(default=None, ge=1, le=verbs.MAX_ROTATION_DAYS)
    description: str | None = Field(default=None, max_length=verbs.MAX_DESCRIPTION_CHARACTERS)


class VersionWanted(_In):
    """The version to go back to."""

    version: int = Field(ge=1, le=2**31 - 1)


class DueSecret(BaseModel):
    """A secret to look after: `at` is when it expires, or was to be rotated."""

    environment: str
    name: str
    type: str
    version: int
    reason: Literal["expired", "expires_soon", "rotation_due"]
    at: datetime
    reminded: bool


class SecretTried(BaseModel):
    """`ok` null: it cannot be tried. `detail` says why, or what was answered."""

    ok: bool | None
    detail: str


@router.get("", summary="Secrets of an organization, without values", openapi_extra=needs(Action.SECRET_READ))
def list_secrets(
    caller: CallerDep,
    organization: OrganizationQuery = None,
    environment: Annotated[str | None, Query(description="Only this environment")] = None,
) -> list[StoredSecret]:
    place = caller.chosen(organization)
    return [_shown(each) for each in verbs.list_secrets(place.organization_id, environment)]


@router.get("/due", summary="Secrets that expire or are to be rotated", openapi_extra=needs(Action.SECRET_READ))
def list_due_secrets(caller: CallerDep, organization: OrganizationQuery = None) -> list[DueSecret]:
    place = caller.chosen(organization)
    return [DueSecret.model_validate(each, from_attributes=True) for each in reminders.due(place.organization_id)]


@router.get("/stores", summary="Secret stores that secrets may refer to", openapi_extra=needs(Action.SECRET_READ))
def list_secret_stores(caller: CallerDep, organization: OrganizationQuery = None) -> list[str]:
    caller.chosen(organization)
    return backends.names()


@router.get(
    "/{organization}/{environment}/{name}/versions",
    summary="Versions of a secret, without values",
    openapi_extra=needs(Action.SECRET_READ),
)
def list_secret_versions(
    caller: CallerDep, organization: Slug, environment: Environment, name: Name
) -> list[SecretVersion]:
    found = verbs.versions(caller.organization(organization).organization_id, environment, name)
    return [SecretVersion.model_validate(each, from_attributes=True) for each in found]


@router.put(
    "/{organization}/{environment}/{name}",
    summary="Make a secret, or a new version of it",
    openapi_extra=needs(Action.SECRET_CHANGE),
)
def set_secret(
    caller: CallerDep, organization: Slug, environment: Environment, name: Name, request: SecretWanted
) -> StoredSecret:
    if (request.value is None) == (request.reference is None):
        raise ConfigurationError("one of value and reference is needed", field="value")
    stored = verbs.put(
        caller.organization(organization).organization_id,
        environment,
        name,
        request.type,
        references.parse(request.type, request.reference.model_dump(exclude_none=True))
        if request.reference is not None
        else request.value or {},
        caller.user_name,
        expires_at=request.expires_at,
        rotate_every_days=request.rotate_every_days,
        description=request.description,
    )
    return _shown(stored)


@router.post(
    "/{organization}/{environment}/{name}/rollback",
    summary="Go back to a version that is kept",
    openapi_extra=needs(Action.SECRET_CHANGE),
)
def roll_back_secret(
    caller: CallerDep, organization: Slug, environment: Environment, name: Name, request: VersionWanted
) -> StoredSecret:
    place = caller.organization(organization)
    return _shown(verbs.roll_back(place.organization_id, environment, name, request.version, caller.user_name))


@router.post(
    "/{organization}/{environment}/{name}/disable",
    summary="Give a secret to nobody",
    openapi_extra=needs(Action.SECRET_CHANGE),
)
def disable_secret(caller: CallerDep, organization: Slug, environment: Environment, name: Name) -> StoredSecret:
    place = caller.organization(organization)
    return _shown(verbs.switch(place.organization_id, environment, name, caller.user_name, enabled=False))


@router.post(
    "/{organization}/{environment}/{name}/enable",
    summary="Switch a secret on again",
    openapi_extra=needs(Action.SECRET_CHANGE),
)
def enable_secret(caller: CallerDep, organization: Slug, environment: Environment, name: Name) -> StoredSecret:
    place = caller.organization(organization)
    return _shown(verbs.switch(place.organization_id, environment, name, caller.user_name, enabled=True))


@router.post(
    "/{organization}/{environment}/{name}/test",
    summary="Sign in with a secret where it belongs",
    openapi_extra=needs(Action.SECRET_CHANGE),
)
def try_secret(caller: CallerDep, organization: Slug, environment: Environment, name: Name) -> SecretTried:
    place = caller.organization(organization)
    tried = trying.try_secret(place.organization_id, environment, name, caller.user_name)
    return SecretTried(ok=tried.ok, detail=tried.detail)


@router.delete(
    "/{organization}/{environment}/{name}",
    summary="Delete a secret with all its versions",
    status_code=204,
    openapi_extra=needs(Action.SECRET_CHANGE),
)
def remove_secret(caller: CallerDep, organization: Slug, environment: Environment, name: Name) -> None:
    verbs.remove(caller.organization(organization).organization_id, environment, name, caller.user_name)


def _shown(found: verbs.StoredSecret) -> StoredSecret:
    return StoredSecret.model_validate(found, from_attributes=True)
