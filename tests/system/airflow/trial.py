"""A platform to try things on: brought up by `bridge up` with state and ports of its own, a destination that notes
what it gets, and a client of Airflow's REST API. Used by the system tests and by the benchmarks."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from secrets import token_urlsafe
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import httpx
import psutil

from continuitybridge.runtime.ports import free_port
from http_server import HttpServer

if TYPE_CHECKING:
    from mail_server import MailServer
    from openid_provider import OpenIdProvider
BRIDGE = Path(sys.executable).with_name("bridge")
ROOT = Path(__file__).resolve().parents[3]
COMMAND_TIMEOUT_S = 480


@dataclass
class Delivery:
    """One request that a destination got; `at` in seconds since the epoch."""

    path: str
    headers: Mapping[str, str]
    body: bytes
    at: float

    @property
    def data(self) -> Any:
        return json.loads(self.body)


class Destination:
    """A real HTTP server; `answer(delivery)` decides the status (default 202), and may take its time."""

    def __init__(self) -> None:
        self.deliveries: list[Delivery] = []
        self.answer: Callable[[Delivery], int] = lambda delivery: 202
        destination = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                delivery = Delivery(
                    self.path, {name.lower(): value for name, value in self.headers.items()}, body, time.time()
                )
                destination.deliveries.append(delivery)
                with contextlib.suppress(ConnectionError):
                    self.send_response(destination.answer(delivery))
                    self.send_header("content-length", "0")
                    self.end_headers()

            def log_message(self, *args: Any) -> None:
                pass

        self.server = HttpServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def of(self, path: str) -> list[Delivery]:
        return [delivery for delivery in self.deliveries if delivery.path == path]

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@dataclass
class Trial:
    """One installation. `bridge` runs the command in it, `api` asks Airflow's REST API."""

    state_dir: Path
    settings: dict[str, str] = field(default_factory=dict)
    destination: Destination = field(default_factory=Destination)
    client: httpx.Client = field(default_factory=lambda: httpx.Client(timeout=60))
    mails: MailServer | None = None
    provider: OpenIdProvider | None = None
    _clients: dict[str, httpx.Client] = field(default_factory=dict)

    @classmethod
    @contextlib.contextmanager
    def running(cls, **settings: str) -> Iterator[Trial]:
        """Bring it up, and down again at the end."""
        directory = Path(tempfile.mkdtemp(prefix="bridge-trial-"))
        ports = {
            f"BRIDGE_{n}_PORT": str(free_port()) for n in ("HTTP", "DATABASE", "REDIS", "WAREHOUSE", "INTAKE")
        }
        trial = cls(directory / "state", {**ports, "BRIDGE_EGRESS_ALLOW": "127.0.0.1", **settings})
        try:
            trial.bridge("up")
            yield trial
        finally:
            trial.bridge("down", check=False)
            trial.destination.close()
            shutil.rmtree(directory, ignore_errors=True)

    # -- the command ------------------------------------------------------------------------------------------

    @property
    def environment(self) -> dict[str, str]:
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("BRIDGE_", "AIRFLOW_")) and name != "PYTHONDONTWRITEBYTECODE"
        }
        return {**inherited, **self.settings, "BRIDGE_STATE_DIR": str(self.state_dir)}

    def bridge(
        self, *arguments: str, check: bool = True, input: str | None = None, **more: str
    ) -> subprocess.CompletedProcess[str]:
        """Run `bridge ARGUMENTS` and return what it printed."""
        result = subprocess.run(
            [str(BRIDGE), *arguments],
            env={**self.environment, **more},
            cwd=ROOT,
            input=input,
            stdin=None if input is not None else subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
            check=False,
        )
        if check and result.returncode:
            raise AssertionError(f"bridge {' '.join(arguments)}:\n{result.stdout}\n{result.stderr}")
        return result

    def python(self, code: str) -> str:
        """Run Python in the installation's environment; returns what it printed."""
        result = subprocess.run(
            [sys.executable, "-c", code],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    def accounts(self, names: Iterable[str]) -> dict[str, str]:
        """Make accounts of members; returns their passwords."""
        passwords = {name: token_urlsafe(12) for name in names}
        accounts = [
            {
                "username": name,
                "first_name": "A",
                "last_name": "Member",
                "email": f"{name}@example.com",
                "role": "Member",
                "password": password,
            }
            for name, password in passwords.items()
        ]
        self.python(
            "import io, os, sys\n"
            "from continuitybridge.runtime.environment import process_environment\n"
            "from continuitybridge.settings import get_settings\n"
            "os.environ.update(process_environment(get_settings()))\n"
            f"sys.stdin = io.StringIO({json.dumps(json.dumps(accounts))})\n"
            "from continuitybridge.airflow.provision import main\n"
            "main()\n"
        )
        return passwords

    def log(self, process: str) -> str:
        return (self.state_dir / "logs" / f"{process}.log").read_text(errors="replace")

    def processes(self) -> dict[str, psutil.Process]:
        rows = json.loads(self.bridge("status", "--json", check=False).stdout)
        return {row["name"]: psutil.Process(row["pid"]) for row in rows if row["pid"]}

    # -- organizations and flows ------------------------------------------------------------------------------

    def organization(self, slug: str = "") -> Tenant:
        """A new organization with a connection `target` to the destination."""
        slug = slug or f"org-{uuid4().hex[:8]}"
        self.bridge(
            "organization", "create", slug, "--name", f"Organization {slug}", "-e", "prod", "--tier", "enterprise"
        )
        tenant = Tenant(self, slug)
        tenant.connect("target", self.destination.url)
        return tenant

    # -- Airflow's API ----------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.settings['BRIDGE_HTTP_PORT']}"

    def sign_in(self, user: str, password: str) -> None:
        """Have `api(..., user=user)` ask as this user."""
        answer = httpx.post(f"{self.url}/auth/token", json={"username": user, "password": password}, timeout=60)
        answer.raise_for_status()
        self._clients[user] = httpx.Client(
            base_url=self.url, headers={"Authorization": f"Bearer {answer.json()['access_token']}"}, timeout=60
        )

    def api(self, method: str, path: str, *, user: str = "admin", **request: Any) -> httpx.Response:
        """`/api/v2` + path, as the superadmin or another user that has signed in."""
        if user == "admin" and user not in self._clients:
            self.sign_in("admin", (self.state_dir / "keys" / "admin.password").read_text().strip())
        return self._clients[user].request(method, f"/api/v2{path}", **request)

    def run_state(self, dag_id: str, run_id: str) -> str | None:
        answer = self.api("GET", f"/dags/{dag_id}/dagRuns/{run_id}")
        return answer.json()["state"] if answer.is_success else None

    def await_run(self, dag_id: str, run_id: str, *states: str, within_s: float = 60) -> str:
        """Wait until the run is in one of the states (default: ended)."""
        wanted = states or ("success", "failed")

        def reached() -> str | None:
            state = self.run_state(dag_id, run_id)
            return state if state in wanted else None

        return wait_until(reached, within_s=within_s, what=f"run {run_id} of {dag_id} in {wanted}")

    def task_log(self, dag_id: str, run_id: str, task_id: str, attempt: int = 1) -> str:
        """What the task said."""
        answer = self.api(
            "GET",
            f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/logs/{attempt}",
            params={"full_content": "true"},
            headers={"accept": "application/json"},
        )
        answer.raise_for_status()
        lines = []
        for line in answer.json()["content"]:
            lines.append(str(line.get("event", line)))
            lines.extend(error["exc_value"] for error in line.get("error_detail") or ())
        return "\n".join(lines)

    def runs(self, dag_id: str) -> list[dict[str, Any]]:
        """The DAG's runs, oldest first."""
        answer = self.api("GET", f"/dags/{dag_id}/dagRuns", params={"order_by": "run_after", "limit": 100})
        answer.raise_for_status()
        return list(answer.json()["dag_runs"])


@dataclass
class Tenant:
    """An organization of the trial, in its environment prod."""

    trial: Trial
    slug: str
    secrets: dict[str, str] = field(default_factory=dict)

    def dag_id(self, flow: str) -> str:
        return f"{self.slug}.prod.{flow}"

    def connect(self, name: str, url: str, secret: str = "") -> None:
        auth = ("--auth", "bearer", "--secret-file", "-") if secret else ()
        self.trial.bridge(
            "connection", "set", name, "-o", self.slug, "-e", "prod", "--base-url", url, *auth, input=secret
        )

    def deploy(self, flow: str, text: str, *, visible: bool = True) -> None:
        """Deploy a flow's text; with `visible`, return when Airflow shows this version."""
        file = self.trial.state_dir.parent / f"{self.slug}-{flow}.flow.yaml"
        file.write_text(text)
        said = self.trial.bridge("flow", "deploy", "-o", self.slug, "-e", "prod", str(file)).stdout
        for line in said.splitlines():
            words = line.split()
            if words[:1] == ["webhook"] and "secret" in words:
                self.secrets[words[1].rstrip(":")] = words[words.index("secret") + 1]
        if visible:
            version = next(line.split()[1] for line in text.splitlines() if line.startswith("version:"))
            self.await_version(flow, version)

    def await_version(self, flow: str, version: str, within_s: float = 60) -> None:
        dag_id = self.dag_id(flow)

        def shown() -> bool:
            answer = self.trial.api("GET", f"/dags/{dag_id}")
            return answer.is_success and any(tag["name"] == f"version:{version}" for tag in answer.json()["tags"])

        wait_until(shown, within_s=within_s, what=f"{dag_id} in version {version}")

    def send(self, slug: str, data: Any, **headers: str) -> str:
        """Post to a webhook verified by API key; returns the message's id."""
        answer = self.trial.client.post(
            f"{self.trial.url}/bridge/hooks/{self.slug}/prod/{slug}",
            json=data,
            headers={"x-api-key": self.secrets[slug], **headers},
        )
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def trigger(self, flow: str, conf: Any = None, **more: Any) -> httpx.Response:
        """`POST /dags/{dag_id}/dagRuns`."""
        body = {"logical_date": None, **({} if conf is None else {"conf": conf}), **more}
        return self.trial.api("POST", f"/dags/{self.dag_id(flow)}/dagRuns", json=body)

    def state_of(self, message_id: str) -> str:
        """done, skipped, dead, or where the message stands."""
        if "admin" not in self.trial._clients:
            self.trial.api("GET", "/version")
        try:
            answer = self.trial._clients["admin"].get(f"/bridge/messages/{message_id}")
        except httpx.TransportError as error:
            return f"nobody says, {error}"  # the api-server starts again
        return str(answer.json().get("state", answer.text))


def wait_until(condition: Callable[[], Any], *, within_s: float, what: str | Callable[[], str]) -> Any:
    """The condition's first true answer; fails after a bound that no working system reaches."""
    deadline = time.monotonic() + within_s
    while True:
        answer = condition()
        if answer:
            return answer
        if time.monotonic() > deadline:
            told = what if isinstance(what, str) else what()
            raise AssertionError(f"after {within_s} s still not so: {told}")
        time.sleep(0.1)


FLOW = """\
flow: order
version: {version}
description: Orders to the destination
mode: batch
labels: {{team: logistics}}
triggers:
  - {{id: order-in, type: webhook_trigger, config: {{slug: order, verification: api_key}}}}
  - id: by-hand
    type: manual_trigger
    config:
      schema:
        type: object
        required: [po]
        properties: {{po: {{type: string}}}}
steps:
  - {{id: parse, type: json_parser}}
  - {{id: shape, type: jq, config: {{program: '{{po, made_by: "{version}"}}'}}}}
  - id: deliver
    type: http_request
    config: {{connection: target, path: "/{path}", retries: 0, timeout_s: 170, attempt_timeout_s: 170}}
"""
"""A flow that delivers orders; `{version}` shows in what it sends, `{path}` is where."""


def delivered(tenant: Tenant, po: str, *, times: int = 1, within_s: float = 60) -> list[Delivery]:
    """What the destination got for this order, once it got it so many times."""

    def found() -> list[Delivery]:
        return [each for each in tenant.trial.destination.deliveries if each.data.get("po") == po]

    wait_until(lambda: len(found()) >= times, within_s=within_s, what=f"{times} deliveries of {po}")
    return found()


def settled(tenant: Tenant, message_id: str, state: str = "done", within_s: float = 60) -> None:
    wait_until(
        lambda: tenant.state_of(message_id) == state,
        within_s=within_s,
        what=f"message {message_id} {state} (is {tenant.state_of(message_id)})",
    )


class Gate:
    """A destination's answer that waits until it is let go: for the first delivery of one order."""

    def __init__(self, trial: Trial, po: str) -> None:
        self.po = po
        self.reached = threading.Event()
        self.open = threading.Event()
        trial.destination.answer = self

    def __call__(self, delivery: Delivery) -> int:
        if delivery.data.get("po") == self.po and not self.reached.is_set():
            self.reached.set()
            self.open.wait(170)
        return 202


def only_run(trial: Trial, dag_id: str, before: int) -> str:
    """The id of the run that was added to those before."""
    runs = wait_until(lambda: trial.runs(dag_id)[before:], within_s=60, what=f"a run of {dag_id}")
    return str(runs[0]["dag_run_id"])
