"""Two DAGs written in Python with the operators of `continuitybridge.airflow.operators`.

`example_python_operators` takes an order as JSON text, checks and reshapes it and delivers it to the warehouse; an
order too large to go unseen becomes an XML note instead. It needs an HTTP connection `demo_warehouse`.

`example_wait_for_webhook` waits until an order has come in at a flow's webhook, then goes on.
"""

from __future__ import annotations

import json
from datetime import timedelta

from airflow.sdk import DAG, Param, task

from continuitybridge.airflow.operators import (
    ConditionalBranchOperator,
    HttpDeliverOperator,
    JqOperator,
    JsonParseOperator,
    ObjectMapperOperator,
    ValidateOperator,
    WebhookSensor,
    XmlBuildOperator,
    XsltOperator,
)

ORDER = {
    "id": "PO-4711",
    "buyer": {"name": "Aurora Outdoor", "country": "CH"},
    "lines": [
        {"sku": "TENT-2P", "qty": 3, "price": 249.0},
        {"sku": "STOVE", "qty": 10, "price": 39.5},
    ],
}

ORDER_SCHEMA = {
    "type": "object",
    "required": ["id", "buyer", "lines"],
    "properties": {
        "id": {"type": "string", "minLength": 1},
        "buyer": {"type": "object", "required": ["name"]},
        "lines": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["sku", "qty", "price"],
                "properties": {"qty": {"type": "integer", "minimum": 1}},
            },
        },
    },
}

NOTE = """<xsl:stylesheet version="1.0" xmlns:xsl="http://www.w3.org/1999/XSL/Transform">
  <xsl:output method="text"/>
  <xsl:template match="/order">
    <xsl:value-of select="concat('Order ', order_number, ' of ', customer, ' is worth ', total)"/>
  </xsl:template>
</xsl:stylesheet>"""

with DAG(
    "example_python_operators",
    description="An order as JSON text: parse, validate, map, branch, deliver",
    schedule=None,
    params={"order": Param(json.dumps(ORDER), type="string", description="The order, as JSON text")},
    tags=["example"],
    default_args={"retries": 2, "retry_delay": timedelta(seconds=10)},
):
    parse = JsonParseOperator(task_id="parse", input="{{ params.order }}")

    validate = ValidateOperator(task_id="validate", input=parse.output, schema=ORDER_SCHEMA)

    total = JqOperator(
        task_id="total",
        input=validate.output,
        program=". + {total: ([.lines[] | .qty * .price] | add)}",
    )

    order = ObjectMapperOperator(
        task_id="map",
        input=total.output,
        mapping={
            "order_number": "$.id",
            "customer": "$.buyer.name",
            "total": "$.total",
            "lines": {"arrayPath": "$.lines", "itemMapping": {"sku": "$.sku", "quantity": "$.qty"}},
        },
    )

    branch = ConditionalBranchOperator(
        task_id="branch",
        input=order.output,
        branches={"note": ".total >= 100000"},
        otherwise="deliver",
    )

    deliver = HttpDeliverOperator(
        task_id="deliver",
        input=order.output,
        http_conn_id="demo_warehouse",
        endpoint="/orders",
    )

    as_xml = XmlBuildOperator(task_id="note", input=order.output, config={"root": "order"})
    text = XsltOperator(task_id="note_text", input=as_xml.output, stylesheet=NOTE)

    branch >> [deliver, as_xml]


with DAG(
    "example_wait_for_webhook",
    description="Wait for an order at a flow's webhook",
    schedule=None,
    params={
        "organization": Param("aurora", type="string"),
        "environment": Param("prod", type="string"),
        "endpoint": Param("orders", type="string", description="The slug of a webhook of a deployed flow"),
    },
    tags=["example"],
):
    arrival = WebhookSensor(
        task_id="wait",
        organization="{{ params.organization }}",
        environment="{{ params.environment }}",
        endpoint="{{ params.endpoint }}",
        timeout=3600,
    )

    @task
    def tell(message: dict[str, str]) -> str:
        """Say which message came."""
        return f"message {message['message_id']} came in for {message['flow']} {message['version']}"

    tell(arrival.output)
