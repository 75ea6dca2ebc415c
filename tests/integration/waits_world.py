"""Deployed flows whose messages wait, and workers for them: claim, run, settle, as the tasks of a run do, or as a
stream worker does."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterable
from itertools import groupby
from typing import Any
from uuid import UUID

from continuitybridge import database, deployments
from continuitybridge.engine.limits import Limits
from continuitybridge.engine.message import Outcome
from continuitybridge.engine.runner import run_inline
from continuitybridge.engine.services import LocalServices
from continuitybridge.flows.load import load_flow
from continuitybridge.flows.plan import Plan
from continuitybridge.inbox import batches, claim, reconcile, status
from continuitybridge.inbox.accept import Acceptance, accept
from continuitybridge.inbox.accept.rows import Mode
from continuitybridge.inbox.batches import Batch
from continuitybridge.inbox.claim import Claimed
from continuitybridge.inbox.settle import Became, RetryPolicy, settle_many
from continuitybridge.inbox.settle.endings import ending_of
from continuitybridge.inbox.status import MessageStatus
from continuitybridge.inbox.stream.claim import StreamClaims, Wanted
from continuitybridge.inbox.stream.settling import StreamSettlements
from continuitybridge.inbox.waits import release_due
from continuitybridge.organizations import Organization
from continuitybridge.vault.keyring import Keyring

POLICY = RetryPolicy(max_attempts=3, base_s=0.0, max_s=0.0)


class World:
    """Flows of one organization in prod. What leaves them is kept in `left`: (message id, node, body)."""

    def __init__(self, organization: Organization, keyring: Keyring, mode: Mode = "batch") -> None:
        self.mode: Mode = mode
        self.organization_id: UUID = organization.organization_id
        self.keyring = keyring
        self.plans: dict[str, Plan] = {}
        self.left: list[tuple[str, str, Any]] = []
        self.batches: list[Batch] = []

    def deploy(self, name: str, *steps: str, version: str = "1.0.0", triggers: Iterable[str] = ("in",)) -> None:
        """A flow of these steps behind manual triggers."""
        text = (
            f"flow: {name}\nversion: {version}\nmode: {self.mode}\ntriggers:\n"
            + "".join(f"  - {{id: {each}, type: manual_trigger}}\n" for each in triggers)
            + "steps:\n  - {id: read, type: json_parser}\n"
            + "".join(f"  - {step}\n" for step in steps)
        )
        deployments.deploy(self.organization_id, "prod", load_flow(text), "test")
        self.plans[f"{name}/{version}"] = deployments.get_plan(self.organization_id, name, version)

    def accept(self, flow: str, body: Any, message_id: str | None = None, *, trigger: str | None = None) -> str:
        plan = [plan for plan in self.plans.values() if plan.flow == flow][-1]
        made = Acceptance(
            *(self.organization_id, "prod", flow, plan.version, "manual", json.dumps(body).encode()),
            content_type="application/json",
            message_id=message_id,
            trigger=trigger,
            mode=self.mode,
        )
        return accept(made, self.keyring).message_id

    def version(self, flow: str) -> str:
        """The one deployed last."""
        return [plan for plan in self.plans.values() if plan.flow == flow][-1].version

    # -- working ----------------------------------------------------------------------------------------------

    def claim(self, owner: str = "worker") -> list[Claimed]:
        """Everything that is available now: in batches that are open, as their tasks find it, and in new ones."""
        if self.mode == "stream":
            return asyncio.run(self._claim_streaming(owner))
        with database.relay() as connection:
            others = connection.execute(
                "SELECT organization_id, environment, flow FROM bridge.deployments WHERE organization_id <> %s",
                (self.organization_id,),
            ).fetchall()
        self.batches += batches.dispatch_ready(paused=others, max_open_per_flow=10_000)
        taken: list[Claimed] = []
        for batch in self.batches:
            taken += claim.claim(batch, owner, 60.0, 1_000, keys=self.keyring)
        if not taken:
            self.batches = [batch for batch in self.batches if not batches.finish(batch)]
        return taken

    async def _claim_streaming(self, owner: str) -> list[Claimed]:
        claims = StreamClaims(owner, 60.0)
        flows = [key for key in await claims.ready_flows() if key[0] == self.organization_id]
        sealed = await claims.claim([Wanted(*key, 1_000) for key in flows], 10_000_000)
        await claims.close()
        return [each.open(self.keyring, owner) for each in sealed]

    def run(self, units: Iterable[Claimed]) -> list[tuple[Claimed, Outcome]]:
        """Each by the stage in which it stands."""
        found: list[tuple[Claimed, Outcome]] = []
        waiting = list(units)
        while waiting:
            first = waiting[0]
            plan, stage = self.place(first)
            # The engine tells messages apart by their ids, of which two branches may have the same.
            now = {unit.message.id: unit for unit in reversed(waiting) if self.place(unit) == (plan, stage)}
            waiting = [unit for unit in waiting if unit not in now.values()]
            outcomes = run_inline(
                plan,
                [unit.message for unit in now.values()],
                services=LocalServices(log=lambda *_: None),
                limits=Limits(),
                stage=stage,
                entry={name: unit.entry for name, unit in now.items() if unit.entry is not None},
            )
            found += [(now[outcome.message_id], outcome) for outcome in outcomes]
        self.left += [
            (each.message.id, each.node_id, each.message.body)
            for _, outcome in found
            for each in outcome.outputs
            if each.stage is None
        ]
        return found

    def place(self, unit: Claimed) -> tuple[Plan, str | None]:
        plan = self.plans[f"{unit.flow}/{unit.version}"]
        if self.mode == "stream":
            return plan, None
        return plan, plan.stages[0].id if unit.entry is None else plan.nodes[unit.entry].stage

    def settle(self, units: Iterable[Claimed], *, together: int = 1) -> list[Became]:
        """Run units and settle so many in a transaction."""
        units = list(units)
        found = sorted(self.run(units), key=lambda each: units.index(each[0]))
        became: list[Became] = []
        for at in range(0, len(found), together):
            chunk = found[at : at + together]
            if self.mode == "stream":
                endings = [ending_of(*each, self.keyring, self.place(each[0])[0], POLICY) for each in chunk]
                became += asyncio.run(StreamSettlements().settle(endings))
                continue
            # A task settles units of one flow version.
            for plan, of in groupby(chunk, key=lambda each: self.place(each[0])[0]):
                became += settle_many(list(of), keys=self.keyring, plan=plan, policy=POLICY)
        return became

    def work(self) -> None:
        """Until nothing is left that could go on now."""
        while True:
            release_due()
            units = self.claim()
            if not units:
                break
            self.settle(units)
        assert reconcile.violations(self.organization_id) == []

    def run_once(self) -> bool:
        """One run, as Airflow makes it: each stage's task works until it finds nothing, and does not come back.
        Whether its batch is closed then."""
        with database.relay() as connection:
            others = connection.execute(
                "SELECT organization_id, environment, flow FROM bridge.deployments WHERE organization_id <> %s",
                (self.organization_id,),
            ).fetchall()
        [batch] = batches.dispatch_ready(paused=others)
        [plan] = [plan for plan in self.plans.values() if plan.flow == batch.flow]
        for stage in plan.stages:
            while units := claim.claim(batch, "task", 60.0, 1_000, stage.id, keys=self.keyring):
                self.settle(units)
        return batches.finish(batch)

    def work_until(self, done: Any, timeout_s: float = 20.0) -> None:
        until = time.monotonic() + timeout_s
        while not done():
            assert time.monotonic() < until, "it did not happen"
            self.work()
            time.sleep(0.05)

    # -- looking ----------------------------------------------------------------------------------------------

    def status(self, message_id: str) -> MessageStatus:
        return status.status(self.organization_id, message_id)

    def states(self, *message_ids: str) -> list[str]:
        return [self.status(message_id).state for message_id in message_ids]

    def bodies(self) -> list[Any]:
        return [body for _, _, body in self.left]

    def count(self, table: str) -> int:
        with database.tenant(self.organization_id) as connection:
            [(count,)] = connection.execute(f"SELECT count(*) FROM bridge.{table}")  # type: ignore[arg-type]
        return int(count)
