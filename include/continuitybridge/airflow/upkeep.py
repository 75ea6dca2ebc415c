"""What the dispatcher does beside dispatching: pools, outcomes, approvals, the stream DAG's runs, checkpoints of
audit trails, reminders of secrets; and, in another thread, mails. Messages never wait for it, nor it for a mail
server."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlalchemy.exc import DBAPIError

from continuitybridge import lifecycle, mail, organizations, secrets
from continuitybridge.airflow.announcing import Announcer
from continuitybridge.airflow.forgetting import forget_deleted
from continuitybridge.airflow.generations import forget_runs, revive
from continuitybridge.airflow.outcomes import OutcomeTeller
from continuitybridge.airflow.pools import ensure_organization_pools, ensure_pools
from continuitybridge.audit import checkpoints
from continuitybridge.errors import BridgeError, Unavailable
from continuitybridge.settings import Settings

REVIVE_INTERVAL_S = 5.0
POOLS_INTERVAL_S = 1.0
ANNOUNCE_INTERVAL_S = 1.0
CLOSE_INTERVAL_S = 5.0
MAIL_INTERVAL_S = 1.0
FORGET_INTERVAL_S = 5.0
DELETE_INTERVAL_S = 5.0
TIDY_INTERVAL_S = 3600.0
AGAIN_S = 5.0
"""How soon a job that failed is tried again."""

DELETING = "bridge-deletions"

_log = logging.getLogger("continuitybridge.upkeep")


@dataclass
class _Job:
    name: str
    interval_s: float
    do: Callable[[], object]
    due: float = 0.0


class Upkeep:
    """Runs each job at its interval until `stopping` is set; a job that fails is tried again and holds up no
    other."""

    def __init__(self, settings: Settings, stopping: threading.Event) -> None:
        teller, approvals = OutcomeTeller(), Announcer()
        self._stopping = stopping
        self._jobs = [
            _Job("pools", TIDY_INTERVAL_S, lambda: ensure_pools(settings)),
            _Job("organizations' pools", POOLS_INTERVAL_S, lambda: ensure_organization_pools(settings)),
            _Job("stream runs", REVIVE_INTERVAL_S, lambda: revive(settings)),
            _Job("outcomes", settings.outcome_interval_s, teller.tell),
            _Job("approvals", ANNOUNCE_INTERVAL_S, approvals.announce),
            _Job("decided approvals", CLOSE_INTERVAL_S, approvals.close),
            _Job("old asset events", TIDY_INTERVAL_S, teller.forget),
            _Job("old stream runs", TIDY_INTERVAL_S, forget_runs),
            _Job("deleted organizations' DAGs", FORGET_INTERVAL_S, forget_deleted),
            _Job("deletions", DELETE_INTERVAL_S, _delete_organizations),
            _Job("audit checkpoints", TIDY_INTERVAL_S, _write_checkpoints),
            _Job("secrets that are due", TIDY_INTERVAL_S, _remind_of_secrets),
        ]
        self._mails = [
            _Job("mails", MAIL_INTERVAL_S, lambda: mail.deliver_due(settings)),
            _Job("old mails", TIDY_INTERVAL_S, mail.forget_ended),
        ]

    def start(self) -> None:
        for name, jobs in (("bridge-upkeep", self._jobs), ("bridge-postman", self._mails)):
            threading.Thread(target=self._run, args=(jobs,), name=name, daemon=True).start()

    def _run(self, jobs: Sequence[_Job]) -> None:
        while not self._stopping.is_set():
            for job in jobs:
                if time.monotonic() >= job.due and not self._stopping.is_set():
                    job.due = time.monotonic() + self._try(job)
            self._stopping.wait(max(0.0, min(job.due for job in jobs) - time.monotonic()))

    @staticmethod
    def _try(job: _Job) -> float:
        """Seconds until it is due again."""
        try:
            job.do()
        except (Unavailable, DBAPIError) as error:
            _log.warning("%s: the database does not answer (%s)", job.name, str(error).strip().split("\n", 1)[0])
        except Exception:
            _log.exception("%s failed", job.name)
        else:
            return job.interval_s
        return min(AGAIN_S, job.interval_s)


def _delete_organizations() -> None:
    """In a thread of its own: it may take as long as there are messages."""
    if not any(thread.name == DELETING for thread in threading.enumerate()):
        threading.Thread(target=lifecycle.continue_deletions, name=DELETING, daemon=True).start()


def _write_checkpoints() -> None:
    checkpoints.write([each.organization_id for each in organizations.list_all()])


def _remind_of_secrets() -> None:
    for each in organizations.list_all():
        try:
            secrets.remind(each.organization_id)
        except BridgeError as error:
            # A trail that takes no event, say: the others are reminded all the same.
            _log.warning("nobody was reminded of the secrets of %s: %s", each.slug, error.detail)
