"""Approvals on Airflow's page of required actions.

Each message that waits for a person has a run of a small DAG, `{organization}.{environment}._approvals`, whose one
task is a human-in-the-loop request: it waits as a state in Airflow's tables (`awaiting_input`), no process sleeps.
Messages of streams and of batches alike: a request in a flow's own run would be one for all messages of the batch.
Who may respond is decided by the DAG's name, as for everything in it.

The wait in our tables is what counts. A response there decides it, by the verb that the API and the command line
use, and the first decision holds: where it came another way, or the time was over, the request is skipped. Airflow
stores its requests in clear, so that they name the message and its search keys, and show nothing else of it.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any, ClassVar
from uuid import UUID

from airflow.providers.standard.operators.hitl import HITLOperator
from airflow.sdk import DAG, Param, get_parsing_context

from continuitybridge.airflow.approval_names import APPROVE, DAG_NAME, REJECT, TASK_ID

if TYPE_CHECKING:
    from continuitybridge.vault.keyring import DataKeys

MAX_OPEN = 1_000
"""Requests of one environment that stand on the page at once."""
TRY_AGAIN_S = 60.0
"""How long a response is tried to be written while the database is away; then the request is made again."""

_log = logging.getLogger("continuitybridge.approvals")


def build_approvals_dag(organization_id: str, organization: str, environment: str) -> dict[str, DAG]:
    """The DAG of one environment's approvals, by its id; called by a generated file."""
    dag_id = f"{organization}.{environment}.{DAG_NAME}"
    wanted = get_parsing_context().dag_id
    if wanted is not None and wanted != dag_id:
        return {}
    dag = DAG(
        dag_id,
        description="Messages that wait for the decision of a person",
        doc_md=__doc__,
        schedule=None,
        catchup=False,
        is_paused_upon_creation=False,
        max_active_runs=MAX_OPEN,
        tags=[f"organization:{organization}", f"environment:{environment}", "approvals"],
        default_args={"owner": organization},
    )
    DecideOperator(task_id=TASK_ID, organization_id=UUID(organization_id), owner=organization, dag=dag)
    return {dag_id: dag}


class DecideOperator(HITLOperator):
    """Asks on Airflow's page, and writes the response. The run's `conf` names the approval."""

    custom_operator_name: ClassVar[str] = "Approval"

    def __init__(self, *, organization_id: UUID, **kwargs: Any) -> None:
        super().__init__(
            subject="{{ dag_run.conf['subject'] }}",
            body="{{ dag_run.conf['body'] }}",
            options=[APPROVE, REJECT],
            params={"comment": Param("", type="string", maxLength=2_000, title="Comment")},
            retries=3,
            **kwargs,
        )
        self.organization_id = organization_id

    def execute_complete(self, context: Any, event: dict[str, Any]) -> Any:
        answer = super().execute_complete(context, event)
        responder = event.get("responded_by_user") or {}
        self._decide(
            UUID(str(context["dag_run"].conf["approval"])),
            "approved" if event["chosen_options"] == [APPROVE] else "rejected",
            str(responder.get("name") or responder.get("id") or "airflow"),
            str((event.get("params_input") or {}).get("comment") or ""),
        )
        return {"chosen_options": answer["chosen_options"]}

    def _decide(self, approval_id: UUID, decision: Any, by: str, comment: str) -> None:
        from continuitybridge.errors import NotFound, Unavailable
        from continuitybridge.inbox import waits

        give_up_at = time.monotonic() + TRY_AGAIN_S
        while True:
            try:
                message_id = waits.decide(
                    self.organization_id, approval_id, decision, by=by, comment=comment, keys=self._keys()
                )
            except NotFound:
                _log.warning("it had been decided before, or its time was over: nothing was changed")
                return
            except Unavailable:
                if time.monotonic() > give_up_at:
                    raise
                time.sleep(1.0)
            else:
                _log.info("message %s %s by %s", message_id, decision, by)
                return

    @staticmethod
    def _keys() -> DataKeys:
        """The organization's, for the audit trail. Raises `Unavailable`."""
        from continuitybridge.airflow.services import data_keys
        from continuitybridge.errors import NotFound

        try:
            return data_keys()
        except NotFound as error:
            # Not to be taken for an approval that is not there.
            raise RuntimeError(f"the decision cannot be recorded: {error.detail}") from error
