"""The platform's HTTP API: assembles the capabilities' routes behind the gate."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp

from continuitybridge import problems
from continuitybridge.api import gate, openapi
from continuitybridge.api.routes import health, me, node_types
from continuitybridge.api_keys.routes import router as api_keys
from continuitybridge.audit.routes import router as audit
from continuitybridge.deployments.routes import router as flows
from continuitybridge.destinations.routes import router as destinations
from continuitybridge.errors import BridgeError, ConfigurationError, MethodNotAllowed, NotFound
from continuitybridge.guard.routes import router as guard
from continuitybridge.inbox.hold_routes import router as flow_holds
from continuitybridge.inbox.replays.routes import router as replays
from continuitybridge.inbox.routes import router as messages
from continuitybridge.inbox.waits.routes import router as approvals
from continuitybridge.invitations.routes import router as invitations
from continuitybridge.lifecycle.routes import router as lifecycle
from continuitybridge.organizations.access import action_of
from continuitybridge.organizations.matrix import Action, needs
from continuitybridge.organizations.member_routes import router as members
from continuitybridge.organizations.member_routes import rule_router as member_rules
from continuitybridge.organizations.routes import router as organizations
from continuitybridge.secrets.routes import router as secrets
from continuitybridge.settings import Settings, get_settings
from continuitybridge.sign_in import Accounts
from continuitybridge.sign_in.pages import Pages
from continuitybridge.sign_in.routes import router as account
from continuitybridge.stream.direct import DirectWorker
from continuitybridge.systems.routes import router as systems
from continuitybridge.tokens.routes import router as tokens
from continuitybridge.webhooks.intake import IntakeApp
from continuitybridge.webhooks.routes import router as endpoints

PREFIX = "/bridge"
"""Where the API is mounted."""


def create_app(
    *,
    authenticate: gate.Authenticate,
    intake: IntakeApp | None = None,
    settings: Settings | None = None,
    accounts: Accounts | None = None,
) -> FastAPI:
    """The API, to be mounted at `/bridge`. Every address but `gate.PUBLIC` answers 401 unless `authenticate`
    knows the user. Its lifespan starts and stops `intake`, which is mounted beside it (`mounts`)."""
    settings = settings or get_settings()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        if intake is not None:
            await intake.start()
        try:
            yield
        finally:
            if intake is not None:
                await intake.stop()

    app = FastAPI(
        title="ContinuityBridge",
        version="1",
        description=openapi.DESCRIPTION,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        generate_unique_id_function=lambda route: f"{route.tags[0]}_{route.name}".replace(" ", "_"),
        # A 307 would answer for addresses that do not exist.
        redirect_slashes=False,
    )
    app.state.intake = intake
    app.state.accounts = accounts
    routers = (
        me.router,
        account,
        flows,
        flow_holds,
        destinations,
        messages,
        replays,
        approvals,
        endpoints,
        secrets,
        tokens,
        audit,
        api_keys,
        guard,
        organizations,
        lifecycle,
        systems,
        members,
        member_rules,
        invitations,
        node_types.router,
        health.router,
    )
    for router in routers:
        app.include_router(router)

    @app.get("/openapi.json", summary="This document", tags=["about"], openapi_extra=needs(Action.REFERENCE_READ))
    def document() -> dict[str, Any]:
        return openapi.document(app, settings, PREFIX)

    if accounts is not None:
        # The pages are mounted beside this, and a mount answers below its address only.
        @app.get("/sign-in", tags=["about"], include_in_schema=False)
        def sign_in(request: Request) -> Response:
            return RedirectResponse(f"{request.scope.get('root_path', PREFIX)}/sign-in/", 307)

    _every_route_has_its_action(app)
    app.add_exception_handler(BridgeError, _problem)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_middleware(gate.Gate, authenticate=authenticate)
    return app


def mounts(
    authenticate: gate.Authenticate, settings: Settings | None = None, *, accounts: Accounts | None = None
) -> Sequence[tuple[str, str, ASGIApp]]:
    """(name, prefix, application) of everything to mount in an api-server, in this order: the first prefix that
    fits a path takes it. With `accounts` the pages for signing in are among it."""
    settings = settings or get_settings()
    intake = IntakeApp(settings, direct=DirectWorker)
    pages = () if accounts is None else (("ContinuityBridge sign-in", f"{PREFIX}/sign-in", Pages(accounts).app()),)
    api = create_app(authenticate=authenticate, intake=intake, settings=settings, accounts=accounts)
    return (
        ("ContinuityBridge intake", f"{PREFIX}/hooks", intake),
        ("ContinuityBridge intake, old address", "/api/webhook", intake),
        *pages,
        ("ContinuityBridge", PREFIX, api),
    )


def _every_route_has_its_action(app: FastAPI) -> None:
    """Raises `ConfigurationError` for a route that neither is public nor says what it does."""
    for route in app.routes:
        path = getattr(route, "path", None)
        if path not in gate.PUBLIC and action_of(route) is None:
            raise ConfigurationError(f"the route {path} names no action: see matrix.needs")


async def _problem(_: Request, error: Exception) -> Response:
    return _response(error)


async def _invalid(_: Request, error: Exception) -> Response:
    details = cast("RequestValidationError", error).errors()
    # Neither the input nor its context: it may hold a secret.
    found = [{"field": ".".join(map(str, item["loc"])), "message": item["msg"]} for item in details]
    text = "; ".join(f"{item['field']}: {item['message']}" for item in found)
    return _response(ConfigurationError(f"the request is not valid: {text}", problems=found))


async def _http(_: Request, error: Exception) -> Response:
    refused = cast("HTTPException", error)
    if isinstance(error.__cause__, BridgeError):
        # Raised while the framework read the body.
        return _response(error.__cause__)
    if refused.status_code == 405:
        allow = tuple((refused.headers or {}).get("Allow", "").split(", "))
        return _response(MethodNotAllowed("the address does not take this method", allow=allow))
    if refused.status_code == 404:
        return _response(NotFound("no such address"))
    return _response(ConfigurationError("the request cannot be read"))


def _response(error: Exception) -> Response:
    problem = problems.of(error)
    if problem.status >= 500:
        gate.log.error("%s", problem.instance, exc_info=error)
    return Response(
        problem.body(),
        problem.status,
        {"cache-control": "no-store", **problem.headers},
        media_type=problems.MEDIA_TYPE,
    )
