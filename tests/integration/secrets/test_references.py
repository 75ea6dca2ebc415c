"""Secrets whose value stays in HashiCorp Vault (here OpenBao), read through Airflow's own backend for it."""

from __future__ import annotations

import secrets as random
import socket
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from key_services import TransitService
from stores_world import VAULT, Picky, refer, resolve, run

from continuitybridge import connections, database, secrets, tokens
from continuitybridge.errors import (
    BackendRefused,
    ConfigurationError,
    ReferenceMissing,
    Unavailable,
    Verdict,
)
from continuitybridge.organizations import Organization
from continuitybridge.secrets import references
from continuitybridge.secrets.trying import try_secret
from continuitybridge.settings import get_settings
from continuitybridge.vault import Keyring


def test_a_reference_is_read_when_it_is_used_and_a_changed_value_follows(
    organization: Organization, store: TransitService, keyring: Keyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BRIDGE_SECRET_BACKEND_CACHE_S", "0.2")
    get_settings.cache_clear()
    first, second = random.token_urlsafe(), random.token_urlsafe()
    store.put(f"bridge/{organization.slug}/prod/erp/key", api_key=first, header="X-Shop")
    done = run(
        "refer",
        "shop",
        "-o",
        organization.slug,
        "-e",
        "prod",
        "--type",
        "api_key",
        "--backend",
        "corp",
        "--path",
        "erp/key",
    )
    assert done.exit_code == 0, done.output
    auth = {"type": "secret", "secret": "shop"}
    definition = {"base_url": "https://erp.example/", "auth": auth}
    connections.put(organization.organization_id, "prod", "erp", definition, "anna")
    found = tokens.resolve(organization.organization_id, "prod", "erp", keyring)
    assert found.auth == {"type": "api_key", "header": "X-Shop", "value": first}
    assert found.expires_at is not None
    store.put(f"bridge/{organization.slug}/prod/erp/key", api_key=second, header="X-Shop")
    # As long as the value may be used, and no longer.
    assert not found.holds(time.time() + 0.3)
    time.sleep(0.25)
    assert tokens.resolve(organization.organization_id, "prod", "erp", keyring).auth["value"] == second
    shown = run("show", "shop", "-o", organization.slug, "-e", "prod").output
    assert "corp: erp/key" in shown
    assert second not in shown


def test_a_text_is_one_field_and_the_others_stand_in_the_reference(
    organization: Organization, store: TransitService
) -> None:
    key = random.token_urlsafe()
    store.put(f"bridge/{organization.organization_id}-prod-shop", value=key)
    refer(organization, "shop", backend="texts", field="api_key", fields={"header": "X-Shop"})
    found = resolve(organization)
    assert found.revealed() == {"api_key": key, "header": "X-Shop"}


def test_nothing_of_another_organization_or_environment_is_reached(
    make_organization: Callable[[], Organization], store: TransitService
) -> None:
    ours, theirs = make_organization(), make_organization()
    store.put(f"bridge/{theirs.slug}/prod/erp", api_key=random.token_urlsafe())
    store.put(f"bridge/{ours.slug}/dev/erp", api_key=random.token_urlsafe())
    store.put("bridge/erp", api_key=random.token_urlsafe())
    store.put(f"bridge/{ours.slug}-east/prod/erp", api_key=random.token_urlsafe())
    refer(ours, "erp")
    with pytest.raises(ReferenceMissing):
        resolve(ours)
    for path in (
        *(f"../../{theirs.slug}/prod/erp", f"..//{theirs.slug}/prod/erp", "../dev/erp", "/erp", "erp/", "a//b"),
        *("./erp", "erp/..", "...", "%2e%2e/erp", "erp?version=1", "erp#value", "a b", "erp\n", ""),
    ):
        with pytest.raises(ConfigurationError, match=r"reference|path"):
            refer(ours, path)
        # However it came into the row.
        with pytest.raises(ConfigurationError):
            references.fetch(ours.organization_id, "prod", "corp", path, name="shop")


def test_a_missing_value_is_looked_for_nowhere_else(
    organization: Organization, store: TransitService, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = f"{organization.organization_id}-prod-shop"
    for name in ("shop", place):
        monkeypatch.setenv(f"AIRFLOW_VAR_{name.upper()}", "from the environment")
    refer(organization, "shop", backend="texts", field="api_key")
    with pytest.raises(ReferenceMissing) as missing:
        resolve(organization)
    assert missing.value.verdict is Verdict.TERMINAL
    assert missing.value.facts == {"secret": "shop", "backend": "texts", "path": "shop"}


def test_what_is_no_value_of_the_type_is_told_without_repeating_it(
    organization: Organization, store: TransitService
) -> None:
    wrong = random.token_urlsafe()
    store.put(f"bridge/{organization.slug}/prod/erp", pin=wrong)
    refer(organization, "erp")
    with pytest.raises(ConfigurationError, match="api_key") as refused:
        resolve(organization)
    assert wrong not in str(refused.value)
    store.put(f"bridge/{organization.organization_id}-prod-shop", value=wrong)
    refer(organization, "shop", backend="texts")
    with pytest.raises(ConfigurationError, match="holds no JSON object") as refused:
        resolve(organization)
    assert wrong not in str(refused.value)


def test_a_store_that_refuses_is_told_from_one_that_is_away(
    organization: Organization, store: TransitService
) -> None:
    key = random.token_urlsafe()
    store.put(f"bridge/{organization.slug}/prod/erp", api_key=key)
    refer(organization, "erp")
    store.forbid()
    with pytest.raises(BackendRefused) as refused:
        resolve(organization)
    assert refused.value.facts["backend"] == "corp"
    store.allow()
    assert resolve(organization).revealed()["api_key"] == key
    store.stop()
    try:
        # What was read is used as long as it may be.
        assert resolve(organization).revealed()["api_key"] == key
        references.forget()
        with pytest.raises(Unavailable, match="does not answer") as away:
            resolve(organization)
        assert away.value.verdict is Verdict.TRANSIENT
        assert not isinstance(away.value, BackendRefused)
        assert store.url not in str(away.value)
    finally:
        store.restart()


def test_a_value_is_copied_into_the_vault(
    organization: Organization, store: TransitService, keyring: Keyring
) -> None:
    key = random.token_urlsafe()
    store.put(f"bridge/{organization.slug}/prod/erp", api_key=key)
    store.put("bridge/old/erp", api_key=key[::-1])
    place = ("shop", "-o", organization.slug, "-e", "prod", "--type", "api_key", "--from", "corp")
    done = run("import", *place, "--path", "erp")
    assert done.exit_code == 0, done.output
    assert key not in done.output
    store.put(f"bridge/{organization.slug}/prod/erp", api_key="another one")
    references.forget()
    assert resolve(organization).revealed()["api_key"] == key
    assert run("import", *place, "--path", "old/erp").exit_code != 0
    assert run("import", *place, "--path", "old/erp", "--anywhere").exit_code == 0
    assert resolve(organization).revealed()["api_key"] == key[::-1]
    with database.tenant(organization.organization_id) as connection:
        text = str(connection.execute("SELECT * FROM bridge.secret_versions").fetchall())
    assert key not in text


def test_an_unknown_store_is_named_with_those_that_there_are(
    store: TransitService, organization: Organization
) -> None:
    with pytest.raises(ConfigurationError, match="valid are corp, texts"):
        refer(organization, "x", backend="vault")
    assert run("stores").output.count(VAULT) == 2


def test_trying_a_reference_tells_and_sends_nothing_of_the_store(
    organization: Organization, store: TransitService
) -> None:
    owner, value = organization.organization_id, random.token_urlsafe()
    store.put(f"bridge/{owner}-prod-shop", value=value)
    heard = socket.create_server(("127.0.0.1", 0))
    heard.settimeout(0)
    port = heard.getsockname()[1]
    # The store's text as a field that is shown, and as one that is sent to the author's own server.
    with pytest.raises(ConfigurationError, match="valid are connection_string, password"):
        refer(organization, "shop", backend="texts", type="database", field="username")
    for field, fields in (
        ("username", {"host": "127.0.0.1", "port": port, "password": "x"}),
        ("password", {"host": "127.0.0.1", "port": port, "username": "x"}),
        ("username", {"password": "x"}),
    ):
        reference = references.Reference(backend="texts", path="shop", field=field, fields=fields)
        secrets.put(owner, "prod", "shop", "database", references.Referred("database", reference), "anna")
        found = try_secret(owner, "prod", "shop", "anna")
        assert found.ok is None
        assert value not in found.detail
    with pytest.raises(BlockingIOError):
        heard.accept()
    heard.close()
    # Where the store says it all, it is tried, and nothing of it is shown.
    store.put(f"bridge/{organization.slug}/prod/db", host="10.0.0.1", username=value, password=value[::-1])
    secrets.remove(owner, "prod", "shop", "anna")
    refer(organization, "db", type="database")
    found = try_secret(owner, "prod", "shop", "anna")
    assert found.ok is False
    assert "10.0.0.1" not in found.detail


def test_a_bad_entry_is_nobody_elses_and_what_is_missing_is_not_asked_for_each_time(
    make_organization: Callable[[], Organization], declare: Callable[[dict[str, Any]], Path]
) -> None:
    ours, theirs = make_organization(), make_organization()
    declare({"picky": {"class": f"{Picky.__module__}.Picky", "arguments": {}}})
    Picky.asked.clear()
    with pytest.raises(Unavailable):
        references.fetch(ours.organization_id, "prod", "picky", "bad", name="shop")
    assert references.fetch(theirs.organization_id, "prod", "picky", "good", name="shop") == "here"
    for _ in range(3):
        with pytest.raises(ReferenceMissing):
            references.fetch(ours.organization_id, "prod", "picky", "none", name="shop")
    assert len(Picky.asked) == 3


def test_a_secret_that_will_be_over_is_used_no_longer_than_that(
    organization: Organization, keyring: Keyring
) -> None:
    owner, ends = organization.organization_id, datetime.now(UTC) + timedelta(seconds=90)
    secrets.put(owner, "prod", "shop", "api_key", {"api_key": random.token_urlsafe()}, "anna", expires_at=ends)
    definition = {"base_url": "https://erp.example/", "auth": {"type": "secret", "secret": "shop"}}
    connections.put(owner, "prod", "erp", definition, "anna")
    assert tokens.resolve(owner, "prod", "erp", keyring).expires_at == pytest.approx(ends.timestamp(), abs=1)
