"""Providers' requests over HTTP: signatures, handshakes, methods, forms, addresses, key sets, certificates."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from authorization_server import AuthorizationServer
from continuitybridge import database
from continuitybridge.cli import bridge
from continuitybridge.inbox import payloads
from continuitybridge.vault.keyring import Keyring
from continuitybridge.webhooks import endpoints
from token_server import TokenServer

from .conftest import Deploy, Hook, Intake, end, eventually, run_intake

BODY = b'{"id": "evt_1", "type": "order"}'
JSON = {"content-type": "application/json"}
FORM = {"content-type": "application/x-www-form-urlencoded"}
SECRET = "a-providers-signing-secret-of-32"


def mac(message: bytes, algorithm: str = "sha256", secret: str = SECRET) -> bytes:
    return hmac.digest(secret.encode(), message, algorithm)


def give(hook: Hook, secret: str = SECRET) -> None:
    """Enter the provider's secret, as its operator does."""
    where = ["-o", hook.organization.slug, "-e", hook.environment]
    done = CliRunner().invoke(
        bridge, ["endpoint", "rotate-secret", hook.slug, "--secret-file", "-", *where], input=secret
    )
    assert done.exit_code == 0, done.output
    hook.secret = secret


def only_message(hook: Hook, keyring: Keyring) -> tuple[bytes, str, dict[str, str]]:
    """Body, content type and headers of the hook's only message."""
    owner = hook.organization.organization_id
    with database.tenant(owner) as tables:
        [(message_id, payload, headers, kind)] = tables.execute(
            "SELECT message_id, payload, headers, content_type FROM bridge.messages WHERE flow = %s", (hook.flow,)
        ).fetchall()
    body = payloads.open_body(keyring, owner, message_id, payload)
    return body, kind, payloads.decrypt_headers(keyring, owner, message_id, headers)


def signed(provider: str, body: bytes, at: int) -> dict[str, str]:
    """A request's headers as the provider makes them."""
    if provider == "github":
        return {"x-hub-signature-256": f"sha256={mac(body).hex()}", "x-github-delivery": "d-1"}
    if provider == "shopify":
        return {"x-shopify-hmac-sha256": base64.b64encode(mac(body)).decode(), "x-shopify-webhook-id": "d-1"}
    if provider == "stripe":
        return {"stripe-signature": f"t={at},v1={mac(f'{at}.'.encode() + body).hex()}"}
    if provider == "slack":
        value = mac(f"v0:{at}:".encode() + body).hex()
        return {"x-slack-request-timestamp": str(at), "x-slack-signature": f"v0={value}"}
    assert provider == "hmac"
    return {"x-t": str(at), "x-s": mac(f"{at}.".encode() + body, "sha512").hex()}


HMAC = {
    "type": "hmac",
    "header": "X-S",
    "algorithm": "sha512",
    "timestamp_header": "X-T",
    "signed": "{timestamp}.{body}",
}


@pytest.mark.parametrize("provider", ["github", "shopify", "stripe", "slack", "hmac"])
def test_a_providers_request_is_taken_with_its_secret_and_nobody_elses(
    client: httpx.Client, deploy: Deploy, keyring: Keyring, provider: str
) -> None:
    hook = deploy(verification=HMAC if provider == "hmac" else provider)
    give(hook)
    now = int(time.time())
    headers = {**JSON, **signed(provider, BODY, now)}
    eventually(lambda: client.post(hook.path, content=BODY, headers=headers).status_code == 202)
    assert client.post(hook.path, content=BODY + b" ", headers=headers).status_code == 401
    assert client.post(hook.path, content=BODY, headers=JSON).status_code == 401
    if provider in ("stripe", "slack", "hmac"):
        for at in (now - 400, now + 400):
            old = {**JSON, **signed(provider, BODY, at)}
            assert client.post(hook.path, content=BODY, headers=old).status_code == 401
    body, kind, kept = only_message(hook, keyring)
    assert (body, kind) == (BODY, "application/json")
    assert not [name for name in kept if "sig" in name or "hmac" in name or name == "x-s"]


def test_an_endpoint_that_waits_for_its_providers_secret_is_503_so_that_the_provider_comes_again(
    client: httpx.Client, deploy: Deploy
) -> None:
    hook = deploy(verification="stripe")
    assert hook.secret == ""
    headers = {**JSON, **signed("stripe", BODY, int(time.time()))}
    waiting = client.post(hook.path, content=BODY, headers=headers)
    assert waiting.status_code == 503
    assert int(waiting.headers["retry-after"]) >= 1
    give(hook)
    eventually(lambda: client.post(hook.path, content=BODY, headers=headers).status_code == 202)


def test_a_providers_secret_has_to_be_given_and_a_short_one_is_taken_with_a_warning(deploy: Deploy) -> None:
    hook = deploy(verification="twilio")
    where = ["-o", hook.organization.slug, "-e", hook.environment]
    refused = CliRunner().invoke(bridge, ["endpoint", "rotate-secret", hook.slug, *where])
    assert refused.exit_code == 2
    assert "provider" in refused.output
    taken = CliRunner().invoke(
        bridge, ["endpoint", "rotate-secret", hook.slug, "--secret-file", "-", *where], input="12345"
    )
    assert taken.exit_code == 0, taken.output
    assert "5 bytes" in taken.stderr
    none = deploy(verification={"type": "mtls", "subjects": ["x"]})
    refused = CliRunner().invoke(bridge, ["endpoint", "rotate-secret", none.slug, *where])
    assert "needs no secret" in refused.output


def test_a_form_that_twilio_signed_is_taken_at_the_address_it_knows(
    client: httpx.Client, deploy: Deploy, keyring: Keyring, intake: Intake
) -> None:
    from continuitybridge.settings import get_settings

    hook = deploy(verification="twilio")
    give(hook)
    url = f"{get_settings().external_url}{hook.path}?from=a%20b"
    body = b"Body=Gr%C3%BCezi+%26&From=%2B41790000000"
    signature = base64.b64encode(mac(url.encode() + "BodyGrüezi &From+41790000000".encode(), "sha1")).decode()
    headers = {**FORM, "x-twilio-signature": signature}
    eventually(lambda: client.post(hook.path + "?from=a%20b", content=body, headers=headers).status_code == 202)
    assert client.post(hook.path + "?from=b", content=body, headers=headers).status_code == 401
    assert only_message(hook, keyring)[:2] == (body, "application/x-www-form-urlencoded")


def test_slacks_url_verification_is_answered_when_it_is_signed_and_is_no_message(
    client: httpx.Client, deploy: Deploy
) -> None:
    hook = deploy(verification="slack")
    give(hook)
    body = b'{"token": "t", "challenge": "3eZbrw1aB", "type": "url_verification"}'

    def ask() -> httpx.Response:
        headers = {**JSON, **signed("slack", body, int(time.time()))}
        return client.post(hook.path, content=body, headers=headers)

    eventually(lambda: ask().status_code == 200)
    answer = ask()
    assert answer.text == "3eZbrw1aB"
    assert answer.headers["x-content-type-options"] == "nosniff"
    forged = {**JSON, **signed("slack", b"{}", int(time.time()))}
    assert client.post(hook.path, content=body, headers=forged).status_code == 401
    with database.tenant(hook.organization.organization_id) as tables:
        assert tables.execute("SELECT count(*) FROM bridge.messages").fetchone() == (0,)


def test_addresses_are_verified_by_get_as_their_providers_ask(client: httpx.Client, deploy: Deploy) -> None:
    meta = deploy(verification="meta", challenge={"type": "hub", "verify_token": "tök"})
    asked = {"hub.mode": "subscribe", "hub.challenge": "1158201444", "hub.verify_token": "tök"}
    answer = client.get(meta.path, params=asked)
    assert (answer.status_code, answer.text) == (200, "1158201444")
    assert answer.headers["content-type"].startswith("text/plain")
    assert client.get(meta.path, params={**asked, "hub.verify_token": "x"}).status_code == 422
    assert client.get(meta.path, params={**asked, "hub.challenge": "<script>\n"}).status_code == 422
    unasked = client.get(meta.path)
    assert (unasked.status_code, unasked.headers["allow"]) == (405, "GET, POST")

    twitter = deploy(
        verification={"type": "hmac", "header": "x-s", "prefix": "sha256=", "encoding": "base64"}, challenge="crc"
    )
    token = client.get(twitter.path, params={"crc_token": "abc"}).json()["response_token"]
    assert token == "sha256=" + base64.b64encode(mac(b"abc", secret=twitter.secret)).decode()

    okta = deploy(verification="api_key", challenge="okta")
    answer = client.get(okta.path, headers={"x-okta-verification-challenge": "v-1"})
    assert answer.json() == {"verification": "v-1"}

    graph = deploy(verification="api_key", challenge="echo")
    answer = client.post(graph.path, params={"validationToken": "a b"}, headers={"content-type": "text/plain"})
    assert (answer.status_code, answer.text) == (200, "a b")
    assert client.get(graph.path, params={"challenge": "c"}).text == "c"
    plain = deploy(verification="api_key")
    assert client.get(plain.path, params={"challenge": "c"}).status_code == 405


def test_other_methods_bring_messages_where_the_trigger_says_so(
    client: httpx.Client, deploy: Deploy, keyring: Keyring
) -> None:
    hook = deploy(verification="api_key", methods=["GET", "PUT"])
    key = {"x-api-key": hook.secret}
    put = client.put(hook.path, content=BODY, headers={**JSON, **key, "idempotency-key": "k"})
    assert put.status_code == 202
    assert client.post(hook.path, content=BODY, headers={**JSON, **key}).headers["allow"] == "GET, PUT"
    assert only_message(hook, keyring)[0] == BODY

    by_query = deploy(verification="api_key", methods=["GET"])
    key = {"x-api-key": by_query.secret}
    assert client.get(by_query.path + "?order=PO-1&qty=2", headers=key).status_code == 202
    assert client.get(by_query.path + "?order=PO-1&qty=2").status_code == 401
    body, kind, _ = only_message(by_query, keyring)
    assert (body, kind) == (b"order=PO-1&qty=2", "application/x-www-form-urlencoded")


@pytest.fixture(scope="module")
def proxied(settings: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Intake]:
    """An intake that believes the proxy on this machine."""
    running = run_intake(tmp_path_factory.mktemp("proxied"), BRIDGE_TRUSTED_PROXIES="127.0.0.1, 10.0.0.0/8")
    yield running
    end(running)


def test_only_allowed_addresses_may_send_and_only_a_trusted_proxy_says_who_it_is(
    client: httpx.Client, proxied: Intake, deploy: Deploy
) -> None:
    hook = deploy(allowed_ips=["203.0.113.0/24", "2001:db8::/32"])
    claimed = {"x-forwarded-for": "203.0.113.7"}
    refused = client.post(hook.path, content=BODY, headers={**hook.signed(BODY), **claimed})
    assert (refused.status_code, refused.json()["code"]) == (403, "not-allowed")

    def through_proxy(forwarded: str) -> int:
        headers = {**hook.signed(BODY), "x-forwarded-for": forwarded}
        return proxied.client.post(hook.path, content=BODY, headers=headers).status_code

    assert through_proxy("203.0.113.7") == 202
    assert through_proxy("198.51.100.1, 203.0.113.7, 10.1.2.3") == 202
    assert through_proxy("2001:db8::1") == 202
    assert through_proxy("::ffff:203.0.113.9") == 202
    for forwarded in ("198.51.100.1", "203.0.113.7, 198.51.100.1", "203.0.113.7, nonsense", "", "203.0.113.7,"):
        assert through_proxy(forwarded) == 403, forwarded
    here = deploy(allowed_ips=["127.0.0.1"])
    assert client.post(here.path, content=BODY, headers=here.signed(BODY)).status_code == 202
    forged = {**here.signed(BODY), "webhook-signature": "v1,AAAA"}
    assert client.post(here.path, content=BODY, headers=forged).status_code == 401, "in addition to the signature"


def test_a_client_certificate_is_believed_from_a_trusted_proxy_only(
    client: httpx.Client, proxied: Intake, deploy: Deploy
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "erp.example")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 7, now - timedelta(days=1), now + timedelta(days=1))
    ).sign(key, hashes.SHA256())
    hook = deploy(verification={"type": "mtls", "fingerprints": [certificate.fingerprint(hashes.SHA256()).hex()]})
    header = b":" + base64.b64encode(certificate.public_bytes(Encoding.DER)) + b":"
    headers = {**JSON, "client-cert": header.decode()}
    assert proxied.client.post(hook.path, content=BODY, headers=headers).status_code == 202
    assert client.post(hook.path, content=BODY, headers=headers).status_code == 401
    assert proxied.client.post(hook.path, content=BODY, headers=JSON).status_code == 401


@pytest.fixture
def login() -> Iterator[AuthorizationServer]:
    server = AuthorizationServer()
    yield server
    server.close()


def test_tokens_of_an_authorization_server_are_believed_once_its_keys_can_be_fetched(
    deploy: Deploy, login: AuthorizationServer, tmp_path: Path
) -> None:
    login.make_key("one")
    way = {"type": "jwt", "jwks_url": login.url, "issuer": "https://login.example", "audience": "orders"}
    hook = deploy(verification=way)
    assert hook.secret == "", "there is no secret"
    intake = run_intake(tmp_path)
    try:

        def send(token: str) -> int:
            headers = {**JSON, "authorization": f"Bearer {token}"}
            return intake.client.post(hook.path, content=BODY, headers=headers).status_code

        login.status = 500
        assert send(login.token("one")) == 503, "nobody can say yet whether it is right"
        assert login.asked == 1
        login.status = 200
        eventually(lambda: send(login.token("one")) == 202, within_s=20)
        asked = login.asked
        assert [send(login.token("one")) for _ in range(5)] == [202] * 5
        assert login.asked == asked, "the set is kept"
        for bad in (
            login.token("one", aud="others"),
            login.token("one", iss="https://other.example"),
            login.token("one", exp=time.time() - 100),
            login.token("one", key=ec.generate_private_key(ec.SECP256R1())),
        ):
            assert send(bad) == 401
        login.status = 500
        assert send(login.token("one")) == 202, "what was fetched is used on"
    finally:
        end(intake)


def test_opaque_tokens_are_asked_about_kept_a_while_and_never_taken_when_nobody_can_say(
    client: httpx.Client, deploy: Deploy, intake: Intake
) -> None:
    server = TokenServer()
    try:
        way = {"type": "introspection", "url": f"{server.url}/introspect", "client_id": server.client_id}
        hook = deploy(verification={**way, "audience": "orders", "scopes": ["write"], "cache_s": 2})
        good = {"active": True, "aud": ["orders"], "scope": "read write", "exp": time.time() + 600}
        server.introspected = {
            "good": good,
            "ended": {**good, "exp": time.time() - 1},
            "other audience": {**good, "aud": "stock"},
            "read only": {**good, "scope": "read"},
            "text": {**good, "active": "true"},
        }

        def send(token: str | None) -> int:
            headers = {**JSON, **({} if token is None else {"authorization": f"Bearer {token}"})}
            return client.post(hook.path, content=BODY, headers=headers).status_code

        assert send("good") == 503, "there is no secret yet"
        give(hook, "not-the-clients-secret")
        eventually(lambda: server.calls != [] or send("good") == 0)
        assert send("good") == 503, "the server does not know us"
        give(hook, server.client_secret)
        eventually(lambda: send("good") == 202)
        asked = len(server.calls)
        assert [send("good") for _ in range(5)] == [202] * 5
        assert len(server.calls) == asked
        for bad in ("ended", "other audience", "read only", "text", "unknown", None):
            assert send(bad) == 401, bad
        server.introspected["good"] = {"active": False}
        eventually(lambda: send("good") == 401, within_s=10)
    finally:
        server.close()
    assert send("new") == 503
    assert server.client_secret not in intake.log.read_text()


def test_the_window_of_a_key_and_what_another_body_means_are_the_triggers_to_say(
    client: httpx.Client, deploy: Deploy
) -> None:
    hook = deploy(verification="stripe", idempotency={"json_path": "$.id", "changed": "same", "window_days": 30})
    give(hook)

    def send(body: bytes) -> httpx.Response:
        headers = {**JSON, **signed("stripe", body, int(time.time()))}
        return client.post(hook.path, content=body, headers=headers)

    eventually(lambda: send(b'{"id": "evt_1", "pending": 2}').status_code == 202)
    again = send(b'{"id": "evt_1", "pending": 1}')
    assert (again.status_code, again.json()["duplicate"]) == (202, True)
    with database.tenant(hook.organization.organization_id) as tables:
        [(days,)] = tables.execute("SELECT expires_at - now() FROM bridge.idempotency_keys").fetchall()
    assert timedelta(days=29, hours=23) < days <= timedelta(days=30)

    strict = deploy(idempotency={"json_path": "$.id", "required": True})
    for body, status in ((b'{"id": "a"}', 202), (b'{"id": "a", "x": 1}', 409), (b'{"x": 1}', 422)):
        assert client.post(strict.path, content=body, headers=strict.signed(body)).status_code == status


@pytest.mark.parametrize(
    ("idempotency", "bodies"),
    [
        ({"content": True}, (b'{"n": 1}', b'{"n": 1}', b'{"n": 2}')),
        (
            {"xml_path": "/Order/Id"},
            (b"<Order><Id>1</Id></Order>", b"<Order><Id>1</Id></Order>", b"<Order><Id>2</Id></Order>"),
        ),
    ],
)
def test_a_repetition_is_told_by_the_body_however_often_it_is_signed_anew(
    client: httpx.Client, deploy: Deploy, idempotency: Any, bodies: tuple[bytes, ...]
) -> None:
    hook = deploy(idempotency=idempotency)
    kind = "application/xml" if bodies[0].startswith(b"<") else "application/json"
    answers = [
        client.post(hook.path, content=body, headers={**hook.signed(body), "content-type": kind}).json()
        for body in bodies
    ]
    assert answers[1] == {**answers[0], "duplicate": True}
    assert answers[2]["id"] != answers[0]["id"]


def test_the_rows_of_endpoints_made_before_their_settings_grew_are_read_on(
    client: httpx.Client, deploy: Deploy
) -> None:
    hook = deploy()
    old = {"content_types": ["application/json"], "idempotency": "x-order", "max_body_bytes": None}
    with database.tenant(hook.organization.organization_id) as tables:
        tables.execute(
            "UPDATE bridge.endpoints SET settings = %s, revision = nextval('bridge.deployment_revision')",
            (json.dumps(old),),
        )
    endpoints.set_status(hook.organization.organization_id, "dev", hook.slug, "active")

    def sent() -> bool:
        both = [
            client.post(hook.path, content=BODY, headers={**hook.signed(BODY), "x-order": "1"}).json()["id"]
            for _ in range(2)
        ]
        return both[0] == both[1]

    eventually(sent)


def test_the_digest_of_a_large_body_is_taken_beside_the_others(client: httpx.Client, deploy: Deploy) -> None:
    hook = deploy(verification="github", idempotency={"json_path": "$.id"})
    give(hook)
    body = b'{"id": "big", "x": "' + b"x" * 1_000_000 + b'"}'
    headers = {
        **JSON,
        "x-hub-signature-256": "sha256=" + hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest(),
    }
    eventually(lambda: client.post(hook.path, content=body, headers=headers).status_code == 202)
    assert client.post(hook.path, content=body, headers=headers).json()["duplicate"] is True
