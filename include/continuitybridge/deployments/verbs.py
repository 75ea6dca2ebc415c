"""Deploy, roll back, compare. A flow version is immutable: the database refuses to change one, and deploying
other content under an existing version is refused with the difference."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

import orjson
from psycopg import Connection
from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from continuitybridge import database, organizations
from continuitybridge.audit import record
from continuitybridge.errors import Conflict, NotFound
from continuitybridge.flows import calls, convert, lint
from continuitybridge.flows.load import LoadedFlow
from continuitybridge.flows.model import Flow
from continuitybridge.flows.plan import compile_flow
from continuitybridge.flows.problems import refuse
from continuitybridge.inbox import holds
from continuitybridge.vault.keyring import Keyring
from continuitybridge.webhooks import endpoints

CHANNEL = "bridge_deployed"
"""NOTIFY channel; the payload is the new revision."""

DEPLOY_LOCK = 0x62726467
"""Advisory lock taken before a revision is drawn, so that revisions become visible in their order and a
reader who asks for "everything after the last I saw" misses none."""

Action = Literal["deploy", "rollback", "disable", "enable", "remove"]
_STATUS_OF: Mapping[Action, str] = {
    "deploy": "active",
    "rollback": "active",
    "enable": "active",
    "disable": "disabled",
    "remove": "removed",
}
_DONE: Mapping[Action, str] = {
    "deploy": "deployed",
    "rollback": "rolled_back",
    "enable": "enabled",
    "disable": "disabled",
    "remove": "removed",
}
"""Names of the actions in the audit trail."""


@dataclass(frozen=True, slots=True)
class Deployment:
    """Which version of a flow runs in an environment.

    `new_secrets` maps an endpoint's slug to the secret generated for it by this very call; it is shown once
    and cannot be read again. `awaiting_secrets` names endpoints whose provider's secret nobody has entered yet.
    `changed` is False when exactly this was deployed already.
    """

    organization_id: UUID
    environment: str
    flow: str
    version: str
    status: str
    revision: int
    deployed_at: datetime
    deployed_by: str
    changed: bool = True
    new_secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    awaiting_secrets: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class FlowVersion:
    """One immutable version. `environments` are those it is deployed in now."""

    flow: str
    version: str
    digest: str
    description: str
    created_at: datetime
    created_by: str
    environments: list[str]


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """One thing that was done to a deployment."""

    revision: int
    environment: str
    flow: str
    version: str
    action: str
    at: datetime
    by: str


def deploy(organization_id: UUID, environment: str, loaded: LoadedFlow, by: str) -> Deployment:
    """Store the version if it is new and make it the one that runs; visible to intake and Airflow without a
    restart. One transaction: version, deployment, history, endpoints.

    Raises `ConfigurationError` (facts: problems) when lint finds any, or the flow calls one that is not deployed
    in the environment, `Conflict` (facts: diff) when the version exists with other content or a webhook's slug
    belongs to another flow, `NotFound` for an unknown environment.
    """
    lint.check(loaded)
    flow = loaded.flow
    plan = compile_flow(flow)
    content = _digest(flow)
    source = convert.convert(loaded, "yaml") if loaded.format != "yaml" else loaded.text
    with database.tenant(organization_id) as connection:
        _lock(connection, organization_id, environment)
        problems = calls.problems(loaded, _callable(connection, organization_id, environment))
        if problems:
            raise refuse(f"the flow {flow.name!r} calls what is not there", problems)
        stored = connection.execute(
            "SELECT digest, source, files FROM bridge.flow_versions "
            "WHERE organization_id = %s AND flow = %s AND version = %s",
            (organization_id, flow.name, flow.version),
        ).fetchone()
        if stored is None:
            connection.execute(
                "INSERT INTO bridge.flow_versions (organization_id, flow, version, digest, source, files, plan,"
                " description, labels, created_by) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
                (
                    organization_id,
                    flow.name,
                    flow.version,
                    content,
                    source,
                    Jsonb(dict(flow.files)),
                    plan.to_json(),
                    flow.description,
                    Jsonb(dict(flow.labels)),
                    by,
                ),
            )
        elif stored[0] != content:
            raise Conflict(
                f"version {flow.version} of flow {flow.name!r} exists with other content; a version never "
                "changes: give this one a new version number",
                field="version",
                value=flow.version,
                diff=_diff(_texts(stored[1], stored[2]), _texts(source, flow.files), flow.version, "this file"),
            )
        return _put(connection, organization_id, environment, flow.name, flow.version, "deploy", by)


def rollback(organization_id: UUID, environment: str, flow: str, by: str, *, to: str | None = None) -> Deployment:
    """Run an earlier version again: the one deployed before the current one, or `to`.

    Raises `NotFound` when there is no such deployment or version, `Conflict` when there is nothing earlier.
    """
    with database.tenant(organization_id) as connection:
        _lock(connection, organization_id, environment)
        current = _current(connection, organization_id, environment, flow)
        if to is None:
            row = connection.execute(
                "SELECT version FROM bridge.deployment_history WHERE organization_id = %s AND environment = %s "
                "AND flow = %s AND action IN ('deploy', 'rollback') AND version <> %s "
                "AND revision < (SELECT min(revision) FROM bridge.deployment_history WHERE organization_id = %s"
                " AND environment = %s AND flow = %s AND action IN ('deploy', 'rollback') AND version = %s)"
                " ORDER BY revision DESC LIMIT 1",
                (organization_id, environment, flow, current, organization_id, environment, flow, current),
            ).fetchone()
            if row is None:
                raise Conflict(f"flow {flow!r} has no earlier version in {environment} to go back to")
            to = str(row[0])
        return _put(connection, organization_id, environment, flow, to, "rollback", by)


def set_status(
    organization_id: UUID,
    environment: str,
    flow: str,
    action: Literal["disable", "enable", "remove"],
    by: str,
) -> Deployment:
    """Disable (webhooks answer 410, accepted messages wait), enable, or remove a deployment. Its versions
    stay, and messages that began on them still finish."""
    with database.tenant(organization_id) as connection:
        _lock(connection, organization_id, environment)
        version = _current(connection, organization_id, environment, flow)
        return _put(connection, organization_id, environment, flow, version, action, by)


def versions(organization_id: UUID, flow: str) -> list[FlowVersion]:
    """Every version of a flow, newest first; raises `NotFound` when there is none."""
    with (
        database.tenant(organization_id) as connection,
        connection.cursor(row_factory=class_row(FlowVersion)) as cursor,
    ):
        cursor.execute(
            "SELECT v.flow, v.version, v.digest, v.description, v.created_at, v.created_by,"
            " coalesce(array_agg(d.environment ORDER BY d.environment)"
            "  FILTER (WHERE d.status = 'active'), '{}') AS environments"
            " FROM bridge.flow_versions v LEFT JOIN bridge.deployments d USING"
            " (organization_id, flow, version) WHERE v.organization_id = %s AND v.flow = %s"
            " GROUP BY v.organization_id, v.flow, v.version ORDER BY v.created_at DESC, v.version DESC",
            (organization_id, flow),
        )
        found = cursor.fetchall()
    if not found:
        raise NotFound(f"no flow {flow!r}", field="flow", value=flow)
    return found


def version_source(organization_id: UUID, flow: str, version: str) -> tuple[str, dict[str, str]]:
    """A version's source text and its side files (name → text); raises `NotFound`."""
    with database.tenant(organization_id) as connection:
        row = connection.execute(
            "SELECT source, files FROM bridge.flow_versions "
            "WHERE organization_id = %s AND flow = %s AND version = %s",
            (organization_id, flow, version),
        ).fetchone()
    if row is None:
        raise NotFound(f"flow {flow!r} has no version {version}", field="version", value=version)
    return row[0], row[1]


def diff(organization_id: UUID, flow: str, old: str, new: str) -> str:
    """What changed between two versions, as a unified diff of source and side files; empty when equal."""
    before = _texts(*version_source(organization_id, flow, old))
    after = _texts(*version_source(organization_id, flow, new))
    return _diff(before, after, old, new)


def list_deployments(organization_id: UUID, environment: str | None = None) -> list[Deployment]:
    """What is deployed, by environment and flow."""
    with (
        database.tenant(organization_id) as connection,
        connection.cursor(row_factory=class_row(Deployment)) as cursor,
    ):
        cursor.execute(
            "SELECT organization_id, environment, flow, version, status, revision, deployed_at, deployed_by"
            " FROM bridge.deployments WHERE organization_id = %(organization)s AND status <> 'removed'"
            " AND (%(environment)s::text IS NULL OR environment = %(environment)s)"
            " ORDER BY environment, flow",
            {"organization": organization_id, "environment": environment},
        )
        return cursor.fetchall()


def history(organization_id: UUID, environment: str, flow: str, limit: int = 50) -> list[HistoryEntry]:
    """What was done to a deployment, newest first."""
    with (
        database.tenant(organization_id) as connection,
        connection.cursor(row_factory=class_row(HistoryEntry)) as cursor,
    ):
        cursor.execute(
            "SELECT revision, environment, flow, version, action, at, by FROM bridge.deployment_history"
            " WHERE organization_id = %s AND environment = %s AND flow = %s"
            " ORDER BY revision DESC LIMIT %s",
            (organization_id, environment, flow, limit),
        )
        return cursor.fetchall()


def _lock(connection: Connection[Any], organization_id: UUID, environment: str) -> None:
    connection.execute("SELECT pg_advisory_xact_lock(%s)", (DEPLOY_LOCK,))
    organizations.require_environment(connection, organization_id, environment)


def _callable(connection: Connection[Any], organization_id: UUID, environment: str) -> dict[str, list[str]]:
    """The flows that can be called in the environment: name → triggers."""
    rows = connection.execute(
        "SELECT d.flow, v.plan -> 'triggers' FROM bridge.deployments d"
        " JOIN bridge.flow_versions v USING (organization_id, flow, version)"
        " WHERE d.organization_id = %s AND d.environment = %s AND d.status = 'active'",
        (organization_id, environment),
    )
    return {row[0]: row[1] for row in rows}


def _current(connection: Connection[Any], organization_id: UUID, environment: str, flow: str) -> str:
    row = connection.execute(
        "SELECT version FROM bridge.deployments WHERE organization_id = %s AND environment = %s AND flow = %s"
        " AND status <> 'removed'",
        (organization_id, environment, flow),
    ).fetchone()
    if row is None:
        raise NotFound(f"flow {flow!r} is not deployed in {environment}", field="flow", value=flow)
    return str(row[0])


def _put(
    connection: Connection[Any],
    organization_id: UUID,
    environment: str,
    flow: str,
    version: str,
    action: Action,
    by: str,
) -> Deployment:
    status = _STATUS_OF[action]
    before = connection.execute(
        "SELECT organization_id, environment, flow, version, status, revision, deployed_at, deployed_by"
        " FROM bridge.deployments WHERE organization_id = %s AND environment = %s AND flow = %s",
        (organization_id, environment, flow),
    ).fetchone()
    if before is not None and (before[3], before[4]) == (version, status):
        return dataclasses.replace(Deployment(*before), changed=False)
    plan = connection.execute(
        "SELECT plan FROM bridge.flow_versions WHERE organization_id = %s AND flow = %s AND version = %s",
        (organization_id, flow, version),
    ).fetchone()
    if plan is None:
        raise NotFound(f"flow {flow!r} has no version {version}", field="version", value=version)
    after = connection.execute(
        "INSERT INTO bridge.deployments (organization_id, environment, flow, version, status, deployed_by)"
        " VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT (organization_id, environment, flow) DO UPDATE SET"
        " version = excluded.version, status = excluded.status, deployed_by = excluded.deployed_by,"
        " deployed_at = now(), revision = nextval('bridge.deployment_revision')"
        " RETURNING organization_id, environment, flow, version, status, revision, deployed_at, deployed_by",
        (organization_id, environment, flow, version, status, by),
    ).fetchall()[0]
    deployment = Deployment(*after)
    connection.execute(
        "INSERT INTO bridge.deployment_history (organization_id, revision, environment, flow, version, action,"
        " by) VALUES (%s, %s, %s, %s, %s, %s, %s)",
        (organization_id, deployment.revision, environment, flow, version, action, by),
    )
    synced = endpoints.sync(
        connection,
        organization_id,
        environment,
        flow,
        _webhooks(plan[0]) if status != "removed" else {},
        keyring=Keyring.open(),
    )
    holds.drains_may_differ(connection, organization_id, environment)
    connection.execute("SELECT pg_notify(%s, %s)", (CHANNEL, str(deployment.revision)))
    record(
        connection,
        organization_id,
        f"flow.{_DONE[action]}",
        flow,
        environment=environment,
        details={"version": version, "before": None if before is None else before[3]},
        by=by,
    )
    return dataclasses.replace(deployment, new_secrets=synced.new_secrets, awaiting_secrets=synced.awaiting)


def _webhooks(plan: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The plan's webhook triggers: trigger id → configuration."""
    nodes = {node["id"]: node for node in _nodes(plan)}
    return {
        trigger: nodes[trigger]["config"]
        for trigger in plan["triggers"]
        if nodes[trigger]["type"] == "webhook_trigger"
    }


def _nodes(plan: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    nodes = plan["nodes"]
    return list(nodes.values()) if isinstance(nodes, Mapping) else list(nodes)


def _digest(flow: Flow) -> str:
    return hashlib.sha256(orjson.dumps(_plain(flow))).hexdigest()


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _texts(source: str, files: Mapping[str, str]) -> dict[str, str]:
    return {"flow": source, **files}


def _diff(before: Mapping[str, str], after: Mapping[str, str], old: str, new: str) -> str:
    lines: list[str] = []
    for name in sorted({*before, *after}, key=lambda item: (item != "flow", item)):
        lines += difflib.unified_diff(
            before.get(name, "").splitlines(),
            after.get(name, "").splitlines(),
            f"{name} ({old})",
            f"{name} ({new})",
            lineterm="",
        )
    return "\n".join(lines)
