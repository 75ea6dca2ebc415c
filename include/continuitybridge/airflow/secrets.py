"""Airflow secrets backend: a flow's task gets its own organization's keys and connections, and nobody else's.

- `bridge-keys`: the organization's data keys, never the master key.
- `bridge-connection:<name>`: the connection of that name in the flow's own environment.

It answers in the api-server only, against the verified token of a running task of a flow's DAG. Who asks without
an identity (DAG processor, scheduler, a command) gets None. What a flow's task may not have is refused at once, so
that Airflow's next backends are not asked either.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from airflow.secrets.base_secrets import BaseSecretsBackend

KEYS = "bridge-keys"
CONNECTION_PREFIX = "bridge-connection:"
CONNECTION_TYPE = "bridge"
CACHE_S = 60.0


@dataclass(frozen=True, slots=True)
class Asker:
    """A running task of a flow's DAG."""

    organization_id: UUID
    organization: str
    environment: str
    flow: str


class OrganizationSecrets(BaseSecretsBackend):
    """See the module. Raises a refusal (404 to the task) for everything that is not the asker's own."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__()

    def get_connection(self, conn_id: str, team_name: str | None = None) -> Any:
        asker = _asker()
        if asker is None:
            if _is_ours(conn_id):
                return _refuse_or_none(conn_id)
            return None
        if conn_id == KEYS:
            extra = _keys(asker)
        elif conn_id.startswith(CONNECTION_PREFIX):
            extra = _connection(asker, conn_id.removeprefix(CONNECTION_PREFIX))
        else:
            raise refusal(conn_id)
        return self._get_connection_class()(conn_id=conn_id, conn_type=CONNECTION_TYPE, extra=extra)

    def get_conn_value(self, conn_id: str, team_name: str | None = None) -> str | None:
        return None

    def get_variable(self, key: str, team_name: str | None = None) -> str | None:
        """Airflow's variables are the platform's; a flow's task has none."""
        if _asker() is not None:
            raise refusal(key)
        return None

    def get_config(self, key: str) -> str | None:
        return None


def refusal(name: str) -> Exception:
    """What Airflow takes as a final no, and its API answers as 404: the same for what does not exist."""
    from airflow.sdk.exceptions import AirflowSecretsBackendAccessDenied
    from fastapi import HTTPException

    class Refused(AirflowSecretsBackendAccessDenied, HTTPException):
        def __init__(self) -> None:
            HTTPException.__init__(
                self, 404, detail={"reason": "not_found", "message": f"{name} is not there for this task"}
            )

    return Refused()


def _is_ours(conn_id: str) -> bool:
    return conn_id == KEYS or conn_id.startswith(CONNECTION_PREFIX)


def _refuse_or_none(conn_id: str) -> None:
    from continuitybridge.airflow.identity import asking_task

    # A task of a Python DAG has an identity, but no organization.
    if asking_task() is not None:
        raise refusal(conn_id)


def _asker() -> Asker | None:
    from continuitybridge.airflow.identity import asking_task

    task_id = asking_task()
    dag_id = _dag_of_running_task(task_id) if task_id is not None else None
    if dag_id is None:
        return None
    organization, environment, flow = dag_id.split(".", 2)
    return Asker(_organization_id(organization), organization, environment, flow)


_known: dict[str, tuple[float, UUID]] = {}


def _organization_id(slug: str) -> UUID:
    """Kept for a minute: a slug never changes hands while its organization lives."""
    from continuitybridge import organizations
    from continuitybridge.errors import NotFound

    known = _known.get(slug)
    if known is not None and time.monotonic() - known[0] < CACHE_S:
        return known[1]
    try:
        found = organizations.by_slug(slug).organization_id
    except NotFound:
        raise refusal(slug) from None
    _known[slug] = (time.monotonic(), found)
    return found


def _dag_of_running_task(task_id: UUID) -> str | None:
    """The DAG, if it is a flow's: the name alone proves nothing, anybody's Python DAG may bear it."""
    from airflow.models import DagModel, TaskInstance
    from airflow.utils.session import create_session
    from airflow.utils.state import TaskInstanceState
    from sqlalchemy import select

    from continuitybridge.airflow.configuration import FLOW_BUNDLE

    with create_session() as session:
        return session.scalar(
            select(DagModel.dag_id)
            .join(TaskInstance, TaskInstance.dag_id == DagModel.dag_id)
            .where(
                TaskInstance.id == task_id,
                TaskInstance.state == TaskInstanceState.RUNNING,
                DagModel.bundle_name == FLOW_BUNDLE,
            )
        )


def _keys(asker: Asker) -> str:
    from continuitybridge.vault import Keyring

    return Keyring.open().export(asker.organization_id).to_json()


def _connection(asker: Asker, name: str) -> str:
    from continuitybridge import connections
    from continuitybridge.errors import NotFound
    from continuitybridge.vault import Keyring

    try:
        found = connections.resolve(asker.organization_id, asker.environment, name, Keyring.open())
    except NotFound:
        raise refusal(CONNECTION_PREFIX + name) from None
    return json.dumps({"base_url": found.base_url, "headers": dict(found.headers), "auth": dict(found.auth)})
