"""A batch flow delivers by a token, and the maintenance DAG refreshes it."""

from __future__ import annotations

import json

from trial import Trial, wait_until

from token_server import TokenServer

FLOW = """\
flow: send
version: 1.0.0
triggers: [{id: in, type: manual_trigger}]
steps:
  - {id: deliver, type: http_request, config: {connection: erp, path: /orders, body: "{{ message.id }}"}}
"""
AGE = """
from continuitybridge import database, organizations
organization_id = organizations.by_slug({slug!r}).organization_id
with database.tenant(organization_id) as connection:
    connection.execute("UPDATE bridge.tokens SET obtained_at = now() - interval '1 hour',"
                       " expires_at = now() + interval '4 minutes'")
"""


def test_a_batch_flow_delivers_by_a_token_that_is_refreshed_before_it_ends(trial: Trial) -> None:
    provider = TokenServer()
    try:
        tenant = trial.organization()
        declared = provider.oauth("refresh_token")
        trial.bridge(
            *("connection", "set", "erp", "-o", tenant.slug, "-e", "prod", "--base-url", declared["base_url"]),
            *("--auth-file", "-"),
            input=json.dumps(declared["auth"]),
        )
        tenant.deploy("send", FLOW)
        made = tenant.trigger("send", {"payload": {"order": 1}})
        assert made.status_code == 200, made.text
        wait_until(
            lambda: any(call.path == "/api/orders" for call in provider.calls), within_s=60, what="delivery"
        )
        [delivery] = [call for call in provider.calls if call.path == "/api/orders"]
        [token] = provider.valid
        assert delivery.headers["authorization"] == f"Bearer {token}"
        assert provider.grants() == ["refresh_token"]
        trial.python(AGE.format(slug=tenant.slug))
        made = trial.api("POST", "/dags/maintenance_token_refresh/dagRuns", json={"logical_date": None})
        assert made.status_code == 200, made.text
        run_id = made.json()["dag_run_id"]
        # The run of the minute may have come first.
        assert trial.await_run("maintenance_token_refresh", run_id, within_s=120) == "success"
        assert provider.grants() == ["refresh_token"] * 2
        log = trial.task_log("maintenance_token_refresh", run_id, "refresh")
        assert "1 refreshed" in log or "none is due" in log
        assert not [each for each in provider.valid if each in log]
    finally:
        provider.close()
