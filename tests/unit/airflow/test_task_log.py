"""The log of a resident task stays small."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from continuitybridge.airflow import task_log


def test_chatter_is_bounded_and_warnings_are_heard_beside_it(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    # Only there: an event loop in another thread would wait for the real clock to get to what it read here.
    monkeypatch.setattr(task_log, "time", SimpleNamespace(monotonic=lambda: now[0]))
    log = logging.getLogger("a flow")
    with caplog.at_level(logging.INFO), task_log.bounded_lines():
        for number in range(2000):
            log.info("line %d", number)
        log.warning("something is wrong")
        now[0] += 10 / task_log.LINES_PER_S
        log.info("and %s", "on")
    lines = [record.getMessage() for record in caplog.records]
    assert lines[: task_log.BURST_LINES] == [f"line {number}" for number in range(task_log.BURST_LINES)]
    assert lines[task_log.BURST_LINES :] == ["something is wrong", "and on (1500 lines before it left out)"]
    log.warning("unbounded again")


def test_logs_of_runs_that_ended_long_ago_are_removed(tmp_path: Path) -> None:
    for dag_id, run_id, age_s in (
        ("stream", "old", task_log.KEPT_S + 60),
        ("stream", "young", 60),
        ("other", "old", task_log.KEPT_S + 60),
    ):
        file = tmp_path / f"dag_id={dag_id}" / f"run_id={run_id}" / "task_id=worker_1" / "attempt=1.log"
        file.parent.mkdir(parents=True)
        file.write_text("x")
        for path in (file, file.parent, file.parent.parent):
            os.utime(path, (time.time() - age_s,) * 2)
    assert task_log.remove_old_logs(tmp_path, "stream") == 1
    assert sorted(path.name for path in tmp_path.glob("*/*")) == ["run_id=old", "run_id=young"]
