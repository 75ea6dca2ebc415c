"""The wire between a runner and its node process: length-prefixed frames of marshalled plain tuples.

Both ends are the same interpreter on the same machine, forked from one another, so the format needs no version.
Bodies travel as bytes beside their kind: JSON data as JSON text, so that its size is exact and reading it
cannot recurse deeply; what JSON text cannot hold (integers beyond 64 bits, lone surrogates) is marshalled, which
refuses more than 2,000 levels.
"""

from __future__ import annotations

import contextlib
import marshal
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

import orjson

from continuitybridge.engine import replies
from continuitybridge.engine.copies import plain
from continuitybridge.engine.limits import Limits, nests_deeper, outgrows, too_deep, too_large, too_much_memory
from continuitybridge.engine.message import (
    Body,
    Failure,
    Message,
    NodeTrace,
    Outcome,
    OutcomeStatus,
    Output,
    Reply,
    Resume,
    Wait,
)
from continuitybridge.engine.walk import Event, Poison, Walk
from continuitybridge.errors import BridgeError, LimitExceeded, NodeError, Verdict

HEADER = struct.Struct("<IB")
_NO_BRACKETS = bytes(byte for byte in range(256) if byte not in b"{[")
SNAPSHOT_ITEMS = 1_000_000
"""A failed message's content with more values than these is not kept with the failure."""
READ_BYTES = 256 * 1024

# Runner to node process.
PLAN, RUN, WORK, REPLY, DESTINATION, FORGET = range(1, 7)
# Node process to runner.
READY, OUTCOME, REFUSED, CALL, LOG, CIRCUIT, ANSWER = range(7, 14)

FIT, WORN, ENDS = range(3)
"""How a process is after an outcome: it may have more; it should have no more, and be replaced; it ends now."""

_BYTES, _TEXT, _JSON, _MARSHAL = range(4)
_STRICT = orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_SUBCLASS

Work = tuple[int, Message, str | None, Poison | None]
"""Sequence number, message, entry node, what former tries met."""


def frame(kind: int, content: Any) -> bytes:
    """Raises ValueError for content that is not plain data, or is nested too deep to be marshalled."""
    data = marshal.dumps(content)
    return HEADER.pack(len(data), kind) + data


class FrameReader:
    """Cuts received bytes into frames."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[int, Any]]:
        buffer = self._buffer
        buffer += data
        at = 0
        try:
            while len(buffer) - at >= HEADER.size:
                length, kind = HEADER.unpack_from(buffer, at)
                end = at + HEADER.size + length
                if len(buffer) < end:
                    break
                content = marshal.loads(memoryview(buffer)[at + HEADER.size : end])  # noqa: S302  (own bytes)
                at = end
                yield kind, content
        finally:
            if at:
                del buffer[:at]


def pack_body(body: Body) -> tuple[int, Any]:
    """Raises ValueError for what is neither bytes, text nor JSON data."""
    kind = type(body)
    if kind is bytes:
        return _BYTES, body
    if kind is str:
        return _TEXT, body
    try:
        return _JSON, orjson.dumps(body, option=_STRICT)
    except TypeError:
        return _MARSHAL, marshal.dumps(body)


def unpack_body(packed: tuple[int, Any]) -> Body:
    kind, data = packed
    if kind == _JSON:
        return orjson.loads(data)
    if kind == _MARSHAL:
        return marshal.loads(data)  # noqa: S302  (own bytes)
    return data


def pack_message(message: Message) -> tuple[Any, ...]:
    return (
        message.id,
        pack_body(message.body),
        message.headers,
        _pack_vars(message.vars),
        message.generation,
        _pack_resume(message.resume),
        message.called,
    )


def unpack_message(packed: tuple[Any, ...]) -> Message:
    identity, body, headers, variables, generation, resume, called = packed
    return Message(
        identity,
        unpack_body(body),
        headers,
        marshal.loads(variables) if variables else {},  # noqa: S302  (own bytes)
        generation,
        _unpack_resume(resume),
        called,
    )


def _pack_resume(resume: Resume | None) -> tuple[str, bytes] | None:
    return None if resume is None else (resume.how, marshal.dumps(dict(resume.facts)))


def _unpack_resume(packed: tuple[str, bytes] | None) -> Resume | None:
    return None if packed is None else Resume(packed[0], marshal.loads(packed[1]))  # noqa: S302  (own bytes)


def _pack_vars(variables: dict[str, Any]) -> bytes:
    if not variables:
        return b""
    try:
        return marshal.dumps(variables)
    except ValueError:
        return marshal.dumps(plain(variables))


def pack_error(error: BridgeError) -> tuple[Any, ...]:
    return (error.code, error.detail, str(error.verdict), plain(error.facts))


def unpack_error(packed: tuple[Any, ...]) -> BridgeError:
    code, detail, verdict, facts = packed
    error = _class_of(code).__new__(_class_of(code))
    BridgeError.__init__(error, detail, verdict=Verdict(verdict), **facts)
    return error


def _class_of(code: str) -> type[BridgeError]:
    found: list[type[BridgeError]] = [BridgeError]
    for cls in found:
        if cls.code == code and cls is not BridgeError:
            return cls
        found += cls.__subclasses__()
    return NodeError


def pack_work(sequence: int, message: Message, entry: str | None, poison: Poison | None) -> tuple[Any, ...]:
    return (
        sequence,
        pack_message(message),
        entry,
        [(key, pack_error(error)) for key, error in poison.items()] if poison else None,
    )


def unpack_work(packed: tuple[Any, ...]) -> Work:
    sequence, message, entry, poison = packed
    return (
        sequence,
        unpack_message(message),
        entry,
        {tuple(key): unpack_error(error) for key, error in poison} if poison else None,
    )


# -- outcomes ---------------------------------------------------------------------------------------------


def seal(walk: Walk, limits: Limits, results: bool = True) -> list[tuple[Any, ...]]:
    """The walk's outputs in wire form; those that leave the plan only where somebody wants the `results`, or
    another flow called. An
    output that exceeds a limit, or is no data, becomes a failure of its message at the node that gave it; the
    outputs of one input that exceed a limit together become one."""
    sealed: list[tuple[Any, ...]] = []
    total = 0
    for message, step, node_id, stage, wait in walk.outputs:
        walk.mark(step, message)
        try:
            walk.look_for_keys(message)
            body, size = _sealed_body(message.body, limits)
            parked = None if wait is None else _sealed_wait(wait, limits)
        except BridgeError as error:
            walk.refuse(step, message, error)
            continue
        except MemoryError:
            walk.out_of_memory = True
            walk.refuse(step, message, too_much_memory(limits.node_memory_limit_bytes))
            continue
        total += size
        if total > limits.max_outcome_bytes:
            walk.refuse(step, message, _too_much(limits))
            return []
        if stage is None and not results and not walk.root.called:
            continue
        sealed.append(
            (
                message.id,
                body,
                message.headers,
                _pack_vars(message.vars),
                message.generation,
                node_id,
                stage,
                parked,
            )
        )
    return sealed


_PLAIN_FIELDS = tuple(field.name for field in fields(Wait) if field.name not in ("payload", "options"))


def _sealed_wait(wait: Wait, limits: Limits) -> tuple[Any, ...]:
    payload, _ = _sealed_body(wait.payload, limits)
    plainly = {name: getattr(wait, name) for name in _PLAIN_FIELDS}
    return plainly, payload, plain(wait.options)


def _unpack_wait(packed: tuple[Any, ...]) -> Wait:
    plainly, payload, options = packed
    return Wait(**plainly, payload=unpack_body(payload), options=options)


def _too_much(limits: Limits) -> LimitExceeded:
    return LimitExceeded(
        f"what one message gave has more than {limits.max_outcome_bytes} bytes altogether "
        "(eight times BRIDGE_MAX_MESSAGE_BYTES)",
        limit="max_message_bytes",
        allowed=limits.max_outcome_bytes,
        found=f"more than {limits.max_outcome_bytes}",
    )


def _sealed_body(body: Body, limits: Limits) -> tuple[tuple[int, Any], int]:
    try:
        packed = pack_body(body)
    except ValueError:
        if nests_deeper(body, limits.max_nesting_depth):
            raise too_deep(limits.max_nesting_depth) from None
        raise NodeError(
            "the node gave content that is neither bytes, text nor JSON data", type=type(body).__name__
        ) from None
    kind, data = packed
    size = len(data)
    if kind == _TEXT:
        if size * 4 > limits.max_message_bytes:
            size = len(data.encode(errors="surrogatepass"))
    elif (
        # What opens a level is counted: an upper bound of the depth; the content is walked only beyond it.
        kind != _BYTES
        and (kind == _MARSHAL or len(data.translate(None, _NO_BRACKETS)) > limits.max_nesting_depth)
        and nests_deeper(body, limits.max_nesting_depth)
    ):
        raise too_deep(limits.max_nesting_depth)
    if size > limits.max_message_bytes:
        raise too_large(size, limits.max_message_bytes)
    return packed, size


def pack_outcome(sequence: int, walk: Walk, limits: Limits, *, worn: bool, results: bool) -> bytes:
    """The frame of one finished walk; it says too when it is the last of its process, and whether its answer
    follows."""
    sealed = seal(walk, limits, results)
    failures = _pack_failures(walk.failures, limits) if walk.failures else ()
    answer_follows = replies.wanted(walk) is not None
    condition = ENDS if walk.out_of_memory else WORN if worn else FIT
    content = (sequence, condition, answer_follows, sealed, failures, walk.trace(), walk.keys)
    try:
        return frame(OUTCOME, content)
    except ValueError:
        # Only what a node put into headers can be no data by now.
        plain_sealed = [(item[0], item[1], _plain_headers(item[2]), *item[3:]) for item in sealed]
        return frame(OUTCOME, (*content[:3], plain_sealed, *content[4:]))


def pack_answer(sequence: int, reply: Reply) -> bytes:
    """The frame of the answer for a caller who waits; it comes after its outcome's."""
    return frame(ANSWER, (sequence, reply.status, reply.headers, reply.body, reply.message_id, reply.code))


def _plain_headers(headers: Any) -> dict[str, str]:
    return {str(name): str(value) for name, value in dict(headers).items()}


def _pack_failures(failures: Sequence[Failure], limits: Limits) -> list[tuple[Any, ...]]:
    room = limits.max_outcome_bytes
    packed: list[tuple[Any, ...]] = []
    for failure in failures:
        body, size = pack_body(None), 0
        rest: tuple[Any, ...] | None = None
        with contextlib.suppress(BridgeError, MemoryError):
            if not outgrows(failure.body, SNAPSHOT_ITEMS):
                body, size = _sealed_body(failure.body, limits)
                rest = _pack_rest(failure)
                size += len(rest[1]) if rest else 0
        if size > room:
            body, size, rest = pack_body(None), 0, None
        room -= size
        packed.append(
            (
                failure.message_id,
                failure.node_id,
                failure.node_type,
                failure.code,
                failure.detail,
                str(failure.verdict),
                plain(failure.facts),
                body,
                failure.traceback,
                rest,
            )
        )
    return packed


def _pack_rest(failure: Failure) -> tuple[Any, ...] | None:
    """What makes a failure's body the whole message again."""
    message = failure.message
    if message is None:
        return None
    return (
        _plain_headers(message.headers),
        _pack_vars(message.vars),
        message.generation,
        _pack_resume(message.resume),
    )


def unpack_outcome(
    message_id: str,
    nodes: Sequence[str],
    sealed: Sequence[tuple[Any, ...]],
    failures: Sequence[tuple[Any, ...]],
    events: Sequence[Event],
    keys: Mapping[str, Any],
) -> Outcome:
    return outcome_of(
        message_id,
        nodes,
        unpack_outputs(sealed),
        [_unpack_failure(item) for item in failures],
        events,
        keys,
    )


def _unpack_failure(packed: tuple[Any, ...]) -> Failure:
    message_id, node_id, node_type, code, detail, verdict, facts, body, traceback, rest = packed
    failure = Failure(
        message_id, node_id, node_type, code, detail, Verdict(verdict), facts, unpack_body(body), traceback
    )
    if rest is not None:
        headers, variables, generation, resume = rest
        failure.message = Message(
            message_id,
            failure.body,
            headers,
            marshal.loads(variables) if variables else {},  # noqa: S302  (own bytes)
            generation,
            _unpack_resume(resume),
        )
    return failure


def unpack_outputs(sealed: Sequence[tuple[Any, ...]]) -> list[Output]:
    return [
        Output(
            Message(
                identity,
                unpack_body(body),
                headers,
                marshal.loads(variables) if variables else {},  # noqa: S302  (own bytes)
                generation,
            ),
            node_id,
            stage,
            None if wait is None else _unpack_wait(wait),
        )
        for identity, body, headers, variables, generation, node_id, stage, wait in sealed
    ]


def outcome_of(
    message_id: str,
    nodes: Sequence[str],
    outputs: list[Output],
    failures: list[Failure],
    events: Sequence[Event],
    keys: Mapping[str, Any] | None = None,
) -> Outcome:
    status: OutcomeStatus = "done"
    if failures:
        status = "failed"
    else:
        for output in outputs:
            if output.stage is not None:
                status = "handed_over"
                break
    trace = [
        NodeTrace(nodes[index], received, emitted, failed, micros)
        for index, received, emitted, failed, micros in events
    ]
    return Outcome(message_id, status, outputs, failures, trace, keys=keys or {})
