"""Endpoints over HTTP, for the people they belong to."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, ConfigDict, Field, SecretStr

from continuitybridge.organizations.access import CallerDep
from continuitybridge.organizations.matrix import Action, needs
from continuitybridge.settings import get_settings
from continuitybridge.webhooks import endpoints

router = APIRouter(prefix="/endpoints", tags=["endpoints"])

Organization = Annotated[str, Path(max_length=64, description="Slug of the organization")]
Environment = Annotated[str, Path(max_length=16, description="dev, test, staging or prod")]
Slug = Annotated[str, Path(max_length=128, description="Slug of the endpoint")]


class Secret(BaseModel):
    """A secret that is accepted now; never its value. `expires_at` is set once it was rotated out."""

    secret_id: UUID
    created_at: datetime
    expires_at: datetime | None


class WebhookEndpoint(BaseModel):
    """Where messages of others come in. It takes them while `status` and `flow_status` are active."""

    organization: str
    environment: str
    slug: str
    url: str
    flow: str
    trigger_id: str
    verification: str
    status: str
    flow_status: str
    settings: dict[str, Any]
    created_at: datetime
    secrets: list[Secret]


class RotateRequest(BaseModel):
    """`secret`: the one to use; without it one is generated. `overlap_s`: how long the ones before are still
    accepted, in seconds."""

    model_config = ConfigDict(extra="forbid")

    secret: SecretStr | None = Field(default=None, max_length=8192)
    overlap_s: float = Field(default=endpoints.DEFAULT_OVERLAP_S, ge=0, le=366 * 24 * 3600)


class NewSecret(BaseModel):
    """A generated secret, shown here and never again; null when the caller gave his own. `warning` says what is
    weak about that."""

    secret: str | None
    warning: str | None


@router.get("", summary="Webhook endpoints of an organization", openapi_extra=needs(Action.ENDPOINT_READ))
def list_endpoints(
    caller: CallerDep,
    organization: Annotated[str | None, Query(description="Slug; needed unless one has exactly one")] = None,
    environment: Annotated[str | None, Query(description="Only this environment")] = None,
) -> list[WebhookEndpoint]:
    place = caller.chosen(organization)
    return [_shown(place.slug, each) for each in endpoints.list_endpoints(place.organization_id, environment)]


@router.get(
    "/{organization}/{environment}/{slug}", summary="A webhook endpoint", openapi_extra=needs(Action.ENDPOINT_READ)
)
def show_endpoint(
    caller: CallerDep, organization: Organization, environment: Environment, slug: Slug
) -> WebhookEndpoint:
    place = caller.organization(organization)
    return _shown(organization, endpoints.get(place.organization_id, environment, slug))


@router.post(
    "/{organization}/{environment}/{slug}/rotate-secret",
    summary="Give an endpoint a new secret",
    openapi_extra=needs(Action.ENDPOINT_CHANGE),
)
def rotate_secret(
    caller: CallerDep,
    organization: Organization,
    environment: Environment,
    slug: Slug,
    request: RotateRequest | None = None,
) -> NewSecret:
    place = caller.organization(organization)
    request = request or RotateRequest()
    given = request.secret.get_secret_value() if request.secret else None
    new = endpoints.rotate_secret(
        place.organization_id, environment, slug, secret=given, overlap_s=request.overlap_s
    )
    return NewSecret(secret=new.secret if given is None else None, warning=new.warning)


@router.post(
    "/{organization}/{environment}/{slug}/disable",
    summary="Make an endpoint answer 410",
    openapi_extra=needs(Action.ENDPOINT_CHANGE),
)
def disable(
    caller: CallerDep, organization: Organization, environment: Environment, slug: Slug
) -> WebhookEndpoint:
    place = caller.organization(organization)
    return _shown(organization, endpoints.set_status(place.organization_id, environment, slug, "disabled"))


@router.post(
    "/{organization}/{environment}/{slug}/enable",
    summary="Let an endpoint take messages again",
    openapi_extra=needs(Action.ENDPOINT_CHANGE),
)
def enable(caller: CallerDep, organization: Organization, environment: Environment, slug: Slug) -> WebhookEndpoint:
    place = caller.organization(organization)
    return _shown(organization, endpoints.set_status(place.organization_id, environment, slug, "active"))


def _shown(organization: str, each: endpoints.Endpoint) -> WebhookEndpoint:
    return WebhookEndpoint(
        organization=organization,
        environment=each.environment,
        slug=each.slug,
        url=f"{get_settings().external_url}/bridge/hooks/{organization}/{each.environment}/{each.slug}",
        flow=each.flow,
        trigger_id=each.trigger_id,
        verification=each.verification,
        status=each.status,
        flow_status=each.flow_status,
        settings=dict(each.settings),
        created_at=each.created_at,
        secrets=[
            Secret(secret_id=s.secret_id, created_at=s.created_at, expires_at=s.expires_at) for s in each.secrets
        ],
    )
