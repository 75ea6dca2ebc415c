"""The demo warehouse, over its HTTP interface."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from continuitybridge.runtime.warehouse import application

ORDER: dict[str, Any] = {"order_number": "PO-1", "customer": "Aurora", "lines": [{"sku": "TENT"}]}


@pytest.fixture
async def warehouse(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    app = application(tmp_path / "orders.sqlite3", {"aurora": "key-of-aurora", "borealis": "key-of-borealis"})
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://warehouse") as client:
        yield client


def headers(organization: str = "aurora", key: str = "k-1") -> dict[str, str]:
    return {"X-API-Key": f"key-of-{organization}", "Idempotency-Key": key}


async def test_an_order_is_stored_and_listed_for_its_owner_only(warehouse: httpx.AsyncClient) -> None:
    answer = await warehouse.post("/orders", json=ORDER, headers=headers())
    assert answer.status_code == 201
    listed = (await warehouse.get("/orders", headers=headers())).json()["orders"]
    assert [(o["receipt"], o["idempotency_key"], o["order"]) for o in listed] == [
        (answer.json()["receipt"], "k-1", ORDER)
    ]
    assert (await warehouse.get("/orders", headers=headers("borealis"))).json() == {"orders": []}


async def test_a_repetition_gets_the_first_receipt_and_is_counted_not_stored(warehouse: httpx.AsyncClient) -> None:
    first = await warehouse.post("/orders", json=ORDER, headers=headers())
    again = await warehouse.post("/orders", json=ORDER, headers=headers())
    assert again.status_code == 200
    assert again.json() == {"receipt": first.json()["receipt"], "repeated": True}
    listed = (await warehouse.get("/orders", headers=headers())).json()["orders"]
    assert [order["repeats"] for order in listed] == [1]


async def test_the_same_key_with_another_body_is_a_conflict(warehouse: httpx.AsyncClient) -> None:
    await warehouse.post("/orders", json=ORDER, headers=headers())
    answer = await warehouse.post("/orders", json={**ORDER, "customer": "Other"}, headers=headers())
    assert answer.status_code == 409


async def test_two_organizations_may_use_the_same_key(warehouse: httpx.AsyncClient) -> None:
    await warehouse.post("/orders", json=ORDER, headers=headers())
    assert (await warehouse.post("/orders", json=ORDER, headers=headers("borealis"))).status_code == 201


@pytest.mark.parametrize(
    ("change", "body", "status"),
    [
        ({"X-API-Key": "wrong"}, ORDER, 401),
        ({"X-API-Key": ""}, ORDER, 401),
        ({"Idempotency-Key": ""}, ORDER, 400),
        ({}, {"order_number": "PO-1"}, 422),
        ({}, [ORDER], 422),
    ],
)
async def test_what_a_destination_should_refuse_is_refused(
    warehouse: httpx.AsyncClient, change: dict[str, str], body: Any, status: int
) -> None:
    answer = await warehouse.post("/orders", json=body, headers={**headers(), **change})
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert (await warehouse.get("/orders", headers=headers())).json() == {"orders": []}


async def test_what_was_stored_survives_a_restart(tmp_path: Path) -> None:
    for expected in (201, 200):
        app = application(tmp_path / "orders.sqlite3", {"aurora": "key-of-aurora"})
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://w") as client:
            assert (await client.post("/orders", json=ORDER, headers=headers())).status_code == expected
