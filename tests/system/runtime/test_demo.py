"""`make run`: the platform comes up, two real orders travel from webhook to warehouse."""

from __future__ import annotations

import json
import re
import stat

import httpx
import psutil
import pytest
from running_platform import Platform


def test_it_prints_what_became_of_the_orders_and_where_to_look(demo: tuple[Platform, str]) -> None:
    platform, printed = demo
    assert re.search(r"purchase-order\.xml → http://127\.0\.0\.1:\d+/bridge/hooks/aurora/prod/orders-ubl", printed)
    assert re.search(r"purchase-order\.json → http://127\.0\.0\.1:\d+/bridge/hooks/aurora/prod/orders\n", printed)
    assert len(re.findall(r"  message    \S+", printed)) == 2
    assert len(re.findall(r"  delivered  [\d,]+ ms after it was accepted", printed)) == 2
    assert len(re.findall(r"  warehouse  R-[0-9a-f]{12}: (?:PO-2026-004711|AO-88213) for Aurora", printed)) == 2
    assert "250 metre   CORD-6MM" in printed
    assert re.search(r"  stream of  http://\S+/dags/aurora\.prod\.order-to-warehouse\n", printed)
    assert re.search(r"  DAG run    http://\S+/dags/aurora\.prod\.order-to-warehouse/runs/manual__\S+\n", printed)
    assert printed.count(" s\n") >= 5  # each step with its time
    assert platform.url() in printed


def test_the_warehouse_has_each_order_under_the_key_of_its_message(demo: tuple[Platform, str]) -> None:
    platform, printed = demo
    key = (platform.state_dir / "keys" / "warehouse" / "aurora").read_text().strip()
    answer = httpx.get(f"{platform.url('WAREHOUSE')}/orders", headers={"X-API-Key": key})
    delivered = {order["idempotency_key"]: order["order"] for order in answer.json()["orders"]}
    for message in re.findall(r"  message    (\S+)", printed):
        order = delivered[f"{message}:deliver:1"]
        assert order["customer_gln"] == "4012345000009"
        assert all(line["quantity"] > 0 and line["unit"] for line in order["lines"])


def test_flows_may_call_the_warehouse_and_nothing_else_of_this_machine(demo: tuple[Platform, str]) -> None:
    platform, _ = demo
    rules = [line for line in (platform.state_dir / "bridge.env").read_text().splitlines() if "EGRESS" in line]
    assert rules == [f"BRIDGE_EGRESS_ALLOW={platform.url('WAREHOUSE').removeprefix('http://')}"]


def test_an_order_is_found_by_its_number(demo: tuple[Platform, str]) -> None:
    platform, printed = demo
    messages = re.findall(r"  message    (\S+)", printed)
    for number, message in zip(("AO-88213", "PO-2026-004711"), messages, strict=True):
        shown = platform.bridge(
            "inbox", "list", "-o", "aurora", "--key", f"order_number={number}", "--json"
        ).stdout
        assert message in {found["message_id"] for found in json.loads(shown)["messages"]}
    assert (
        platform.bridge("inbox", "list", "-o", "borealis", "--key", "order_number=AO-88213").stdout.count("\n")
        == 1
    )


@pytest.mark.parametrize("user", ["admin", "aurora-admin", "aurora-user", "borealis-admin", "borealis-user"])
def test_the_printed_logins_work(demo: tuple[Platform, str], user: str) -> None:
    platform, printed = demo
    found = re.search(rf"{user}, password (\S+)", printed)
    assert found, printed
    answer = httpx.post(f"{platform.url()}/auth/token", json={"username": user, "password": found[1]}, timeout=30)
    assert answer.status_code == 201, answer.text
    wrong = httpx.post(f"{platform.url()}/auth/token", json={"username": user, "password": "guess"}, timeout=30)
    assert wrong.status_code == 401


def test_a_member_sees_the_flows_of_the_own_organization_only(demo: tuple[Platform, str]) -> None:
    platform, printed = demo
    found = re.search(r"borealis-user, password (\S+)", printed)
    assert found
    credentials = {"username": "borealis-user", "password": found[1]}
    token = httpx.post(f"{platform.url()}/auth/token", json=credentials, timeout=30).json()["access_token"]
    listed = httpx.get(f"{platform.url()}/api/v2/dags", headers={"Authorization": f"Bearer {token}"}, timeout=30)
    names = {dag["dag_id"] for dag in listed.json()["dags"]}
    assert "borealis.prod.order-to-warehouse" in names
    assert {name.split(".")[0] for name in names} == {"borealis"}


def test_running_it_again_keeps_processes_and_passwords_and_delivers_two_more(demo: tuple[Platform, str]) -> None:
    platform, printed = demo
    before = platform.pids()
    again = platform.bridge("demo").stdout
    assert platform.pids() == before
    superadmin = re.search(r"admin, password (\S+)\n\s+\(shown this once", printed)
    assert superadmin
    assert superadmin[1] not in again
    assert "password in" in again
    first, second = (set(re.findall(r"  message    (\S+)", text)) for text in (printed, again))
    assert len(second) == 2
    assert not first & second


def test_everything_listens_on_the_loopback_address_only(platform: Platform) -> None:
    listening = {
        (connection.laddr.ip, str(connection.laddr.port))
        for process in platform.processes()
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    ports = {platform.settings[f"BRIDGE_{name}_PORT"] for name in ("HTTP", "DATABASE", "WAREHOUSE")}
    assert {address for address, _ in listening} == {"127.0.0.1"}
    assert ports <= {port for _, port in listening}


def test_no_secret_stands_on_a_command_line_or_in_a_file_that_others_may_read(platform: Platform) -> None:
    secrets = platform.secrets()
    assert len(secrets) >= 12
    for process in platform.processes():
        try:
            command = " ".join(process.cmdline())
        except psutil.NoSuchProcess:
            continue
        assert not [secret for secret in secrets if secret in command], command
    readable = [
        file
        for file in platform.state_dir.rglob("*")
        if file.is_file() and not file.is_symlink() and file.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO)
    ]
    exposed = [file for file in readable if any(s.encode() in file.read_bytes() for s in secrets)]
    assert exposed == []


def test_no_secret_reaches_the_logs(demo: tuple[Platform, str]) -> None:
    platform, _ = demo
    secrets = {secret.encode() for secret in platform.secrets()}
    logs = [*platform.state_dir.glob("logs/*"), *platform.state_dir.glob("airflow/logs/**/*.log")]
    assert len(logs) > 5
    for log in logs:
        text = log.read_bytes() if log.is_file() else b""
        assert not [secret for secret in secrets if secret in text], log
