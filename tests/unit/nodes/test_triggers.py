"""The triggers' configurations: checked when built, read from older flows."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any, cast

import pytest
from node_runs import run

from continuitybridge.errors import ConfigurationError, InvalidPayload, ValidationFailed
from continuitybridge.nodes import registry
from continuitybridge.nodes.base import BuildContext
from continuitybridge.nodes.triggers.scheduler import Scheduler


def refused(node_type: str, config: dict[str, Any]) -> dict[str, Any]:
    with pytest.raises(ConfigurationError) as error:
        registry.build(node_type, config, BuildContext())
    (problem,) = error.value.facts["problems"]
    return cast("dict[str, Any]", problem)


# -- scheduler --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cron", ["* * * * *", "*/15 6-20 * * mon-fri", "0 0 29 2 *", "30 4 1,15 * 5", "@daily", "0 12 L * *"]
)
def test_a_schedule_that_comes_is_taken(cron: str) -> None:
    registry.build("scheduler", {"cron": cron, "timezone": "America/Argentina/Buenos_Aires"}, BuildContext())


@pytest.mark.parametrize(
    "cron",
    ["", "* * * *", "* * * * * *", "60 * * * *", "0 0 30 2 *", "a b c d e", "@never", "0 0 * * 9", "*/0 * * * *"],
)
def test_a_schedule_that_never_comes_or_is_none_is_refused(cron: str) -> None:
    problem = refused("scheduler", {"cron": cron})
    assert problem["field"] == "cron"
    assert problem["value"] == cron


@pytest.mark.parametrize("zone", ["Europe/Zuerich", "CET+1", "", "../../etc/passwd", "/etc/localtime", "Europe"])
def test_a_time_zone_that_nobody_knows_is_refused(zone: str) -> None:
    assert refused("scheduler", {"cron": "@daily", "timezone": zone})["field"] == "timezone"


def test_the_payload_bears_the_scheduled_time_in_the_time_zone() -> None:
    config = {
        "cron": "0 2 * * *",
        "timezone": "Europe/Zurich",
        "payload": {"at": "{{now}}", "in": ["{{now}}", "at {{now}}"], "n": 1},
    }
    node = registry.build("scheduler", config, BuildContext())
    assert isinstance(node, Scheduler)
    assert json.loads(node.body_at(datetime(2026, 7, 1, tzinfo=UTC))) == {
        "at": "2026-07-01T02:00:00+02:00",
        "in": ["2026-07-01T02:00:00+02:00", "at {{now}}"],
        "n": 1,
    }


def test_schedules_of_older_flows_are_translated() -> None:
    translate = registry.get("scheduler").from_legacy
    assert translate(
        {
            "cronExpression": "0 6 * * *",
            "timezone": "Europe/Zurich",
            "initialPayload": '{"a": "{{now}}"}',
            "enabled": True,
            "maxConcurrentRuns": 1,
            "skipIfRunning": True,
        }
    ) == {"cron": "0 6 * * *", "timezone": "Europe/Zurich", "payload": {"a": "{{now}}"}}
    assert translate({"schedule": "@hourly", "initialPayload": ""}) == {"cron": "@hourly", "payload": {}}
    assert translate({}) == {"cron": "0 * * * *"}
    for bad in ({"enabled": False}, {"maxConcurrentRuns": 5}, {"initialPayload": "{"}):
        with pytest.raises(ConfigurationError, match=next(iter(bad))):
            translate(bad)


# -- webhook_trigger --------------------------------------------------------------------------------------


@pytest.mark.parametrize("slug", ["", "Orders", "a/b", "-a", "a b", "a" * 129, "ä"])
def test_a_slug_that_is_no_part_of_an_address_is_refused(slug: str) -> None:
    assert refused("webhook_trigger", {"slug": slug})["field"] == "slug"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("verification", "none"),
        ("content_types", []),
        ("content_types", ["json"]),
        ("idempotency", "x y"),
        ("max_body_bytes", 0),
    ],
)
def test_other_settings_of_a_webhook_are_checked(key: str, value: Any) -> None:
    assert refused("webhook_trigger", {"slug": "orders", key: value})["field"].split(".")[0] == key


def test_the_ways_of_verification_are_those_that_intake_knows() -> None:
    from continuitybridge.nodes import describe
    from continuitybridge.webhooks.verification import VERIFIERS

    trigger = registry.get("webhook_trigger")
    by_name, by_settings = trigger.Config.model_json_schema()["properties"]["verification"]["anyOf"]
    assert set(by_name["enum"]) == set(by_settings["discriminator"]["mapping"]) == set(VERIFIERS)
    [field] = [field for field in describe.form(trigger)["fields"] if field["name"] == "verification"]
    assert (field["kind"], field["key"], field["default"]) == ("variants", "type", "standard_webhooks")
    [option] = [option for option in field["options"] if option["value"] == "hmac"]
    assert "timestamp_header" in {each["name"] for each in option["fields"]}


@pytest.mark.parametrize(
    ("old", "ours"),
    [
        ({"webhookMethod": "post"}, {}),
        ({"webhookMethod": "PUT"}, {"methods": ["PUT"]}),
        ({"webhookMethod": "GET"}, {"methods": ["GET"], "verification": "api_key"}),
        ({"webhookMethod": "GET", "authMethod": "basic_auth"}, {"methods": ["GET"], "verification": "basic"}),
        ({"authMethod": "api_key"}, {"verification": "api_key"}),
        ({"authMethod": "bearer_token"}, {"verification": "bearer"}),
        ({"authMethod": "oauth2"}, {"verification": "jwt"}),
        (
            {"authMethod": "oauth2", "verification": {"type": "jwt", "issuer": "a"}},
            {"verification": {"type": "jwt", "issuer": "a"}},
        ),
        (
            {"allowedIPs": "10.0.0.0/8, 203.0.113.7\n2001:db8::1"},
            {"allowed_ips": ["10.0.0.0/8", "203.0.113.7", "2001:db8::1"]},
        ),
        ({"allowedIPs": ["10.0.0.1"]}, {"allowed_ips": ["10.0.0.1"]}),
        (
            {
                "payloadFormat": "csv",
                "allowedIPs": "",
                "validateSchema": False,
                "rateLimitPerMinute": 60,
                "enableLogging": True,
            },
            {"content_types": ["text/csv"]},
        ),
    ],
)
def test_webhooks_of_older_flows_are_translated(old: dict[str, Any], ours: dict[str, Any]) -> None:
    translate = registry.get("webhook_trigger").from_legacy
    for slug in ("webhookSlug", "endpointName"):
        translated = translate({slug: "orders", **old})
        assert translated == {"slug": "orders", **ours}
        registry.build("webhook_trigger", translated, BuildContext())


@pytest.mark.parametrize(
    "bad",
    [{"webhookMethod": "DELETE"}, {"authMethod": "none"}, {"payloadFormat": "edi"}, {"rateLimitPerMinute": 5}],
)
def test_what_older_webhooks_say_and_ours_cannot_is_refused_by_its_key(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(bad))):
        registry.get("webhook_trigger").from_legacy({"webhookSlug": "a", **bad})


# -- manual_trigger ---------------------------------------------------------------------------------------

SCHEMA = {"type": "object", "required": ["order"], "properties": {"order": {"type": "string", "minLength": 1}}}


def test_a_payload_that_fits_the_schema_passes_unchanged() -> None:
    assert run("manual_trigger", {"schema": SCHEMA}, b'{"order": "PO-1"}') == [("out", b'{"order": "PO-1"}')]


def test_a_payload_that_breaks_the_schema_is_refused_with_every_violation() -> None:
    with pytest.raises(ValidationFailed) as error:
        run("manual_trigger", {"schema": {**SCHEMA, "maxProperties": 1}}, b'{"order": "", "x": 1}')
    assert len(error.value.facts["violations"]) == 2
    with pytest.raises(InvalidPayload):
        run("manual_trigger", {"schema": SCHEMA}, b"<xml/>")


@pytest.mark.parametrize("schema", [{"type": "thing"}, {"minLength": -1}, {"$ref": "http://127.0.0.1:1/x"}])
def test_what_is_no_schema_is_refused_when_built(schema: dict[str, Any]) -> None:
    assert refused("manual_trigger", {"schema": schema})["field"] == "schema"


def test_schemas_of_older_flows_are_translated() -> None:
    translate = registry.get("manual_trigger").from_legacy
    assert translate({"inputSchema": json.dumps(SCHEMA)}) == {"schema": SCHEMA}
    assert translate({"inputSchema": SCHEMA}) == {"schema": SCHEMA}
    assert translate({"inputSchema": " "}) == {}
    with pytest.raises(ConfigurationError, match="inputSchema"):
        translate({"inputSchema": "{"})
