"""A deployed flow (rows only: deploying is another room's) and what may become of its messages."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from continuitybridge import database
from continuitybridge.engine.message import Failure, Message, NodeTrace, Outcome, Output
from continuitybridge.errors import DeliveryFailed, Verdict
from continuitybridge.flows.plan import Plan, PlanNode, Stage
from continuitybridge.inbox import batches
from continuitybridge.inbox.accept import Acceptance, accept
from continuitybridge.inbox.batches import Batch
from continuitybridge.inbox.claim import Claimed
from continuitybridge.organizations import Organization
from continuitybridge.vault.keyring import Keyring


def make_plan(
    flow: str, version: str, *, nodes: Sequence[str] = ("parse", "deliver", "archive"), **changes: Any
) -> Plan:
    """A plan of stages of one node each, every one handing over to the next."""
    planned = {
        node: PlanNode(
            node,
            "logger",
            node,
            {"message": "x", "api_key": "k-123"},
            {"out": tuple(nodes[n + 1 : n + 2])},
            None,
            node,
        )
        for n, node in enumerate(nodes)
    }
    return Plan(
        flow=flow,
        version=version,
        nodes={"in": PlanNode("in", "manual_trigger", "", {}, {"out": (nodes[0],)}, None, nodes[0]), **planned},
        stages=tuple(Stage(node, (node,), tuple(nodes[max(n - 1, 0) : n])) for n, node in enumerate(nodes)),
        triggers=("in",),
        **changes,
    )


class Deployed:
    """One deployed flow of an organization and what tests do with it."""

    def __init__(self, organization: Organization, keyring: Keyring, flow: str, environment: str = "prod") -> None:
        self.organization = organization
        self.organization_id: UUID = organization.organization_id
        self.keyring = keyring
        self.flow = flow
        self.environment = environment
        self.version = "1.0.0"
        self.plan = make_plan(flow, self.version)
        self.deploy(self.plan)

    def deploy(self, plan: Plan) -> None:
        with database.tenant(self.organization_id) as connection:
            connection.execute(
                "INSERT INTO bridge.flow_versions (organization_id, flow, version, digest, source, plan,"
                " created_by)"
                " VALUES (%s, %s, %s, 'd', '', %s, 'test') ON CONFLICT DO NOTHING",
                (self.organization_id, plan.flow, plan.version, plan.to_json()),
            )
            connection.execute(
                "INSERT INTO bridge.deployments (organization_id, environment, flow, version, deployed_by)"
                " VALUES (%s, %s, %s, %s, 'test') ON CONFLICT (organization_id, environment, flow)"
                " DO UPDATE SET version = excluded.version",
                (self.organization_id, self.environment, plan.flow, plan.version),
            )
        self.version, self.plan = plan.version, plan

    def set_status(self, status: str) -> None:
        with database.tenant(self.organization_id) as connection:
            connection.execute("UPDATE bridge.deployments SET status = %s WHERE flow = %s", (status, self.flow))

    def acceptance(self, body: bytes = b'{"n": 1}', **changes: Any) -> Acceptance:
        given: dict[str, Any] = {
            "organization_id": self.organization_id,
            "environment": self.environment,
            "flow": self.flow,
            "version": self.version,
            "source": "webhook",
            "body": body,
            "content_type": "application/json",
            "headers": {"X-Request-Id": "r1"},
            "endpoint": "orders",
        }
        return Acceptance(**{**given, **changes})

    def accept(self, n: int = 1, **changes: Any) -> list[str]:
        return [
            accept(self.acceptance(json.dumps({"n": i}).encode(), **changes), self.keyring).message_id
            for i in range(n)
        ]

    def take(self, body: bytes, **changes: Any) -> str:
        """Accept this body."""
        return accept(self.acceptance(body, **changes), self.keyring).message_id

    def batch(self, n: int = 1, **changes: Any) -> tuple[Batch, list[str]]:
        """A batch of `n` fresh messages of this flow."""
        ids = self.accept(n, **changes)
        return self.dispatch(), ids

    def dispatch(self) -> Batch:
        """The one batch of this flow that is ready; other tests' flows are left alone."""
        with database.relay() as connection:
            others = connection.execute(
                "SELECT organization_id, environment, flow FROM bridge.deployments"
                " WHERE (organization_id, environment, flow) <> (%s, %s, %s)",
                (self.organization_id, self.environment, self.flow),
            ).fetchall()
        [batch] = batches.dispatch_ready(paused=others)
        return batch


def done(unit: Claimed) -> Outcome:
    return Outcome(
        unit.message.id,
        "done",
        [Output(unit.message.derive({"ok": True}), "archive")],
        trace=[NodeTrace("parse", 1, 1, 0, 12)],
    )


def handed_over(unit: Claimed, *targets: str, children: Sequence[str] = ()) -> Outcome:
    """The unit goes on at each target; with `children`, as these children."""
    outputs = [
        Output(Message(child, {"child": child}, unit.message.headers, {"seen": [1, "ä"]}), target, target)
        for target in targets
        for child in (children or [unit.message.id])
    ]
    return Outcome(unit.message.id, "handed_over", outputs, trace=[NodeTrace("parse", 1, len(outputs), 0, 9)])


def failed(
    unit: Claimed,
    *,
    verdict: Verdict = Verdict.TERMINAL,
    node: str = "deliver",
    child: str | None = None,
    outputs: Sequence[Output] = (),
    known: bool = True,
    **facts: Any,
) -> Outcome:
    """The unit failed at a node, with a secret in everything that triage keeps."""
    message = Message(
        child or unit.message.id,
        {"order": 7, "password": "s3cret-pw"},
        {"authorization": "Bearer s3cret-token"},
        {"trigger": "in"},
    )
    error = DeliveryFailed("the destination said 503", verdict=verdict, **facts)
    failure = Failure.of(message, node, "logger", error)
    failure.traceback = "Traceback: password=s3cret-pw"
    if not known:
        failure.message = None
    return Outcome(unit.message.id, "failed", list(outputs), [failure], [NodeTrace(node, 1, 0, 1, 5)])
