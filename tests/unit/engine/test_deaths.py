"""Whose doing a death is, where no process has to die to know it."""

from __future__ import annotations

import os
import signal
import socket

import pytest
from engine_runs import PASS_ON, plan_of

from continuitybridge.engine import frames
from continuitybridge.engine.limits import Limits
from continuitybridge.engine.nursery import Obituary
from continuitybridge.engine.processes import NodeProcess
from continuitybridge.engine.session import MAX_DEATHS, Session
from continuitybridge.errors import ConfigurationError, Unavailable

CRASHED_BUILDING = Obituary("ended", building=True, node=1, signal=signal.SIGSEGV)


@pytest.fixture
def session() -> Session:
    return Session(
        plan_of(PASS_ON),
        Limits(),
        stage=None,
        emulate=False,
        organization="",
        environment="",
        concurrency=1,
        destinations=None,
        results=True,
    )


@pytest.fixture
def process(session: Session) -> NodeProcess:
    ours, theirs = socket.socketpair()
    theirs.close()
    made = NodeProcess(1, session.key, ours, os.open(os.devnull, os.O_RDONLY))
    made.fresh = False
    return made


def test_a_plan_whose_first_building_crashes_cannot_be_built(session: Session, process: NodeProcess) -> None:
    with pytest.raises(ConfigurationError, match="node 'parse' cannot be built: its process was ended by SIGSEGV"):
        session.died(process, CRASHED_BUILDING)


def test_a_plan_that_was_built_before_is_tried_again_and_not_for_ever(
    session: Session, process: NodeProcess
) -> None:
    session.heard(process, frames.READY, False)
    for _ in range(2):
        for _ in range(MAX_DEATHS - 1):
            session.died(process, CRASHED_BUILDING)
        with pytest.raises(Unavailable, match="no node process can be started"):
            session.died(process, CRASHED_BUILDING)
