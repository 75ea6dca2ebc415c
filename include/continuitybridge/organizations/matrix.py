"""Who may do what: the one table of roles and actions.

Every route of the API names its action (`needs`), the caller's rights are checked against this table wherever a
route takes one of his organizations (`access.Caller`), and Airflow's pages and REST API are decided by the actions
`dag.read` and `dag.run` (`airflow.auth_manager`). The command line of the platform's machine acts as superadmin.

A cell says what a role may do *within its reach*: a superadmin in every organization, a consultant in those that
are assigned to him, the others in their own. Outside of his reach nothing exists for him. `docs/roles.md` is made
from this table.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from continuitybridge.organizations.roles import Role

SUPERADMIN = "superadmin"
ROLES = (SUPERADMIN, Role.CONSULTANT.value, Role.CUSTOMER_ADMIN.value, Role.CUSTOMER_USER.value)
"""From the most to the least."""

EXTENSION = "x-bridge-action"
"""Where a route's action stands in the OpenAPI document."""


class Scope(StrEnum):
    """What an action is done to."""

    SIGNED_IN = "signed_in"
    """Nobody's in particular: whoever is signed in may."""
    ORGANIZATION = "organization"
    PLATFORM = "platform"
    """The installation itself."""


class Action(StrEnum):
    """Everything that is decided by role."""

    REFERENCE_READ = "reference.read"
    SELF_READ = "self.read"
    SELF_MANAGE = "self.manage"
    FLOW_READ = "flow.read"
    FLOW_DEPLOY = "flow.deploy"
    FLOW_HOLD = "flow.hold"
    DAG_READ = "dag.read"
    DAG_RUN = "dag.run"
    MESSAGE_READ = "message.read"
    MESSAGE_REPLAY = "message.replay"
    APPROVAL_READ = "approval.read"
    APPROVAL_DECIDE = "approval.decide"
    ENDPOINT_READ = "endpoint.read"
    ENDPOINT_CHANGE = "endpoint.change"
    DESTINATION_READ = "destination.read"
    DESTINATION_CHANGE = "destination.change"
    SECRET_READ = "secret.read"  # noqa: S105
    SECRET_CHANGE = "secret.change"  # noqa: S105
    TOKEN_READ = "token.read"  # noqa: S105  (no secret)
    TOKEN_CHANGE = "token.change"  # noqa: S105
    API_KEY_MANAGE = "api_key.manage"
    SYSTEM_READ = "system.read"
    SYSTEM_CHANGE = "system.change"
    MEMBER_READ = "member.read"
    MEMBER_MANAGE = "member.manage"
    MEMBER_PROTECT = "member.protect"
    AUDIT_READ = "audit.read"
    GUARD_READ = "guard.read"
    GUARD_CHANGE = "guard.change"
    GUARD_LIMIT = "guard.limit"
    GUARD_PLATFORM = "guard.platform"
    QUOTA_READ = "quota.read"
    QUOTA_CHANGE = "quota.change"
    ORGANIZATION_READ = "organization.read"
    ORGANIZATION_CHANGE = "organization.change"
    ORGANIZATION_MANAGE = "organization.manage"
    AIRFLOW_MANAGE = "airflow.manage"
    HEALTH_READ = "health.read"


@dataclass(frozen=True, slots=True)
class Rule:
    """`roles` may do it. `changes`: it changes something; in an organization that is suspended, only a superadmin
    does."""

    summary: str
    roles: frozenset[str]
    scope: Scope = Scope.ORGANIZATION
    changes: bool = False


_ALL = frozenset(ROLES)
_WRITERS = _ALL - {Role.CUSTOMER_USER.value}
_SUPERADMIN = frozenset({SUPERADMIN})

MATRIX: Mapping[Action, Rule] = {
    Action.SELF_READ: Rule("See oneself and one's organizations", _ALL, Scope.SIGNED_IN),
    Action.SELF_MANAGE: Rule("End one's sessions, set up one's second factor", _ALL, Scope.SIGNED_IN),
    Action.REFERENCE_READ: Rule("Read what node types and addresses there are", _ALL, Scope.SIGNED_IN),
    Action.HEALTH_READ: Rule("See whether the platform is ready", _ALL, Scope.SIGNED_IN),
    Action.FLOW_READ: Rule("See flows, versions, differences, holds", _ALL),
    Action.FLOW_DEPLOY: Rule("Deploy, roll back, enable, disable and remove flows", _WRITERS, changes=True),
    Action.FLOW_HOLD: Rule("Pause, drain, resume and cancel flows", _WRITERS, changes=True),
    Action.DAG_READ: Rule("See a flow's DAG, runs, tasks and logs in Airflow", _ALL),
    Action.DAG_RUN: Rule("Trigger, clear, mark and pause in Airflow", _WRITERS, changes=True),
    Action.MESSAGE_READ: Rule("See messages, dead letters, traces and replays", _ALL),
    Action.MESSAGE_REPLAY: Rule("Replay messages, and end a replay", _WRITERS, changes=True),
    Action.APPROVAL_READ: Rule("See what waits for a decision", _ALL),
    Action.APPROVAL_DECIDE: Rule("Approve or reject", _WRITERS, changes=True),
    Action.ENDPOINT_READ: Rule("See webhook endpoints", _ALL),
    Action.ENDPOINT_CHANGE: Rule("Enable and disable endpoints, rotate secrets", _WRITERS, changes=True),
    Action.DESTINATION_READ: Rule("See destinations", _ALL),
    Action.DESTINATION_CHANGE: Rule(
        "Configure, pause, drain, resume and cancel destinations", _WRITERS, changes=True
    ),
    Action.SECRET_READ: Rule("See which secrets there are, never what they hold", _ALL),
    Action.SECRET_CHANGE: Rule("Set, roll back, switch off, try and remove secrets", _WRITERS, changes=True),
    Action.TOKEN_READ: Rule("See how connections' tokens stand", _ALL),
    Action.TOKEN_CHANGE: Rule("Connect accounts, refresh and revoke tokens", _WRITERS, changes=True),
    Action.API_KEY_MANAGE: Rule("List, make and revoke API keys", _WRITERS, changes=True),
    Action.SYSTEM_READ: Rule("See ecosystems and systems", _ALL),
    Action.SYSTEM_CHANGE: Rule("Name and remove ecosystems and systems", _WRITERS, changes=True),
    Action.MEMBER_READ: Rule("See members and invitations", _WRITERS),
    Action.MEMBER_MANAGE: Rule(
        "Invite, change and remove members: an administrator customer users, a consultant administrators too",
        _WRITERS,
        changes=True,
    ),
    Action.MEMBER_PROTECT: Rule(
        "Say whether members need a second factor",
        _SUPERADMIN | {Role.CUSTOMER_ADMIN.value},
        changes=True,
    ),
    Action.AUDIT_READ: Rule("Search, export and verify the audit trail", _WRITERS),
    Action.GUARD_READ: Rule("See blocked addresses and the guard's settings at one's webhooks", _WRITERS),
    Action.GUARD_CHANGE: Rule("Block addresses and set the guard at one's webhooks", _WRITERS, changes=True),
    Action.GUARD_LIMIT: Rule("Give an organization rate limits of its own", _SUPERADMIN, changes=True),
    Action.GUARD_PLATFORM: Rule(
        "See, block and lift addresses for the whole platform", _SUPERADMIN, Scope.PLATFORM, True
    ),
    Action.QUOTA_READ: Rule("See what the organization may have and has", _ALL),
    Action.QUOTA_CHANGE: Rule("Change its tier and its limits", _SUPERADMIN, changes=True),
    Action.ORGANIZATION_READ: Rule("See an organization and its environments", _ALL),
    Action.ORGANIZATION_CHANGE: Rule(
        "Suspend, resume and delete an organization, and give it environments", _SUPERADMIN, changes=True
    ),
    Action.ORGANIZATION_MANAGE: Rule(
        "Onboard organizations, see which were deleted", _SUPERADMIN, Scope.PLATFORM, True
    ),
    Action.AIRFLOW_MANAGE: Rule(
        "Airflow's connections, variables, pools, assets, configuration, backfills",
        _SUPERADMIN,
        Scope.PLATFORM,
        True,
    ),
}
"""Action → who may."""

GRANTABLE: Mapping[str, frozenset[Role]] = {
    SUPERADMIN: frozenset(Role),
    Role.CONSULTANT.value: frozenset({Role.CUSTOMER_ADMIN, Role.CUSTOMER_USER}),
    Role.CUSTOMER_ADMIN.value: frozenset({Role.CUSTOMER_USER}),
    Role.CUSTOMER_USER.value: frozenset(),
}
"""Role → the roles that it gives and takes: whom it may invite, change and remove."""


def may(role: str, action: Action) -> bool:
    """Whether somebody in that role (a `Role`'s value or `superadmin`) may do it within his reach."""
    return role in MATRIX[action].roles


def needs(action: Action) -> dict[str, Any]:
    """What a route gives as its `openapi_extra`: the action that it is."""
    return {EXTENSION: action.value}


def rows() -> Iterator[tuple[str, ...]]:
    """(action, summary, scope, then `yes` or `no` for each of `ROLES`)."""
    for action, rule in MATRIX.items():
        cells = ("yes" if may(role, action) else "no" for role in ROLES)
        yield action.value, rule.summary, rule.scope.value.replace("_", " "), *cells
