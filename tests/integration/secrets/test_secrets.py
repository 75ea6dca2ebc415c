"""Typed secrets: what is put in is what comes out, in its place only, and no listing shows it."""

from __future__ import annotations

import json
import secrets as tokens
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from continuitybridge import database, secrets
from continuitybridge.actor import Actor, acting
from continuitybridge.audit import reading
from continuitybridge.audit.reading import Filter
from continuitybridge.cli import bridge
from continuitybridge.errors import ConfigurationError, Conflict, NotFound
from continuitybridge.organizations import Organization
from continuitybridge.vault.cipher import DecryptionFailed
from continuitybridge.vault.keyring import Keyring


def pem() -> str:
    return (
        ec.generate_private_key(ec.SECP256R1())
        .private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        .decode()
    )


def some() -> str:
    return tokens.token_urlsafe(48)


def put(organization: Organization, name: str, pin: str, **given: Any) -> secrets.StoredSecret:
    return secrets.put(organization.organization_id, "dev", name, "custom", {"pin": pin}, "anna", **given)


def pin_of(organization: Organization, name: str, keyring: Keyring) -> str:
    value: str = secrets.resolve(organization.organization_id, "dev", name, keyring).revealed()["pin"]
    return value


@pytest.mark.parametrize(
    ("type", "value"),
    [
        (
            "smtp",
            {"password": some(), "username": "bridge", "host": "mail.example", "port": 465, "security": "tls"},
        ),
        ("azure_blob", {"accountName": "stock", "accountKey": some()}),
        ("sftp", {"username": "bridge", "privateKey": pem()}),
        ("ftp", {"password": some()}),
        ("database", {"connectionString": f"postgresql://bridge:{some()}@db.example/stock"}),
        ("api_key", {"apiKey": some(), "apiSecret": some()}),
        ("rabbitmq", {"username": "bridge", "password": some(), "vhost": "/"}),
        ("kafka", {"brokers": "a:9092,b:9092", "username": "u", "password": some(), "saslMechanism": "PLAIN"}),
        ("oauth2", {"clientId": "bridge", "clientSecret": some(), "tokenUrl": "https://id.example/token"}),
        ("jwt", {"algorithm": "HS256", "secret": some(), "keyId": "1"}),
        ("jwt", {"algorithm": "ES256", "private_key": pem()}),
        ("cookie", {"cookieName": "sid", "cookieSecret": some(), "sameSite": "none"}),
        ("custom", {"whatever": some(), "more": some()}),
    ],
)
def test_each_type_keeps_what_it_was_given_and_shows_no_secret(
    organization: Organization, keyring: Keyring, type: str, value: dict[str, Any]
) -> None:
    o = organization.organization_id
    secrets.put(o, "dev", "it", type, value, "anna")
    found = secrets.resolve(o, "dev", "it", keyring)
    assert (found.TYPE, found) == (type, secrets.parse(type, value))
    kept = found.revealed().values()
    assert all(each in kept for each in value.values())
    hidden = [each for name, each in found.revealed().items() if found.shown()[name] == "(set)"]
    assert hidden
    with database.tenant(o) as connection:
        rows = connection.execute("SELECT s::text, v::text FROM bridge.secrets s, bridge.secret_versions v")
        stored = str(rows.fetchall())
    shown = repr(found) + str(found.shown()) + repr(secrets.list_secrets(o)) + stored
    for each in hidden:
        assert each not in shown
        assert each.encode().hex() not in shown


@pytest.mark.parametrize(
    ("type", "value", "field"),
    [
        ("smtp", {}, "password"),
        ("sftp", {"username": "x"}, "one of password and private_key"),
        ("sftp", {"privateKey": "THE-VALUE"}, "private_key"),
        ("database", {}, "one of password and connection_string"),
        ("rabbitmq", {"username": "x"}, "connection_url"),
        ("kafka", {"brokers": "a"}, "username and password"),
        (
            "kafka",
            {"brokers": "a", "username": "u", "password": "p", "saslMechanism": "THE-VALUE"},
            "saslMechanism",
        ),
        ("jwt", {"algorithm": "HS512", "secret": "THE-VALUE"}, "64 bytes"),
        ("jwt", {"algorithm": "RS256", "secret": "THE-VALUE"}, "private_key"),
        ("oauth2", {"clientId": "c", "clientSecret": "s", "tokenUrl": "THE-VALUE"}, "tokenUrl"),
        ("cookie", {"cookieName": "a b", "cookieSecret": "THE-VALUE"}, "cookieName"),
        ("api_key", {"apiKey": "THE-VALUE", "typo": "THE-VALUE"}, "typo"),
        ("custom", {}, "at least one field"),
        ("custom", {"a": "THE-VALUE" * 10_000}, "bytes"),
        ("other", {"a": "THE-VALUE"}, "other"),
    ],
)
def test_what_is_no_secret_of_its_type_is_refused_by_field_and_never_repeated(
    organization: Organization, type: str, value: dict[str, Any], field: str
) -> None:
    with pytest.raises(ConfigurationError) as refused:
        secrets.put(organization.organization_id, "dev", "it", type, value, "anna")
    told = refused.value.detail + str(refused.value.facts)
    assert field in told
    assert "THE-VALUE" not in told
    assert secrets.list_secrets(organization.organization_id) == []


def test_versions_are_kept_rolled_back_and_bounded(organization: Organization, keyring: Keyring) -> None:
    o = organization.organization_id
    for number in range(1, 13):
        assert put(organization, "pin", f"value-{number}").version == number
    kept = secrets.versions(o, "dev", "pin")
    assert [each.version for each in kept] == list(range(12, 2, -1))
    assert [each.version for each in kept if each.current] == [12]
    assert secrets.roll_back(o, "dev", "pin", 5, "bert").version == 5
    assert pin_of(organization, "pin", keyring) == "value-5"
    with pytest.raises(NotFound):
        secrets.roll_back(o, "dev", "pin", 2, "bert")
    assert put(organization, "pin", "value-13").version == 13
    assert pin_of(organization, "pin", keyring) == "value-13"
    with pytest.raises(Conflict):
        secrets.put(o, "dev", "pin", "ftp", {"password": "x"}, "anna")
    actions = [each.action for each in reading.search(o, Filter(target="pin"), keys=keyring)]
    assert actions[:2] == ["secret.changed", "secret.rolled_back"]
    assert actions[-1] == "secret.created"


def test_a_version_put_in_anothers_place_does_not_open(organization: Organization, keyring: Keyring) -> None:
    o = organization.organization_id
    put(organization, "one", "1")
    put(organization, "one", "2")
    put(organization, "two", "3")
    secrets.put(o, "prod", "one", "custom", {"pin": "4"}, "anna")
    for swap in (
        "b.name = 'one' AND b.environment = 'dev' AND b.version = 1",
        "b.name = 'two'",
        "b.environment = 'prod'",
    ):
        with database.tenant(o) as connection:
            connection.execute(
                "UPDATE bridge.secret_versions a SET ciphertext = b.ciphertext FROM bridge.secret_versions b"
                f" WHERE a.name = 'one' AND a.environment = 'dev' AND a.version = 2 AND {swap}"
            )
        with pytest.raises(DecryptionFailed):
            pin_of(organization, "one", keyring)


def test_what_is_off_over_or_anothers_is_given_to_nobody(
    make_organization: Callable[[], Organization], keyring: Keyring
) -> None:
    ours, theirs = make_organization(), make_organization()
    o = ours.organization_id
    put(ours, "pin", "1")
    with pytest.raises(NotFound):
        pin_of(theirs, "pin", keyring)
    with pytest.raises(NotFound):
        secrets.remove(theirs.organization_id, "dev", "pin", "eve")
    with pytest.raises(NotFound):
        secrets.resolve(o, "prod", "pin", keyring)
    assert not secrets.switch(o, "dev", "pin", "anna", enabled=False).enabled
    with pytest.raises(secrets.SecretSwitchedOff, match="disabled"):
        pin_of(ours, "pin", keyring)
    secrets.switch(o, "dev", "pin", "anna", enabled=True)
    assert pin_of(ours, "pin", keyring) == "1"
    with pytest.raises(ConfigurationError, match="over already"):
        put(ours, "pin", "2", expires_at=datetime.now(UTC) - timedelta(seconds=1))
    put(ours, "pin", "2", expires_at=datetime.now(UTC) + timedelta(days=400))
    expire(ours, "pin")
    with pytest.raises(secrets.SecretSwitchedOff, match="valid until"):
        pin_of(ours, "pin", keyring)
    secrets.roll_back(o, "dev", "pin", 1, "anna")
    assert pin_of(ours, "pin", keyring) == "1"
    with pytest.raises(ConfigurationError, match="over"):
        secrets.roll_back(o, "dev", "pin", 2, "anna")


def expire(organization: Organization, name: str) -> None:
    with database.tenant(organization.organization_id) as connection:
        connection.execute(
            "UPDATE bridge.secret_versions SET expires_at = now() - interval '1 s'"
            " WHERE name = %s AND expires_at IS NOT NULL",
            (name,),
        )


def test_what_is_due_is_said_once_for_each_reason_and_version(
    organization: Organization, caplog: pytest.LogCaptureFixture
) -> None:
    o = organization.organization_id
    put(organization, "quiet", "1", expires_at=datetime.now(UTC) + timedelta(days=15), rotate_every_days=1)
    put(organization, "soon", "1", expires_at=datetime.now(UTC) + timedelta(days=13))
    put(organization, "old", "1", rotate_every_days=30)
    put(organization, "off", "1", expires_at=datetime.now(UTC) + timedelta(days=1))
    secrets.switch(o, "dev", "off", "anna", enabled=False)
    with database.tenant(o) as connection:
        connection.execute("UPDATE bridge.secrets SET rotation_due_at = now() WHERE name = 'old'")
    assert {each.name: each.reason for each in secrets.due(o)} == {"soon": "expires_soon", "old": "rotation_due"}
    assert (secrets.remind(o), secrets.remind(o)) == (2, 0)
    assert "secret soon in dev" in caplog.text
    assert all(each.reminded for each in secrets.due(o))
    expire(organization, "soon")
    assert secrets.remind(o) == 1
    put(organization, "soon", "2", expires_at=datetime.now(UTC) + timedelta(days=1))
    put(organization, "old", "2")
    assert secrets.remind(o) == 1
    events = reading.search(o, Filter(action="secret.due"), keys=Keyring.open())
    told = [(each.target, each.details["reason"]) for each in events]
    assert sorted(told) == sorted(
        [("old", "rotation_due"), ("soon", "expires_soon"), ("soon", "expired"), ("soon", "expires_soon")]
    )


def test_the_command_line_does_all_of_it(organization: Organization, tmp_path: Path) -> None:
    value, file = some(), tmp_path / "value.json"

    def run(*arguments: str, status: int = 0) -> Result:
        done = CliRunner().invoke(bridge, ["secret", *arguments])
        assert done.exit_code == status, done.output
        assert value not in done.output
        return done

    file.write_text(json.dumps({"apiKey": value, "header": "X-Shop-Key"}))
    place = ["-o", organization.slug, "-e", "dev"]
    tomorrow = f"{datetime.now(UTC) + timedelta(days=1):%Y-%m-%d}"
    given = ["--type", "api_key", "--from-file", str(file), "--expires-at", tomorrow, "--rotate-every", "90"]
    assert "version 1" in run("set", "shop", *place, *given).output
    assert "version 2" in run("set", "shop", *place, *given).output
    assert "X-Shop-Key" in run("show", "shop", *place).output
    assert "expires soon" in run("due", "-o", organization.slug, status=1).output
    assert json.loads(run("list", "-o", organization.slug, "--json").output)[0]["rotate_every_days"] == 90
    run("rollback", "shop", *place, "--to", "1")
    assert [each["current"] for each in json.loads(run("versions", "shop", *place, "--json").output)] == [
        False,
        True,
    ]
    run("disable", "shop", *place)
    run("show", "shop", *place, status=2)
    run("enable", "shop", *place)
    assert "test_url is needed" in run("test", "shop", *place).output
    file.write_text(value)
    assert "JSON object" in run("set", "shop", *place, *given, status=2).output
    run("remove", "shop", *place)
    assert json.loads(run("list", "-o", organization.slug, "--json").output) == []
    assert "kafka" in run("types").output


def test_whoever_looks_at_secrets_leaves_one_event_each_time(organization: Organization, keyring: Keyring) -> None:
    o = organization.organization_id
    put(organization, "pin", "value")
    put(organization, "pun", "value")
    with acting(Actor("user", "anna")):
        secrets.list_secrets(o)
        secrets.list_secrets(o, "dev")
        secrets.versions(o, "dev", "pin")
        secrets.due(o)
        assert secrets.show(o, "dev", "pin", keyring).TYPE == "custom"
    found = [(each.action, each.target, each.environment, each.actor) for each in seen(o, keyring)]
    assert sorted(found, key=str) == sorted(
        [
            ("secret.listed", "", None, "anna"),
            ("secret.listed", "", None, "anna"),
            ("secret.listed", "", "dev", "anna"),
            ("secret.listed", "pin", "dev", "anna"),
            ("secret.shown", "pin", "dev", "anna"),
        ],
        key=str,
    )
    with pytest.raises(NotFound):
        secrets.versions(o, "dev", "other")
    assert len(seen(o, keyring)) == 5


def seen(organization_id: UUID, keyring: Keyring) -> list[reading.Event]:
    """Events of looking at secrets."""
    actions = ("secret.listed", "secret.shown")
    return [
        each for name in actions for each in reading.search(organization_id, Filter(action=name), keys=keyring)
    ]
