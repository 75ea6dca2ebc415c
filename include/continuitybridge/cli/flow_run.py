"""`bridge flow run`: a flow over files, on this machine, without the platform."""

from __future__ import annotations

import hashlib
import os
import stat
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from continuitybridge.errors import ConfigurationError

if TYPE_CHECKING:
    from continuitybridge.engine.limits import Limits
    from continuitybridge.engine.message import Failure, Message, Outcome, Output, Wait
    from continuitybridge.flows.plan import Plan

STDIN = "-"
_CONTENT_TYPES = {".json": "application/json", ".xml": "application/xml", ".csv": "text/csv"}


@click.command("run")
@click.argument("flow", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--input",
    "-i",
    "inputs",
    multiple=True,
    metavar="FILE...",
    help="Files that hold one message each; - is standard input.",
)
@click.argument("more", nargs=-1, metavar="")
@click.option("--emulate", is_flag=True, help="Call nothing outside: connectors answer from their samples.")
@click.option(
    "--connections",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="YAML file with the connections that the flow names.",
)
@click.option("--trigger", metavar="ID", help="The trigger the messages come from; else the flow's first.")
@click.option("--trace", is_flag=True, help="Print a line with counts and times of each node per message too.")
@click.pass_context
def run(
    ctx: click.Context,
    flow: Path,
    inputs: tuple[str, ...],
    more: tuple[str, ...],
    emulate: bool,
    connections: Path | None,
    trigger: str | None,
    trace: bool,
) -> None:
    """Run the flow in file FLOW over input files.

    Prints one JSON line per outgoing message ("kind": "message"), one per message that would wait ("kind":
    "waiting"; with --emulate nothing waits) and one per failure ("kind": "failure"), each
    with the name of the input it came from; where the trigger says `reply: result`, one more ("kind": "reply")
    with what a caller would be answered. Lines of the flow's log go to standard error.

    Exit status: 0 when no message failed, 1 when any did, 2 for a wrong call or a flow with problems.

    \b
    bridge flow run orders.flow.yaml --input order.xml
    bridge flow run orders.flow.yaml --emulate --input samples/*.json
    """
    names = (*inputs, *more)
    _check_inputs(names)
    # Looking for pydantic's plugins reads the metadata of every installed package: a sixth of the start.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")

    from continuitybridge.engine.limits import Limits
    from continuitybridge.engine.runner import Runner
    from continuitybridge.engine.services import LocalServices, read_connections
    from continuitybridge.settings import get_settings

    services = LocalServices(read_connections(connections) if connections else {})
    limits = Limits.from_settings(get_settings())
    plan = _plan(flow)
    if trigger is not None and trigger not in plan.triggers:
        raise ConfigurationError(
            f"--trigger: the flow has no trigger {trigger!r}; it has {', '.join(plan.triggers)}", field="trigger"
        )
    lines = _Lines(trace, plan, trigger)
    messages = _Inputs(names, plan, limits, trigger, lines)
    with Runner() as runner:
        for outcome in runner.run(plan, messages, services=services, limits=limits, emulate=emulate):
            lines.print(messages.names.pop(outcome.message_id), outcome)
    if lines.failed:
        ctx.exit(1)


def _check_inputs(names: Iterable[str]) -> None:
    problems = []
    for name in names:
        if name == STDIN:
            continue
        try:
            mode = os.stat(name).st_mode
        except (OSError, ValueError) as error:
            problems.append(f"{name}: {getattr(error, 'strerror', None) or error}")
            continue
        if stat.S_ISDIR(mode):
            problems.append(f"{name}: is a directory")
        elif not os.access(name, os.R_OK):
            problems.append(f"{name}: may not be read")
    if problems:
        raise click.BadParameter("\n  ".join(problems), param_hint="--input")
    if not names:
        raise click.MissingParameter(param_hint="--input", param_type="option")


def _plan(path: Path) -> Plan:
    from continuitybridge.flows.lint import check
    from continuitybridge.flows.load import load_flow
    from continuitybridge.flows.plan import compile_flow

    loaded = load_flow(path)
    check(loaded)
    return compile_flow(loaded.flow)


class _Inputs:
    """The input files as messages, read one by one as they are asked for. A file beyond the size limit is not
    read further, and reported as the failure it is."""

    def __init__(
        self, files: Iterable[str], plan: Plan, limits: Limits, trigger: str | None, lines: _Lines
    ) -> None:
        self.names: dict[str, str] = {}
        """Message id → the input's name, for the messages under way."""
        self._files = files
        self._plan = plan
        self._limits = limits
        self._trigger = trigger
        self._lines = lines

    def __iter__(self) -> Iterator[Message]:
        from continuitybridge.engine.limits import too_large
        from continuitybridge.engine.message import Message
        from continuitybridge.engine.session import refused

        for position, name in enumerate(self._files):
            body = _read(name, self._limits.max_message_bytes)
            message = Message(self._id(position, name, body), body)
            if self._trigger is not None:
                message.vars["trigger"] = self._trigger
            content_type = _CONTENT_TYPES.get(Path(name).suffix.lower())
            if content_type is not None:
                message.headers["content-type"] = content_type
            if len(body) > self._limits.max_message_bytes:
                error = too_large(len(body) - 1, self._limits.max_message_bytes, at_least=True)
                self._lines.print(name, refused(self._plan, message, error))
                continue
            self.names[message.id] = name
            yield message

    def _id(self, position: int, name: str, body: bytes) -> str:
        """The same for the same call, so that what is delivered twice bears the same idempotency key."""
        digest = hashlib.sha256(f"{self._plan.flow}\0{position}\0{name}\0".encode(errors="surrogateescape"))
        digest.update(body)
        return digest.hexdigest()[:32]


def _read(name: str, limit: int) -> bytes:
    """At most one byte more than `limit` of the file, whatever it is and however long it goes on."""
    try:
        if name == STDIN:
            return sys.stdin.buffer.read(limit + 1)
        with open(name, "rb") as file:
            return file.read(limit + 1)
    except OSError as error:
        raise ConfigurationError(f"{name}: {error.strerror}", field="input") from None


class _Lines:
    """Prints outcomes as JSON lines."""

    def __init__(self, trace: bool, plan: Plan, trigger: str | None) -> None:
        self.failed = False
        self._trace = trace
        config = plan.nodes[trigger or plan.triggers[0]].config
        self._result = config.get("result") or {} if config.get("reply") == "result" else None

    def print(self, name: str, outcome: Outcome) -> None:
        lines = [
            _message_line(name, output) if output.wait is None else _waiting_line(name, output, output.wait)
            for output in outcome.outputs
        ]
        lines += [_failure_line(name, failure) for failure in outcome.failures]
        if self._result is not None:
            lines.append(_reply_line(name, outcome, self._result))
        if self._trace:
            lines.append(_trace_line(name, outcome))
        self.failed |= bool(outcome.failures)
        sys.stdout.buffer.write(b"".join(_json(line) + b"\n" for line in lines))
        sys.stdout.buffer.flush()


def _message_line(name: str, output: Output) -> dict[str, Any]:
    message = output.message
    line: dict[str, Any] = {"kind": "message", "input": name, "message": message.id, "node": output.node_id}
    line |= _shown(message.body)
    error = message.vars.get("error")
    if error is not None:
        line["error"] = error
    return line


def _waiting_line(name: str, output: Output, wait: Wait) -> dict[str, Any]:
    """A message that would wait on the platform; here nobody lets it go on."""
    line = {
        "kind": "waiting",
        "input": name,
        "message": output.message.id,
        "node": output.node_id,
        "for": wait.kind,
        "within_s": wait.within_s,
    }
    return line | _shown(output.message.body)


def _shown(body: Any) -> dict[str, Any]:
    if not isinstance(body, bytes):
        return {"body": body}
    try:
        return {"body": body.decode()}
    except UnicodeDecodeError:
        import base64

        return {"body_base64": base64.b64encode(body).decode()}


def _failure_line(name: str, failure: Failure) -> dict[str, Any]:
    return {
        "kind": "failure",
        "input": name,
        "message": failure.message_id,
        "node": failure.node_id,
        "type": failure.node_type,
        "code": failure.code,
        "detail": failure.detail,
        "verdict": str(failure.verdict),
        "facts": failure.facts,
    }


def _reply_line(name: str, outcome: Outcome, result: Mapping[str, Any]) -> dict[str, Any]:
    """What a caller who waits would be answered."""
    from continuitybridge import problems
    from continuitybridge.engine.replies import explanation, gravest
    from continuitybridge.errors import Verdict

    line: dict[str, Any] = {"kind": "reply", "input": name, "message": outcome.message_id}
    reply = outcome.reply
    code = reply.code if reply is not None else None
    told: dict[str, Any] = {}
    if outcome.failures:
        failure = gravest(outcome.failures)
        if failure.verdict is Verdict.TRANSIENT:
            # The caller is held until the next try, or its limit.
            return {**line, "status": 202, "tried_again": True}
        code, told = failure.code, explanation(failure) if result.get("explain", True) else {}
    if code is not None:
        problem = problems.of_failure(code, outcome.message_id, statuses=result.get("errors"), explanation=told)
        return {**line, "status": problem.status, "body": problem.content}
    if reply is None:
        return {**line, "status": 202}
    return {**line, "status": reply.status, "headers": reply.headers, **_shown(reply.body)}


def _trace_line(name: str, outcome: Outcome) -> dict[str, Any]:
    return {
        "kind": "trace",
        "input": name,
        "message": outcome.message_id,
        "status": outcome.status,
        "nodes": [
            {
                "node": node.node_id,
                "received": node.received,
                "emitted": node.emitted,
                "failed": node.failed,
                "duration_us": node.duration_us,
            }
            for node in outcome.trace
        ],
    }


def _json(line: Mapping[str, Any]) -> bytes:
    import orjson

    try:
        return orjson.dumps(line)
    except TypeError:  # integers beyond 64 bits, lone surrogates, file names that are no UTF-8
        import json

        return json.dumps(line, separators=(",", ":")).encode()
