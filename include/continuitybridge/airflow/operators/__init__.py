"""Operators for DAGs that people write in Python: the nodes of flows as tasks, deliveries by Airflow's
connections, a sensor for webhooks. Public and stable; the modules behind it are not. Documented in
`docs/python-operators.md`.

    from continuitybridge.airflow.operators import JqOperator, JsonParseOperator

Errors become task states in one way everywhere: what may pass (`transient`) raises `AirflowException`, so that
the task's `retries` apply; what would fail again (`terminal`) raises `AirflowFailException`, and the task fails at
once.
"""

from continuitybridge.airflow.operators.branch import ConditionalBranchOperator
from continuitybridge.airflow.operators.http import HttpDeliverOperator
from continuitybridge.airflow.operators.node import NodeOperator
from continuitybridge.airflow.operators.nodes import (
    CsvParseOperator,
    FilterOperator,
    JqOperator,
    JsonBuildOperator,
    JsonParseOperator,
    ObjectMapperOperator,
    ValidateOperator,
    XmlBuildOperator,
    XmlParseOperator,
    XsltOperator,
)
from continuitybridge.airflow.operators.postgres import PostgresWriteOperator
from continuitybridge.airflow.operators.webhook import WebhookSensor, WebhookTrigger

__all__ = [
    "ConditionalBranchOperator",
    "CsvParseOperator",
    "FilterOperator",
    "HttpDeliverOperator",
    "JqOperator",
    "JsonBuildOperator",
    "JsonParseOperator",
    "NodeOperator",
    "ObjectMapperOperator",
    "PostgresWriteOperator",
    "ValidateOperator",
    "WebhookSensor",
    "WebhookTrigger",
    "XmlBuildOperator",
    "XmlParseOperator",
    "XsltOperator",
]
