"""A suspended organization takes no messages, runs nothing, is read only; resumed, it goes on where it stood."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import httpx
from click.testing import CliRunner

from continuitybridge.cli import bridge
from continuitybridge.inbox.stream import StreamClaims, Wanted

from .conftest import Deployed, SignIn

HEADERS = {"content-type": "application/json"}


def command(*arguments: str) -> str:
    done = CliRunner().invoke(bridge, list(arguments))
    assert done.exit_code == 0, done.output
    return done.output


async def claimed(deployed: Deployed) -> int:
    claims = StreamClaims("stream/tests", 30)
    try:
        return len(await claims.claim([Wanted(deployed.organization.organization_id, "dev", "orders", 10)], 10**6))
    finally:
        await claims.close()


def answered(post: Callable[[], httpx.Response], status: int) -> httpx.Response:
    """The answer, once it has this status: intake hears of a change some milliseconds later."""
    deadline = time.monotonic() + 10
    while (answer := post()).status_code != status:
        assert time.monotonic() < deadline, answer.text
        time.sleep(0.02)
    return answer


async def test_a_suspended_organization_takes_and_runs_nothing_and_goes_on_when_resumed(
    deployed: Callable[[], Deployed], stranger: httpx.Client
) -> None:
    mine, other = deployed(), deployed()

    taken: list[str] = []

    def post(to: Deployed = mine) -> httpx.Response:
        path = f"/bridge/hooks/{to.organization.slug}/dev/orders"
        answer = stranger.post(path, content=b"{}", headers={**HEADERS, "x-api-key": to.secret})
        if to is mine and answer.status_code == 202:
            taken.append(answer.json()["id"])
        return answer

    assert post().status_code == 202
    slug = mine.organization.slug
    assert command("organization", "suspend", slug, "--reason", "unpaid") == f"{slug} is suspended\n"
    refused = answered(post, 403).json()
    assert refused["code"] == "organization-suspended"
    assert await claimed(mine) == 0
    assert post(other).status_code == 202
    assert command("organization", "suspend", slug) == f"{slug} was suspended before\n"
    assert command("organization", "resume", slug) == f"{slug} goes on\n"
    answered(post, 202)
    assert await claimed(mine) == len(taken) >= 2
    trail: list[dict[str, Any]] = json.loads(
        command("audit", "list", "-o", slug, "--action", "organization", "--json")
    )
    told = [(event["action"], event["details"]) for event in reversed(trail)]
    assert told[1:] == [("organization.suspended", {"reason": "unpaid"}), ("organization.resumed", {})]


def test_members_of_a_suspended_organization_read_and_change_nothing(
    deployed: Callable[[], Deployed], sign_in: SignIn
) -> None:
    mine = deployed()
    slug = mine.organization.slug
    place = f"/bridge/flows/{slug}/dev"
    for role in ("consultant", "customer_admin"):
        member = sign_in({mine.organization: role})
        assert member.post(f"{place}/orders/disable").status_code == 200
        command("organization", "suspend", slug)
        assert member.get(f"/bridge/flows?organization={slug}").status_code == 200
        refused = member.post(f"{place}/orders/enable")
        assert (refused.status_code, refused.json()["code"]) == (403, "organization-suspended")
        command("organization", "resume", slug)
        assert member.post(f"{place}/orders/enable").status_code == 200
