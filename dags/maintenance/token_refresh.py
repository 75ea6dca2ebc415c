"""Refreshes connections' tokens before they end, so that no message waits for that."""

from __future__ import annotations

import logging
from collections import Counter
from datetime import timedelta

from airflow.sdk import CronTriggerTimetable, dag, task

log = logging.getLogger(__name__)


@dag(
    schedule=CronTriggerTimetable("* * * * *", timezone="UTC"),
    catchup=False,
    is_paused_upon_creation=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(minutes=10),
    default_args={"owner": "platform", "retries": 0},
    tags=["maintenance"],
    description="Refreshes tokens that end within five minutes.",
)
def maintenance_token_refresh() -> None:
    """A minute without this run costs a message the time of one call: whoever needs a token that has ended obtains
    it. The task holds no key and sees no token: the api-server refreshes, and says how it went."""

    @task
    def refresh() -> dict[str, int]:
        from continuitybridge import tokens
        from continuitybridge.airflow.services import ask_to_refresh
        from continuitybridge.errors import BridgeError

        said: Counter[str] = Counter()
        for place in tokens.due():
            try:
                how = ask_to_refresh(place)
            except BridgeError as error:
                how = error.code
            said[how] += 1
            if how != "refreshed":
                log.warning("%s of organization %s: %s", place, place.organization_id, how)
        log.info("tokens: %s", ", ".join(f"{count} {how}" for how, count in said.items()) or "none is due")
        return dict(said)

    refresh()


maintenance_token_refresh()
