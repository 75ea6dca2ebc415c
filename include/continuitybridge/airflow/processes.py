"""How a task's process belongs to the process that supervises it."""

from __future__ import annotations

import ctypes
import logging
import signal

_PR_SET_PDEATHSIG = 1

_log = logging.getLogger(__name__)


def die_with_parent() -> None:
    """When the supervisor of this task is killed, Airflow starts the task again: this one must not go on."""
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    except (AttributeError, OSError):
        _log.debug("this system cannot end a task with its supervisor")
