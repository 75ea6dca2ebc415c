"""Quotas as people and senders meet them."""

from __future__ import annotations

from collections.abc import Callable

import httpx

from continuitybridge.organizations import quotas

from .conftest import Deployed, SignIn, flow_text


def test_a_webhook_beyond_the_allowance_gets_429_and_goes_on_when_there_is_more(
    sign_in: SignIn, deployed: Callable[[], Deployed], stranger: httpx.Client
) -> None:
    mine, theirs = deployed(), deployed()
    quotas.agree(mine.organization.organization_id, "messages_per_hour", 2)
    for _ in range(2):
        mine.send(stranger)
    headers = {"content-type": "application/json", "x-api-key": mine.secret}
    path = f"/bridge/hooks/{mine.organization.slug}/dev/orders"
    refused = stranger.post(path, content=b"{}", headers=headers)
    assert refused.status_code == 429
    problem = refused.json()
    assert (problem["code"], problem["resource"], problem["allowed"], problem["used"]) == (
        "allowance-exhausted",
        "messages_per_hour",
        2,
        2,
    )
    assert 1 <= int(refused.headers["retry-after"]) <= 3600
    # Nobody else's affair.
    theirs.send(stranger)
    user = sign_in({mine.organization: "customer_user"})
    assert len(user.get("/bridge/messages").json()["messages"]) == 2


def test_a_deployment_beyond_the_quota_gets_403_with_resource_limit_and_use(
    sign_in: SignIn, deployed: Callable[[], Deployed]
) -> None:
    mine = deployed()
    quotas.agree(mine.organization.organization_id, "flows", 1)
    admin = sign_in({mine.organization: "customer_admin"})
    path = f"/bridge/flows/{mine.organization.slug}/dev"
    refused = admin.post(path, json={"source": flow_text("more", slug=None)})
    assert refused.status_code == 403
    problem = refused.json()
    assert (problem["code"], problem["resource"], problem["allowed"], problem["used"]) == (
        "quota-exceeded",
        "flows",
        1,
        1,
    )
    shown = {
        each["resource"]: each
        for each in admin.get(f"/bridge/organizations/{mine.organization.slug}/quotas").json()
    }
    assert (shown["flows"]["used"], shown["flows"]["allowed"], shown["flows"]["agreed"]) == (1, 1, True)
    raised = f"/bridge/organizations/{mine.organization.slug}/quotas/flows"
    assert admin.client.put(raised, json={"allowed": None}).status_code == 403
    assert sign_in(superadmin=True).client.put(raised, json={"allowed": 2}).status_code == 200
    assert admin.post(path, json={"source": flow_text("more", slug=None)}).status_code == 201
