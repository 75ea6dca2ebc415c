"""The task of the stream DAG: a stream worker that lives for a generation.

Generations overlap: the next one begins `OVERLAP_S` before this one leaves, so that somebody works at all times.
A worker leaves when its run's time is over, however late it began itself: one that was tried again, and a run that
the scheduler made up for, do not stay into the time of others. Where the next generation is late (the scheduler is
down, the DAG is paused) or the api-server that would give it keys is away, it stays until they are there, for one
generation's time at most.

Ended from outside (the platform stops, somebody marks the task), it finishes what it can within the time that
Airflow leaves it, gives back the rest and fails, so that Airflow starts it again when it can. Killed with -9, it
leaves leases, which the others end soon after (`inbox.stream.presence`). When its supervisor is killed it ends by
itself: Airflow starts it again meanwhile, and two of it are harmless: each message is leased to one of them.
"""

from __future__ import annotations

import logging
import signal
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.sdk import BaseOperator

from continuitybridge.airflow.processes import die_with_parent

if TYPE_CHECKING:
    from airflow.sdk import Context

OVERLAP_S = 20.0
"""How long a generation stays when the next one is due: longer than a start takes on a slow machine."""

HURRY_S = 3.0
"""How long what is under way may take when a worker is ended from outside. Airflow kills it after 5 s."""

BRIEF_S = 10.0
"""A worker that fails so soon waits before Airflow hears of it, and longer the more often it was tried."""

LONGEST_WAIT_S = 60.0

_log = logging.getLogger("continuitybridge.stream")


class StreamWorkerOperator(BaseOperator):
    """Runs a stream worker until its generation's time is over. For `dags/stream.py`.

    :param generation_s: time between two generations, in seconds; the worker stays `OVERLAP_S` longer.

    XCom: counts of the messages that it ended (`{"claimed": 3, "done": 2, "dead": 1}`).
    """

    ui_color = "#e8f1fb"
    custom_operator_name: ClassVar[str] = "Stream worker"

    def __init__(self, *, generation_s: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.generation_s = generation_s

    def execute(self, context: Context) -> dict[str, int]:
        from continuitybridge.airflow.leased_access import LeasedAccess
        from continuitybridge.airflow.secrets import stream_owner
        from continuitybridge.airflow.task_log import bounded_lines, remove_old_logs
        from continuitybridge.stream.process import serve

        die_with_parent()
        ti, began = context["ti"], time.monotonic()
        due = context["dag_run"].run_after
        generation, left_s = int(due.timestamp()), self._left_s(due)
        if left_s <= 0:
            _log.info("the time of this generation was over %d s ago", -left_s)
            return {}
        try:
            with bounded_lines():
                remove_old_logs(_log_folder(), ti.dag_id)
                counts = serve(
                    LeasedAccess,
                    owner=f"{stream_owner(ti.id)}{generation}",
                    life_s=left_s,
                    hurry_s=HURRY_S,
                    relieved=lambda: (
                        _relieved(generation) or time.monotonic() - began > left_s + self.generation_s
                    ),
                )
        except Exception:
            if time.monotonic() - began < BRIEF_S:
                # Not as often as a task can be started, in whose stead others could run.
                time.sleep(min(LONGEST_WAIT_S, 2.0 ** min(ti.try_number, 10)))
            raise
        if time.monotonic() - began < left_s - 1.0:
            raise RuntimeError("ended from outside before its time: it is tried again")
        return counts

    def on_kill(self) -> None:
        """Airflow ended the task before it worked; afterwards the worker minds the signal itself."""
        raise SystemExit(128 + signal.SIGTERM)

    def _left_s(self, run_after: datetime) -> float:
        return self.generation_s + OVERLAP_S - (datetime.now(UTC) - run_after).total_seconds()


def _relieved(generation: int) -> bool:
    """Whether a worker of a later generation is at work and can be given keys: while the api-server is away, only
    those who have some can work. Raises `Unavailable`."""
    from continuitybridge.airflow.services import ask_leased_keys
    from continuitybridge.inbox.presence import present

    generations = (worker.owner.rpartition("@")[2] for worker in present())
    if not any(each.isdigit() and int(each) > generation for each in generations):
        return False
    ask_leased_keys()
    return True


def _log_folder() -> Path:
    from airflow.sdk.configuration import conf

    return Path(conf.get("logging", "base_log_folder"))
