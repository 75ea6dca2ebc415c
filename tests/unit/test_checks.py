"""What `make lint` looks for besides style: it finds what it is there to find."""

from __future__ import annotations

import secrets
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import orjson
import pytest

from http_server import HttpServer

CHECKS = Path(__file__).parents[2] / "scripts" / "checks"
VULNERABLE = {
    "schema_version": "1.6.0",
    "id": "PYSEC-2020-1",
    "aliases": ["CVE-2020-12345"],
    "summary": "It is broken.",
    "affected": [
        {
            "package": {"name": "flaw", "ecosystem": "PyPI"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "1.2"}]}],
        }
    ],
}


@pytest.fixture
def advisories() -> Iterator[str]:
    """An OSV service that knows of one package's flaw."""

    class Service(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = orjson.loads(self.rfile.read(int(self.headers["content-length"])))
            flawed = asked["package"]["name"] == "flaw" and asked["version"] == "1.0"
            answer = orjson.dumps({"vulns": [VULNERABLE]} if flawed else {})
            self.send_response(200)
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None: ...

    service = HttpServer(("127.0.0.1", 0), Service)
    thread = threading.Thread(target=service.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{service.server_port}/v1/query"
    service.shutdown()
    service.server_close()
    thread.join(10)


Audit = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def audit(tmp_path: Path) -> Audit:
    """Runs the check over an environment with one package, `flaw`."""

    def run(service: str, version: str = "1.0", accepted: str = "[]") -> subprocess.CompletedProcess[str]:
        metadata = tmp_path / "packages" / f"flaw-{version}.dist-info" / "METADATA"
        metadata.parent.mkdir(parents=True)
        metadata.write_text(f"Metadata-Version: 2.1\nName: flaw\nVersion: {version}\n")
        (tmp_path / "accepted.yaml").write_text(accepted)
        given = ["--path", str(tmp_path / "packages"), "--accepted", str(tmp_path / "accepted.yaml")]
        return subprocess.run(
            [sys.executable, str(CHECKS / "advisories.py"), "--service", service, *given],
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip

    return run


def test_a_package_that_is_known_to_be_vulnerable_is_named_with_the_version_that_is_not(
    advisories: str, audit: Audit
) -> None:
    done = audit(advisories)
    assert done.returncode == 1, done
    assert "flaw 1.0: PYSEC-2020-1 (fixed in: 1.2)" in done.stdout


def test_a_package_of_which_nothing_is_known_passes(advisories: str, audit: Audit) -> None:
    done = audit(advisories, version="1.2")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(("days", "code"), [(1, 0), (-2, 1)])
def test_an_accepted_one_passes_until_its_day(advisories: str, audit: Audit, days: int, code: int) -> None:
    until = (datetime.now(UTC) + timedelta(days=days)).date()
    done = audit(advisories, accepted=f"- {{id: CVE-2020-12345, why: not reachable here, until: {until}}}\n")
    assert done.returncode == code, done
    assert ("accepted until" in done.stdout) == bool(code)


def test_an_acceptance_without_a_reason_is_refused(advisories: str, audit: Audit) -> None:
    done = audit(advisories, accepted="- {id: CVE-2020-12345, until: 2999-01-01}\n")
    assert done.returncode == 1
    assert "an entry has id, why and until" in done.stderr


def test_a_service_that_cannot_be_reached_is_told_loudly_and_fails_nothing(audit: Audit) -> None:
    done = audit("http://127.0.0.1:9/v1/query")
    assert done.returncode == 0
    assert "SKIPPED" in done.stderr


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("key.pem", lambda: "-----BEGIN RSA " + "PRIVATE KEY-----\n"),
        ("a.py", lambda: f'GIVEN = "{secrets.token_urlsafe(36)}"\n'),
        ("cloud.cfg", lambda: f"id = AKIA{secrets.token_hex(8).upper()}\n"),
    ],
)
def test_a_secret_in_a_file_is_found_and_not_shown(name: str, made: Callable[[], str], tmp_path: Path) -> None:
    file, content = tmp_path / name, made()
    file.write_text(content)
    done = subprocess.run(
        [sys.executable, str(CHECKS / "leaks.py"), str(file)],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1, done
    assert f"{file}:1:" in done.stdout
    assert content.split()[-1].strip('"') not in done.stdout or name == "key.pem"
