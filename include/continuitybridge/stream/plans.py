"""Plans of flow versions, and what flows ask of those who claim."""

from __future__ import annotations

import logging
from collections import OrderedDict
from uuid import UUID

from continuitybridge.database import aio
from continuitybridge.errors import NotFound
from continuitybridge.flows.plan import Plan
from continuitybridge.inbox.batches import FlowKey

KEPT = 512
"""Plans that are kept in memory."""

log = logging.getLogger(__name__)

_PLAN = """
SELECT plan::text FROM bridge.flow_versions WHERE organization_id = %s AND flow = %s AND version = %s
"""
_CHANGED = """
SELECT d.organization_id, d.environment, d.flow, d.revision, v.concurrency
FROM bridge.deployments d JOIN bridge.flow_versions v USING (organization_id, flow, version)
WHERE d.revision > %s
"""


class Plans:
    """Plans by organization, flow and version, which never change; those used last are kept."""

    def __init__(self) -> None:
        self._plans: OrderedDict[tuple[UUID, str, str], Plan] = OrderedDict()

    async def get(self, organization_id: UUID, flow: str, version: str) -> Plan:
        """Raises `NotFound`, `ConfigurationError` when it was altered in the table, `Unavailable`."""
        key = (organization_id, flow, version)
        plan = self._plans.get(key)
        if plan is None:
            async with aio.relay() as connection:
                row = await (await connection.execute(_PLAN, key)).fetchone()
            if row is None:
                raise NotFound(f"flow {flow!r} has no version {version}")
            plan = self._plans[key] = Plan.from_json(row[0])
            while len(self._plans) > KEPT:
                self._plans.popitem(last=False)
        self._plans.move_to_end(key)
        return plan


class Bounds:
    """How many messages of a flow may be under way at once, of the flows that bound it."""

    def __init__(self) -> None:
        self._revision = 0
        self._bounds: dict[FlowKey, int] = {}

    def of(self, flow: FlowKey) -> int | None:
        return self._bounds.get(flow)

    async def refresh(self) -> None:
        """Read the deployments that changed. Raises `Unavailable`."""
        async with aio.relay() as connection:
            rows = await (await connection.execute(_CHANGED, (self._revision,))).fetchall()
        for organization_id, environment, flow, revision, concurrency in rows:
            key = (organization_id, environment, flow)
            if concurrency is None:
                self._bounds.pop(key, None)
            else:
                self._bounds[key] = concurrency
            self._revision = max(self._revision, revision)
