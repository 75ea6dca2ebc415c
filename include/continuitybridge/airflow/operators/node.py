"""A node of the library as a task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from continuitybridge.airflow.operators import _task
from continuitybridge.engine.message import Outcome

if TYPE_CHECKING:
    from airflow.sdk import Context


class NodeOperator(BaseOperator):
    """Runs one node type of the library (`bridge node list`) over the task's input.

    :param node_type: the node type, for example `jq`.
    :param input: the message: another task's `.output`, or data or text (templated). Text is text, not JSON.
    :param config: the node's configuration, as in a flow (`bridge node show TYPE`); not templated, because node
        configurations have templates of their own. A wrong one is an import error of the DAG.
    :param headers: headers of the message, which expressions see as `$headers` (templated).
    :param files: side files that the configuration names: name → text or path.
    :param many: return the list of everything the node emitted, however many; without it a node that emits
        several messages fails the task.
    :param each: the input is a list, and each element a message of its own. Returns the list of what was emitted
        for all of them, in order. One that fails does not keep the others from being processed.

    The result is the message's new body, in XCom: keep it small, or configure Airflow's object storage backend.
    When the node drops the message the task is skipped. A message that fails fails the task: at once when it would
    fail again, otherwise with the task's `retries`. The node runs in a process of its own under the platform's
    limits of size, time and memory.
    """

    template_fields: Sequence[str] = ("input", "headers")
    template_fields_renderers: ClassVar[dict[str, str]] = {"input": "json", "headers": "json"}
    ui_color = "#eef7ee"

    def __init__(
        self,
        *,
        node_type: str,
        input: Any,
        config: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        files: _task.Files | None = None,
        many: bool = False,
        each: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.node_type = node_type
        self.input = input
        self.config = dict(config or {})
        self.headers = dict(headers or {})
        self.files = _task.side_files(files)
        self.many = many
        self.each = each
        _task.checked(node_type, self.config, self.files, self.task_id)

    def execute(self, context: Context) -> Any:
        """The new body, or a list of bodies."""
        batch = _task.messages(context, self.input, self.headers, each=self.each)
        results = _task.run_node(self.node_type, self.config, self.files, batch, self.task_id)
        failed: list[_task.Failed] = []
        bodies: list[Any] = []
        for message in batch:
            result = results[message.id]
            if isinstance(result, Outcome):
                failed += _task.failures_of(result)
            else:
                bodies += [body for _, body in result]
        _task.raise_for(failed, len(batch))
        if self.each or self.many:
            return bodies
        if not bodies:
            raise AirflowSkipException(f"{self.node_type} dropped the message")
        if len(bodies) > 1:
            raise AirflowFailException(
                f"{self.node_type} emitted {len(bodies)} messages; with many=True the task returns their list"
            )
        return bodies[0]
