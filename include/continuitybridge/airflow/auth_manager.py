"""Who may see and do what in Airflow's pages and REST API, decided by the DAG's name and the user's membership.

A DAG `{organization}.{environment}.{flow}` belongs to its organization. FAB signs people in and keeps them; its
per-DAG permissions are not used (they cost seconds at every parse). The class is not called after FAB's: Airflow
would sync permissions by that name.

What is not a DAG's (connections, variables, pools, assets, configuration) is the superadmin's. A change of
membership holds at the next request: who belongs where is asked of the table, once for each (`asking_once`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from enum import IntEnum
from typing import Any
from uuid import UUID

from airflow import settings
from airflow.api_fastapi.auth.managers.models.resource_details import AccessView, DagAccessEntity
from airflow.api_fastapi.common.types import MenuItem
from airflow.models import DagModel
from airflow.models.revoked_token import RevokedToken
from airflow.providers.fab.auth_manager.fab_auth_manager import FabAuthManager
from airflow.utils.session import NEW_SESSION, provide_session
from anyio import to_thread
from fastapi import HTTPException
from jwt import InvalidTokenError
from sqlalchemy import or_, select
from sqlalchemy.orm import Session
from starlette.requests import Request
from starlette.responses import Response

from continuitybridge import organizations, problems
from continuitybridge.actor import Actor, acting
from continuitybridge.airflow import stamps
from continuitybridge.airflow.roles import SUPERADMIN_ROLE
from continuitybridge.api_keys import current_holder
from continuitybridge.errors import BridgeError
from continuitybridge.organizations import Membership, Role, visits
from continuitybridge.organizations.matrix import Action, may

_READABLE = frozenset(DagAccessEntity) - {DagAccessEntity.AUDIT_LOG}
_WRITABLE = frozenset({DagAccessEntity.RUN, DagAccessEntity.TASK_INSTANCE, DagAccessEntity.HITL_DETAIL})
_VIEWS = frozenset({AccessView.WEBSITE, AccessView.PLUGINS})
_MENU = frozenset({MenuItem.DAGS, MenuItem.REQUIRED_ACTIONS})


class Level(IntEnum):
    """What a member may do with the DAGs of his organization."""

    READ = 1
    WRITE = 2
    """Trigger, clear, mark and pause too."""


def _level(membership: Membership) -> Level | None:
    """What the matrix gives a member; in a suspended organization nothing is changed."""
    if not may(membership.role, Action.DAG_READ):
        return None
    runs = may(membership.role, Action.DAG_RUN) and membership.status == "active"
    return Level.WRITE if runs else Level.READ


class OrganizationAuthManager(FabAuthManager):
    """See the module. Everything that is not allowed here by name is refused."""

    def create_token(self, headers: dict[str, str], body: dict[str, Any]) -> Any:
        # FAB's search for the user takes a failed statement for a user who is not there, and answers 401: so it
        # starts with a connection that was looked at, and not in a transaction that somebody left in this thread.
        if settings.Session is not None:
            settings.Session.remove()
        user = super().create_token(headers=headers, body=body)
        if user is not None:
            from continuitybridge.sign_in import attempt, second_factor

            code = body.get("code")
            try:
                second_factor.after_password(user.username, code if isinstance(code, str) else None)
            except (second_factor.CodeNeeded, second_factor.EnrolmentNeeded, second_factor.WrongCode) as error:
                if not isinstance(error, second_factor.WrongCode):
                    attempt.undecided()
                raise HTTPException(401, {"code": error.code, "detail": error.detail, **error.facts}) from error
            attempt.succeeded(user.username)
        return user

    def get_fastapi_app(self) -> Any:
        app = super().get_fastapi_app()
        if app is not None:
            app.add_exception_handler(BridgeError, _problem)
        return app

    async def get_user_from_token(self, token: str) -> Any:
        """As Airflow's, which asks the databases on the event loop, where every other request waits for it: here a
        thread asks."""
        claims = await self._get_token_validator().avalidated_claims(token)
        return await to_thread.run_sync(self._user_of, claims)

    def _user_of(self, claims: dict[str, Any]) -> Any:
        """Whose token it is. Raises `InvalidTokenError` for one that was revoked, or is nobody's any more."""
        if (jti := claims.get("jti")) and RevokedToken.is_revoked(jti):
            raise InvalidTokenError("the token was revoked")
        try:
            return self.deserialize_user(claims)
        except (ValueError, KeyError) as error:
            raise InvalidTokenError(str(error)) from error

    def serialize_user(self, user: Any) -> dict[str, Any]:
        return {**super().serialize_user(user), stamps.CLAIM: stamps.stamp(user)}

    def deserialize_user(self, token: dict[str, Any]) -> Any:  # type: ignore[override]
        """As FAB's; a token that was given before the user's password changed, or before his sessions ended, is
        none any more."""
        user = super().deserialize_user(token)
        if not stamps.holds(token.get(stamps.CLAIM), user):
            raise ValueError("the user's sessions ended after this token was given")
        return user

    def is_authorized_dag(
        self,
        *,
        method: Any,
        user: Any,
        access_entity: DagAccessEntity | None = None,
        details: Any = None,
    ) -> bool:
        if _is_superadmin(user):
            return True
        levels = _levels(user)
        dag_id = details.id if details else None
        if dag_id is None:
            # A list: its rows are filtered by `get_authorized_dag_ids`.
            return method == "GET" and bool(levels) and (access_entity is None or access_entity in _READABLE)
        level = levels.get(organization_of(dag_id))
        if level is None:
            return False
        if method == "GET":
            return access_entity is None or access_entity in _READABLE
        if level < Level.WRITE:
            return False
        # Of the DAG itself only its pause may be changed.
        return method == "PUT" if access_entity is None else access_entity in _WRITABLE

    def get_authorized_dag_ids(
        self, *, user: Any, method: Any = "GET", session: Session | None = None
    ) -> set[str]:
        return _dag_ids(None if _is_superadmin(user) else self._slugs(user, method))

    def filter_authorized_dag_ids(
        self, *, dag_ids: set[str], user: Any, method: Any = "GET", team_name: str | None = None
    ) -> set[str]:
        if _is_superadmin(user):
            return set(dag_ids)
        slugs = self._slugs(user, method)
        return {dag_id for dag_id in dag_ids if organization_of(dag_id) in slugs}

    def is_authorized_view(self, *, access_view: AccessView, user: Any, team_name: str | None = None) -> bool:
        return _is_superadmin(user) or (access_view in _VIEWS and bool(_levels(user)))

    def filter_authorized_menu_items(self, menu_items: list[MenuItem], user: Any) -> list[MenuItem]:
        if _is_superadmin(user):
            return list(menu_items)
        return [item for item in menu_items if item in _MENU] if _levels(user) else []

    def is_authorized_custom_view(self, *, method: Any, resource_name: str, user: Any) -> bool:
        # FAB's own pages: a member's role holds his profile and password, and no more.
        allowed: bool = super().is_authorized_custom_view(method=method, resource_name=resource_name, user=user)
        return allowed

    def get_fastapi_middlewares(self) -> list[tuple[Any, dict[str, Any]]]:
        # Imported by the api-server only: other processes have an auth manager too, and no use for these.
        from continuitybridge.airflow.intake_shortcut import IntakeShortcutMiddleware
        from continuitybridge.airflow.security_headers import SecurityHeadersMiddleware
        from continuitybridge.guard.middleware import GuardMiddleware

        # The last is the first on the way in: refusals bear the headers too.
        return [
            *super().get_fastapi_middlewares(),
            (IntakeShortcutMiddleware, {}),
            (GuardMiddleware, {}),
            (SecurityHeadersMiddleware, {}),
        ]

    def is_authorized_backfill(self, *, method: Any, user: Any, details: Any = None) -> bool:
        return _is_superadmin(user)

    def is_authorized_asset(self, *, method: Any, user: Any, details: Any = None) -> bool:
        return _is_superadmin(user)

    def is_authorized_asset_alias(self, *, method: Any, user: Any, details: Any = None) -> bool:
        return _is_superadmin(user)

    def is_authorized_configuration(self, *, method: Any, user: Any, details: Any = None) -> bool:
        return _is_superadmin(user)

    def is_authorized_connection(self, *, method: Any, user: Any, details: Any = None) -> bool:
        return _is_superadmin(user)

    def is_authorized_pool(self, *, method: Any, user: Any, details: Any = None) -> bool:
        return _is_superadmin(user)

    def is_authorized_variable(self, *, method: Any, user: Any, details: Any = None) -> bool:
        return _is_superadmin(user)

    @staticmethod
    def _slugs(user: Any, method: Any) -> set[str]:
        needed = Level.READ if method == "GET" else Level.WRITE
        return {slug for slug, level in _levels(user).items() if level >= needed}


@provide_session
def _dag_ids(slugs: set[str] | None, *, session: Session = NEW_SESSION) -> set[str]:
    statement = select(DagModel.dag_id)
    if slugs is not None:
        if not slugs:
            return set()
        statement = statement.where(or_(*(DagModel.dag_id.startswith(f"{slug}.") for slug in sorted(slugs))))
    found = session.scalars(statement)
    return {dag_id for dag_id in found if slugs is None or organization_of(dag_id) in slugs}


def organization_of(dag_id: str) -> str:
    """The organization that a DAG belongs to by its name; "" for a DAG of the platform."""
    parts = dag_id.split(".")
    return parts[0] if len(parts) == 3 else ""


async def _problem(_: Request, error: Exception) -> Response:
    problem = problems.of(error)
    return Response(problem.body(), problem.status, problem.headers, media_type=problems.MEDIA_TYPE)


def _is_superadmin(user: Any) -> bool:
    """Whoever asks by an API key is none: the key is one organization's."""
    return current_holder() is None and _has_superadmins_role(user)


def _has_superadmins_role(user: Any) -> bool:
    return any(role.name == SUPERADMIN_ROLE for role in getattr(user, "roles", ()))


@dataclass(frozen=True, slots=True)
class _Known:
    """Of a user, by slug; `consulted`: organizations where he is a consultant."""

    levels: dict[str, Level]
    consulted: dict[str, UUID]


_asked: ContextVar[dict[str, _Known] | None] = ContextVar("bridge_memberships", default=None)


@contextmanager
def asking_once() -> Iterator[None]:
    """Inside, where a request is answered, threads included, each user's memberships are asked for once: Airflow
    asks what he may do for every DAG that it shows. Outside they are asked for each time."""
    token = _asked.set({})
    try:
        yield
    finally:
        _asked.reset(token)


def _levels(user: Any) -> dict[str, Level]:
    name = getattr(user, "username", None)
    return levels_of(name, _has_superadmins_role(user)) if name else {}


def levels_of(name: str, superadmin: bool = False) -> dict[str, Level]:
    """A user's level by organization (slug); by an API key, in the key's organization only and as far as its scope
    goes."""
    holder = current_holder()
    if holder is None:
        return _memberships(name)
    level = _memberships(name).get(holder.organization)
    if level is None and superadmin:
        level = Level.WRITE
    if level is None:
        return {}
    return {holder.organization: level if holder.scope == "write" else Level.READ}


def enter_organizations(user_name: str, dag_ids: Iterable[str], address: str | None) -> None:
    """A consultant does something about these DAGs, which he may: that he entered their organizations stands in
    their trails, as when he does it by our API (`organizations.visits`). Asks nobody within a minute."""
    consulted = _known(user_name).consulted
    for slug in {organization_of(dag_id) for dag_id in dag_ids} & consulted.keys():
        with acting(Actor("user", user_name, address)):
            visits.enter(consulted[slug], user_name)


def _memberships(name: str) -> dict[str, Level]:
    return _known(name).levels


def _known(name: str) -> _Known:
    asked = _asked.get()
    if asked is not None and name in asked:
        return asked[name]
    memberships = organizations.memberships(name)
    found = ((each.slug, _level(each)) for each in memberships)
    known = _Known(
        {slug: level for slug, level in found if level is not None},
        {each.slug: each.organization_id for each in memberships if each.role is Role.CONSULTANT},
    )
    if asked is not None:
        asked[name] = known
    return known
