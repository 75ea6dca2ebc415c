"""The audit trail over HTTP: what it says of requests, and to whom."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from continuitybridge import database
from continuitybridge.audit import checkpoints, record
from continuitybridge.organizations import Organization
from continuitybridge.settings import Settings, get_settings

from .conftest import Deployed, SignIn


def write(organization: Organization, target: str, **details: Any) -> None:
    with database.tenant(organization.organization_id) as connection:
        record(connection, organization.organization_id, "thing.done", target, details=details)


def test_what_a_user_changes_over_http_bears_his_name_and_address(
    deployed: Callable[[], Deployed], sign_in: SignIn
) -> None:
    made = deployed()
    user = sign_in({made.organization: "customer_admin"})
    slug = made.organization.slug
    place = f"/bridge/endpoints/{slug}/dev/orders"
    assert user.post(f"{place}/disable").is_success
    assert user.post(f"{place}/rotate-secret", json={}).is_success
    assert user.post(f"/bridge/flows/{slug}/dev/orders/pause").is_success
    found = user.get(f"/bridge/audit?organization={slug}&actor={user.name}")
    done = found.json()["events"][::-1]
    assert [(each["action"], each["target"], each["environment"]) for each in done] == [
        ("endpoint.disabled", "orders", "dev"),
        ("endpoint.secret_rotated", "orders", "dev"),
        ("flow.paused", "orders", "dev"),
    ]
    assert {(each["actor_kind"], each["address"]) for each in done} == {("user", "127.0.0.1")}


def test_behind_a_trusted_proxy_the_address_is_the_one_that_it_names(
    deployed: Callable[[], Deployed], sign_in: SignIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = deployed()
    user = sign_in({made.organization: "customer_admin"})
    slug = made.organization.slug
    forwarded = [("x-forwarded-for", "1.1.1.1, 203.0.113.7"), ("x-forwarded-for", "127.0.0.2")]

    def addresses() -> list[str]:
        assert user.post(f"/bridge/endpoints/{slug}/dev/orders/disable", headers=forwarded).is_success
        found = user.get(f"/bridge/audit?organization={slug}&action=endpoint.disabled").json()["events"]
        return [each["address"] for each in found]

    assert addresses() == ["127.0.0.1"]
    monkeypatch.setenv("BRIDGE_TRUSTED_PROXIES", "127.0.0.0/8")
    get_settings.cache_clear()
    try:
        assert addresses()[0] == "203.0.113.7"
    finally:
        monkeypatch.undo()
        get_settings.cache_clear()


def test_it_is_read_by_those_who_may_change_something_there_and_nobody_else(
    deployed: Callable[[], Deployed], sign_in: SignIn, stranger: httpx.Client
) -> None:
    mine, theirs = deployed().organization, deployed().organization
    admin, reader = sign_in({mine: "customer_admin"}), sign_in({mine: "customer_user"})
    for path in ("", "/export", "/verification"):
        assert admin.get(f"/bridge/audit{path}?organization={mine.slug}").status_code == 200
        assert admin.get(f"/bridge/audit{path}?organization={theirs.slug}").status_code == 404
        assert reader.get(f"/bridge/audit{path}?organization={mine.slug}").status_code == 403
        assert stranger.get(f"/bridge/audit{path}?organization={mine.slug}").status_code == 401
    page = admin.get(f"/bridge/audit?organization={mine.slug}&limit=2").json()
    assert [each["seq"] for each in page["events"]] == [page["before"] + 1, page["before"]]
    rest = admin.get(f"/bridge/audit?organization={mine.slug}&before={page['before']}").json()
    assert rest["events"][0]["seq"] == page["before"] - 1
    verified = admin.get(f"/bridge/audit/verification?organization={mine.slug}").json()
    assert (verified["problem"], verified["organization"]) == (None, mine.slug)


def test_an_export_holds_every_event_and_is_one_itself(deployed: Callable[[], Deployed], sign_in: SignIn) -> None:
    made = deployed().organization
    write(made, "=HYPERLINK(1)", note='with "quotes", commas\nand lines')
    admin = sign_in({made: "customer_admin"})
    answer = admin.get(f"/bridge/audit/export?organization={made.slug}&format=csv")
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert [row["seq"] for row in rows] == [str(n) for n in range(len(rows), 0, -1)]
    assert [row["target"] for row in rows if row["action"] == "thing.done"] == ["'=HYPERLINK(1)"]
    [noted] = [row["details"] for row in rows if row["action"] == "thing.done"]
    assert json.loads(noted) == {"note": 'with "quotes", commas\nand lines'}
    lines = admin.get(f"/bridge/audit/export?organization={made.slug}&format=jsonl").text.splitlines()
    told = [json.loads(line) for line in lines]
    assert [each["action"] for each in told[:2]] == ["audit.exported", "audit.exported"]
    assert len(told) == len(rows) + 1


def test_nothing_in_an_export_is_a_formula_to_a_spreadsheet(
    deployed: Callable[[], Deployed], sign_in: SignIn
) -> None:
    made = deployed().organization
    given = [f"{sign}HYPERLINK(1)" for sign in ("=", "+", "-", "@", "\t=", "\r=", "\n=", "＝", "＋", "－", "＠")]
    for target in given:
        write(made, target)
    answer = sign_in({made: "customer_admin"}).get(
        f"/bridge/audit/export?organization={made.slug}&format=csv&action=thing.done"
    )
    rows = csv.DictReader(io.StringIO(answer.text, newline=""))
    assert [row["target"] for row in rows][::-1] == [f"'{each}" for each in given]


def test_a_checkpoint_that_is_not_ours_is_told(
    deployed: Callable[[], Deployed], sign_in: SignIn, settings: Settings
) -> None:
    made = deployed().organization
    admin = sign_in({made: "customer_admin"})
    checkpoints.write([made.organization_id])
    file = checkpoints.path(settings)
    before = file.read_bytes()
    number = len(before.splitlines()) + 1
    try:
        file.write_bytes(before + b'{"seq": 1}\n')
        told = admin.get(f"/bridge/audit/verification?organization={made.slug}").json()
        assert told["checkpoints"] == [f"line {number} does not bear our signature"]
        assert told["problem"] is None
    finally:
        file.write_bytes(before)
    told = admin.get(f"/bridge/audit/verification?organization={made.slug}").json()
    assert told["checkpoints"] == []
