"""The user of a request to our API, as Airflow knows him."""

from __future__ import annotations

from airflow.api_fastapi.auth.managers.base_auth_manager import COOKIE_NAME_JWT_TOKEN
from airflow.api_fastapi.core_api.security import get_user
from fastapi import HTTPException
from fastapi.security import HTTPBearer
from starlette.requests import Request

from continuitybridge.airflow.roles import SUPERADMIN_ROLE
from continuitybridge.api import SignedIn
from continuitybridge.api_keys import current_holder

_bearer = HTTPBearer(auto_error=False)


async def authenticate(request: Request) -> SignedIn | None:
    """The signed-in user behind Airflow's bearer token or session cookie; None when there is none, or it is
    expired, revoked or forged. A token wins over a cookie, as everywhere in Airflow."""
    credentials = await _bearer(request)
    try:
        user = await get_user(request, None, credentials)
    except HTTPException:
        return None
    roles = {role.name for role in getattr(user, "roles", ())}
    return SignedIn(
        user_name=user.get_name(),
        superadmin=SUPERADMIN_ROLE in roles,
        api_key=current_holder(),
        by_cookie=credentials is None and COOKIE_NAME_JWT_TOKEN in request.cookies,
    )
