"""A destination that misbehaves, and keeps a ledger of what it took: a process of its own.

`python chaos_sink.py PORT LEDGER` answers POSTs; the Idempotency-Key of each that it took stands in the ledger
(one a line) before the answer goes out. `GET /behave/<how>` says what it does from then on: `take`; `fail`,
500s; `cut`, the connection ends, half of the time after the message was taken; `slow`, an answer takes a while.
`GET /seen` tells how many requests it dealt with in each way.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import urllib.request
from collections import Counter
from pathlib import Path
from typing import TextIO


def behave(port: int, how: str) -> None:
    """Tell the sink on `port`."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/behave/{how}", timeout=30):
        pass


def seen(port: int) -> Counter[str]:
    """How many requests it dealt with, by way."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/seen", timeout=30) as answer:
        return Counter(json.loads(answer.read()))


class _Sink:
    def __init__(self, ledger: TextIO) -> None:
        self._ledger = ledger
        self._how = "take"
        self._seen: Counter[str] = Counter()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, target, _ = lines[0].split(" ", 2)
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        await reader.readexactly(int(headers.get("content-length", 0)))
        if method == "GET":
            if target.startswith("/behave/"):
                self._how = target.rpartition("/")[2]
            return await self._answer(writer, 200, json.dumps(self._seen).encode())
        how = self._how
        self._seen[how] += 1
        if how == "fail":
            return await self._answer(writer, 500)
        if how == "cut" and random.random() < 0.5:
            writer.transport.abort()
            return False
        print(headers.get("idempotency-key", ""), file=self._ledger, flush=True)
        if how == "cut":
            writer.transport.abort()
            return False
        if how == "slow":
            await asyncio.sleep(random.uniform(0.05, 0.5))
        return await self._answer(writer, 200)

    @staticmethod
    async def _answer(writer: asyncio.StreamWriter, status: int, body: bytes = b"{}") -> bool:
        writer.write(
            b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % (status, len(body))
            + body
        )
        await writer.drain()
        return True


async def _main(port: int, path: str) -> None:
    with Path(path).open("a") as ledger:  # noqa: ASYNC230  (before it serves)
        server = await asyncio.start_server(_Sink(ledger).serve, "127.0.0.1", port)
        print("ready", flush=True)
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1]), sys.argv[2]))
