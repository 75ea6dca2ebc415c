"""A destination that says our credentials again: no trace, no triage and no log tells them on."""

from __future__ import annotations

import base64
import json
import logging
import secrets as random
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import quote, quote_plus

import psycopg
import pytest
from stream_world import Flow, Working, wait_until

from continuitybridge import connections, database, secrets
from continuitybridge.inbox import triage
from continuitybridge.vault.keyring import Keyring
from http_server import HttpServer


class Echo(BaseHTTPRequestHandler):
    """Answers with what it was sent, as JSON, percent-encoded and in Base64."""

    def do_POST(self) -> None:
        said = self.headers["x-shop-key"]
        token = said.removeprefix("Token ")
        every = [said, token, quote(token, safe=""), quote_plus(said), base64.b64encode(said.encode()).decode()]
        body = json.dumps({"said": every, "text": f"you said {token}"}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("x-said", token)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def echo() -> Iterator[str]:
    server = HttpServer(("127.0.0.1", 0), Echo)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


STEPS = """
  - {id: ask, type: http_request, config: {connection: echo, response: body}, next: note}
  - {id: note, type: logger, config: {message: 'it said {{ body.text }} {{ vars.ask.headers }}'}, next: fail}
  - {id: fail, type: jq, config: {program: 'error(.text + (.said | tostring))'}, next: deliver}
"""


def test_what_a_destination_says_of_a_drawn_secret_is_told_nowhere(
    make_flow: Callable[[], Flow],
    working: Callable[..., Working],
    echo: str,
    keyring: Keyring,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    flow = make_flow()
    canary = f"{random.token_urlsafe(18)}+/ {random.token_urlsafe(18)}"
    secrets.put(flow.id, "prod", "shop", "api_key", {"api_key": f"Token {canary}", "header": "X-Shop-Key"}, "anna")
    definition = {"base_url": echo, "auth": {"type": "secret", "secret": "shop"}}
    connections.put(flow.id, "prod", "echo", definition, "anna")
    flow.deploy("2.0.0", steps=STEPS)
    with working():
        flow.send(1)
        wait_until(lambda: flow.states() == {"dead": 1})
    [dead] = triage.list_dead(flow.id)
    assert dead.node_id == "fail"
    kept = json.dumps(triage.context(flow.id, dead.failure_id, keyring))
    assert "you said [scrubbed]" in kept
    assert "it said you said" in caplog.text
    with psycopg.connect(database.owner_url()) as connection:
        rows = []
        for table in ("messages", "failures", "audit_events"):
            connection.execute(f"ALTER TABLE bridge.{table} NO FORCE ROW LEVEL SECURITY")
            rows += connection.execute(
                f"SELECT * FROM bridge.{table} WHERE organization_id = %s", (flow.id,)
            ).fetchall()
        connection.rollback()
    for place in (kept, caplog.text, repr(rows)):
        for piece in (
            *canary.split("+/ "),
            quote(canary, safe=""),
            base64.b64encode(f"Token {canary}".encode()).decode()[:40],
        ):
            assert piece not in place
