"""Large payloads in an object store that is reached over the network: a real S3 server beside the tests."""

from __future__ import annotations

import json
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import boto3  # type: ignore[import-untyped]
import psycopg
import pytest
from inbox_world import Deployed, done

from continuitybridge import database
from continuitybridge.errors import ConfigurationError, Unavailable
from continuitybridge.inbox import objects, offload, triage
from continuitybridge.inbox.accept import accept
from continuitybridge.inbox.claim import Claimed, claim
from continuitybridge.inbox.settle import settle
from continuitybridge.settings import get_settings

LARGE = b'{"secret": "' + b"x" * 300_000 + b'"}'


class S3:
    """A server with one bucket, and what stands in it."""

    def __init__(self, log: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.options = {"key": secrets.token_hex(8), "secret": secrets.token_hex(16), "endpoint_url": self.url}
        self.bucket = f"payloads-{secrets.token_hex(4)}"
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        with self._log.open("ab") as log:
            command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
            self._process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        self._client = boto3.client(
            "s3",
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id=self.options["key"],
            aws_secret_access_key=self.options["secret"],
        )
        until = time.monotonic() + 30
        while True:
            try:
                with socket.create_connection(("127.0.0.1", self.port), 1):
                    break
            except OSError:
                assert time.monotonic() < until, self._log.read_text()
                time.sleep(0.05)
        self._client.create_bucket(Bucket=self.bucket)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def objects(self) -> list[str]:
        found = self._client.list_objects_v2(Bucket=self.bucket)
        return [each["Key"] for each in found.get("Contents", ())]

    def get(self, key: str) -> bytes:
        return bytes(self._client.get_object(Bucket=self.bucket, Key=key)["Body"].read())

    def delete(self, key: str) -> None:
        self._client.delete_object(Bucket=self.bucket, Key=key)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    found = S3(tmp_path_factory.mktemp("s3") / "server.log")
    yield found
    found.stop()


@pytest.fixture
def store(server: S3, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    monkeypatch.setenv("BRIDGE_PAYLOAD_OFFLOAD_BYTES", "1000")
    monkeypatch.setenv("BRIDGE_PAYLOAD_STORE_URL", f"s3://{server.bucket}/bridge")
    monkeypatch.setenv("BRIDGE_PAYLOAD_STORE_OPTIONS", json.dumps(server.options))
    get_settings.cache_clear()
    yield server
    monkeypatch.undo()
    get_settings.cache_clear()


def of(store: S3, deployed: Deployed) -> list[str]:
    return [key for key in store.objects() if str(deployed.organization_id) in key]


def claimed(deployed: Deployed) -> list[Claimed]:
    return claim(deployed.dispatch(), "w", 30, 10, keys=deployed.keyring)


def pass_time(seconds: float) -> None:
    with psycopg.connect(database.owner_url()) as owner:
        owner.execute("ALTER TABLE bridge.payload_objects NO FORCE ROW LEVEL SECURITY")
        owner.execute(
            "UPDATE bridge.payload_objects SET created_at = created_at - make_interval(secs => %s),"
            " due_at = due_at - make_interval(secs => %s)",
            (seconds, seconds),
        )
        owner.execute("ALTER TABLE bridge.payload_objects FORCE ROW LEVEL SECURITY")


def test_a_payload_goes_there_encrypted_comes_back_and_is_gone_with_what_needs_it(
    store: S3, deployed: Deployed
) -> None:
    message_id = accept(deployed.acceptance(LARGE), deployed.keyring).message_id
    [key] = of(store, deployed)
    assert key.startswith("bridge/")
    assert b"xxxxxxxx" not in store.get(key)
    [unit] = claimed(deployed)
    assert (unit.message_id, unit.message.body) == (message_id, LARGE)
    settle(unit, done(unit), keys=deployed.keyring)
    assert of(store, deployed) == [key], "a settled message keeps its payload"

    # What was stored for a message that was never accepted goes when nobody can be about to commit it.
    accept(deployed.acceptance(LARGE, idempotency_key="k"), deployed.keyring)
    accept(deployed.acceptance(LARGE, idempotency_key="k"), deployed.keyring)
    assert len(of(store, deployed)) == 3
    pass_time(offload.GRACE_S + 1)
    offload.collect(everything=True)
    assert len(of(store, deployed)) == 2
    # What is left of an organization goes together, and nothing of others.
    objects.open_store().put("another/2026/object", b"x")
    assert objects.open_store().clear(str(deployed.organization_id)) == 2
    assert of(store, deployed) == []
    assert objects.open_store().get("another/2026/object") == b"x"
    assert objects.open_store().clear(str(deployed.organization_id)) == 0


def test_a_payload_that_is_lost_there_makes_a_dead_letter(store: S3, deployed: Deployed) -> None:
    message_id = accept(deployed.acceptance(LARGE), deployed.keyring).message_id
    store.delete(of(store, deployed)[0])
    assert claimed(deployed) == []
    [letter] = triage.list_dead(deployed.organization_id)
    assert (letter.message_id, letter.code) == (message_id, "payload-lost")


def test_while_it_is_down_nothing_is_accepted_or_lost(store: S3, deployed: Deployed) -> None:
    store.stop()
    try:
        with pytest.raises(Unavailable, match="did not take an object"):
            accept(deployed.acceptance(LARGE), deployed.keyring)
        small = accept(deployed.acceptance(b'{"n": 1}'), deployed.keyring).message_id
    finally:
        store.start()
    assert [unit.message_id for unit in claimed(deployed)] == [small]
    accept(deployed.acceptance(LARGE), deployed.keyring)
    assert len(of(store, deployed)) == 1


def test_options_that_it_does_not_know_are_refused_by_name(
    store: S3, monkeypatch: pytest.MonkeyPatch, deployed: Deployed
) -> None:
    monkeypatch.setenv("BRIDGE_PAYLOAD_STORE_OPTIONS", "[]")
    get_settings.cache_clear()
    with pytest.raises(ConfigurationError, match="BRIDGE_PAYLOAD_STORE_OPTIONS"):
        objects.open_store()
