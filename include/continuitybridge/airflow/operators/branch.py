"""Branching by conditions on data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.providers.standard.operators.branch import BaseBranchOperator

from continuitybridge.airflow.operators import _task
from continuitybridge.engine.message import Outcome

if TYPE_CHECKING:
    from airflow.sdk import Context


class ConditionalBranchOperator(BaseBranchOperator):
    """Runs the task behind the first condition that holds for the input and skips the others (node `conditional`).

    :param input: the data (templated), usually another task's `.output`.
    :param branches: id of a task or task group downstream → jq expression, tried in this order.
    :param otherwise: where to go when none holds; without it everything downstream is skipped.
    :param headers: headers of the message, which expressions see as `$headers` (templated).

    A condition that fails on the data fails the task. A wrong one is an import error of the DAG.
    """

    template_fields: Sequence[str] = ("input", "headers")
    template_fields_renderers: ClassVar[dict[str, str]] = {"input": "json", "headers": "json"}

    def __init__(
        self,
        *,
        input: Any,
        branches: Mapping[str, str],
        otherwise: str | None = None,
        headers: Mapping[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.input = input
        self.branches = dict(branches)
        self.otherwise = otherwise
        self.headers = dict(headers or {})
        _task.checked("conditional", self._config, {}, self.task_id)

    @property
    def _config(self) -> dict[str, Any]:
        """Task ids may hold what branch names may not."""
        return {"branches": {f"b{index}": text for index, text in enumerate(self.branches.values())}}

    def choose_branch(self, context: Context) -> str | None:
        """The id of the task to go on with."""
        (message,) = _task.messages(context, self.input, self.headers, each=False)
        result = _task.run_node("conditional", self._config, {}, [message], self.task_id)[message.id]
        if isinstance(result, Outcome):
            _task.raise_for(_task.failures_of(result), 1)
            return None
        ((port, _),) = result
        return list(self.branches)[int(port[1:])] if port != "otherwise" else self.otherwise
