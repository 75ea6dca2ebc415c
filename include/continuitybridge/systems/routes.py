"""Ecosystems and systems over HTTP."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path
from pydantic import BaseModel, ConfigDict, Field

from continuitybridge import systems
from continuitybridge.organizations.access import CallerDep
from continuitybridge.organizations.matrix import Action, needs
from continuitybridge.systems import Kind

router = APIRouter(prefix="/organizations/{organization}", tags=["systems"])

Slug = Annotated[str, Path(max_length=64, description="Slug of the organization")]
Environment = Annotated[str, Path(max_length=16, description="dev, test, staging or prod")]
Name = Annotated[str, Path(max_length=64)]


class Ecosystem(BaseModel):
    """One of the things that an organization works with; `systems` counts its systems in all environments."""

    ecosystem: str
    kind: Kind
    name: str
    systems: int


class System(BaseModel):
    """One installation in one environment, and the connections that lead there."""

    environment: str
    system: str
    ecosystem: str
    kind: Kind
    name: str
    connections: list[str]


class EcosystemWanted(BaseModel):
    """What the ecosystem is; `name` is what people read."""

    model_config = ConfigDict(extra="forbid")

    kind: Kind
    name: str = Field(min_length=1, max_length=200)


class SystemWanted(BaseModel):
    """The ecosystem that the system belongs to; `name` is what people read."""

    model_config = ConfigDict(extra="forbid")

    ecosystem: str = Field(max_length=64)
    name: str = Field(min_length=1, max_length=200)


class SystemOfConnection(BaseModel):
    """The system that the connection leads to; null: none in particular."""

    model_config = ConfigDict(extra="forbid")

    system: str | None = Field(max_length=64)


@router.get("/ecosystems", summary="Ecosystems of an organization", openapi_extra=needs(Action.SYSTEM_READ))
def list_ecosystems(caller: CallerDep, organization: Slug) -> list[Ecosystem]:
    found = systems.ecosystems(caller.organization(organization).organization_id)
    return [Ecosystem.model_validate(each, from_attributes=True) for each in found]


@router.put(
    "/ecosystems/{name}", summary="Name an ecosystem, or change one", openapi_extra=needs(Action.SYSTEM_CHANGE)
)
def put_ecosystem(caller: CallerDep, organization: Slug, name: Name, wanted: EcosystemWanted) -> Ecosystem:
    place = caller.organization(organization)
    done = systems.put_ecosystem(
        place.organization_id, name, kind=wanted.kind, name=wanted.name, by=caller.user_name
    )
    return Ecosystem.model_validate(done, from_attributes=True)


@router.delete(
    "/ecosystems/{name}", summary="Remove an ecosystem without systems", openapi_extra=needs(Action.SYSTEM_CHANGE)
)
def remove_ecosystem(caller: CallerDep, organization: Slug, name: Name) -> None:
    place = caller.organization(organization)
    systems.remove_ecosystem(place.organization_id, name, by=caller.user_name)


@router.get("/systems", summary="Systems of an organization", openapi_extra=needs(Action.SYSTEM_READ))
def list_systems(caller: CallerDep, organization: Slug) -> list[System]:
    found = systems.systems(caller.organization(organization).organization_id)
    return [System.model_validate(each, from_attributes=True) for each in found]


@router.put(
    "/environments/{environment}/systems/{name}",
    summary="Name a system in an environment, or change one",
    openapi_extra=needs(Action.SYSTEM_CHANGE),
)
def put_system(
    caller: CallerDep, organization: Slug, environment: Environment, name: Name, wanted: SystemWanted
) -> System:
    place = caller.organization(organization)
    done = systems.put_system(
        place.organization_id,
        environment,
        name,
        ecosystem=wanted.ecosystem,
        name=wanted.name,
        by=caller.user_name,
    )
    return System.model_validate(done, from_attributes=True)


@router.delete(
    "/environments/{environment}/systems/{name}",
    summary="Remove a system that no connection leads to",
    openapi_extra=needs(Action.SYSTEM_CHANGE),
)
def remove_system(caller: CallerDep, organization: Slug, environment: Environment, name: Name) -> None:
    place = caller.organization(organization)
    systems.remove_system(place.organization_id, environment, name, by=caller.user_name)


@router.put(
    "/environments/{environment}/connections/{name}/system",
    summary="Say which system a connection leads to",
    openapi_extra=needs(Action.SYSTEM_CHANGE),
)
def connect(
    caller: CallerDep, organization: Slug, environment: Environment, name: Name, wanted: SystemOfConnection
) -> list[System]:
    place = caller.organization(organization)
    systems.connect(place.organization_id, environment, name, wanted.system, by=caller.user_name)
    return list_systems(caller, organization)
