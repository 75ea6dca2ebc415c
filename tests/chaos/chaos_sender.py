"""A sender that does not give up, and keeps a ledger of what it was promised: a process of its own.

`python chaos_sender.py JSON` sends messages at `rate_per_s` to `urls` in turns, `count` at least and until the
file `stop` is there, each with an idempotency key of its own, and again after any answer but 202 and after none.
The id of each message that got a 202 stands in the ledger, one a line. Every `poison`th message is one that the
flow refuses for good.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import httpx

CALLERS = 40
PERMANENT = (400, 401, 404, 405, 409, 410, 413, 415, 422)


async def send(given: dict[str, Any]) -> None:
    stop = Path(given["stop"])
    numbers = itertools.takewhile(lambda n: n < given["count"] or not stop.exists(), itertools.count())
    began = time.monotonic()
    limits = httpx.Limits(max_connections=CALLERS)
    with Path(given["ledger"]).open("a") as ledger:  # noqa: ASYNC230  (a line now and then)
        async with httpx.AsyncClient(timeout=15, limits=limits, headers=given["headers"]) as client:

            async def caller() -> None:
                for number in numbers:
                    await asyncio.sleep(max(0.0, began + number / given["rate_per_s"] - time.monotonic()))
                    message_id = await _one(client, given, number)
                    print(message_id, file=ledger, flush=True)

            await asyncio.gather(*(caller() for _ in range(CALLERS)))


async def _one(client: httpx.AsyncClient, given: dict[str, Any], number: int) -> str:
    poisoned = number % given["poison"] == given["poison"] - 1
    body = {
        "po_number": None if poisoned else f"PO-{number}",
        "lines": [{"sku": "A-1", "quantity": number % 7 + 1}],
    }
    tries = 0
    while True:
        url = given["urls"][(number + tries) % len(given["urls"])]
        tries += 1
        try:
            answer = await client.post(url, json=body, headers={given["key_header"]: f"{given['name']}-{number}"})
        except httpx.HTTPError:
            answer = None
        if answer is not None and answer.status_code == 202:
            return str(answer.json()["id"])
        if answer is not None and answer.status_code in PERMANENT:
            raise SystemExit(f"message {number} was refused: {answer.status_code} {answer.text}")
        await asyncio.sleep(random.uniform(0.05, 0.5))


if __name__ == "__main__":
    asyncio.run(send(json.loads(sys.argv[1])))
