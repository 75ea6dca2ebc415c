"""How the processes that run tasks are known, and belong to each other. Imports no Airflow."""

from __future__ import annotations

import ctypes
import logging
import signal
import sys

import psutil

WORKER = "bridge-worker"
"""Name of a process that runs tasks on the scheduler's machine, each in a child that it supervises."""

TASK = "bridge-task"
"""Name of such a child."""

_AIRFLOWS_TITLE = "airflow worker"

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15

_log = logging.getLogger(__name__)


def be_known_as(name: str) -> None:
    """Give this process a name of up to 15 characters. Airflow rewrites titles, and not always with success."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode(), 0, 0, 0)


def runs_tasks(process: psutil.Process) -> bool:
    """Whether it is a worker of the scheduler's machine."""
    try:
        return process.name().startswith((WORKER, _AIRFLOWS_TITLE))
    except psutil.Error:
        return False


def die_with_parent() -> None:
    """When the supervisor of this task is killed, Airflow starts the task again: this one must not go on."""
    be_known_as(TASK)
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    except (AttributeError, OSError):
        _log.debug("this system cannot end a task with its supervisor")
