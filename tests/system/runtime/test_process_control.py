"""Starting, stopping, looking; and what happens when a process dies."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import pytest
from running_platform import BRIDGE, Platform, alive, wait_until


@pytest.fixture
def bare() -> Iterator[Platform]:
    """An installation that was never started."""
    directory = Path(tempfile.mkdtemp(prefix="bridge-bare-"))
    platform = Platform.at(directory / "state")
    try:
        yield platform
    finally:
        platform.bridge("down", check=False)
        shutil.rmtree(directory, ignore_errors=True)


def of_a_task(process: psutil.Process) -> bool:
    """Whether it is a task, what that started, or the worker that supervises it."""
    with suppress(psutil.NoSuchProcess):
        return "bridge-task" in {each.name() for each in (process, *process.parents(), *process.children())}
    return False


def healthy(platform: Platform) -> bool:
    """Whether Airflow says that all of its parts are."""
    try:
        answer = httpx.get(f"{platform.url()}/api/v2/monitor/health", timeout=5)
    except httpx.HTTPError:
        return False
    return answer.is_success and all(part["status"] == "healthy" for part in answer.json().values())


def test_status_names_each_process_with_its_address_and_says_by_its_exit_whether_all_run(
    platform: Platform,
) -> None:
    result = platform.bridge("status")
    processes = ("postgres", "api-server", "scheduler", "dag-processor", "triggerer", "dispatch", "warehouse")
    for name in (*processes, "stream-1"):
        assert re.search(rf"^{name} +running +\d+", result.stdout, re.MULTILINE), result.stdout
    assert platform.settings["BRIDGE_HTTP_PORT"] in result.stdout


def test_logs_shows_the_end_of_the_log_asked_for_and_names_the_valid_ones(platform: Platform) -> None:
    shown = platform.bridge("logs", "supervisord", "-n", "5").stdout
    assert "entered RUNNING state" in shown or "spawned" in shown
    assert len(shown.splitlines()) <= 5
    refused = platform.bridge("logs", "sheduler", check=False)
    assert refused.returncode == 2
    assert "scheduler" in refused.stderr


def test_logs_follows_what_is_written(platform: Platform) -> None:
    log = platform.state_dir / "logs" / "dispatch.log"
    command = [str(BRIDGE), "logs", "dispatch", "--follow", "-n", "1"]
    reader = subprocess.Popen(command, env=platform.environment, stdout=subprocess.PIPE, text=True)
    try:
        assert reader.stdout is not None
        reader.stdout.readline()
        with log.open("a") as file:
            file.write("a line of this test\n")
        while "a line of this test" not in reader.stdout.readline():
            assert reader.poll() is None
    finally:
        reader.terminate()
        reader.wait()


def test_bridge_airflow_runs_airflow_s_command_line_against_this_installation(platform: Platform) -> None:
    shown = platform.bridge("airflow", "config", "get-value", "api", "port").stdout
    assert platform.settings["BRIDGE_HTTP_PORT"] in shown


@pytest.mark.parametrize("name", ["warehouse", "dispatch", "scheduler", "postgres", "api-server"])
def test_a_process_killed_with_9_is_back_and_orders_are_delivered_again(platform: Platform, name: str) -> None:
    pid = platform.pids()[name]
    family = psutil.Process(pid).children(recursive=True)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: platform.pids().get(name) not in (None, pid), within_s=60, what=f"{name} runs again")
    # What the dead process had started does not work on beside its successor. Tasks do, under it.
    wait_until(
        lambda: not any(alive(process) and not of_a_task(process) for process in family),
        within_s=60,
        what=f"children of {name} are gone",
    )
    assert platform.bridge("demo").stdout.count("delivered  ") == 2


def test_nothing_outlives_a_supervisor_killed_with_9_and_up_names_what_dies_at_its_start_and_then_starts_all_again(
    platform: Platform,
) -> None:
    left = platform.processes()
    os.kill(platform.supervisor.pid, signal.SIGKILL)
    wait_until(lambda: not any(map(alive, left)), within_s=60, what="every process has ended")
    assert platform.bridge("status", check=False).returncode == 1
    # From here rather than from a running platform: that would be one more stop and start.
    wrong = {"AIRFLOW__CORE__EXECUTOR": "nowhere.NoSuchExecutor"}
    result = platform.bridge("up", check=False, **wrong)
    assert result.returncode != 0
    assert "scheduler does not start" in result.stderr
    assert str(platform.state_dir / "logs" / "scheduler.log") in result.stderr
    assert "NoSuchExecutor" in result.stderr
    # The wrong setting is gone: the platform notices and starts anew.
    again = platform.bridge("demo").stdout
    assert "settings or code changed" in again
    assert again.count("delivered  ") == 2
    assert healthy(platform)


def test_a_busy_port_is_named_with_the_setting_that_changes_it_and_nothing_is_started(bare: Platform) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        result = bare.bridge("up", check=False, BRIDGE_HTTP_PORT=str(port))
    assert result.returncode == 2
    assert f"port {port} on 127.0.0.1: is in use by process {os.getpid()}" in result.stderr
    assert "BRIDGE_HTTP_PORT" in result.stderr
    assert not bare.pids()


def test_a_bad_setting_stops_the_start_with_its_name(bare: Platform) -> None:
    result = bare.bridge("up", check=False, BRIDGE_HTTP_PORT="99999")
    assert result.returncode == 2
    assert "BRIDGE_HTTP_PORT" in result.stderr


def test_a_database_server_that_does_not_answer_is_named_by_its_setting(bare: Platform) -> None:
    url = f"postgresql://postgres:secret-password@127.0.0.1:{bare.settings['BRIDGE_DATABASE_PORT']}/postgres"
    result = bare.bridge("up", check=False, BRIDGE_DATABASE_URL=url)
    assert result.returncode == 2
    assert "the database server does not answer" in result.stderr
    assert "secret-password" not in result.stdout + result.stderr


def test_down_ends_every_process_and_is_harmless_where_nothing_runs(platform: Platform, bare: Platform) -> None:
    running = platform.processes()
    platform.bridge("down")
    assert not [process for process in running if alive(process)]
    # In order, none killed for taking too long, and the api-server when it was told what became of the tasks.
    log = (platform.state_dir / "logs" / "supervisord.log").read_text().rpartition("supervisord started")[2]
    ended = re.findall(r"stopped: (\S+) \(exit status 0\)", log)
    assert ended[-2:] == ["api-server", "postgres"]
    assert {"scheduler", "dag-processor", "triggerer", "dispatch"} <= set(ended[:-2])
    assert {row["state"] for row in platform.status().values()} == {"stopped"}
    assert "does not run" in platform.bridge("down").stdout
    assert "does not run" in bare.bridge("down").stdout
    assert platform.bridge("status", check=False).returncode == 1
