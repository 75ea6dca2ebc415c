"""What runs everywhere, for the processes that move messages: DAG bundle, dispatcher, tasks. Reads as the relay
role; nothing that serves a person's request uses it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from uuid import UUID

from continuitybridge import database
from continuitybridge.errors import ConfigurationError, NotFound
from continuitybridge.flows.plan import Plan

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Deployed:
    """A deployment with what is needed to draw and run it. `status`: active, disabled or removed."""

    organization_id: UUID
    organization: str
    organization_name: str
    environment: str
    flow: str
    version: str
    revision: int
    status: str
    description: str
    labels: Mapping[str, str]
    deployed_by: str
    plan: Plan

    @property
    def dag_id(self) -> str:
        return f"{self.organization}.{self.environment}.{self.flow}"


_SELECT = (
    "SELECT d.organization_id, o.slug, o.name, d.environment, d.flow, d.version, d.revision,"
    " CASE o.status WHEN 'active' THEN d.status WHEN 'deleting' THEN 'removed' ELSE 'disabled' END,"
    " v.description, v.labels, d.deployed_by, v.plan::text"
    " FROM bridge.deployments d JOIN bridge.organizations o USING (organization_id)"
    " JOIN bridge.flow_versions v USING (organization_id, flow, version)"
)


def list_since(revision: int = 0) -> list[Deployed]:
    """Deployments changed after `revision`, in order of revision; removed ones included, and as such those of an
    organization that is being deleted. One whose stored plan was
    altered is logged and left out."""
    with database.relay() as connection:
        rows = connection.execute(_SELECT + " WHERE d.revision > %s ORDER BY d.revision", (revision,)).fetchall()
    found = []
    for row in rows:
        try:
            found.append(_deployed(row))
        except ConfigurationError as error:
            # A plan that somebody altered in the table: its neighbours must not go down with it.
            _log.error("%s.%s.%s is left out: %s", row[1], row[3], row[4], error.detail)
    return found


def newest_revision() -> int:
    """The last revision of any deployment, or of an organization's end."""
    with database.relay() as connection:
        [(revision,)] = connection.execute(
            "SELECT greatest((SELECT max(revision) FROM bridge.deployments),"
            " (SELECT max(revision) FROM bridge.deletions), 0)"
        ).fetchall()
    return int(revision)


def gone_since(revision: int) -> list[tuple[str, int]]:
    """Organizations that were deleted after `revision`: slug and revision, in order of revision. No other will
    bear the slug."""
    with database.relay() as connection:
        return connection.execute(
            "SELECT slug, revision FROM bridge.deletions WHERE revision > %s ORDER BY revision", (revision,)
        ).fetchall()


def deployed(organization: str, environment: str, flow: str) -> Deployed:
    """One deployment by its names; raises `NotFound`."""
    with database.relay() as connection:
        row = connection.execute(
            _SELECT + " WHERE o.slug = %s AND d.environment = %s AND d.flow = %s",
            (organization, environment, flow),
        ).fetchone()
    if row is None:
        raise NotFound(f"flow {flow!r} is not deployed in {organization}/{environment}")
    return _deployed(row)


@lru_cache(maxsize=512)
def get_plan(organization_id: UUID, flow: str, version: str) -> Plan:
    """The plan of an immutable version; raises `NotFound`."""
    with database.relay() as connection:
        row = connection.execute(
            "SELECT plan::text FROM bridge.flow_versions"
            " WHERE organization_id = %s AND flow = %s AND version = %s",
            (organization_id, flow, version),
        ).fetchone()
    if row is None:
        raise NotFound(f"flow {flow!r} has no version {version}")
    return Plan.from_json(row[0])


def _deployed(row: tuple[Any, ...]) -> Deployed:
    return Deployed(*(*row[:-1], Plan.from_json(row[-1])))
