"""Node-RED: nothing is stored; the reply comes after the delivery."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.peers import npm

PACKAGES = {"node-red": "4.1.15"}

MAP = """
const o = msg.payload;
msg.payload = {
  id: o.orderId, buyer: o.customer.name, country: o.customer.address.country, currency: o.currency,
  total: o.lines.reduce((sum, line) => sum + line.quantity * line.unitPrice, 0),
  items: o.lines.map(line => ({code: line.sku, quantity: line.quantity, price: line.unitPrice})),
};
msg.headers = {"content-type": "application/json"};
return msg;
"""


def flow(sink_url: str) -> list[dict[str, object]]:
    """webhook → map → HTTP POST → reply, as its flows file holds it."""
    return [
        {"id": "tab", "type": "tab", "label": "orders"},
        {"id": "in", "type": "http in", "z": "tab", "url": "/order", "method": "post", "wires": [["map"]]},
        {"id": "map", "type": "function", "z": "tab", "func": MAP, "outputs": 1, "wires": [["out"]]},
        {
            "id": "out", "type": "http request", "z": "tab", "method": "POST", "ret": "obj", "url": f"{sink_url}/",
            "persist": True, "wires": [["reply"]],
        },
        {"id": "reply", "type": "http response", "z": "tab", "statusCode": "200", "wires": []},
    ]  # fmt: skip


@contextmanager
def running(sink_url: str) -> Iterator[tuple[int, str]]:
    """A fresh Node-RED with the flow; gives (port, path)."""
    place = npm.install("node-red", PACKAGES, node=18)
    home = npm.HOME / "node-red-home"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    (home / "flows.json").write_text(json.dumps(flow(sink_url)))
    port = npm.free_port()
    command = [
        "node", str(place / "node_modules" / "node-red" / "red.js"), "-u", str(home), "-p", str(port),
        "--define", "uiHost=127.0.0.1", str(home / "flows.json"),
    ]  # fmt: skip
    with npm.serving("node-red", command, {}, f"http://127.0.0.1:{port}/order"):
        yield port, "/order"
