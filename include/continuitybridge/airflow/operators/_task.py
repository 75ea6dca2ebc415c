"""What the operators share: the message of a task, running a node on it, and what a failure makes of the task."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowException, AirflowFailException

from continuitybridge.engine.message import Message, Outcome
from continuitybridge.errors import BridgeError, NotFound, Verdict
from continuitybridge.nodes.base import BuildContext, ConnectionInfo, _Node

if TYPE_CHECKING:
    from airflow.sdk import Context

    from continuitybridge.flows.plan import Plan

Files = Mapping[str, str | Path]
"""Side files: the name a configuration uses → the text, or the path of a file that is read with the DAG."""

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_log = logging.getLogger("continuitybridge.operators")


@dataclass(frozen=True)
class Failed:
    """One message that could not be processed."""

    message_id: str
    detail: str
    verdict: Verdict


def message_id(context: Context) -> str:
    """The id of the task's message: the same on every try, and when the task is cleared and runs again."""
    ti = context["ti"]
    mapped = f"/{ti.map_index}" if (ti.map_index or 0) >= 0 and ti.map_index is not None else ""
    return f"{ti.dag_id}/{ti.run_id}{mapped}"


def messages(context: Context, body: Any, headers: Mapping[str, str], *, each: bool) -> list[Message]:
    """The task's input as messages: one, or with `each` one per element, `<id>.<n>` counted from 1.

    Raises `AirflowFailException` when `each` finds no list.
    """
    name = message_id(context)
    lower = {key.lower(): value for key, value in headers.items()}
    if not each:
        return [Message(name, body, lower)]
    if not isinstance(body, list | tuple):
        raise AirflowFailException(f"each=True needs a list as input, found {type(body).__name__}")
    return [Message(f"{name}.{n}", item, dict(lower)) for n, item in enumerate(body, start=1)]


def side_files(files: Files | None) -> dict[str, str]:
    """The texts of side files."""
    return {
        name: content.read_text("utf-8") if isinstance(content, Path) else content
        for name, content in (files or {}).items()
    }


def checked(node_type: str, config: Mapping[str, Any], files: Mapping[str, str], task_id: str) -> type[_Node[Any]]:
    """Build the node once, while the DAG is parsed: a wrong program, path or key is an import error that names it
    (`ConfigurationError`), not a failed run."""
    from continuitybridge.nodes import registry

    node = registry.get(node_type)
    registry.build(node_type, config, BuildContext(node_id=task_id, files=files))
    return node


def run_node(
    node_type: str,
    config: Mapping[str, Any],
    files: Mapping[str, str],
    batch: Sequence[Message],
    task_id: str,
) -> dict[str, Outcome | list[tuple[str, Any]]]:
    """Run messages through one node, in a process that a message cannot take the task down with.

    Returns, per message id, what the node emitted as (port, body) in order, or the outcome that says why it
    failed. Limits are the platform's settings. The node bears the task's id, which is part of outward idempotency
    keys.
    """
    from continuitybridge.engine.limits import Limits
    from continuitybridge.engine.runner import Runner
    from continuitybridge.settings import get_settings

    plan, ports = _plan(node_type, config, files, task_id)
    limits = Limits.from_settings(get_settings())
    results: dict[str, Outcome | list[tuple[str, Any]]] = {}
    with Runner() as runner:
        for outcome in runner.run(plan, batch, services=AirflowServices(), limits=limits):
            results[outcome.message_id] = (
                outcome
                if outcome.failures
                else [(ports[output.node_id], output.message.body) for output in outcome.outputs]
            )
    return results


def _plan(
    node_type: str, config: Mapping[str, Any], files: Mapping[str, str], task_id: str
) -> tuple[Plan, dict[str, str]]:
    """A plan of one node, and which step's outputs left by which port: an outcome tells the step that gave an
    output, so that each port of several leads to a step of its own that passes on what it gets."""
    from continuitybridge.flows.model import END, Flow, Step
    from continuitybridge.flows.plan import compile_flow
    from continuitybridge.nodes import registry

    node = registry.get(node_type)
    offered = node.ports_of(node.Config.model_validate(dict(config)))
    wanted = [port for port in offered if port not in node.optional_ports]
    step = Step(task_id, node_type, config=config, next={"out": (END,)})
    steps, ports = [step], {task_id: "out"}
    if wanted != ["out"]:
        ports = {f"{task_id} port {index}": port for index, port in enumerate(wanted)}
        steps = [replace(step, next={port: (name,) for name, port in ports.items()})]
        steps += [Step(name, "json_builder", config={"output": "object"}, next={"out": (END,)}) for name in ports]
    return compile_flow(Flow("python-dag", "1.0.0", steps=tuple(steps), files=dict(files))), ports


class AirflowServices:
    """What nodes get from outside in a task: Airflow's HTTP connections by their conn_id, and the task's log."""

    def connection(self, name: str, *, refused: int | None = None) -> ConnectionInfo:
        """Raises `NotFound` when Airflow has no connection of that conn_id."""
        from airflow.providers.http.hooks.http import HttpHook
        from airflow.sdk.exceptions import AirflowNotFoundException

        hook = HttpHook(http_conn_id=name)
        try:
            found = hook.get_connection(name)
        except AirflowNotFoundException:
            raise NotFound(f"Airflow has no connection {name!r}", connection=name) from None
        session = hook.get_conn()
        auth = {"type": "none"}
        if found.login:
            auth = {"type": "basic", "username": found.login, "password": found.password or ""}
        declared = {str(key): str(value) for key, value in session.headers.items() if key in found.extra_dejson}
        return ConnectionInfo(name, hook.base_url, declared, auth)

    def log(self, level: str, text: str, fields: Mapping[str, Any]) -> None:
        more = "".join(f" {key}={value!r}" for key, value in fields.items())
        _log.log(_LEVELS.get(level, logging.INFO), "%s%s", text, more)


def failures_of(outcome: Outcome) -> list[Failed]:
    """Why a message failed."""
    return [Failed(failure.message_id, failure.detail, failure.verdict) for failure in outcome.failures]


def raise_for(failed: Sequence[Failed], of: int) -> None:
    """End the task as the failures of `of` messages say; returns when there are none.

    One that may pass is worth another try, in which those that will not fail again, without harm: what was
    delivered bears the same Idempotency-Key.
    """
    if not failed:
        return
    for failure in failed:
        _log.error("message %s failed: %s", failure.message_id, failure.detail)
    summary = failed[0].detail if of == 1 else f"{len(failed)} of {of} messages failed; first: {failed[0].detail}"
    if any(failure.verdict is Verdict.TRANSIENT for failure in failed):
        raise AirflowException(summary)
    raise AirflowFailException(summary)


def task_error(error: BridgeError) -> Exception:
    """The exception that gives a task the state that the error's verdict stands for."""
    kind = AirflowException if error.verdict is Verdict.TRANSIENT else AirflowFailException
    return kind(error.detail)
