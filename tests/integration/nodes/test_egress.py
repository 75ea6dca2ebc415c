"""Calls into networks that are not the internet's are refused where they are made, whatever a name said before."""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from scripted_server import ScriptedServer, answer

from authorization_server import AuthorizationServer
from certificates import self_signed
from continuitybridge import egress
from continuitybridge.engine.limits import Limits
from continuitybridge.engine.message import Message
from continuitybridge.engine.runner import Runner
from continuitybridge.engine.services import LocalServices
from continuitybridge.errors import EgressRefused, Unavailable, Verdict
from continuitybridge.flows.lint import lint
from continuitybridge.flows.load import load_flow
from continuitybridge.flows.plan import compile_flow
from continuitybridge.nodes import registry
from continuitybridge.nodes.base import AsyncNode, BuildContext, ConnectionInfo, RunContext
from continuitybridge.nodes.http.address import parse
from continuitybridge.nodes.http.client import Client
from continuitybridge.settings import Settings
from continuitybridge.webhooks.verification._jwks import KeySet

Answers = list[list[str]]


@pytest_asyncio.fixture
async def server() -> AsyncIterator[ScriptedServer]:
    scripted = ScriptedServer()
    await scripted.start()
    yield scripted
    await scripted.stop()


@pytest.fixture
def allow(settings: Settings) -> Iterator[Callable[[str], None]]:
    """What this process may call beside the internet, until the test is over."""

    def allowed(text: str) -> None:
        egress.install(egress.Policy.of(text, settings))

    before = egress.installed()
    allowed("")
    yield allowed
    egress.policy._installed = before


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> dict[str, Answers]:
    """Names of the test's own: host → what it answers, one time after the other. The last answer stays."""
    names: dict[str, Answers] = {}
    ask = socket.getaddrinfo

    def getaddrinfo(host: Any, port: Any, *rest: Any, **more: Any) -> Any:
        if host not in names:
            return ask(host, port, *rest, **more)
        answers = names[host]
        found = answers.pop(0) if len(answers) > 1 else answers[0]
        return [info for each in found for info in ask(each, port, *rest, **more)]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return names


def port_of(server: ScriptedServer) -> int:
    return parse(server.origin).origin.port


async def call(url: str, client: Client | None = None, **connection: Any) -> int:
    own = client or Client(verify=True)
    try:
        found = await own.send("POST", parse(url), "", b"{}", lambda status, headers: (1000, True))
    finally:
        if client is None:
            await own.aclose()
    return found.status


async def deliver(config: dict[str, Any], *connections: ConnectionInfo) -> Message:
    node = registry.build("http_request", config, BuildContext(flow="test", node_id="deliver"))
    assert isinstance(node, AsyncNode)
    services = LocalServices({each.name: each for each in connections}, log=lambda level, text, fields: None)
    try:
        result = await node.process(Message("m-1", {}), RunContext("deliver", services))
    finally:
        await node.aclose()
    assert isinstance(result, Message)
    return result


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.1", "0x7f.1", "2130706433", "localhost", "0.0.0.0", "[::ffff:127.0.0.1]"],
)
async def test_this_machine_is_not_called_however_it_is_written(
    server: ScriptedServer, allow: Callable[[str], None], host: str
) -> None:
    with pytest.raises(EgressRefused):
        await call(f"http://{host}:{port_of(server)}/x")
    assert server.connections == 0


async def test_what_a_superadmin_allows_is_called(server: ScriptedServer, allow: Callable[[str], None]) -> None:
    allow(f"127.0.0.1:{port_of(server)}")
    for host in ("127.0.0.1", "localhost", "127.1"):
        assert await call(f"http://{host}:{port_of(server)}/x") == 200


async def test_no_network_that_is_allowed_includes_the_platforms_own_database(
    settings: Settings, allow: Callable[[str], None]
) -> None:
    allow("0.0.0.0/0, ::/0")
    with pytest.raises(EgressRefused):
        await call(f"http://localhost:{settings.database_port}/")


async def test_a_name_that_leads_inside_is_refused_and_the_message_failed_for_good(
    server: ScriptedServer, allow: Callable[[str], None], resolver: dict[str, Answers]
) -> None:
    for inner in ("127.0.0.1", "10.0.0.7", "169.254.169.254", "::1", "::ffff:127.0.0.1"):
        resolver["wms.example"] = [[inner]]
        with pytest.raises(EgressRefused) as refused:
            await deliver({"url": f"http://wms.example:{port_of(server)}/", "retries": 3, "retry_wait_s": 60.0})
        assert refused.value.verdict is Verdict.TERMINAL
        assert inner not in refused.value.detail, "inner names are not there to be looked up"
    connection = ConnectionInfo("wms", f"http://wms.example:{port_of(server)}")
    with pytest.raises(EgressRefused):
        await deliver({"connection": "wms"}, connection)
    assert server.connections == 0


async def test_a_name_is_resolved_once_and_the_connection_goes_where_it_was_judged(
    server: ScriptedServer, allow: Callable[[str], None], resolver: dict[str, Answers]
) -> None:
    allow(f"127.0.0.1:{port_of(server)}")
    # Judged as the first answer says; the second would lead to an address that may not be called.
    resolver["rebound.example"] = [["127.0.0.1"], ["127.0.0.2"]]
    client = Client(verify=True)
    url = f"http://rebound.example:{port_of(server)}/x"
    assert await call(url, client) == 200
    assert resolver["rebound.example"] == [["127.0.0.2"]]
    assert await call(url, client) == 200, "the kept connection is the judged one"
    assert server.connections == 1
    await client.aclose()
    with pytest.raises(EgressRefused):
        await call(url)


async def test_of_several_addresses_only_those_that_may_be_called_are_tried(
    server: ScriptedServer, allow: Callable[[str], None], resolver: dict[str, Answers]
) -> None:
    allow(f"127.0.0.1:{port_of(server)}")
    resolver["mixed.example"] = [["127.0.0.2", "::1", "127.0.0.1"]]
    assert await call(f"http://mixed.example:{port_of(server)}/x") == 200
    assert server.received[0].headers["host"] == f"mixed.example:{port_of(server)}"


async def test_each_redirect_is_judged_anew(
    server: ScriptedServer, allow: Callable[[str], None], resolver: dict[str, Answers]
) -> None:
    allow(f"127.0.0.1:{port_of(server)}")
    resolver["hop.example"] = [["127.0.0.1"], ["127.0.0.1"], ["127.0.0.2"]]
    server.answers = [answer(307, location=f"/{number}", connection="close") for number in range(5)]
    url = f"http://hop.example:{port_of(server)}/start"
    with pytest.raises(EgressRefused):
        await deliver({"url": url, "follow_redirects": True, "retries": 0})
    assert [request.target for request in server.received] == ["/start", "/0"]


async def test_the_certificate_is_asked_for_the_name_not_for_the_address(
    allow: Callable[[str], None], resolver: dict[str, Answers], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from continuitybridge.nodes.http.client import tls_context

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(self_signed(tmp_path))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "server.pem"))
    tls_context.cache_clear()
    secure = ScriptedServer()
    await secure.start(context)
    try:
        allow("127.0.0.1")
        resolver["wms.example"] = [["127.0.0.1"]]
        assert await call(secure.origin) == 200
        with pytest.raises(ssl.SSLCertVerificationError, match=r"wms\.example"):
            await call(f"https://wms.example:{port_of(secure)}/")
    finally:
        await secure.stop()
        tls_context.cache_clear()


async def test_a_proxy_is_not_asked_for_what_may_not_be_called(
    server: ScriptedServer, allow: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", server.origin)
    monkeypatch.setenv("NO_PROXY", "")
    for host in ("169.254.169.254", "localhost", "0x7f.1"):
        with pytest.raises(EgressRefused):
            await call(f"http://{host}/latest/meta-data")
    assert await call("http://destination.invalid/") == 200, "a name that only the proxy knows is the proxy's"
    assert [request.target for request in server.received] == ["http://destination.invalid/"]


def test_a_node_process_follows_the_policy_of_its_owner(
    allow: Callable[[str], None],
) -> None:
    flow = """
flow: out
version: 1.0.0
triggers:
  - {id: in, type: manual_trigger}
steps:
  - {id: deliver, type: http_request, config: {connection: wms, retries: 0}}
"""
    sink = AuthorizationServer()
    url = sink.url.rpartition("/")[0]
    services = LocalServices({"wms": ConnectionInfo("wms", url)}, log=lambda level, text, fields: None)
    plan = compile_flow(load_flow(flow).flow)
    try:
        for allowed, codes in (("", ["egress-refused"]), ("127.0.0.1", ["delivery-failed"])):
            allow(allowed)
            with Runner() as runner:
                (outcome,) = runner.run(plan, [Message("m-1", {})], services=services, limits=Limits())
            assert [failure.code for failure in outcome.failures] == codes
            assert outcome.failures[0].node_id == "deliver"
    finally:
        sink.close()


async def test_a_key_set_is_not_fetched_from_inside(allow: Callable[[str], None]) -> None:
    login = AuthorizationServer()
    login.make_key("one")
    try:
        with pytest.raises(Unavailable):
            await KeySet(login.url).ensure("one")
        assert login.asked == 0
        allow("127.0.0.1")
        await KeySet(login.url).ensure("one")
        assert login.asked == 1
    finally:
        login.close()


def test_lint_names_each_address_that_is_never_called(allow: Callable[[str], None]) -> None:
    flow = """
flow: out
version: 1.0.0
triggers:
  - id: in
    type: webhook_trigger
    config:
      slug: in
      verification: {type: jwt, audience: orders, jwks_url: "https://10.0.0.1/jwks"}
steps:
  - id: inside
    type: http_request
    config: {url: "http://2130706433:9/{{ body.id }}"}
  - {id: outside, type: http_request, config: {url: "https://api.example.com/{{ body.id }}"}}
"""
    found = [(problem.line, problem.message) for problem in lint(load_flow(flow))]
    assert [line for line, _ in found] == [9, 13]
    assert all("BRIDGE_EGRESS_ALLOW" in message for _, message in found)
    allow("127.0.0.0/8, 10.0.0.1")
    assert lint(load_flow(flow)) == []
