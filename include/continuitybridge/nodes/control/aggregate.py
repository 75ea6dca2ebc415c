"""The node `aggregate`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field, model_validator

from continuitybridge.engine.message import Body, Emit, Message, Park, Resume, Wait
from continuitybridge.errors import ConfigurationError, Incomplete, NodeError, TransformFailed
from continuitybridge.nodes.base import BuildContext, Example, NodeConfig, RunContext, WaitNode, hints
from continuitybridge.nodes.control import _gathering
from continuitybridge.nodes.language.condition import Expression
from continuitybridge.nodes.language.jq_program import JqProgram
from continuitybridge.nodes.language.problems import Problems


class AggregateConfig(NodeConfig):
    """Configuration of `aggregate`."""

    key: str | None = Field(
        default=None,
        description="jq expression: messages for which it gives the same value belong together, whichever message "
        "they come from. Without it the children of one split do.",
        json_schema_extra=hints(language="jq", placeholder=".customer"),
    )
    size: int | None = Field(
        default=None,
        ge=1,
        le=10_000,
        description="With `key`: complete when so many messages are together.",
    )
    timeout_s: float | None = Field(
        default=None,
        gt=0,
        le=366 * 86_400,
        description="Seconds after the first message in which the others may come. With `key` what is there then "
        "goes on; of a split's children, see `on_missing`.",
    )
    on_missing: Literal["wait", "partial", "fail"] = Field(
        default="wait",
        description="What to do when nothing of the split is under way any more and some of it are dead letters. "
        "`wait`: keep the others until those are replayed. `partial`: go on without them. `fail`: fail.",
    )
    into: Literal["list", "object"] = Field(
        default="list",
        description="`list`: one list of all bodies. `object`: one object with the fields of all; the later one "
        "wins.",
    )
    result: str | None = Field(
        default=None,
        description="jq program that makes the new body from what `into` gives. It sees `$vars.aggregate`.",
        json_schema_extra=hints(language="jq", multiline=True, placeholder="{lines: ., count: length}"),
    )
    late_s: float = Field(
        default=86_400,
        ge=0,
        le=366 * 86_400,
        description="With `key`: so many seconds after a group has gone on, one that comes late is told from the "
        "first of a new group. 0: the next one begins a new group at once.",
        json_schema_extra=hints(advanced=True),
    )

    @model_validator(mode="after")
    def _ends(self) -> AggregateConfig:
        if self.key is not None and self.size is None and self.timeout_s is None:
            raise ValueError("size or timeout_s is required with key: else the group never ends")
        if self.key is None and self.size is not None:
            raise ValueError("size belongs to key: a split's children are as many as they are")
        return self


class Aggregate(WaitNode[AggregateConfig]):
    """Puts messages together into one, in the order of the split.

    Without `key` it gathers the children of the split before it. The group is complete when each child has come,
    or when those that have not can come no more because they ended elsewhere: dropped by a filter, taken by an
    error route, sent another way. It never waits for what cannot come. Dead letters among the children are
    another matter, of which `on_missing` speaks: `wait`, the default, leaves the message in triage with what has
    arrived; replaying it from the failure completes it.

    With `key` it gathers across messages, for as long as `size` and `timeout_s` say. The messages that are
    gathered stay under way until then. The one that came first carries on under its own id, and the others end as
    done; their traces name it. Replaying the carrier from the beginning gives the same group again while it is
    not settled.

    `vars.aggregate` says what was gathered: `received`, `failed` and `reason` (`complete`, `timeout` or
    `partial`). What ends by its time leaves by `timeout` where that has a route. What comes when its group has
    gone on leaves by `late`, and fails where that has none.

    Under `--emulate` a group is what one message gave.
    """

    type = "aggregate"
    category = "control"
    label = "Aggregate"
    summary = "Gathers messages into one: the children of a split, or what has a value in common."
    Config = AggregateConfig
    ports = ("out", "timeout", "late")
    optional_ports = ("timeout", "late")
    examples = (
        Example(
            title="The children of a split in one confirmation",
            config={"result": "{number: .[0].number, lines: map(.sku)}"},
            input=[{"number": "PO-7", "sku": "A-1"}, {"number": "PO-7", "sku": "B-2"}],
            resume=Resume("complete"),
            output={"number": "PO-7", "lines": ["A-1", "B-2"]},
        ),
        Example(
            title="What a customer ordered within five minutes",
            config={"key": ".customer", "timeout_s": 300},
            input=[{"customer": 7, "sku": "A-1"}, {"customer": 7, "sku": "B-2"}],
            resume=Resume("timeout"),
            output=[{"customer": 7, "sku": "A-1"}, {"customer": 7, "sku": "B-2"}],
        ),
        Example(
            title="A child is missing",
            config={"on_missing": "fail"},
            input=[{"sku": "A-1"}],
            resume=Resume("ended", {"failed": 1}),
            fails="incomplete",
        ),
    )

    def build(self, context: BuildContext) -> None:
        problems = Problems()
        self._key: Expression | None = None
        self._result: JqProgram | None = None
        if self.config.key is not None:
            with problems.noting():
                self._key = Expression(self.config.key, field="key")
        if self.config.result is not None:
            with problems.noting():
                self._result = JqProgram(self.config.result, field="result")
        if self._key is None and context.before is not None and "split" not in context.before:
            problems.note(
                ConfigurationError(
                    "is required: no split stands before this node, whose children it could gather",
                    field="key",
                    valid="a jq path",
                )
            )
        problems.raise_any()
        self._routes = context.routes

    def process(self, message: Message, context: RunContext) -> Park:
        config = self.config
        body = _gathering.data_of(message)
        if self._key is not None:
            key = _gathering.key_of(self._key, message)
            wait = Wait(
                "group",
                within_s=config.timeout_s,
                key=key,
                member=message.id,
                need=config.size or 0,
                options={"late_s": config.late_s},
            )
            return Park(body, wait)
        split = _gathering.split_of(message)
        if split is None:
            raise NodeError("the message comes from no split: without a key there is nothing to gather it by")
        index = int(split["index"])
        wait = Wait(
            "group",
            within_s=config.timeout_s,
            scope=split["parent"],
            member=str(index),
            position=index,
            need=int(split["count"]),
            becomes=split["parent"],
            options={"holds": config.on_missing == "wait"},
        )
        return Park(body, wait)

    def resume(self, message: Message, resume: Resume, context: RunContext) -> Emit:
        if resume.how == "late":
            if "late" in self._routes:
                return Emit(message.body, "late")
            raise _gathering.late("the group")
        bodies: list[Body] = message.body
        failed = int(resume.facts.get("failed", 0))
        by_time = resume.how == "timeout"
        reason = "timeout" if by_time else "partial" if failed else "complete"
        found: dict[str, Any] = {"reason": reason, "received": len(bodies), "failed": failed}
        port = "timeout" if by_time and "timeout" in self._routes else "out"
        if self._key is None:
            partial = by_time or (failed > 0 and resume.how == "ended")
            if partial and port == "out" and self.config.on_missing != "partial":
                missing = f"{failed} of them failed" if failed else "the others did not come in time"
                raise Incomplete(f"{len(bodies)} of the split's children arrived; {missing}", **found)
            _gathering.without_split(message)
        message.vars = {**message.vars, "aggregate": found}
        message.body = _gathering.merged(bodies, "aggregate") if self.config.into == "object" else bodies
        if self._result is not None:
            message.body = _only(self._result.values(message))
        return Emit(message.body, port)


def _only(values: Iterator[Any]) -> Any:
    none: list[Any] = []
    first = next(values, none)
    if first is none or next(values, none) is not none:
        raise TransformFailed("the program under result must give exactly one output")
    return first
