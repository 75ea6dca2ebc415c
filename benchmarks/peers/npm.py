"""Packages from npm, installed once, and servers run from them."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

HOME = Path(__file__).resolve().parents[2] / ".bench" / "peers"
INSTALL_TIMEOUT_S = 1_800


class Missing(Exception):
    """A peer cannot be measured on this machine; the text says why."""


def install(
    name: str,
    packages: Mapping[str, str],
    *,
    node: int,
    overrides: Mapping[str, object] | None = None,
    compiled: Sequence[str] = (),
) -> Path:
    """The directory that holds `node_modules` with these packages, and those of `compiled` built against the
    headers that came with Node.js. Raises `Missing` without Node.js of at least this major version, without npm,
    or when the installation fails (its log is kept beside it)."""
    version = node_version()
    if version < node:
        raise Missing(f"{name} needs Node.js {node} or later, this machine has {version or 'none'}")
    if shutil.which("npm") is None:
        raise Missing(f"{name} is installed with npm, which this machine does not have")
    place = HOME / name
    wanted = {"name": f"peer-{name}", "version": "1.0.0", "private": True, "dependencies": dict(packages)}
    if overrides:
        wanted["overrides"] = dict(overrides)
    stamp = place / ".installed"
    if stamp.is_file() and stamp.read_text() == json.dumps(wanted):
        return place
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    (place / "package.json").write_text(json.dumps(wanted))
    print(f"peers: installing {name} (once, some minutes)", flush=True)
    commands = [["npm", "install", "--no-audit", "--no-fund", "--force"]]
    if compiled:
        commands.append(["npm", "rebuild", *compiled, f"--nodedir={node_prefix()}"])
    with (HOME / f"{name}-install.log").open("w") as log:
        for command in commands:
            try:
                subprocess.run(
                    command,
                    cwd=place,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    stdin=subprocess.DEVNULL,
                    timeout=INSTALL_TIMEOUT_S,
                    check=True,
                )
            except (subprocess.TimeoutExpired, subprocess.CalledProcessError):
                raise Missing(f"{name} could not be installed (log: .bench/peers/{name}-install.log)") from None
    stamp.write_text(json.dumps(wanted))
    return place


def node_version() -> int:
    """Node.js's major version; 0 where there is none."""
    if shutil.which("node") is None:
        return 0
    said = subprocess.run(["node", "--version"], capture_output=True, text=True, check=False).stdout
    return int(said.strip().removeprefix("v").partition(".")[0] or 0)


def node_prefix() -> Path:
    """Where Node.js is installed; its headers are in `include/node` below."""
    return Path(os.path.realpath(shutil.which("node") or "/usr/bin/node")).parents[1]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextmanager
def serving(
    name: str, command: Sequence[str], environment: Mapping[str, str], url: str, *, within_s: float = 120
) -> Iterator[int]:
    """Run a server until the block ends; gives its process id once a POST to `url` is answered with 2xx."""
    with (HOME / f"{name}.log").open("w") as log:
        process = subprocess.Popen(
            command,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            until = time.monotonic() + within_s
            while not _answers(url):
                if process.poll() is not None or time.monotonic() > until:
                    raise Missing(f"{name} does not answer at {url} (log: .bench/peers/{name}.log)")
                time.sleep(0.5)
            yield process.pid
        finally:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _answers(url: str) -> bool:
    request = urllib.request.Request(
        url, data=b'{"orderId":"0","customer":{"name":"","address":{"country":""}},"currency":"","lines":[]}'
    )
    request.add_header("content-type", "application/json")
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return 200 <= answer.status < 300
    except (OSError, urllib.error.URLError):
        return False
