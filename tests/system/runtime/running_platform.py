"""A whole platform as a user has it: its state directory, its ports, its `bridge` command."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from continuitybridge.runtime.ports import free_port

BRIDGE = Path(sys.executable).with_name("bridge")
ROOT = Path(__file__).resolve().parents[3]
COMMAND_TIMEOUT_S = 400


@dataclass
class Platform:
    """One installation: its state directory, its environment, and the `bridge` command in it."""

    state_dir: Path
    settings: dict[str, str] = field(default_factory=dict)

    @classmethod
    def at(cls, state_dir: Path) -> Platform:
        ports = ("HTTP", "DATABASE", "REDIS", "WAREHOUSE")
        return cls(state_dir, {f"BRIDGE_{name}_PORT": str(free_port()) for name in ports})

    @property
    def environment(self) -> dict[str, str]:
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("BRIDGE_", "AIRFLOW_")) and name != "PYTHONDONTWRITEBYTECODE"
        }
        path = f"{BRIDGE.parent}{os.pathsep}{inherited['PATH']}"
        return {**inherited, **self.settings, "BRIDGE_STATE_DIR": str(self.state_dir), "PATH": path}

    def bridge(self, *arguments: str, check: bool = True, **more: str) -> subprocess.CompletedProcess[str]:
        """Run `bridge ARGUMENTS`, with further environment variables, and return what it printed."""
        result = subprocess.run(
            [str(BRIDGE), *arguments],
            env={**self.environment, **more},
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
            check=False,
        )
        assert result.returncode == 0 or not check, f"bridge {arguments}:\n{result.stdout}\n{result.stderr}"
        return result

    def status(self) -> dict[str, dict[str, Any]]:
        rows = json.loads(self.bridge("status", "--json", check=False).stdout)
        return {row["name"]: row for row in rows}

    def pids(self) -> dict[str, int]:
        return {name: row["pid"] for name, row in self.status().items() if row["pid"]}

    @property
    def supervisor(self) -> psutil.Process:
        return psutil.Process(int((self.state_dir / "run" / "supervisord.pid").read_text()))

    def processes(self) -> list[psutil.Process]:
        """The supervisor and everything below it."""
        return [self.supervisor, *self.supervisor.children(recursive=True)]

    def url(self, setting: str = "HTTP") -> str:
        return f"http://127.0.0.1:{self.settings[f'BRIDGE_{setting}_PORT']}"

    def secrets(self) -> set[str]:
        """Every generated secret that stands in a file of the state directory."""
        found: set[str] = set()
        for file in [*self.state_dir.glob("keys/**/*"), self.state_dir / "bridge.env"]:
            if file.is_file():
                for line in file.read_text().splitlines():
                    value = line.split("=", 1)[-1] if "=" in line and "://" not in line else line
                    password = re.search(r"://[^:]*:([^@]+)@", line)
                    found.add(password[1] if password else value.strip())
        return {secret for secret in found if len(secret) >= 16}


def alive(process: psutil.Process) -> bool:
    """Whether it works still: what has ended and waits for an init that reaps nothing does not."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def wait_until(condition: Callable[[], Any], *, within_s: float, what: str) -> Any:
    """The condition's first true answer; fails the test after a bound that no working system reaches."""
    deadline = time.monotonic() + within_s
    while True:
        answer = condition()
        if answer:
            return answer
        assert time.monotonic() < deadline, f"after {within_s} s still not so: {what}"
        time.sleep(0.2)
