"""Google's credentials where a metadata server has them, which gives them late, or never."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from uuid import uuid4

import pytest
from key_services import GcpService

from clock import Clock
from continuitybridge.errors import Unavailable
from continuitybridge.vault import kms
from continuitybridge.vault.kms import KmsKey
from continuitybridge.vault.wrapping import Place


class Metadata:
    """A metadata server of Google's, which says that it is there and gives tokens when it may."""

    def __init__(self) -> None:
        self.gives, self.over = threading.Event(), threading.Event()
        self.fails = False
        self.asked: list[str] = []
        metadata = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                metadata.asked.append(self.path)
                answer = "tests"
                if "/service-accounts/" in self.path:
                    while not (metadata.gives.wait(0.1) or metadata.over.is_set()):
                        pass
                    token = {"access_token": "the-token", "expires_in": 3600, "token_type": "Bearer"}
                    account = {"email": "x@tests.example", "aliases": []}
                    answer = json.dumps(token if "/token" in self.path else account)
                self.send_response(404 if metadata.fails and "/token" in self.path else 200)
                self.send_header("Metadata-Flavor", "Google")
                self.send_header("Content-Type", "application/json" if answer != "tests" else "text/plain")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer.encode())

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.place = f"127.0.0.1:{self._server.server_port}"

    @property
    def tokens_asked(self) -> int:
        return sum("/service-accounts/" in each for each in self.asked)

    def close(self) -> None:
        self.over.set()
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def metadata(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Metadata]:
    from google.auth.compute_engine import _metadata

    server = Metadata()
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.setenv("GCE_METADATA_IP", server.place)
    # Google's library reads these when it is imported.
    monkeypatch.setattr(_metadata, "_GCE_METADATA_HOST", server.place)
    monkeypatch.setattr(_metadata, "_NO_GCE_CHECK", False)
    yield server
    server.close()


def test_a_metadata_server_that_hangs_holds_one_thread_and_nobody_for_long(
    gcp_service: GcpService, metadata: Metadata, monkeypatch: pytest.MonkeyPatch
) -> None:
    from continuitybridge.vault.kms import google_credentials

    monkeypatch.setattr(google_credentials, "WAIT_S", 0.5)
    clients = google_credentials.Clients(lambda credentials: credentials, ())

    def ask(_: int) -> float:
        began = time.monotonic()
        with pytest.raises(Unavailable, match="take long") as late:
            clients.get()
        assert late.value.facts["retry_after_s"] == 5
        return time.monotonic() - began

    with ThreadPoolExecutor(20) as pool:
        assert max(pool.map(ask, range(40))) < 1.0
    assert metadata.tokens_asked == 1
    metadata.gives.set()
    for _ in range(100):
        with contextlib.suppress(Unavailable):
            clients.get()
            break
        time.sleep(0.05)
    headers: dict[str, str] = {}
    asked = metadata.tokens_asked
    clients.get().before_request(None, "POST", "https://cloudkms.googleapis.com/", headers)
    assert headers["authorization"] == "Bearer the-token"
    # One that ends soon is used, while another is got.
    clients._found.expiry = datetime.now(UTC).replace(tzinfo=None) + timedelta(minutes=2)
    metadata.gives.clear()
    began = time.monotonic()
    for _ in range(20):
        clients.get()
    assert time.monotonic() - began < 0.4
    metadata.gives.set()
    for _ in range(100):
        if clients._found.expiry - datetime.now(UTC).replace(tzinfo=None) > timedelta(minutes=50):
            break
        time.sleep(0.05)
    else:
        pytest.fail("no other token was got")
    assert metadata.tokens_asked > asked
    # Google's stand-in takes none but an account's own.
    kms._services.clear()
    key = KmsKey(gcp_service.reference)
    with pytest.raises(Unavailable, match="not taken"):
        key.wrap(Place(uuid4(), 1), b"k" * 32)
    scopes = ("https://www.googleapis.com/auth/cloud-platform", "https://www.googleapis.com/auth/cloudkms")
    assert f"scopes={','.join(scopes)}" in unquote(metadata.asked[-1])
    kms._services.clear()
    kms._resting.clear()


def test_that_there_are_none_is_told_at_once_for_a_while_where_it_took_long_to_say(
    gcp_service: GcpService, metadata: Metadata, monkeypatch: pytest.MonkeyPatch
) -> None:
    from google.auth.exceptions import GoogleAuthError

    from continuitybridge.vault.kms import google_credentials

    clock = Clock()
    monkeypatch.setattr(google_credentials, "time", clock)
    monkeypatch.setattr(google_credentials, "WAIT_S", 0.2)
    clients = google_credentials.Clients(lambda credentials: credentials, ())
    with pytest.raises(Unavailable, match="take long"):
        clients.get()
    clock.now += 1
    metadata.fails = True
    metadata.gives.set()
    until = time.monotonic() + 10
    while clients._failed is None:
        assert time.monotonic() < until
        time.sleep(0.01)
    asked = metadata.tokens_asked
    for _ in range(3):
        with pytest.raises(GoogleAuthError):
            clients.get()
    clock.now += 2.0 - 0.001
    with pytest.raises(GoogleAuthError):
        clients.get()
    assert metadata.tokens_asked == asked
    clock.now += 0.001
    metadata.fails = False
    assert clients.get() is not None
    assert metadata.tokens_asked > asked
