"""The demo warehouse: a small real HTTP server that takes purchase orders and keeps them.

It behaves as a destination should. `POST /orders` needs an API key (each organization has its own) and an
`Idempotency-Key`; an order is stored before it is answered with 201, and the same key again is answered with 200
and the first answer, however often it comes (409 when the body differs). `GET /orders` lists what it got, newest
last, for the key's owner only. Storage is one SQLite file under the state directory.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import sqlite3
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from continuitybridge.runtime import keys
from continuitybridge.settings import Settings, get_settings

MAX_BODY_BYTES = 1024 * 1024
REQUIRED = ("order_number", "customer", "lines")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS orders (
    receipt TEXT PRIMARY KEY,
    organization TEXT NOT NULL,
    idempotency_key TEXT NOT NULL,
    body_hash BLOB NOT NULL,
    body BLOB NOT NULL,
    received_at TEXT NOT NULL,
    repeats INTEGER NOT NULL DEFAULT 0,
    UNIQUE (organization, idempotency_key)
)
"""


def api_key(settings: Settings, organization: str) -> str:
    """The organization's key at the warehouse; made on first use."""
    return keys.password(_keys_dir(settings) / organization)[0]


def application(database: Path, api_keys: Mapping[str, str]) -> Starlette:
    """The server; `api_keys` maps an organization to its key."""
    store = _Store(database)

    def owner(request: Request) -> str | None:
        given = request.headers.get("x-api-key", "").encode()
        return next((name for name, key in api_keys.items() if hmac.compare_digest(key.encode(), given)), None)

    async def take(request: Request) -> JSONResponse:
        organization = owner(request)
        if organization is None:
            return _refusal(401, "X-API-Key is missing or unknown")
        key = request.headers.get("idempotency-key", "")
        if not key:
            return _refusal(400, "Idempotency-Key is missing")
        body = await request.body()
        if len(body) > MAX_BODY_BYTES:
            return _refusal(413, f"an order may have at most {MAX_BODY_BYTES} bytes")
        problem = _problem(body)
        if problem:
            return _refusal(422, problem)
        stored = store.put(organization, key, body)
        if stored is None:
            return _refusal(409, "this Idempotency-Key came with another body before")
        receipt, new = stored
        return JSONResponse({"receipt": receipt, "repeated": not new}, status_code=201 if new else 200)

    async def list_orders(request: Request) -> JSONResponse:
        organization = owner(request)
        if organization is None:
            return _refusal(401, "X-API-Key is missing or unknown")
        return JSONResponse({"orders": store.orders(organization, request.query_params.get("idempotency_key"))})

    async def health(request: Request) -> JSONResponse:
        return JSONResponse({"status": "healthy"})

    return Starlette(
        routes=[
            Route("/orders", take, methods=["POST"]),
            Route("/orders", list_orders, methods=["GET"]),
            Route("/health", health, methods=["GET"]),
        ]
    )


class _Store:
    def __init__(self, database: Path) -> None:
        self._connection = sqlite3.connect(database, isolation_level=None)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute(_SCHEMA)

    def put(self, organization: str, key: str, body: bytes) -> tuple[str, bool] | None:
        """The order's receipt and whether it is new; None when the key stands for another body."""
        body_hash = hashlib.sha256(body).digest()
        row = self._connection.execute(
            "INSERT INTO orders (receipt, organization, idempotency_key, body_hash, body, received_at)"
            " VALUES (?, ?, ?, ?, ?, ?)"
            " ON CONFLICT (organization, idempotency_key) "
            " DO UPDATE SET repeats = repeats + (body_hash = excluded.body_hash)"
            " RETURNING receipt, body_hash, repeats",
            (f"R-{secrets.token_hex(6)}", organization, key, body_hash, body, datetime.now(UTC).isoformat()),
        ).fetchall()[0]
        return (row[0], row[2] == 0) if row[1] == body_hash else None

    def orders(self, organization: str, key: str | None) -> list[dict[str, Any]]:
        rows = self._connection.execute(
            "SELECT receipt, idempotency_key, received_at, repeats, body FROM orders"
            " WHERE organization = ? AND (? IS NULL OR idempotency_key = ?) ORDER BY rowid",
            (organization, key, key),
        )
        names = ("receipt", "idempotency_key", "received_at", "repeats")
        return [{**dict(zip(names, row, strict=False)), "order": orjson.loads(row[4])} for row in rows]


def _problem(body: bytes) -> str | None:
    try:
        order = orjson.loads(body)
    except orjson.JSONDecodeError:
        return "the body is not JSON"
    if not isinstance(order, dict):
        return "an order is an object"
    missing = [name for name in REQUIRED if not order.get(name)]
    return f"missing: {', '.join(missing)}" if missing else None


def _refusal(status: int, detail: str) -> JSONResponse:
    return JSONResponse({"status": status, "detail": detail}, status, media_type="application/problem+json")


def _keys_dir(settings: Settings) -> Path:
    return settings.keys_dir / "warehouse"


def main() -> None:
    """Serve until told to stop."""
    settings = get_settings()
    directory = settings.state_dir / "warehouse"
    keys.private_directory(directory)
    api_keys = {path.name: path.read_text().strip() for path in _keys_dir(settings).glob("[a-z]*")}
    server = application(directory / "orders.sqlite3", api_keys)
    uvicorn.run(server, host=settings.host, port=settings.warehouse_port, log_level="info")


if __name__ == "__main__":
    main()
