"""Flows over HTTP: what is deployed, its versions, deploying and rolling back."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Path, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from continuitybridge.deployments import verbs
from continuitybridge.errors import NotFound
from continuitybridge.flows.load import load_flow
from continuitybridge.organizations.access import CallerDep
from continuitybridge.organizations.matrix import Action, needs

router = APIRouter(prefix="/flows", tags=["flows"])

Slug = Annotated[str, Path(max_length=64, description="Slug of the organization")]
Environment = Annotated[str, Path(max_length=16, description="dev, test, staging or prod")]
FlowName = Annotated[str, Path(max_length=64, description="Name of the flow")]


class _In(BaseModel):
    model_config = ConfigDict(extra="forbid")


class DeployedFlow(BaseModel):
    """A flow as it is deployed in an environment. `revision` grows with every change to it."""

    organization: str
    environment: str
    flow: str
    version: str
    status: str
    revision: int
    deployed_at: datetime
    deployed_by: str


class HistoryItem(BaseModel):
    """One thing that was done to a deployment."""

    revision: int
    version: str
    action: str
    at: datetime
    by: str


class FlowDetail(DeployedFlow):
    """A deployed flow and what was done to it, newest first."""

    history: list[HistoryItem]


class Version(BaseModel):
    """One immutable version. `environments` are those it runs in now."""

    version: str
    digest: str
    description: str
    created_at: datetime
    created_by: str
    environments: list[str]


class VersionSource(BaseModel):
    """A version's text and side files (name → text)."""

    version: str
    source: str
    files: dict[str, str]


class DeployRequest(_In):
    """A flow to deploy: its text in any of the formats that are read, and its side files (name → text)."""

    source: str = Field(min_length=1, max_length=4 * 1024 * 1024)
    files: dict[str, str] = Field(default_factory=dict, max_length=200)


class Deployed(DeployedFlow):
    """What a deploy or rollback did. `secrets` maps the slug of each new webhook endpoint to its secret, which is
    shown here and never again; `awaiting_secrets` names endpoints whose provider's secret has to be entered before
    they take anything. `changed` is false when exactly this ran already."""

    changed: bool
    secrets: dict[str, str]
    awaiting_secrets: list[str]


class RollbackRequest(_In):
    """`to`: the version to go back to; without it, the one deployed before the current one."""

    to: str | None = Field(default=None, max_length=256)


class Difference(BaseModel):
    """A unified diff of source and side files; empty when they are equal."""

    old: str
    new: str
    diff: str


@router.get("", summary="Deployed flows of an organization", openapi_extra=needs(Action.FLOW_READ))
def list_flows(
    caller: CallerDep,
    organization: Annotated[str | None, Query(description="Slug; needed unless one has exactly one")] = None,
    environment: Annotated[str | None, Query(description="Only this environment")] = None,
) -> list[DeployedFlow]:
    place = caller.chosen(organization)
    return [_shown(place.slug, each) for each in verbs.list_deployments(place.organization_id, environment)]


@router.get(
    "/{organization}/{environment}/{flow}",
    summary="A deployed flow and its history",
    openapi_extra=needs(Action.FLOW_READ),
)
def show_flow(caller: CallerDep, organization: Slug, environment: Environment, flow: FlowName) -> FlowDetail:
    place = caller.organization(organization)
    deployment = _deployed(place.organization_id, environment, flow)
    done = verbs.history(place.organization_id, environment, flow)
    return FlowDetail(
        **_shown(organization, deployment).model_dump(),
        history=[
            HistoryItem(revision=h.revision, version=h.version, action=h.action, at=h.at, by=h.by) for h in done
        ],
    )


@router.get(
    "/{organization}/{environment}/{flow}/versions",
    summary="A flow's versions, newest first",
    openapi_extra=needs(Action.FLOW_READ),
)
def list_versions(
    caller: CallerDep, organization: Slug, environment: Environment, flow: FlowName
) -> list[Version]:
    place = caller.organization(organization)
    _deployed(place.organization_id, environment, flow)
    return [
        Version(
            version=v.version,
            digest=v.digest,
            description=v.description,
            created_at=v.created_at,
            created_by=v.created_by,
            environments=v.environments,
        )
        for v in verbs.versions(place.organization_id, flow)
    ]


@router.get(
    "/{organization}/{environment}/{flow}/versions/{version}",
    summary="A version's source",
    openapi_extra=needs(Action.FLOW_READ),
)
def show_version(
    caller: CallerDep, organization: Slug, environment: Environment, flow: FlowName, version: str
) -> VersionSource:
    place = caller.organization(organization)
    _deployed(place.organization_id, environment, flow)
    source, files = verbs.version_source(place.organization_id, flow, version)
    return VersionSource(version=version, source=source, files=files)


@router.get(
    "/{organization}/{environment}/{flow}/diff",
    summary="What changed between two versions",
    openapi_extra=needs(Action.FLOW_READ),
)
def show_diff(
    caller: CallerDep,
    organization: Slug,
    environment: Environment,
    flow: FlowName,
    old: Annotated[str, Query(description="The version compared with")],
    new: Annotated[str, Query(description="The version compared")],
) -> Difference:
    place = caller.organization(organization)
    _deployed(place.organization_id, environment, flow)
    return Difference(old=old, new=new, diff=verbs.diff(place.organization_id, flow, old, new))


@router.post(
    "/{organization}/{environment}",
    summary="Deploy a flow version",
    status_code=201,
    openapi_extra=needs(Action.FLOW_DEPLOY),
)
def deploy(
    caller: CallerDep, organization: Slug, environment: Environment, request: DeployRequest, response: Response
) -> Deployed:
    place = caller.organization(organization)
    loaded = load_flow(request.source, files=request.files)
    done = verbs.deploy(place.organization_id, environment, loaded, caller.user_name)
    if not done.changed:
        response.status_code = 200
    return _done(organization, done)


@router.post(
    "/{organization}/{environment}/{flow}/rollback",
    summary="Run an earlier version again",
    openapi_extra=needs(Action.FLOW_DEPLOY),
)
def rollback(
    caller: CallerDep,
    organization: Slug,
    environment: Environment,
    flow: FlowName,
    request: RollbackRequest | None = None,
) -> Deployed:
    place = caller.organization(organization)
    to = request.to if request else None
    return _done(organization, verbs.rollback(place.organization_id, environment, flow, caller.user_name, to=to))


@router.post(
    "/{organization}/{environment}/{flow}/disable",
    summary="Stop a flow; accepted messages wait",
    openapi_extra=needs(Action.FLOW_DEPLOY),
)
def disable(caller: CallerDep, organization: Slug, environment: Environment, flow: FlowName) -> Deployed:
    place = caller.organization(organization)
    done = verbs.set_status(place.organization_id, environment, flow, "disable", caller.user_name)
    return _done(organization, done)


@router.post(
    "/{organization}/{environment}/{flow}/enable",
    summary="Let a disabled flow run again",
    openapi_extra=needs(Action.FLOW_DEPLOY),
)
def enable(caller: CallerDep, organization: Slug, environment: Environment, flow: FlowName) -> Deployed:
    place = caller.organization(organization)
    done = verbs.set_status(place.organization_id, environment, flow, "enable", caller.user_name)
    return _done(organization, done)


@router.delete(
    "/{organization}/{environment}/{flow}",
    summary="Take a flow out; its versions stay",
    openapi_extra=needs(Action.FLOW_DEPLOY),
)
def remove(caller: CallerDep, organization: Slug, environment: Environment, flow: FlowName) -> Deployed:
    place = caller.organization(organization)
    done = verbs.set_status(place.organization_id, environment, flow, "remove", caller.user_name)
    return _done(organization, done)


def _deployed(organization_id: UUID, environment: str, flow: str) -> verbs.Deployment:
    for each in verbs.list_deployments(organization_id, environment):
        if each.flow == flow:
            return each
    raise NotFound(f"flow {flow!r} is not deployed in {environment}", field="flow", value=flow)


def _shown(organization: str, each: verbs.Deployment) -> DeployedFlow:
    return DeployedFlow(
        organization=organization,
        environment=each.environment,
        flow=each.flow,
        version=each.version,
        status=each.status,
        revision=each.revision,
        deployed_at=each.deployed_at,
        deployed_by=each.deployed_by,
    )


def _done(organization: str, done: verbs.Deployment) -> Deployed:
    return Deployed(
        **_shown(organization, done).model_dump(),
        changed=done.changed,
        secrets=dict(done.new_secrets),
        awaiting_secrets=list(done.awaiting_secrets),
    )
