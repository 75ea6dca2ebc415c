"""Each answer of intake, from a real server with a real database."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest

from continuitybridge import database, deployments, destinations
from continuitybridge.flows.load import load_flow
from continuitybridge.inbox import holds
from continuitybridge.organizations import Organization
from continuitybridge.vault.keyring import Keyring
from continuitybridge.webhooks import endpoints

from .conftest import Deploy, Hook, Intake, end, eventually, flow_text, run_intake

BODY = b'{"po_number": "4711", "country": "CH"}'


def problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The response's problem details (RFC 9457), checked for what every one has."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    found: dict[str, Any] = response.json()
    assert found["status"] == status
    assert found["code"] == code
    assert found["type"] == f"urn:continuitybridge:problem:{code}"
    assert found["title"]
    UUID(found["instance"].removeprefix("urn:uuid:"))
    return found


def stored(hook: Hook, keyring: Keyring) -> list[tuple[str, bytes, dict[str, str]]]:
    """(id, body, headers) of the hook's messages, decrypted."""
    from continuitybridge.inbox import payloads

    owner = hook.organization.organization_id
    with database.tenant(owner) as connection:
        rows = connection.execute(
            "SELECT message_id, payload, headers FROM bridge.messages WHERE flow = %s ORDER BY message_id",
            (hook.flow,),
        ).fetchall()
    return [
        (
            message_id,
            payloads.open_body(keyring, owner, message_id, payload),
            payloads.decrypt_headers(keyring, owner, message_id, headers),
        )
        for message_id, payload, headers in rows
    ]


def test_a_signed_message_is_answered_with_202_when_its_row_is_there(
    client: httpx.Client, deploy: Deploy, keyring: Keyring
) -> None:
    hook = deploy()
    headers = {**hook.signed(BODY), "x-tenant-hint": "erp", "cookie": "session=1", "user-agent": "erp/7"}
    response = client.post(hook.path, content=BODY, headers=headers)
    assert response.status_code == 202, response.text
    answer = response.json()
    assert answer["duplicate"] is False
    assert f"/bridge/messages/{answer['id']}?token=" in answer["status_url"]
    assert response.headers["location"] == answer["status_url"]
    [(message_id, body, kept)] = stored(hook, keyring)
    assert message_id == answer["id"]
    assert body == BODY
    assert kept["x-tenant-hint"] == "erp"
    assert kept["user-agent"] == "erp/7"
    assert kept["webhook-id"] == headers["webhook-id"]
    assert not {"webhook-signature", "cookie", "authorization"} & kept.keys()
    with database.tenant(hook.organization.organization_id) as connection:
        row = connection.execute(
            "SELECT environment, version, source, endpoint, trigger_id, state, mode, content_type, size_bytes,"
            " payload"
            " FROM bridge.messages WHERE message_id = %s",
            (message_id,),
        ).fetchone()
    assert row is not None
    assert row[:7] == ("dev", "1.0.0", "webhook", hook.slug, "in", "accepted", "stream")
    assert row[7:9] == ("application/json", len(BODY))
    assert b"4711" not in row[9]


def test_every_answer_of_the_server_alone_tells_browsers_to_run_nothing(intake: Intake, deploy: Deploy) -> None:
    hook = deploy()
    answers = [
        intake.post(hook),
        intake.post(hook, headers={"content-type": "application/json"}),
        intake.client.get("/nothing"),
        intake.client.get("/bridge/health/live"),
    ]
    assert [each.status_code for each in answers] == [202, 401, 404, 200]
    for answer in answers:
        assert answer.headers.get_list("x-content-type-options") == ["nosniff"]
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"


def test_the_path_of_a_public_address_may_stand_before_an_endpoint_s(deploy: Deploy, tmp_path: Path) -> None:
    hook = deploy()
    limits = {"BRIDGE_LIMIT_WEBHOOKS_PER_ADDRESS": "2/hour", "WAF_RATE_LIMIT_MAX_REQUESTS": "1"}
    proxy = {"BRIDGE_PUBLIC_URL": "https://example.com/hub/", "BRIDGE_TRUSTED_PROXIES": "127.0.0.1"}
    intake = run_intake(tmp_path, **proxy, **limits)
    try:
        for path in ("/hub", ""):
            assert intake.client.get(f"{path}/bridge/health/live").status_code == 200
            answer = intake.client.post(f"{path}{hook.path}", content=BODY, headers=hook.signed(BODY))
            assert answer.status_code == 202
            assert answer.json()["status_url"].startswith("https://example.com/hub/bridge/messages/")
        assert intake.client.get(f"/hub/hub{hook.path}").status_code == 404
        assert intake.client.get(f"/hubbub{hook.path}").status_code == 404
        # The guard knows it for a webhook all the same: its limits are those, and not a stranger's.
        for sender, path in (("203.0.113.8", ""), ("203.0.113.9", "/hub")):
            assert [
                intake.client.post(
                    f"{path}{hook.path}", content=BODY, headers=hook.signed(BODY) | {"x-forwarded-for": sender}
                ).status_code
                for _ in range(3)
            ] == [202, 202, 429]
    finally:
        end(intake)


def test_the_same_id_again_gives_the_same_message_and_says_so(
    client: httpx.Client, deploy: Deploy, keyring: Keyring
) -> None:
    hook = deploy()
    first = client.post(hook.path, content=BODY, headers=hook.signed(BODY, message_id="msg-1")).json()
    second = client.post(hook.path, content=BODY, headers=hook.signed(BODY, message_id="msg-1"))
    assert second.status_code == 202
    assert second.json() == {**first, "duplicate": True}
    assert len(stored(hook, keyring)) == 1


def test_the_same_id_with_another_body_is_a_conflict(client: httpx.Client, deploy: Deploy) -> None:
    hook = deploy()
    client.post(hook.path, content=BODY, headers=hook.signed(BODY, message_id="msg-1"))
    other = b'{"po_number": "4712"}'
    problem(client.post(hook.path, content=other, headers=hook.signed(other, message_id="msg-1")), 409, "conflict")


def test_an_unknown_endpoint_and_an_address_that_is_none_are_404(client: httpx.Client, deploy: Deploy) -> None:
    hook = deploy()
    for path in (
        hook.path + "x",
        hook.path + "/more",
        "/bridge/hooks/nobody/dev/orders",
        f"/bridge/hooks/{hook.organization.slug}/prod/{hook.slug}",
        "/bridge/hooks/",
        "/bridge/hooks",
        "/",
        "/api/webhook/orders",
        "/bridge/hooks/%2e%2e/%00/x",
    ):
        problem(client.post(path, content=BODY, headers=hook.signed(BODY)), 404, "not-found")


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"])
def test_another_method_is_405_and_names_the_one_that_works(
    client: httpx.Client, deploy: Deploy, method: str
) -> None:
    hook = deploy()
    response = client.request(method, hook.path)
    assert response.status_code == 405
    assert response.headers["allow"] == "POST"


def test_a_wrong_signature_is_401_and_leaves_a_record_without_secrets(
    client: httpx.Client, deploy: Deploy, keyring: Keyring
) -> None:
    hook = deploy()
    headers = hook.signed(BODY)
    forged = {**headers, "webhook-signature": "v1," + "A" * 43 + "="}
    for _ in range(3):
        found = problem(client.post(hook.path, content=BODY, headers=forged), 401, "not-authenticated")
        assert found["detail"]
    response = client.post(hook.path, content=BODY, headers=forged)
    assert response.headers["www-authenticate"]
    assert stored(hook, keyring) == []
    rows: list[Any] = []
    deadline = time.monotonic() + 15
    while sum(row[3] for row in rows) < 4 and time.monotonic() < deadline:
        time.sleep(0.2)
        with database.tenant(hook.organization.organization_id) as connection:
            rows = connection.execute(
                "SELECT environment, endpoint, code, count, last_detail FROM bridge.refusals"
            ).fetchall()
    assert {row[:3] for row in rows} == {("dev", hook.slug, "not-authenticated")}
    assert sum(row[3] for row in rows) == 4
    assert "A" * 43 not in repr(rows)


@pytest.mark.parametrize("timestamp", ["soon", "1e9", "", "-5", "0", "99999999999999999999", "1790000000.5"])
def test_a_malformed_or_distant_timestamp_is_401_and_never_500(
    client: httpx.Client, deploy: Deploy, timestamp: str
) -> None:
    hook = deploy()
    headers = {**hook.signed(BODY), "webhook-timestamp": timestamp}
    problem(client.post(hook.path, content=BODY, headers=headers), 401, "not-authenticated")


@pytest.mark.parametrize("offset", [-400, 400])
def test_a_valid_signature_of_another_time_is_401(client: httpx.Client, deploy: Deploy, offset: int) -> None:
    hook = deploy()
    headers = hook.signed(BODY, at=time.time() + offset)
    problem(client.post(hook.path, content=BODY, headers=headers), 401, "not-authenticated")


def test_an_api_key_is_taken_in_either_header_and_idempotency_key_counts(
    client: httpx.Client, deploy: Deploy, keyring: Keyring
) -> None:
    hook = deploy(verification="api_key")
    json = {"content-type": "application/json"}
    one = client.post(hook.path, content=BODY, headers={**json, "x-api-key": hook.secret, "idempotency-key": "k"})
    two = client.post(
        hook.path,
        content=BODY,
        headers={**json, "authorization": f"Bearer {hook.secret}", "idempotency-key": "k"},
    )
    assert (one.status_code, two.status_code) == (202, 202)
    assert two.json() == {**one.json(), "duplicate": True}
    keyless = [client.post(hook.path, content=BODY, headers={**json, "x-api-key": hook.secret}) for _ in range(2)]
    assert len({response.json()["id"] for response in keyless}) == 2
    problem(client.post(hook.path, content=BODY, headers={**json, "x-api-key": "wrong"}), 401, "not-authenticated")
    problem(client.post(hook.path, content=BODY, headers=json), 401, "not-authenticated")
    assert all(hook.secret not in repr(kept) for _, _, kept in stored(hook, keyring))


def test_the_key_of_one_endpoint_does_not_open_another(client: httpx.Client, deploy: Deploy) -> None:
    first, second = deploy(), deploy()
    problem(client.post(second.path, content=BODY, headers=first.signed(BODY)), 401, "not-authenticated")


def test_a_configured_header_is_the_idempotency_key(client: httpx.Client, deploy: Deploy) -> None:
    hook = deploy(idempotency="X-Order-Number")
    answers = [
        client.post(hook.path, content=BODY, headers={**hook.signed(BODY), "x-order-number": number}).json()
        for number in ("1", "1", "2")
    ]
    assert answers[0]["id"] == answers[1]["id"] != answers[2]["id"]


def test_a_body_above_the_endpoints_limit_is_413_whether_declared_or_streamed(
    client: httpx.Client, deploy: Deploy, keyring: Keyring
) -> None:
    hook = deploy(max_body_bytes=1000)
    body = b'"' + b"x" * 1000 + b'"'
    found = problem(client.post(hook.path, content=body, headers=hook.signed(body)), 413, "payload-too-large")
    assert found["allowed"] == 1000

    def chunks() -> Any:
        for _ in range(200):
            yield b"x" * 100

    problem(client.post(hook.path, content=chunks(), headers=hook.signed(b"")), 413, "payload-too-large")
    fits = b'"' + b"x" * 998 + b'"'
    assert client.post(hook.path, content=fits, headers=hook.signed(fits)).status_code == 202
    assert len(stored(hook, keyring)) == 1


def test_a_message_as_large_as_the_platform_allows_is_taken_and_a_larger_one_is_not(
    client: httpx.Client, deploy: Deploy, keyring: Keyring, settings: Any
) -> None:
    hook = deploy()
    body = b'"' + b"x" * (settings.max_message_bytes - 2) + b'"'
    assert client.post(hook.path, content=body, headers=hook.signed(body)).status_code == 202
    [(_, kept, _)] = stored(hook, keyring)
    assert kept == body
    body += b" "
    problem(client.post(hook.path, content=body, headers=hook.signed(body)), 413, "payload-too-large")


def test_another_content_type_is_415_and_names_those_that_are_taken(client: httpx.Client, deploy: Deploy) -> None:
    hook = deploy(content_types=["text/csv", "application/xml"])
    headers = hook.signed(BODY)
    found = problem(client.post(hook.path, content=BODY, headers=headers), 415, "unsupported-media-type")
    assert found["valid"] == ["application/xml", "text/csv"]
    problem(
        client.post(
            hook.path, content=BODY, headers={**headers, "content-type": "text/csv", "content-encoding": "br"}
        ),
        415,
        "unsupported-media-type",
    )
    del headers["content-type"]
    problem(client.post(hook.path, content=BODY, headers=headers), 415, "unsupported-media-type")
    assert (
        client.post(
            hook.path, content=BODY, headers={**headers, "content-type": "Text/CSV; header=present"}
        ).status_code
        == 202
    )


def test_content_that_cannot_be_what_is_declared_is_422(client: httpx.Client, deploy: Deploy) -> None:
    hook = deploy()
    problem(client.post(hook.path, content=b"", headers=hook.signed(b"")), 422, "unprocessable-content")
    headers = {**hook.signed(BODY), "content-type": "application/json; charset=klingon"}
    problem(client.post(hook.path, content=BODY, headers=headers), 422, "unprocessable-content")
    headers = {**hook.signed(BODY), "content-type": "application/json; charset=utf-16"}
    problem(
        client.post(
            hook.path,
            content=BODY + b" ",
            headers={**headers, **hook.signed(BODY + b" "), "content-type": "application/json; charset=utf-16"},
        ),
        422,
        "unprocessable-content",
    )


def test_a_disabled_endpoint_is_410_at_once_and_answers_again_when_enabled(
    client: httpx.Client, deploy: Deploy
) -> None:
    hook = deploy()
    owner = hook.organization.organization_id
    assert client.post(hook.path, content=BODY, headers=hook.signed(BODY)).status_code == 202
    endpoints.set_status(owner, "dev", hook.slug, "disabled")
    eventually(lambda: client.post(hook.path, content=BODY, headers=hook.signed(BODY)).status_code == 410)
    problem(client.post(hook.path, content=BODY, headers=hook.signed(BODY)), 410, "gone")
    endpoints.set_status(owner, "dev", hook.slug, "active")
    eventually(lambda: client.post(hook.path, content=BODY, headers=hook.signed(BODY)).status_code == 202)


def test_a_disabled_flow_is_410_and_a_removed_one_404_without_a_restart(
    client: httpx.Client, deploy: Deploy
) -> None:
    hook = deploy()
    owner = hook.organization.organization_id
    deployments.set_status(owner, "dev", hook.flow, "disable", "tester")
    eventually(lambda: client.post(hook.path, content=BODY, headers=hook.signed(BODY)).status_code == 410)
    deployments.set_status(owner, "dev", hook.flow, "enable", "tester")
    eventually(lambda: client.post(hook.path, content=BODY, headers=hook.signed(BODY)).status_code == 202)
    deployments.set_status(owner, "dev", hook.flow, "remove", "tester")
    eventually(lambda: client.post(hook.path, content=BODY, headers=hook.signed(BODY)).status_code == 404)


def test_a_draining_flow_is_503_until_it_is_resumed_and_one_whose_destination_drains_is_too(
    client: httpx.Client, deploy: Deploy
) -> None:
    hook, bystander = deploy(), deploy()
    place = (hook.organization.organization_id, "dev")

    def status(of: Hook = hook) -> int:
        return client.post(of.path, content=BODY, headers=of.signed(BODY)).status_code

    holds.hold(*place, hook.flow, "pause", by="tester")
    assert status() == 202
    holds.hold(*place, hook.flow, "drain", by="tester", reason="moving")
    eventually(lambda: status() == 503)
    refused = client.post(hook.path, content=BODY, headers=hook.signed(BODY))
    problem(refused, 503, "draining")
    assert int(refused.headers["retry-after"]) == holds.DRAIN_RETRY_S
    assert status(bystander) == 202
    holds.resume(*place, hook.flow)
    eventually(lambda: status() == 202)

    text = flow_text(hook.flow, hook.slug, "2.0.0").replace(
        '"logger","config":{"message":"got {{ message.id }}"}',
        '"http_request","config":{"url":"http://Sink.example:8/x"}',
    )
    deployments.deploy(*place, load_flow(text), "tester")
    destinations.drain(*place, "sink.example", by="tester")
    eventually(lambda: status() == 503)
    destinations.resume(*place, "sink.example", by="tester")
    eventually(lambda: status() == 202)


def test_a_flow_takes_messages_again_when_the_one_that_it_calls_delivers_elsewhere(
    client: httpx.Client, deploy: Deploy
) -> None:
    hook = deploy()
    place = (hook.organization.organization_id, "dev")
    name = f"called-{hook.flow}"[:60]

    def called(version: str, node: str) -> None:
        text = (
            f"{{flow: {name}, version: {version}, triggers: [{{id: in, type: manual_trigger}}], steps: [{node}]}}"
        )
        deployments.deploy(*place, load_flow(text), "tester")

    def status() -> int:
        return client.post(hook.path, content=BODY, headers=hook.signed(BODY)).status_code

    called("1.0.0", "{id: send, type: http_request, config: {url: 'http://sink.example:8/x'}}")
    calls = flow_text(hook.flow, hook.slug, "2.0.0").replace(
        '"logger","config":{"message":"got {{ message.id }}"}', f'"subflow","config":{{"flow":"{name}"}}'
    )
    deployments.deploy(*place, load_flow(calls), "tester")
    destinations.drain(*place, "sink.example", by="tester")
    eventually(lambda: status() == 503)
    called("1.1.0", "{id: note, type: logger}")
    eventually(lambda: status() == 202)
    called("1.2.0", "{id: send, type: http_request, config: {url: 'http://sink.example:8/x'}}")
    eventually(lambda: status() == 503)


def test_a_new_deployment_answers_without_a_restart_and_a_new_version_takes_the_next_message(
    client: httpx.Client, deploy: Deploy
) -> None:
    hook = deploy()
    eventually(lambda: client.post(hook.path, content=BODY, headers=hook.signed(BODY)).status_code == 202)
    again = deploy(hook.slug, flow=hook.flow, version="1.1.0")
    assert again.secret == "", "an endpoint keeps its secret"

    def newest_version() -> bool:
        accepted = client.post(hook.path, content=BODY, headers=hook.signed(BODY)).json()
        with database.tenant(hook.organization.organization_id) as connection:
            row = connection.execute(
                "SELECT version FROM bridge.messages WHERE message_id = %s", (accepted["id"],)
            ).fetchone()
        return row == ("1.1.0",)

    eventually(newest_version)


def test_a_rotated_secret_is_taken_beside_the_old_one_until_the_overlap_ends(
    client: httpx.Client, deploy: Deploy
) -> None:
    hook = deploy()
    owner = hook.organization.organization_id
    old = hook.secret
    hook.secret = endpoints.rotate_secret(owner, "dev", hook.slug, overlap_s=3600).secret
    eventually(lambda: client.post(hook.path, content=BODY, headers=hook.signed(BODY)).status_code == 202)
    before = Hook(hook.organization, "dev", hook.slug, hook.flow, old, hook.path)
    assert client.post(hook.path, content=BODY, headers=before.signed(BODY)).status_code == 202
    newest = endpoints.rotate_secret(owner, "dev", hook.slug, overlap_s=0).secret
    eventually(lambda: client.post(hook.path, content=BODY, headers=hook.signed(BODY)).status_code == 401)
    problem(client.post(hook.path, content=BODY, headers=before.signed(BODY)), 401, "not-authenticated")
    hook.secret = newest
    assert client.post(hook.path, content=BODY, headers=hook.signed(BODY)).status_code == 202


def test_an_endpoint_keeps_its_secret_through_removal_and_return(client: httpx.Client, deploy: Deploy) -> None:
    hook = deploy()
    deployments.set_status(hook.organization.organization_id, "dev", hook.flow, "remove", "tester")
    deploy(hook.slug, flow=hook.flow)
    eventually(lambda: client.post(hook.path, content=BODY, headers=hook.signed(BODY)).status_code == 202)


def test_organizations_with_the_same_slug_do_not_meet(
    client: httpx.Client,
    deploy: Deploy,
    make_organization: Callable[[], Organization],
    keyring: Keyring,
) -> None:
    mine, theirs = deploy("orders"), deploy("orders", of=make_organization())
    problem(client.post(theirs.path, content=BODY, headers=mine.signed(BODY)), 401, "not-authenticated")
    accepted = client.post(mine.path, content=BODY, headers=mine.signed(BODY, message_id="same")).json()
    other = client.post(theirs.path, content=BODY, headers=theirs.signed(BODY, message_id="same")).json()
    assert accepted["id"] != other["id"]
    assert other["duplicate"] is False
    assert [message_id for message_id, _, _ in stored(mine, keyring)] == [accepted["id"]]


def test_the_documented_example_sends_a_message(intake: Intake, deploy: Deploy, keyring: Keyring) -> None:
    hook = deploy()
    page = (Path(__file__).parents[3] / "docs" / "webhooks.md").read_text()
    [example] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    environment = {**os.environ, "WEBHOOK_SECRET": hook.secret, "WEBHOOK_URL": f"{intake.url}{hook.path}"}
    done = subprocess.run(
        [sys.executable, "-c", example], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    assert [message_id for message_id, _, _ in stored(hook, keyring)] == [json.loads(done.stdout)["id"]]
