"""`bridge endpoint`."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from click.testing import CliRunner, Result

from continuitybridge.cli import bridge

from .conftest import Deploy, Hook, eventually

BODY = b'{"po_number": "4711"}'


def run(hook: Hook, *arguments: str, input: str | None = None, place: bool = True) -> Result:
    where = ["-o", hook.organization.slug, *(["-e", hook.environment] if place else [])]
    return CliRunner().invoke(bridge, ["endpoint", *arguments, *where], input=input)


def post(client: httpx.Client, hook: Hook) -> int:
    return client.post(hook.path, content=BODY, headers=hook.signed(BODY)).status_code


def test_endpoints_are_listed_and_shown_without_their_secrets(deploy: Deploy) -> None:
    hook = deploy()
    listed = run(hook, "list", place=False)
    shown = run(hook, "show", hook.slug)
    assert listed.exit_code == shown.exit_code == 0
    assert hook.path in listed.output
    assert hook.path in shown.output
    assert "current" in shown.output
    found: list[dict[str, Any]] = json.loads(run(hook, "list", "--json").output)
    assert [(each["slug"], each["status"], each["flow"]) for each in found] == [(hook.slug, "active", hook.flow)]
    for result in (listed, shown, run(hook, "list", "--json")):
        assert hook.secret not in result.output


def test_a_rotated_secret_is_printed_once_and_taken(deploy: Deploy, client: httpx.Client) -> None:
    hook = deploy()
    rotated = run(hook, "rotate-secret", hook.slug, "--overlap-s", "0", "--json")
    assert rotated.exit_code == 0, rotated.output
    old, hook.secret = hook.secret, json.loads(rotated.output)["secret"]
    assert hook.secret != old
    eventually(lambda: post(client, hook) == 202)
    hook.secret = old
    assert post(client, hook) == 401


def test_a_secret_of_the_senders_own_is_read_from_a_file_and_not_printed(
    deploy: Deploy, client: httpx.Client
) -> None:
    hook, other = deploy(), deploy()
    own = other.secret
    given = run(hook, "rotate-secret", hook.slug, "--secret-file", "-", input=own + "\n")
    assert given.exit_code == 0, given.output
    assert own not in given.output
    hook.secret = own
    eventually(lambda: post(client, hook) == 202)


@pytest.mark.parametrize("weak", ["short", "whsec_c2hvcnQ=", "whsec_!!!"])
def test_a_weak_secret_is_refused_and_not_quoted(deploy: Deploy, client: httpx.Client, weak: str) -> None:
    hook = deploy()
    refused = run(hook, "rotate-secret", hook.slug, "--secret-file", "-", input=weak)
    assert refused.exit_code == 2
    assert weak not in refused.output
    assert post(client, hook) == 202, "the old one still holds"


def test_an_endpoint_is_disabled_and_enabled_and_a_deploy_does_not_enable_it(
    deploy: Deploy, client: httpx.Client
) -> None:
    hook = deploy()
    assert "disabled" in run(hook, "disable", hook.slug).output
    eventually(lambda: post(client, hook) == 410)
    deploy(hook.slug, flow=hook.flow, version="1.1.0")
    assert post(client, hook) == 410
    assert "active" in run(hook, "enable", hook.slug).output
    eventually(lambda: post(client, hook) == 202)


def test_an_endpoint_that_is_not_there_is_named(deploy: Deploy) -> None:
    hook = deploy()
    for command in ("show", "disable", "enable", "rotate-secret"):
        refused = run(hook, command, "nothing")
        assert refused.exit_code == 2
        assert "'nothing'" in refused.output
