"""The node `delay`."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field, field_validator, model_validator

from continuitybridge.engine.message import Message, Park, Resume, Wait
from continuitybridge.errors import InvalidPayload
from continuitybridge.nodes.base import BuildContext, Example, NodeConfig, RunContext, WaitNode, hints
from continuitybridge.nodes.control import _gathering
from continuitybridge.nodes.language.condition import Expression


class DelayConfig(NodeConfig):
    """Configuration of `delay`."""

    for_s: float | None = Field(default=None, gt=0, description="How many seconds each message waits.")
    until: str | None = Field(
        default=None,
        description="jq path of the time in the message until which it waits: ISO 8601, such as "
        "`2026-03-01T08:00:00+01:00` or `2026-03-01`. A time that has passed does not hold it.",
        json_schema_extra=hints(language="jq", placeholder=".ship_after"),
    )
    timezone: str = Field(
        default="UTC",
        description="IANA time zone of times that name none.",
        json_schema_extra=hints(advanced=True),
    )
    max_s: float = Field(
        default=31 * 86_400,
        gt=0,
        le=366 * 86_400,
        description="Longest wait in seconds; a message that asks for a longer one fails.",
        json_schema_extra=hints(advanced=True),
    )

    @field_validator("timezone")
    @classmethod
    def _known_zone(cls, name: str) -> str:
        try:
            ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError(f"{name!r} is not an IANA time zone such as Europe/Zurich") from None
        return name

    @model_validator(mode="after")
    def _one(self) -> DelayConfig:
        if (self.for_s is None) == (self.until is None):
            raise ValueError("either for_s or until is required")
        if self.for_s is not None and self.for_s > self.max_s:
            raise ValueError(f"for_s is more than max_s, which is {self.max_s:g}")
        return self


class Delay(WaitNode[DelayConfig]):
    """The message waits in the database, not in a process; it goes on within about a second of its time, whatever
    was restarted meanwhile. It stays under way while it waits.

    Under `--emulate` it passes at once.
    """

    type = "delay"
    category = "control"
    label = "Delay"
    summary = "Holds each message for some time, or until a time that it names."
    Config = DelayConfig
    legacy_types = ("wait",)
    examples = (
        Example(
            title="Give the warehouse a minute",
            config={"for_s": 60},
            input={"id": "PO-7"},
            resume=Resume("due"),
            output={"id": "PO-7"},
        ),
        Example(
            title="Not before its day",
            config={"until": ".ship_after", "timezone": "Europe/Zurich"},
            input={"id": "PO-7", "ship_after": "2020-03-01"},
            output={"id": "PO-7", "ship_after": "2020-03-01"},
        ),
        Example(title="No time", config={"until": ".ship_after"}, input={"id": "PO-7"}, fails="invalid-payload"),
    )

    def build(self, context: BuildContext) -> None:
        self._until = None if self.config.until is None else Expression(self.config.until, field="until")
        self._zone = ZoneInfo(self.config.timezone)

    def process(self, message: Message, context: RunContext) -> Park | Message:
        if self._until is None:
            return Park(message.body, Wait("time", within_s=self.config.for_s))
        moment = self._moment(self._until(message)).timestamp()
        if moment <= context.now:
            return message
        if moment > context.now + self.config.max_s:
            longest = timedelta(seconds=self.config.max_s)
            raise InvalidPayload(f"the time lies more than {longest} ahead (max_s)", max_s=self.config.max_s)
        return Park(message.body, Wait("time", until=moment))

    def resume(self, message: Message, resume: Resume, context: RunContext) -> Message:
        return message

    def emulate(self, message: Message, context: RunContext) -> Message:
        if self._until is not None:
            self._moment(self._until(message))
        return message

    def _moment(self, value: Any) -> datetime:
        if not isinstance(value, str):
            raise InvalidPayload(f"{self.config.until} holds no time", path=self.config.until)
        try:
            moment = datetime.fromisoformat(value.strip())
            return (moment if moment.tzinfo else moment.replace(tzinfo=self._zone)).astimezone(UTC)
        except (ValueError, OverflowError):
            raise InvalidPayload(
                f"{value[:100]!r} is not a time such as 2026-03-01T08:00:00+01:00", path=self.config.until
            ) from None

    @classmethod
    def from_legacy(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """Durations under whatever name editors gave them, in their units."""
        given = {key: value for key, value in config.items() if value not in (None, "")}
        milliseconds = dict.fromkeys(("delayMs", "delay", "duration", "milliseconds"), 0.001)
        seconds = dict.fromkeys(("delaySeconds", "seconds"), 1.0)
        found = _gathering.old_seconds(given, {**milliseconds, **seconds, "delayMinutes": 60.0, "minutes": 60.0})
        if found is not None:
            given.setdefault("for_s", found)
        return given
