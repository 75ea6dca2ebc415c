"""Messages that the clock starts."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import orjson
from croniter import CroniterBadDateError, CroniterError, croniter
from pydantic import Field, JsonValue, field_validator

from continuitybridge.nodes import _legacy
from continuitybridge.nodes.base import Example, NodeConfig, TriggerNode, hints

PRESETS: Mapping[str, str] = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
}
_NOW = "{{now}}"


class SchedulerConfig(NodeConfig):
    cron: str = Field(
        description="When: minute, hour, day of month, month, day of week, or one of "
        f"{', '.join(f'`{name}`' for name in PRESETS)}.",
        json_schema_extra=hints(language="cron", placeholder="*/15 6-20 * * mon-fri"),
    )
    timezone: str = Field(
        default="UTC",
        description="IANA time zone that the times are in, daylight saving included.",
        json_schema_extra=hints(placeholder="Europe/Zurich"),
    )
    payload: JsonValue = Field(
        default_factory=dict,
        description="Body of the message that each time starts. A text that is `{{now}}` becomes the scheduled "
        "time (ISO 8601, in the time zone).",
        json_schema_extra=hints(language="json", multiline=True),
    )

    @field_validator("cron")
    @classmethod
    def _fires(cls, cron: str) -> str:
        expanded = PRESETS.get(cron, cron)
        if len(expanded.split()) != 5:
            raise ValueError(
                f"{cron!r} has {len(expanded.split())} parts; a schedule has five: minute, hour, day of month, "
                f"month, day of week (or is one of {', '.join(PRESETS)})"
            )
        try:
            croniter(expanded, datetime(2024, 1, 1, tzinfo=UTC)).get_next()
        except CroniterBadDateError:
            raise ValueError(f"{cron!r} names a day that never comes") from None
        except (CroniterError, ValueError, KeyError, OverflowError) as error:
            raise ValueError(f"{cron!r} is not a schedule: {error}") from None
        return cron

    @field_validator("timezone")
    @classmethod
    def _known_zone(cls, name: str) -> str:
        try:
            ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError(f"{name!r} is not an IANA time zone such as Europe/Zurich") from None
        return name


class Scheduler(TriggerNode[SchedulerConfig]):
    """Starts the flow at the times of a cron schedule, in a time zone of its own.

    Where clocks are put forward, a time that does not exist that day is run at the next moment that does; where
    they are put back, it is run once. Each time makes one message with `payload` as its body, in JSON text, as it
    would come from a webhook. Times that passed while the flow was paused are not made up for.

    Older flows' keys are read on import: `cronExpression` or `schedule`, `timezone`, `initialPayload`. A
    schedule with `enabled: false` is refused there: pause the flow instead.
    """

    type = "scheduler"
    category = "trigger"
    label = "Schedule"
    summary = "Starts the flow by a cron schedule in a time zone."
    Config = SchedulerConfig
    legacy_types = ("timer_trigger",)
    examples = (
        Example(
            "Every quarter of an hour while the shop is open",
            config={"cron": "*/15 6-20 * * mon-fri", "timezone": "Europe/Zurich", "payload": {"task": "stock"}},
            input=b'{"task":"stock"}',
            output=b'{"task":"stock"}',
        ),
    )

    @classmethod
    def from_legacy(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        ours = _legacy.renamed(config, {"cronExpression": "cron", "schedule": "cron", "initialPayload": "payload"})
        ours.setdefault("cron", "0 * * * *")
        _legacy.unsupported(ours, "enabled", "pause the flow to stop its schedule", True, "true")
        _legacy.unsupported(
            ours, "maxConcurrentRuns", "how many runs may overlap is the flow's setting", 0, 1, "0", "1"
        )
        _legacy.unsupported(ours, "skipIfRunning", "runs never overlap", True, "true")
        for key in ("enabled", "maxConcurrentRuns", "skipIfRunning"):
            ours.pop(key, None)
        payload = ours.get("payload")
        if isinstance(payload, str):
            try:
                ours["payload"] = orjson.loads(payload) if payload.strip() else {}
            except orjson.JSONDecodeError:
                raise _legacy.refused("initialPayload", payload, "must be JSON") from None
        return ours

    def fires_at(self, time: datetime) -> bool:
        """Whether this schedule names the minute of `time` (which bears a time zone)."""
        local = time.astimezone(ZoneInfo(self.config.timezone))
        return bool(croniter.match(PRESETS.get(self.config.cron, self.config.cron), local))

    def body_at(self, time: datetime) -> bytes:
        """The body, as JSON text, of the message for one scheduled time (which bears a time zone)."""
        now = time.astimezone(ZoneInfo(self.config.timezone)).isoformat(timespec="seconds")
        return orjson.dumps(_at(self.config.payload, now))


def _at(value: Any, now: str) -> Any:
    if isinstance(value, dict):
        return {key: _at(item, now) for key, item in value.items()}
    if isinstance(value, list):
        return [_at(item, now) for item in value]
    return now if value == _NOW else value
