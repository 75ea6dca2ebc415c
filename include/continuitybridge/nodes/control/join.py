"""The node `join`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, JsonValue, field_validator, model_validator

from continuitybridge.engine.message import Body, Emit, Message, Park, Resume, Wait
from continuitybridge.errors import ConfigurationError, Incomplete, InvalidPayload
from continuitybridge.nodes import _legacy
from continuitybridge.nodes.base import BuildContext, Example, NodeConfig, RunContext, WaitNode, hints
from continuitybridge.nodes.control import _gathering
from continuitybridge.nodes.language import legacy
from continuitybridge.nodes.language.condition import Expression
from continuitybridge.nodes.language.problems import Problems

Strategy = Literal["all", "any", "majority", "minimum"]


class JoinConfig(NodeConfig):
    """Configuration of `join`."""

    streams: list[str] | None = Field(
        default=None,
        min_length=1,
        max_length=100,
        description="What is joined: names of the streams, in the order in which they count. Without `stream` "
        "they are ids of steps or triggers that lead here, and all of them where none are named.",
        json_schema_extra=hints(placeholder="order"),
    )
    key: str | None = Field(
        default=None,
        description="jq expression: messages for which it gives the same value are joined, whenever they came. "
        "Without it the branches of one message are.",
        json_schema_extra=hints(language="jq", placeholder=".order_number"),
    )
    stream: str | None = Field(
        default=None,
        description="jq expression that names the stream a message belongs to. Without it, it is the step or "
        "trigger that the message comes from.",
        json_schema_extra=hints(language="jq", placeholder=".type"),
    )
    strategy: Strategy = Field(
        default="all",
        description="When the join is complete: when `all` streams have come, `any` of them, the `majority`, or a "
        "`minimum` of them.",
    )
    minimum: int | None = Field(default=None, ge=1, description="Of `strategy: minimum`: how many streams.")
    join: Literal["merge", "nested", "array"] = Field(
        default="merge",
        description="`merge`: the fields of all in one object, the later stream wins. `nested`: an object with a "
        "field for each stream. `array`: a list in the order of the streams.",
    )
    field: str | None = Field(
        default=None, min_length=1, description="Put what was joined under this name into an object."
    )
    timeout_s: float = Field(
        default=3_600,
        gt=0,
        le=366 * 86_400,
        description="Seconds after the first message in which the others may come.",
    )
    late_s: float = Field(
        default=86_400,
        ge=0,
        le=366 * 86_400,
        description="So many seconds after a join has gone on, one that comes late is told from the first of a "
        "new join with the same key. 0: the next one begins a new join at once.",
        json_schema_extra=hints(advanced=True),
    )
    sample: dict[str, JsonValue] = Field(
        default_factory=dict,
        description="Stream → body that is taken for it when the flow is emulated and it does not come.",
        json_schema_extra=hints(advanced=True, language="json"),
    )

    @field_validator("streams")
    @classmethod
    def _different(cls, streams: list[str] | None) -> list[str] | None:
        given = streams or []
        for name in given:
            if not name or given.count(name) > 1:
                raise ValueError(f"{name!r} stands twice" if name else "a stream needs a name")
        return streams

    @model_validator(mode="after")
    def _reachable(self) -> JoinConfig:
        if (self.strategy == "minimum") != (self.minimum is not None):
            raise ValueError("minimum belongs to strategy: minimum")
        if self.stream is not None and self.streams is None:
            raise ValueError("streams is required with stream: what else could be missing")
        return self


class Join(WaitNode[JoinConfig]):
    """Brings together what belongs together and came by different ways: from several triggers, from branches of
    the flow, hours apart. Which messages wait for which stands in the database; nothing is kept in a process, and
    a time-out holds across restarts. Of two messages that complete a join at the same moment, one does.

    Messages stay under way while they wait. When the join is complete the message of the first stream that came
    carries on, under its own id; the others end as done, and their traces name it. A stream that comes twice
    counts once, and its newest message is taken. Replaying the carrier from the beginning gives the same join
    again while it is not settled; a member of a settled join that is replayed waits for its partners anew.

    Without `key` it is looked at when nothing of the message runs or is about to that leads here, in whichever
    stage: all that has come by then is joined where it is enough. What waits (for a time, a person, another try)
    is not awaited then.

    When the time is over, or (without `key`) when nothing of the message is under way any more, what has come
    leaves by the port `timeout`; without a route there it fails. What comes after the join has gone on leaves by
    `late`; where that has no route it ends there, or fails with `strategy: all`, which needed it. `vars.join` says
    what was joined: `reason` (`complete`, `timeout` or `ended`), `streams` and `missing`.

    Under `--emulate`, `sample` stands for the streams that do not come.
    """

    type = "join"
    category = "control"
    label = "Join"
    summary = "Waits for the messages of several streams that belong together and joins them into one."
    Config = JoinConfig
    ports = ("out", "timeout", "late")
    optional_ports = ("timeout", "late")
    legacy_types = ("data_merge",)
    names_origin = True
    examples = (
        Example(
            title="An order and its payment",
            config={"streams": ["orders", "payments"], "key": ".number"},
            input=[{"number": "PO-7", "total": 120}, {"number": "PO-7", "paid": True}],
            resume=Resume("complete", {"members": [{"member": "orders"}, {"member": "payments"}]}),
            output={"number": "PO-7", "total": 120, "paid": True},
        ),
        Example(
            title="Offers of two carriers, each under its name",
            config={"streams": ["post", "courier"], "join": "nested", "field": "offers"},
            input=[{"price": 9}, {"price": 14}],
            resume=Resume("complete", {"members": [{"member": "post"}, {"member": "courier"}]}),
            output={"offers": {"post": {"price": 9}, "courier": {"price": 14}}},
        ),
        Example(
            title="The payment did not come",
            config={"streams": ["orders", "payments"], "key": ".number", "timeout_s": 600},
            input=[{"number": "PO-7", "total": 120}],
            resume=Resume("timeout", {"members": [{"member": "orders"}]}),
            fails="incomplete",
        ),
    )

    def build(self, context: BuildContext) -> None:
        problems = Problems()
        self._key: Expression | None = None
        self._stream: Expression | None = None
        if self.config.key is not None:
            with problems.noting():
                self._key = Expression(self.config.key, field="key")
        if self.config.stream is not None:
            with problems.noting():
                self._stream = Expression(self.config.stream, field="stream")
        self._streams = self.config.streams or list(context.sources or ())
        self._check_names(context, problems)
        problems.raise_any()
        self._routes = context.routes
        count = len(self._streams)
        of: dict[Strategy, int] = {
            "all": count,
            "any": 1,
            "majority": count // 2 + 1,
            "minimum": self.config.minimum or 0,
        }
        self._need = of[self.config.strategy]

    def _check_names(self, context: BuildContext, problems: Problems) -> None:
        def note(field: str, name: object, message: str, valid: str) -> None:
            problems.note(ConfigurationError(message, field=field, value=name, valid=valid))

        known = ", ".join(self._streams)
        for name in self.config.sample:
            if name not in self._streams:
                note(f"sample.{name}", name, f"{name!r} is not one of the streams", known)
        if self.config.minimum is not None and self.config.minimum > len(self._streams):
            message = f"is more than the {len(self._streams)} streams"
            note("minimum", self.config.minimum, message, f"at most {len(self._streams)}")
        if context.sources is None or self.config.stream is not None:
            return
        for position, name in enumerate(self._streams):
            if name not in context.sources:
                message = f"{name!r} does not lead here; `stream` says by what else to tell streams apart"
                note(f"streams.{position}", name, message, ", ".join(context.sources))

    def process(self, message: Message, context: RunContext) -> Park:
        stream = self._stream(message) if self._stream is not None else message.vars.get("from")
        if stream not in self._streams:
            raise InvalidPayload(
                f"the message belongs to none of the streams {', '.join(self._streams)}, but to {stream!r}",
                found=str(stream)[:200],
            )
        split = None if self._key is not None else _gathering.split_of(message)
        wait = Wait(
            "group",
            within_s=self.config.timeout_s,
            key=_gathering.key_of(self._key, message)
            if self._key is not None
            else str(split["index"])
            if split is not None
            else "",
            scope=None if self._key is not None else split["parent"] if split is not None else "",
            member=stream,
            position=self._streams.index(stream),
            need=self._need,
            options={"late_s": self.config.late_s},
        )
        return Park(_gathering.data_of(message), wait)

    def resume(self, message: Message, resume: Resume, context: RunContext) -> Emit | None:
        if resume.how == "late":
            if "late" in self._routes:
                return Emit(message.body, "late")
            if self.config.strategy != "all":
                return None
            raise _gathering.late("the join")
        came: dict[str, Body] = {
            str(member["member"]): body for member, body in zip(resume.facts["members"], message.body, strict=True)
        }
        if context.emulate:
            came = {**self.config.sample, **came}
        present = {name: came[name] for name in self._streams if name in came}
        missing = [name for name in self._streams if name not in came]
        complete = len(present) >= self._need
        found: dict[str, Any] = {
            "reason": "complete" if complete else resume.how,
            "streams": list(present),
            "missing": missing,
        }
        if not complete and "timeout" not in self._routes:
            raise Incomplete(f"{', '.join(missing)} did not come; a route for `timeout` takes what did", **found)
        return Emit(self._joined(present), "out" if complete else "timeout", vars={"join": found})

    def _joined(self, present: Mapping[str, Body]) -> Body:
        result: Body
        if self.config.join == "merge":
            result = _gathering.merged(list(present.values()), "join")
        else:
            result = dict(present) if self.config.join == "nested" else list(present.values())
        return result if self.config.field is None else {self.config.field: result}

    @classmethod
    def from_legacy(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """All three joins of older flows: `correlationKey` and `waitTimeout`; `joinStrategy`, `joinTimeout` (ms)
        and `minimumJoins`; `streamAName`, `streamAIdentifier` (and B) with `timeoutMinutes`."""
        given = {key: value for key, value in config.items() if value not in (None, "", [], {})}
        if not _legacy.has_any(given, _OLD_KEYS):
            return given
        new: dict[str, Any] = {}
        seconds = _gathering.old_seconds(
            given, {"timeoutMinutes": 60, "joinTimeout": 0.001, "waitTimeout": 1, "timeout": 1}
        )
        if seconds is not None:
            new["timeout_s"] = seconds
        key = given.pop("correlationKey", None) or given.pop("joinId", None)
        new["key"] = _gathering.old_path(key, "correlationKey") if key is not None else ".originalOrder.id"
        _old_strategy(given, new)
        _old_streams(given, new)
        field = given.pop("outputField", None)
        if field is not None:
            new["field"] = field
        return {**new, **given}


_OLD_KEYS = frozenset(
    {
        *("correlationKey", "waitTimeout", "requiredStreams", "joinStrategy", "outputField", "joinTimeout"),
        *("minimumJoins", "joinId", "streamAName", "streamBName", "streamAIdentifier", "streamBIdentifier"),
        *("streamAIdentifierValue", "streamBIdentifierValue", "timeoutMinutes"),
    }
)


def _old_strategy(given: dict[str, Any], new: dict[str, Any]) -> None:
    """`joinStrategy` said how to join in one place, when in another, and which side must be there in a third."""
    word = str(given.pop("joinStrategy", "")).lower()
    minimum = given.pop("minimumJoins", None)
    if word in ("merge", "nested", "array"):
        new["join"] = word
    elif word in ("all", "any", "majority"):
        new["strategy"] = word
    elif word == "minimum":
        new |= {"strategy": "minimum", "minimum": _legacy.integer(minimum or 1, "minimumJoins")}
    elif word == "inner":
        new |= {"strategy": "all", "join": "nested"}
    elif word:
        # `timeout`, `left` and `right` went on with what had come: here that is the route of the port `timeout`.
        raise _legacy.refused("joinStrategy", word, "what is incomplete leaves by the port timeout here")


def _old_streams(given: dict[str, Any], new: dict[str, Any]) -> None:
    count = _legacy.integer(given.pop("requiredStreams", 2), "requiredStreams")
    names, tests = [], []
    for side in ("A", "B"):
        name = str(given.pop(f"stream{side}Name", f"stream{side}"))
        path = given.pop(f"stream{side}Identifier", None)
        value = given.pop(f"stream{side}IdentifierValue", None)
        names.append(name)
        if path is not None:
            test = (
                f"({_gathering.old_path(path, f'stream{side}Identifier')} != null)"
                if value is None
                else f"({legacy.comparison(str(path), 'equals', value, key=f'stream{side}Identifier')})"
            )
            tests.append((test, name))
    if tests:
        new["streams"] = names
        new["stream"] = " el".join(f"if {test} then {json.dumps(name)}" for test, name in tests) + " else null end"
    elif count != 2 and "strategy" not in new:
        # Nothing told the streams apart but the edges they came by, as it is without `streams`.
        new |= {"strategy": "minimum", "minimum": count}
