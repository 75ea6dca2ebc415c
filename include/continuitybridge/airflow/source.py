"""What the DAG of a deployed flow is made from, as one JSON file beside the generated DAG file.

The text holds nothing that changes without the flow (no revision, no time, no person), so that deploying the
same again, or rolling back, gives the same DAG and no new DAG version. Imports no Airflow.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

import orjson

from continuitybridge.deployments import Deployed
from continuitybridge.flows.plan import Plan

FORMAT = 1


@dataclass(frozen=True)
class DagSource:
    """A deployed flow as the DAG compiler reads it; `fingerprint` (16 hex digits) tells two of them apart."""

    organization_id: UUID
    organization: str
    organization_name: str
    environment: str
    flow: str
    version: str
    status: str
    description: str
    labels: Mapping[str, str]
    plan: Plan
    fingerprint: str = field(default="", compare=False)

    @property
    def dag_id(self) -> str:
        return f"{self.organization}.{self.environment}.{self.flow}"

    @property
    def asset_uri(self) -> str:
        return asset_uri(self.organization, self.environment, self.flow)


def asset_uri(organization: str, environment: str, flow: str) -> str:
    """Name and URI of the asset whose events tell of the flow's outcomes (see `outcomes`)."""
    return f"bridge://{organization}/{environment}/{flow}"


def dump(deployed: Deployed) -> bytes:
    """The canonical text of a deployment."""
    return orjson.dumps(
        {
            "format": FORMAT,
            "organization_id": str(deployed.organization_id),
            "organization": deployed.organization,
            "organization_name": deployed.organization_name,
            "environment": deployed.environment,
            "flow": deployed.flow,
            "version": deployed.version,
            "status": deployed.status,
            "description": deployed.description,
            "labels": dict(sorted(deployed.labels.items())),
            "plan": orjson.loads(deployed.plan.to_json()),
        },
        option=orjson.OPT_APPEND_NEWLINE,
    )


def fingerprint(text: bytes) -> str:
    """Short name of a source's content (64 bits of SHA-256)."""
    return hashlib.sha256(text).hexdigest()[:16]


def load(path: Path) -> DagSource:
    """The source at `path`. Raises `OSError`, and `ConfigurationError` for an altered plan."""
    text = path.read_bytes()
    data = orjson.loads(text)
    return DagSource(
        organization_id=UUID(data["organization_id"]),
        organization=data["organization"],
        organization_name=data["organization_name"],
        environment=data["environment"],
        flow=data["flow"],
        version=data["version"],
        status=data["status"],
        description=data["description"],
        labels=data["labels"],
        plan=Plan.from_json(orjson.dumps(data["plan"])),
        fingerprint=fingerprint(text),
    )
