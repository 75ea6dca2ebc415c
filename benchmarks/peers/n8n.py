"""n8n with its defaults: SQLite, executions saved; the reply comes after the last node."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.peers import npm

PACKAGES = {"n8n": "2.8.4"}
OVERRIDES = {"xlsx": "0.18.5"}
"""The version its own manifest names is not in the npm registry."""

MAP = """
const o = $input.first().json.body;
return [{json: {
  id: o.orderId, buyer: o.customer.name, country: o.customer.address.country, currency: o.currency,
  total: o.lines.reduce((sum, line) => sum + line.quantity * line.unitPrice, 0),
  items: o.lines.map(line => ({code: line.sku, quantity: line.quantity, price: line.unitPrice})),
}}];
"""


def workflow(sink_url: str) -> dict[str, object]:
    """webhook → map → HTTP POST → reply, as its import takes it."""
    nodes = [
        {
            "id": "a", "name": "Webhook", "type": "n8n-nodes-base.webhook", "typeVersion": 2, "position": [0, 0],
            "webhookId": "orders",
            "parameters": {"httpMethod": "POST", "path": "order", "responseMode": "lastNode", "options": {}},
        },
        {
            "id": "b", "name": "Map", "type": "n8n-nodes-base.code", "typeVersion": 2, "position": [200, 0],
            "parameters": {"jsCode": MAP},
        },
        {
            "id": "c", "name": "Deliver", "type": "n8n-nodes-base.httpRequest", "typeVersion": 4.2,
            "position": [400, 0],
            "parameters": {
                "method": "POST", "url": f"{sink_url}/", "sendBody": True, "specifyBody": "json",
                "jsonBody": "={{ JSON.stringify($json) }}", "options": {},
            },
        },
    ]  # fmt: skip
    onward = {"Webhook": "Map", "Map": "Deliver"}
    return {
        "id": "orders",
        "name": "orders",
        "active": True,
        "settings": {"executionOrder": "v1"},
        "nodes": nodes,
        "connections": {
            source: {"main": [[{"node": target, "type": "main", "index": 0}]]} for source, target in onward.items()
        },
    }


@contextmanager
def running(sink_url: str) -> Iterator[tuple[int, str]]:
    """A fresh n8n with the workflow published; gives (port, path)."""
    place = npm.install("n8n", PACKAGES, node=20, overrides=OVERRIDES, compiled=("sqlite3",))
    home = npm.HOME / "n8n-home"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    (home / "orders.json").write_text(json.dumps([workflow(sink_url)]))
    port, broker = npm.free_port(), npm.free_port()
    environment = {
        "N8N_USER_FOLDER": str(home),
        "N8N_PORT": str(port),
        "N8N_LISTEN_ADDRESS": "127.0.0.1",
        "N8N_RUNNERS_BROKER_PORT": str(broker),
        "N8N_DIAGNOSTICS_ENABLED": "false",
        "N8N_VERSION_NOTIFICATIONS_ENABLED": "false",
        "N8N_TEMPLATES_ENABLED": "false",
        "N8N_PERSONALIZATION_ENABLED": "false",
        "N8N_SECURE_COOKIE": "false",
    }
    n8n = ["node", str(place / "node_modules" / "n8n" / "bin" / "n8n")]
    with (npm.HOME / "n8n-setup.log").open("w") as log:
        for arguments in (
            ["import:workflow", f"--input={home / 'orders.json'}"],
            ["publish:workflow", "--id=orders"],
        ):
            done = subprocess.run(
                [*n8n, *arguments],
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=300,
                check=False,
            )
            if done.returncode:
                raise npm.Missing(f"n8n refused {arguments[0]} (log: .bench/peers/n8n-setup.log)")
    with npm.serving("n8n", [*n8n, "start"], environment, f"http://127.0.0.1:{port}/webhook/order"):
        yield port, "/webhook/order"
