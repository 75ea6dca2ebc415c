"""The address in a 202 tells the message's sender where it is, without an account, and nobody else anything."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from webhooks.conftest import eventually
from webhooks.reply_world import deploy, worker

from continuitybridge.organizations import Organization
from continuitybridge.vault.keyring import Keyring

from .conftest import Deployed, SignIn

SENDER_SEES = {"id", "state", "attempts", "accepted_at", "available_at", "ended_at", "failure", "result"}


def send(client: httpx.Client, mine: Deployed) -> tuple[str, str]:
    """Path and token of a message's `status_url`."""
    response = client.post(
        f"/bridge/hooks/{mine.organization.slug}/dev/orders",
        content=b"{}",
        headers={"content-type": "application/json", "x-api-key": mine.secret},
    )
    url = urlsplit(response.json()["status_url"])
    [token] = parse_qs(url.query)["token"]
    return url.path, token


def test_the_sender_sees_the_state_and_nothing_of_the_flow(
    deployed: Callable[[], Deployed], stranger: httpx.Client
) -> None:
    path, token = send(stranger, deployed())
    shown = stranger.get(path, params={"token": token})
    assert shown.status_code == 200
    assert set(shown.json()) == SENDER_SEES
    assert (shown.json()["state"], shown.json()["failure"], shown.json()["result"]) == ("accepted", None, None)


def test_a_token_is_good_for_its_message_only_and_only_for_reading(
    deployed: Callable[[], Deployed], stranger: httpx.Client
) -> None:
    mine, theirs = deployed(), deployed()
    path, token = send(stranger, mine)
    other_path, other_token = send(stranger, theirs)
    assert stranger.get(path).status_code == stranger.get(path, params={"token": ""}).status_code == 401
    refusals = [
        stranger.get(path, params={"token": wrong})
        for wrong in (other_token, token[:-2] + "AA", "x" * 70, "Ä" * 20, token[:20])
    ]
    refusals += [
        stranger.get(other_path, params={"token": token}),
        stranger.get("/bridge/messages/unknown", params={"token": token}),
    ]
    assert {response.status_code for response in refusals} == {404}
    assert len({response.json()["detail"].replace(path, "") for response in refusals}) <= 3, "they say no more"
    assert stranger.get(path, params={"token": "x" * 300}).status_code == 422
    for method, address in (
        ("POST", f"{path}/replay"),
        ("POST", path),
        ("GET", "/bridge/messages"),
        ("GET", "/bridge/flows"),
        ("GET", f"{path}/replay"),
    ):
        assert stranger.request(method, address, params={"token": token}).status_code == 401, address


def test_users_see_their_own_messages_in_full_and_those_of_others_as_their_senders_do(
    deployed: Callable[[], Deployed], sign_in: SignIn, stranger: httpx.Client
) -> None:
    mine, theirs = deployed(), deployed()
    user = sign_in({mine.organization: "customer_user"})
    path, token = send(stranger, mine)
    other_path, other_token = send(stranger, theirs)
    assert user.get(path, params={"token": token}).json()["flow"] == "orders"
    assert user.get(other_path).status_code == 404
    assert set(user.get(other_path, params={"token": other_token}).json()) == SENDER_SEES


def test_tokens_outlive_the_rotation_of_their_key(
    deployed: Callable[[], Deployed], stranger: httpx.Client, keyring: Keyring
) -> None:
    from continuitybridge import database

    mine = deployed()
    path, token = send(stranger, mine)
    with database.platform() as connection:
        keyring.create_key(connection, mine.organization.organization_id)
    keyring.forget()
    assert stranger.get(path, params={"token": token}).status_code == 200


@pytest.mark.parametrize("fails", [False, True])
def test_the_sender_of_a_202_gets_the_result_later(
    organization: Organization, stranger: httpx.Client, sign_in: SignIn, fails: bool
) -> None:
    step = {"id": "double", "type": "jq", "config": {"program": ".n *= 2" if not fails else 'error("inside")'}}
    hook = deploy(organization, step, limit_s=0.2, status=201, headers={"X-A": "b"})
    late = stranger.post(hook.path, content=b'{"n": 4}', headers=hook.signed(b'{"n": 4}'))
    assert late.status_code == 202
    url = urlsplit(late.headers["location"])
    address = f"{url.path}?{url.query}"
    with worker(organization):
        eventually(lambda: stranger.get(address).json()["state"] in ("done", "dead"))
    shown = stranger.get(address).json()
    if fails:
        assert (shown["state"], shown["result"]) == ("dead", None)
        assert shown["failure"]["code"] == "transform-failed"
        assert "inside" not in stranger.get(address).text
    else:
        result = shown["result"]
        assert (shown["state"], result["status"], result["body"]) == ("done", 201, {"n": 8})
        assert result["headers"] == {"content-type": "application/json", "x-a": "b"}
    reader = sign_in({organization: "customer_user"})
    seen = reader.get(url.path).json()
    assert (seen["result"], seen["failure"]) == (shown["result"], shown["failure"])
    # Whoever has an account and reads what a message became is told of.
    trail = (
        sign_in({organization: "customer_admin"}).get("/bridge/audit?action=message.result_read").json()["events"]
    )
    told = [(each["actor"], each["target"]) for each in trail]
    assert told == ([] if fails else [(reader.name, seen["id"])])
