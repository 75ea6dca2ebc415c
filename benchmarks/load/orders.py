"""The order that benchmarks send, and the flows that take it."""

from __future__ import annotations

import json

ORDER = json.dumps(
    {
        "orderId": "SO-{n}",
        "createdAt": "2026-05-04T09:30:00Z",
        "currency": "CHF",
        "customer": {
            "id": "C-2041",
            "name": "Alpina Outdoor AG",
            "email": "purchasing@alpina.example",
            "address": {"street": "Seestrasse 12", "zip": "6003", "city": "Luzern", "country": "CH"},
        },
        "lines": [
            {
                "sku": f"AO-{4100 + n}",
                "description": f"Trail part {n}",
                "quantity": n % 4 + 1,
                "unitPrice": 12.5 + n,
            }
            for n in range(9)
        ],
    },
    separators=(",", ":"),
)
"""About 1 KB; `{n}` becomes the running number."""

_CHECK = """
  - id: check
    type: validation
    config:
      rules:
        orderId: {required: true, type: string}
        customer.address.country: {required: true, type: string, minLength: 2}
        lines: {required: true, minItems: 1}
"""
_DELIVER = """
  - {id: deliver, type: http_request, config: {connection: sink, path: /orders%s}}
"""

ORDER_FLOW = f"""
flow: order
version: 1.0.0
triggers:
  - {{id: in, type: webhook_trigger, config: {{slug: order}}}}
steps:
  - {{id: parse, type: json_parser}}
{_CHECK}
  - id: total
    type: jq
    config: {{program: ".total = ([.lines[] | .quantity * .unitPrice] | add)"}}
  - id: map
    type: object_mapper
    config:
      mapping:
        number: $.orderId
        buyer: $.customer.name
        country: $.customer.address.country
        value: $.total
        lines: {{arrayPath: $.lines, itemMapping: {{code: $.sku, quantity: $.quantity, price: $.unitPrice}}}}
{_DELIVER % ""}
"""
"""verify → parse → validate → jq → map → HTTP; answered when it is on disk."""

_REPLY_FLOW = f"""
flow: ask
version: 1.0.0
triggers:
  - {{id: in, type: webhook_trigger, config: {{slug: ask, reply: result%s}}}}
steps:
  - {{id: parse, type: json_parser}}
  - id: map
    type: jq
    config:
      program: |
        {{id: .orderId, buyer: .customer.name, country: .customer.address.country, currency,
         total: ([.lines[] | .quantity * .unitPrice] | add),
         items: [.lines[] | {{code: .sku, quantity, price: .unitPrice}}]}}
{_DELIVER % ", response: body"}
"""
REPLY_FLOW = _REPLY_FLOW % ""
"""What the peers' flows do: webhook → map → HTTP → reply; beside it everything that the platform does. Answered
when what became of the message is on disk."""
REPLY_WHEN_ENDED_FLOW = _REPLY_FLOW % ", result: {when: ended}"
"""The same, answered when the flow has ended."""
