"""Liveness and readiness."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from continuitybridge import database
from continuitybridge.errors import Unavailable
from continuitybridge.organizations.access import CallerDep
from continuitybridge.organizations.matrix import Action, needs

router = APIRouter(prefix="/health", tags=["health"])


class Live(BaseModel):
    """The process answers."""

    status: Literal["ok"] = "ok"


class Ready(BaseModel):
    """Whether the process can do its work; one entry per thing it needs."""

    status: Literal["ok", "failing"]
    checks: dict[str, Literal["ok", "failing"]]


@router.get("/live", summary="Liveness; public")
async def live() -> Live:
    return Live()


@router.get(
    "/ready",
    summary="Readiness",
    responses={503: {"model": Ready, "description": "Something fails."}},
    openapi_extra=needs(Action.HEALTH_READ),
)
def ready(_: CallerDep, request: Request, response: Response) -> Ready:
    checks: dict[str, Literal["ok", "failing"]] = {"database": "ok" if _database() else "failing"}
    intake = request.app.state.intake
    if intake is not None:
        checks["intake"] = "ok" if intake.ready else "failing"
    if "failing" in checks.values():
        response.status_code = 503
        return Ready(status="failing", checks=checks)
    return Ready(status="ok", checks=checks)


def _database() -> bool:
    try:
        with database.tenant(None) as connection:
            connection.execute("SELECT 1 FROM bridge.messages LIMIT 1")
    except Unavailable:
        return False
    return True
