"""Names of the DAGs of approvals and of their runs. Imports no Airflow."""

from __future__ import annotations

from uuid import UUID

DAG_NAME = "_approvals"
"""The third part of the DAG's id; no flow can be called so."""
TASK_ID = "decide"
APPROVE, REJECT = "Approve", "Reject"
RUN_ID_PREFIX = "bridge__approval__"


def run_id(approval_id: UUID) -> str:
    """The run of an approval."""
    return f"{RUN_ID_PREFIX}{approval_id}"


def approval_of(run_id: str) -> UUID | None:
    """The approval of a run; None for a run that somebody made by hand."""
    try:
        return UUID(run_id.removeprefix(RUN_ID_PREFIX)) if run_id.startswith(RUN_ID_PREFIX) else None
    except ValueError:
        return None
