"""The work of a task over a real destination: what was said of the destination is obeyed, what it says is told."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from uuid import UUID

import pytest

from continuitybridge import database, deployments, destinations
from continuitybridge.airflow import services
from continuitybridge.airflow.work import StageWork
from continuitybridge.engine.runner import Runner
from continuitybridge.engine.services import LocalServices
from continuitybridge.errors import Unavailable
from continuitybridge.flows.load import load_flow
from continuitybridge.inbox import batches
from continuitybridge.inbox.accept import Acceptance, accept
from continuitybridge.inbox.status import status
from continuitybridge.organizations import Organization
from continuitybridge.vault.cipher import version_of
from continuitybridge.vault.keyring import Cipher, DataKeys, Keyring
from http_server import HttpServer


class Sink(HttpServer):
    """Takes deliveries, or answers with another `status`."""

    def __init__(self) -> None:
        self.status = 200
        self.keys: list[str] = []
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(BaseHTTPRequestHandler):
    server: Sink

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.server.keys.append(self.headers["idempotency-key"])
        self.send_response(self.server.status)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture
def sink() -> Iterator[Sink]:
    with Sink() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


class Flow:
    """A flow in batch mode that delivers to the sink."""

    def __init__(self, organization: Organization, keyring: Keyring, sink: Sink) -> None:
        self.owner, self.slug, self.keyring = organization.organization_id, organization.slug, keyring
        self.keys: Cipher = keyring
        text = f"""
            flow: order
            version: 1.0.0
            mode: batch
            triggers: [{{id: in, type: manual_trigger}}]
            steps:
              - id: deliver
                type: http_request
                config: {{url: "http://127.0.0.1:{sink.server_port}/", retries: 0}}
            """
        deployments.deploy(self.owner, "prod", load_flow(text), "test")

    def accept(self, number: int) -> list[str]:
        return [
            accept(
                Acceptance(self.owner, "prod", "order", "1.0.0", "manual", b'{"n": 1}'), self.keyring
            ).message_id
            for _ in range(number)
        ]

    def run(self) -> Counter[str]:
        """What a task does with what is ready now."""
        with database.relay() as connection:
            others = connection.execute(
                "SELECT organization_id, environment, flow FROM bridge.deployments WHERE organization_id <> %s",
                (self.owner,),
            ).fetchall()
        counts: Counter[str] = Counter()
        for batch in batches.dispatch_ready(paused=others):
            with Runner() as runner:
                plan = deployments.get_plan(self.owner, "order", batch.version)
                work = StageWork(batch, plan, None, "w", self.slug, self.keys, LocalServices(), runner)
                counts += work.run(fence=False)
            batches.finish(batch)
        return counts


@pytest.fixture
def flow(organization: Organization, keyring: Keyring, sink: Sink) -> Flow:
    return Flow(organization, keyring, sink)


def test_a_paused_destination_is_not_called_and_what_waited_is_delivered_when_it_is_resumed(
    flow: Flow, sink: Sink
) -> None:
    destinations.pause(flow.owner, "prod", "127.0.0.1", by="anna")
    ids = flow.accept(3)
    assert flow.run()["retry"] == 3
    assert sink.keys == []
    assert destinations.show(flow.owner, "prod", "127.0.0.1").waiting == 3
    assert flow.run() == Counter()
    destinations.resume(flow.owner, "prod", "127.0.0.1", by="anna")
    assert flow.run()["done"] == 3
    assert sorted(sink.keys) == sorted(f"{message_id}:deliver:1" for message_id in ids)
    assert [status(flow.owner, message_id).failures for message_id in ids] == [[], [], []]


def test_a_destination_that_fails_is_left_alone_by_the_next_run_until_it_works(flow: Flow, sink: Sink) -> None:
    sink.status = 503
    destinations.configure(flow.owner, "prod", "127.0.0.1", {"circuit_failures": 3, "max_concurrency": 1})
    flow.accept(6)
    assert flow.run()["retry"] == 6
    assert len(sink.keys) == 3
    shown = destinations.show(flow.owner, "prod", "127.0.0.1")
    assert (shown.circuit, shown.waiting) == ("open", 3)
    [another] = flow.accept(1)
    assert flow.run()["retry"] == 1
    assert len(sink.keys) == 3
    assert status(flow.owner, another).parts[0].attempts == 0
    sink.status = 200
    destinations.resume(flow.owner, "prod", "127.0.0.1", by="anna")
    # Those that failed before may be due by now too.
    assert flow.run()["done"] >= 4


def test_a_group_that_a_stage_completes_goes_on_in_the_same_run(
    organization: Organization, keyring: Keyring
) -> None:
    owner = organization.organization_id
    text = """
        flow: order
        version: 1.0.0
        mode: batch
        triggers: [{id: in, type: manual_trigger}]
        steps:
          - {id: read, type: json_parser}
          - {id: each, type: split}
          - {id: apart, type: jq, config: {program: '. * 2'}, isolate: true}
          - {id: sum, type: aggregate, config: {result: add}}
          - {id: check, type: validation, config: {schema: {const: 12}}}
        """
    deployments.deploy(owner, "prod", load_flow(text), "test")
    plan = deployments.get_plan(owner, "order", "1.0.0")
    message = Acceptance(owner, "prod", "order", "1.0.0", "manual", b"[1, 2, 3]", "application/json")
    message_id = accept(message, keyring).message_id
    with database.relay() as connection:
        others = connection.execute(
            "SELECT organization_id, environment, flow FROM bridge.deployments WHERE organization_id <> %s",
            (owner,),
        ).fetchall()
    [batch] = batches.dispatch_ready(paused=others)
    counts = []
    with Runner() as runner:
        for stage in plan.stages:
            work = StageWork(
                batch, plan, stage.id, f"w/{stage.id}", organization.slug, keyring, LocalServices(), runner
            )
            counts.append(work.run(fence=False)["claimed"])
    assert counts == [1, 3, 4]
    assert batches.finish(batch)
    assert status(owner, message_id).state == "done"


class ApiServer:
    """Answers a task's questions for its keys by the real secrets backend, or is away."""

    def __init__(self, organization_id: UUID) -> None:
        from continuitybridge.airflow.secrets import FlowTask

        self.task = FlowTask(organization_id, "prod")
        self.asked = 0
        self.away = False

    def __call__(self) -> DataKeys:
        self.asked += 1
        if self.away:
            raise Unavailable("the api-server does not answer")
        return DataKeys.from_json(self.task.keys()["extra"])


def rotated(flow: Flow) -> None:
    with database.platform() as connection:
        flow.keyring.create_key(connection, flow.owner)
    flow.keyring.forget()


def test_a_task_that_outlives_a_data_key_reads_and_writes_under_the_next_one(
    flow: Flow, sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    api_server = ApiServer(flow.owner)
    flow.keys = services.TaskKeys(api_server)
    rotated(flow)
    # What is met under the new key is a reason to ask at once.
    flow.accept(1)
    assert flow.run()["done"] == 1
    assert api_server.asked == 2
    rotated(flow)
    written = flow.keys.encrypt(flow.owner, "test", "1", b"x")
    assert (version_of(written), api_server.asked) == (2, 2)
    # A minute later.
    monkeypatch.setattr(services, "PATIENCE_S", 30.0)
    monkeypatch.setattr(services, "REFRESH_S", 0.0)
    monkeypatch.setattr(services, "ASK_AGAIN_S", 0.0)
    written = flow.keys.encrypt(flow.owner, "test", "1", b"x")
    assert version_of(written) == 3


def test_while_the_api_server_is_away_a_task_goes_on_with_the_keys_it_holds_for_a_bounded_time(
    flow: Flow, sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    api_server = ApiServer(flow.owner)
    flow.keys = services.TaskKeys(api_server)
    flow.accept(2)
    api_server.away = True
    monkeypatch.setattr(services, "PAUSE_S", 60.0)
    monkeypatch.setattr(services, "REFRESH_S", 0.0)
    monkeypatch.setattr(services, "ASK_AGAIN_S", 0.0)
    assert flow.run()["done"] == 2
    assert api_server.asked == 2
    monkeypatch.setattr(services, "KEPT_S", 0.0)
    with pytest.raises(Unavailable):
        flow.keys.encrypt(flow.owner, "test", "1", b"x")
    api_server.away = False
    flow.accept(1)
    assert flow.run()["done"] == 1
