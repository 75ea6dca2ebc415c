"""A destination: answers every POST with 200 and remembers when it came.

`Sink.start()` runs it in a process of its own on a free port. `count()`, `reset()` and `ledger()` ask it;
`ledger` gives `(Idempotency-Key, seconds since the epoch)` in the order of arrival. `behave` makes it fail.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).resolve().parents[2]


class Sink:
    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self._process = process
        self.port = port
        self.url = f"http://127.0.0.1:{port}"

    @classmethod
    def start(cls, port: int = 0, *, niceness: int = 0) -> Self:
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.load.sink", str(port)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        os.setpriority(os.PRIO_PROCESS, process.pid, niceness)
        assert process.stdout is not None
        return cls(process, int(process.stdout.readline()))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()

    def count(self) -> int:
        return int(self._ask("/count"))

    def ledger(self) -> list[tuple[str, float]]:
        return [(key, at) for key, at in self._ask("/ledger")]

    def reset(self) -> None:
        self._ask("/reset")

    def behave(self, status: int = 200, delay_ms: int = 0, cut: bool = False) -> None:
        """From now on answer with `status` after `delay_ms`, or (`cut`) close the connection instead."""
        self._ask(f"/behave/{status}/{delay_ms}/{int(cut)}")

    def _ask(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            return json.loads(answer.read())


class _State:
    def __init__(self) -> None:
        self.arrivals: list[tuple[str, float]] = []
        self.status, self.delay_ms, self.cut = 200, 0, False


class _Connection(asyncio.Protocol):
    def __init__(self, state: _State) -> None:
        self.state = state
        self.buffer = bytearray()
        self.transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while self._one():
            pass

    def _one(self) -> bool:
        buffer = self.buffer
        end = buffer.find(b"\r\n\r\n")
        if end < 0:
            return False
        head = bytes(buffer[:end])
        lower = head.lower()
        at = lower.find(b"content-length:")
        length = int(lower[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
        if len(buffer) < end + 4 + length:
            return False
        del buffer[: end + 4 + length]
        method, path, _ = head.split(b" ", 2)
        if method == b"GET":
            self._answer(200, json.dumps(self._told(path.decode())).encode())
            return True
        state = self.state
        at = lower.find(b"idempotency-key:")
        key = head[at + 16 :].split(b"\r\n", 1)[0].strip().decode("latin-1") if at >= 0 else ""
        if state.cut:
            self.transport.abort()
            return False
        if state.status < 300:
            state.arrivals.append((key, time.time()))
        if state.delay_ms:
            asyncio.get_running_loop().call_later(
                state.delay_ms / 1000, self._answer, state.status, b'{"ok":true}'
            )
        else:
            self._answer(state.status, b'{"ok":true}')
        return True

    def _told(self, path: str) -> Any:
        state = self.state
        if path == "/count":
            return len(state.arrivals)
        if path == "/ledger":
            return state.arrivals
        if path == "/reset":
            state.arrivals = []
        elif path.startswith("/behave/"):
            status, delay_ms, cut = path.removeprefix("/behave/").split("/")
            state.status, state.delay_ms, state.cut = int(status), int(delay_ms), cut == "1"
        return None

    def _answer(self, status: int, body: bytes) -> None:
        self.transport.write(
            b"HTTP/1.1 %d OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % (status, len(body))
            + body
        )


async def _main(port: int) -> None:
    state = _State()
    server = await asyncio.get_running_loop().create_server(lambda: _Connection(state), "127.0.0.1", port)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    import uvloop

    uvloop.run(_main(int(sys.argv[1])))
