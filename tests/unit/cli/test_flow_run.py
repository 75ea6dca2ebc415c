"""`bridge flow run`, as it is called: lines, exit status, what it refuses, what it leaves behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from http_server import HttpServer

BRIDGE = [sys.executable, "-c", "from continuitybridge.cli import main; main()"]
# What a shell starts in the background ignores interrupts, and so does what these tests start then.
INTERRUPTIBLE = [
    *BRIDGE[:-1],
    f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler); {BRIDGE[-1]}",
]

FLOW = """
flow: orders
version: 1.0.0
triggers:
  - {id: in, type: manual_trigger}
  - {id: other, type: manual_trigger, next: tell}
steps:
  - {id: parse, type: json_parser}
  - {id: check, type: validation, config: {rules: {id: {required: true, type: string}}}}
  - {id: work, type: jq, config: {program: 'if .do == "loop" then last(range(1e15)) else .lines[]? // . end'}}
  - {id: text, type: json_builder, next: end}
  - {id: tell, type: logger, config: {message: "told {{ message.id | length }}"}, next: end}
"""


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "orders.flow.yaml").write_text(FLOW)
    (tmp_path / "good.json").write_text('{"id": "PO-1"}')
    (tmp_path / "split.json").write_text('{"id": "PO-2", "lines": [1, 2]}')
    (tmp_path / "bad.json").write_text('{"id": 7}')
    (tmp_path / "noise.bin").write_bytes(bytes(range(256)) * 10)
    return tmp_path


def bridge(
    here: Path, *arguments: str, stdin: bytes = b"", **environment: str
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*BRIDGE, "flow", "run", "orders.flow.yaml", *arguments],
        cwd=here,
        input=stdin,
        capture_output=True,
        timeout=120,
        env={**os.environ, "BRIDGE_STATE_DIR": str(here / "state"), **environment},
    )


def lines(done: subprocess.CompletedProcess[bytes]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_one_line_per_outgoing_message_and_status_0(here: Path) -> None:
    done = bridge(here, "--input", "good.json", "--input", "split.json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == b""
    told = lines(done)
    assert [(line["kind"], line["input"], line["node"], line["body"]) for line in told] == [
        ("message", "good.json", "text", '{"id":"PO-1"}'),
        ("message", "split.json", "text", "1"),
        ("message", "split.json", "text", "2"),
    ]
    parent = told[1]["message"].removesuffix(".1")
    assert told[2]["message"] == f"{parent}.2"


def test_one_line_per_failure_with_its_reason_and_status_1(here: Path) -> None:
    done = bridge(here, "--input", "bad.json", "good.json", "noise.bin")
    assert done.returncode == 1
    by_input = {line["input"]: line for line in lines(done)}
    assert by_input["good.json"]["kind"] == "message"
    failure = by_input["bad.json"]
    assert {key: failure[key] for key in ("kind", "node", "type", "code", "verdict")} == {
        "kind": "failure",
        "node": "check",
        "type": "validation",
        "code": "validation-failed",
        "verdict": "terminal",
    }
    assert failure["facts"]["violations"][0]["path"] == "$.id"
    assert (by_input["noise.bin"]["node"], by_input["noise.bin"]["code"]) == ("parse", "invalid-payload")


def test_the_same_call_gives_the_same_lines(here: Path) -> None:
    arguments = ("--input", "good.json", "good.json", "split.json", "bad.json")
    assert bridge(here, *arguments).stdout == bridge(here, *arguments).stdout


def test_files_of_equal_content_are_messages_of_their_own(here: Path) -> None:
    told = lines(bridge(here, "--input", "good.json", "good.json"))
    assert len({line["message"] for line in told}) == 2


def test_standard_input_is_an_input(here: Path) -> None:
    done = bridge(here, "--input", "-", stdin=b'{"id": "PO-9"}')
    assert [(line["input"], line["body"]) for line in lines(done)] == [("-", '{"id":"PO-9"}')]


def test_a_trace_line_tells_each_nodes_counts(here: Path) -> None:
    done = bridge(here, "--trace", "--input", "split.json")
    trace = lines(done)[-1]
    assert (trace["kind"], trace["status"]) == ("trace", "done")
    assert [(n["node"], n["received"], n["emitted"], n["failed"]) for n in trace["nodes"]] == [
        ("in", 1, 1, 0),
        ("parse", 1, 1, 0),
        ("check", 1, 1, 0),
        ("work", 1, 2, 0),
        ("text", 2, 2, 0),
    ]
    assert all(n["duration_us"] >= 0 for n in trace["nodes"])


def test_the_trigger_can_be_chosen_and_the_log_goes_to_standard_error(here: Path) -> None:
    done = bridge(here, "--trigger", "other", "--input", "good.json")
    assert [(line["node"], line["body"]) for line in lines(done)] == [("tell", '{"id": "PO-1"}')]
    assert b"told 32" in done.stderr


def test_bytes_that_are_no_text_are_printed_as_base64(here: Path) -> None:
    (line,) = lines(bridge(here, "--trigger", "other", "--input", "noise.bin"))
    assert "body" not in line
    assert line["body_base64"].startswith("AAECAwQF")


def test_an_endless_program_fails_its_input_only(here: Path) -> None:
    (here / "loop.json").write_text('{"id": "x", "do": "loop"}')
    done = bridge(here, "--input", "loop.json", "good.json", BRIDGE_NODE_TIME_LIMIT_S="0.5")
    assert done.returncode == 1
    by_input = {line["input"]: line for line in lines(done)}
    assert by_input["good.json"]["kind"] == "message"
    assert (by_input["loop.json"]["code"], by_input["loop.json"]["facts"]["limit"]) == (
        "limit-exceeded",
        "node_time_limit_s",
    )


@pytest.mark.parametrize("endless", ["/dev/zero", "sparse"])
def test_a_file_of_any_size_is_refused_at_the_limit_without_being_read(here: Path, endless: str) -> None:
    if endless == "sparse":
        with open(here / "sparse", "wb") as file:
            file.truncate(2**40)
    done = bridge(here, "--input", endless, "good.json", BRIDGE_MAX_MESSAGE_BYTES="1000")
    assert done.returncode == 1
    by_input = {line["input"]: line for line in lines(done)}
    assert by_input[endless]["facts"] == {"limit": "max_message_bytes", "allowed": 1000, "found": 1000}
    assert by_input["good.json"]["kind"] == "message"


def test_an_empty_file_is_a_message_like_any(here: Path) -> None:
    (here / "empty").touch()
    done = bridge(here, "--input", "empty")
    assert (done.returncode, lines(done)[0]["code"]) == (1, "invalid-payload")


# -- status 2 -----------------------------------------------------------------------------------------------


def refused(done: subprocess.CompletedProcess[bytes]) -> str:
    assert done.returncode == 2, done
    assert done.stdout == b""
    assert b"Traceback" not in done.stderr
    return done.stderr.decode()


def test_missing_files_and_directories_are_all_named_before_anything_runs(here: Path) -> None:
    said = refused(bridge(here, "--input", "good.json", "nothing.json", "."))
    assert "nothing.json: No such file" in said
    assert ".: is a directory" in said


def test_a_call_without_input_is_wrong(here: Path) -> None:
    assert "--input" in refused(bridge(here))


def test_a_flow_that_is_missing_is_named(here: Path) -> None:
    (here / "orders.flow.yaml").unlink()
    assert "orders.flow.yaml" in refused(bridge(here, "--input", "good.json"))


def test_every_problem_of_the_flow_is_told(here: Path) -> None:
    text = FLOW.replace("type: json_parser", "type: jsn_parser").replace(".lines[]?", ".lines[")
    (here / "orders.flow.yaml").write_text(text)
    said = refused(bridge(here, "--input", "good.json"))
    assert "jsn_parser" in said
    assert "json_parser" in said
    assert "jq" in said
    assert "orders.flow.yaml:8" in said


def test_a_trigger_that_does_not_exist_is_wrong(here: Path) -> None:
    assert "no trigger 'on'; it has in, other" in refused(bridge(here, "--trigger", "on", "--input", "good.json"))


def test_a_bad_setting_is_named(here: Path) -> None:
    said = refused(bridge(here, "--input", "good.json", BRIDGE_NODE_TIME_LIMIT_S="soon"))
    assert "BRIDGE_NODE_TIME_LIMIT_S" in said


# -- outside ------------------------------------------------------------------------------------------------


@pytest.fixture
def warehouse() -> Iterator[Any]:
    got: list[tuple[str, str | None, bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            got.append((self.path, self.headers["authorization"], body))
            self.send_response(201)
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    server = HttpServer(("127.0.0.1", 0), Handler)
    server.got = got  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def deliver(here: Path, port: int) -> Path:
    (here / "orders.flow.yaml").write_text(
        FLOW.replace("next: end}\n  - {id: tell", "next: deliver}\n  - {id: tell")
        + "  - {id: deliver, type: http_request, config: {connection: warehouse, path: /orders}, next: end}\n"
    )
    path = here / "connections.yaml"
    path.write_text(
        f"warehouse: {{base_url: 'http://127.0.0.1:{port}', auth: {{type: bearer, token: canary-token}}}}\n"
    )
    return path


def test_a_flow_delivers_through_the_connections_file(here: Path, warehouse: Any) -> None:
    deliver(here, warehouse.server_port)
    done = bridge(here, "--connections", "connections.yaml", "--input", "good.json")
    assert done.returncode == 0, done.stdout
    assert warehouse.got == [("/orders", "Bearer canary-token", b'{"id":"PO-1"}')]
    assert b"canary" not in done.stdout + done.stderr


def test_a_connection_that_is_not_declared_fails_the_message(here: Path, warehouse: Any) -> None:
    deliver(here, warehouse.server_port)
    done = bridge(here, "--input", "good.json")
    assert (done.returncode, lines(done)[0]["code"]) == (1, "not-found")


def test_emulation_sends_nothing(here: Path, warehouse: Any) -> None:
    deliver(here, warehouse.server_port)
    done = bridge(here, "--emulate", "--input", "good.json")
    assert done.returncode == 0
    assert [line["node"] for line in lines(done)] == ["deliver"]
    assert warehouse.got == []


def test_an_interrupted_run_leaves_no_process(here: Path) -> None:
    (here / "loop.json").write_text('{"id": "x", "do": "loop"}')
    started = subprocess.Popen(
        [*INTERRUPTIBLE, "flow", "run", "orders.flow.yaml", "--input", "good.json", "loop.json"],
        cwd=here,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env={**os.environ, "BRIDGE_STATE_DIR": str(here / "state")},
    )
    with started:
        assert started.stdout is not None
        assert started.stdout.readline()
        os.killpg(started.pid, signal.SIGINT)
        assert started.wait(30) != 0
        # The pipe ends when the last process that could hold it is gone.
        assert started.stdout.read() == b""
    until = time.monotonic() + 10
    while left := in_session(started.pid):
        assert time.monotonic() < until, left
        time.sleep(0.01)


def in_session(session: int) -> list[str]:
    numbers = [entry for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [entry.name for entry in numbers if session_of(entry) == session]


def session_of(entry: Path) -> int | None:
    try:
        return int((entry / "stat").read_text().rpartition(")")[2].split()[3])
    except OSError:
        return None


def test_a_flow_that_answers_prints_what_a_caller_would_be_answered(tmp_path: Path) -> None:
    example = Path(__file__).parents[3] / "include/examples/delivery-quote"
    (tmp_path / "nowhere.json").write_text(
        '{"basket": "B-1", "country": "AQ", "lines": [{"quantity": 1, "weight_g": 1}]}'
    )
    (tmp_path / "wrong.json").write_text('{"basket": "", "country": "DE", "lines": []}')
    sample = str(example / "samples/basket.json")
    done = subprocess.run(
        [
            *BRIDGE,
            "flow",
            "run",
            str(example / "delivery-quote.flow.yaml"),
            "--input",
            sample,
            "nowhere.json",
            "wrong.json",
        ],
        cwd=tmp_path,
        capture_output=True,
        timeout=120,
        env={**os.environ, "BRIDGE_STATE_DIR": str(tmp_path / "state")},
    )
    replies = {line["input"]: line for line in lines(done) if line["kind"] == "reply"}
    asked = replies[sample]
    assert (asked["status"], asked["headers"]["cache-control"]) == (200, "private, max-age=300")
    assert json.loads(asked["body"]) == {
        "basket": "B-2291", "deliverable": True, "price": 18, "currency": "CHF", "days": 3,
    }  # fmt: skip
    assert (replies["nowhere.json"]["status"], json.loads(replies["nowhere.json"]["body"])["deliverable"]) == (
        404,
        False,
    )
    wrong = replies["wrong.json"]
    assert (wrong["status"], wrong["body"]["code"]) == (422, "validation-failed")
    assert {violation["path"] for violation in wrong["body"]["violations"]} == {"$.basket", "$.lines"}
