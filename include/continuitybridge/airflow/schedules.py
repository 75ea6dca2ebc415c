"""The schedule of a flow whose schedulers are in different time zones: Airflow's own timetable for several cron
expressions knows one zone for all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from airflow.timetables.trigger import CronTriggerTimetable, MultipleCronTriggerTimetable


class ZonedCronsTimetable(MultipleCronTriggerTimetable):
    """Runs whenever one of `schedules` (cron expression, IANA time zone) says so; at most one run for a moment."""

    def __init__(self, schedules: Sequence[tuple[str, str]]) -> None:
        (cron, zone), *_ = schedules
        super().__init__(cron, timezone=zone)
        self._schedules = [(cron, zone) for cron, zone in schedules]
        self._timetables = [CronTriggerTimetable(cron, timezone=zone) for cron, zone in schedules]
        self.description = ", ".join(f"{cron} {zone}" for cron, zone in self._schedules)

    @property
    def summary(self) -> str:
        return self.description

    def serialize(self) -> dict[str, Any]:
        return {"schedules": [list(each) for each in self._schedules]}

    @classmethod
    def deserialize(cls, data: dict[str, Any]) -> ZonedCronsTimetable:
        return cls([(cron, zone) for cron, zone in data["schedules"]])
