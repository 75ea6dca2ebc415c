"""Secrets whose value stays in HashiCorp Vault (here OpenBao), read through Airflow's own backend for it."""

from __future__ import annotations

import secrets as random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml
from click.testing import CliRunner, Result
from key_services import TransitService, transit_service

from continuitybridge import connections, database, secrets, tokens
from continuitybridge.cli import bridge
from continuitybridge.errors import (
    BackendRefused,
    BridgeError,
    ConfigurationError,
    ReconnectNeeded,
    ReferenceMissing,
    StoresUnreadable,
    Unavailable,
    Verdict,
)
from continuitybridge.organizations import Organization
from continuitybridge.runtime import platform
from continuitybridge.secrets import backends, references
from continuitybridge.secrets.trying import try_secret
from continuitybridge.settings import get_settings
from continuitybridge.tokens import store as token_store
from continuitybridge.vault import Keyring
from token_server import TokenServer

__all__ = ["transit_service"]
VAULT = "airflow.providers.hashicorp.secrets.vault.VaultBackend"


@pytest.fixture
def declare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[dict[str, Any]], Path]]:
    """Writes the file of stores."""
    file = tmp_path / "stores.yaml"

    def write(stores: dict[str, Any]) -> Path:
        file.touch(mode=0o600)
        file.write_text(yaml.safe_dump(stores))
        monkeypatch.setenv("BRIDGE_SECRET_BACKENDS_FILE", str(file))
        get_settings.cache_clear()
        backends._forget()
        references._kept = None
        return file

    yield write
    monkeypatch.undo()
    get_settings.cache_clear()
    references._kept = None


@pytest.fixture
def store(transit_service: TransitService, declare: Callable[[dict[str, Any]], Path]) -> TransitService:
    """A store `corp` that gives all fields of an entry, and `texts` that gives one text."""
    arguments = {"url": transit_service.url, "token_path": str(transit_service.token_file), "timeout": 3}
    declare(
        {
            "corp": {
                "class": VAULT,
                "arguments": {**arguments, "connections_path": "bridge"},
                "read": "connection",
            },
            "texts": {
                "class": VAULT,
                "arguments": {**arguments, "variables_path": "bridge"},
                "prefix": "{organization_id}-{environment}-",
            },
        }
    )
    return transit_service


def refer(
    organization: Organization, path: str, *, backend: str = "corp", type: str = "api_key", **more: Any
) -> None:
    referred = references.parse(type, {"backend": backend, "path": path, **more})
    secrets.put(organization.organization_id, "prod", "shop", type, referred, "anna")


def resolve(organization: Organization) -> secrets.SecretValue:
    return secrets.resolve(organization.organization_id, "prod", "shop", Keyring.open())


def run(*arguments: str) -> Result:
    return CliRunner().invoke(bridge, ["secret", *arguments])


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


class Slow:
    """A store that never answers."""

    asked = 0

    def get_variable(self, key: str) -> str | None:
        Slow.asked += 1
        time.sleep(30)
        return None


def test_a_store_that_never_answers_holds_few_threads_and_nobody_for_long(
    organization: Organization, declare: Callable[[dict[str, Any]], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "ANSWER_S", 0.3)
    Slow.asked = 0
    declare({"slow": {"class": f"{Slow.__module__}.Slow", "arguments": {}}})
    found: list[BridgeError] = []

    def ask() -> None:
        try:
            references.fetch(organization.organization_id, "prod", "slow", "x", name="shop")
        except BridgeError as error:
            found.append(error)

    threads = [threading.Thread(target=ask) for _ in range(12)]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic() - started < 3
    assert len(found) == 12
    assert all(isinstance(each, Unavailable) for each in found)
    assert 0 < Slow.asked <= backends.AT_ONCE


@pytest.mark.parametrize(
    ("declared", "told"),
    [
        ({"class": VAULT, "prefix": "all/"}, "needs {organization_id}"),
        ({"class": VAULT, "prefix": "{organization}-"}, "needs {organization_id}"),
        ({"class": VAULT, "prefix": "{organization}/{team}/"}, "team is not one of"),
        ({"class": "no.such.Backend"}, "cannot be imported"),
        ({"class": "pathlib.Path"}, "has no get_variable"),
        ({"class": VAULT, "argument": {"token": "hvs.abcdef"}}, "corp.argument"),
    ],
)
def test_a_bad_declaration_is_refused_and_named(
    declare: Callable[[dict[str, Any]], Path], declared: dict[str, Any], told: str
) -> None:
    declare({"corp": declared})
    with pytest.raises(ConfigurationError) as refused:
        backends.check()
    assert told in str(refused.value)
    assert "hvs." not in str(refused.value)
    listed = run("stores")
    assert listed.exit_code != 0
    assert told in str(listed.exception) + listed.output


def test_a_file_of_stores_that_others_may_read_is_refused(declare: Callable[[dict[str, Any]], Path]) -> None:
    declare({}).chmod(0o644)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        backends.check()
    with pytest.raises(StoresUnreadable):
        backends.names()


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_text("corp: {class: airflow.providers"),
        lambda file: file.write_text(""),
        lambda file: file.write_text("picky: {class: no.such.Backend}"),
        lambda file: file.chmod(0o640),
        lambda file: file.unlink(),
    ],
    ids=["no YAML", "empty", "no class", "mode", "gone"],
)
def test_stores_stay_as_they_were_while_their_file_is_bad(
    organization: Organization,
    declare: Callable[[dict[str, Any]], Path],
    damage: Callable[[Path], Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    stores = {"picky": {"class": f"{Picky.__module__}.Picky", "arguments": {}}}
    file = declare(stores)
    owner = organization.organization_id
    assert references.fetch(owner, "prod", "picky", "one", name="shop") == "here"
    damage(file)
    for path in ("two", "three"):
        assert references.fetch(owner, "prod", "picky", path, name="shop") == "here"
    assert [each.levelname for each in caplog.records if str(file) in each.getMessage()] == ["ERROR"]
    [row] = [row for row in platform.status(get_settings()) if row["name"] == "secret stores"]
    assert row["state"] == "unreadable"
    # One that is not known from before may stand in it.
    with pytest.raises(StoresUnreadable):
        references.fetch(owner, "prod", "new", "x", name="shop")
    file.touch()
    file.chmod(0o600)
    file.write_text(yaml.safe_dump({**stores, "new": stores["picky"]}))
    assert references.fetch(owner, "prod", "new", "four", name="shop") == "here"
    assert not [row for row in platform.status(get_settings()) if row["name"] == "secret stores"]
    assert "can be read again" in caplog.text


def test_a_bad_file_is_read_once_in_a_while_however_often_it_is_wanted(
    organization: Organization, declare: Callable[[dict[str, Any]], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    stores = {"picky": {"class": f"{Picky.__module__}.Picky", "arguments": {}}}
    file = declare(stores)
    real, read = backends._read, []
    monkeypatch.setattr(backends, "_read", lambda file: [read.append(file), real(file)][1])
    assert backends.names() == ["picky"]
    for text in ("corp: [", "corp: {class: no.such.Backend}"):
        file.write_text(text)
        before = len(read)
        for _ in range(50):
            assert backends.names() == ["picky"]
        assert len(read) == before + 1
    monkeypatch.setattr(backends, "BAD_FILE_S", 0.0)
    file.write_text("corp: {class: no.such.Backend} ")
    before = len(read)
    for _ in range(3):
        backends.names()
    assert len(read) == before + 3


def test_the_status_imports_no_stores_class_and_sees_what_is_wrong(
    declare: Callable[[dict[str, Any]], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    good = {"class": VAULT, "arguments": {}}
    imported = []
    with monkeypatch.context() as patched:
        patched.setattr(backends, "import_module", lambda name: [imported.append(name), import_module(name)][1])
        declare({"corp": good})
        backends.check(at_a_glance=True)
        assert imported == []
        for bad in ("no.such.Backend", f"{VAULT}s", f"{VAULT}.more", "pathlib.Path.no", "json.decoder.JSON"):
            declare({"corp": good, "new": {"class": bad}})
            with pytest.raises(ConfigurationError, match="cannot be imported"):
                backends.check(at_a_glance=True)
        backends_own = f"{Picky.__module__}.Picky"
        declare({"corp": {"class": backends_own}})
        backends.check(at_a_glance=True)


def test_a_glance_at_the_stores_brings_no_airflow_along(declare: Callable[[dict[str, Any]], Path]) -> None:
    declare({"corp": {"class": VAULT, "arguments": {}}})
    code = (
        "import sys; from continuitybridge.secrets import backends; backends.check(at_a_glance=True);"
        " sys.exit('airflow' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_draws_on_a_store_waits_where_the_file_was_never_read(
    organization: Organization, declare: Callable[[dict[str, Any]], Path], keyring: Keyring
) -> None:
    file = declare({"picky": {"class": f"{Picky.__module__}.Picky", "arguments": {}}})
    refer(organization, "key", backend="picky", field="api_key")
    definition = {"base_url": "https://erp.example/", "auth": {"type": "secret", "secret": "shop"}}
    connections.put(organization.organization_id, "prod", "erp", definition, "anna")
    backends._forget()
    references.forget()
    good = file.read_text()
    file.write_text("picky: [")
    with pytest.raises(StoresUnreadable) as waits:
        tokens.resolve(organization.organization_id, "prod", "erp", keyring)
    assert waits.value.verdict is Verdict.TRANSIENT
    assert waits.value.facts["field"] == "BRIDGE_SECRET_BACKENDS_FILE"
    assert str(file) not in waits.value.detail
    file.write_text(good)
    assert tokens.resolve(organization.organization_id, "prod", "erp", keyring).auth["value"] == "here"


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


class Picky:
    """A store with entries that it stumbles over, and others that come."""

    asked: ClassVar[list[str]] = []

    def get_variable(self, key: str) -> str | None:
        Picky.asked.append(key)
        if key.endswith("bad"):
            raise ValueError("no such mount")
        return None if key.endswith("none") else "here"


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


def test_a_client_whose_secret_is_changed_at_the_server_first_goes_on_by_itself(
    organization: Organization, store: TransitService, keyring: Keyring
) -> None:
    server = TokenServer()
    try:
        path = f"bridge/{organization.slug}/prod/client"
        client = {"client_id": server.client_id, "token_url": f"{server.url}/token"}
        store.put(path, client_secret="old" * 5, **client)
        refer(organization, "client", type="oauth2")
        definition = {"base_url": server.url, "auth": {"type": "secret", "secret": "shop"}}
        connections.put(organization.organization_id, "prod", "erp", definition, "anna")
        with pytest.raises(Unavailable):
            tokens.resolve(organization.organization_id, "prod", "erp", keyring)
        store.put(path, client_secret=server.client_secret, **client)
        # Neither the value that was read nor the wait for the old one holds it up.
        found = tokens.resolve(organization.organization_id, "prod", "erp", keyring)
        assert found.auth["token"] in server.valid
    finally:
        server.close()


def test_a_client_whose_secret_outside_stays_wrong_is_given_up_once_until_it_changes(
    organization: Organization, store: TransitService, keyring: Keyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_store, "DOUBT_S", 1.0)
    monkeypatch.setattr(token_store, "RETRY_S", 0.3)
    server, owner = TokenServer(), organization.organization_id

    def ask() -> Any:
        return tokens.resolve(owner, "prod", "erp", keyring)

    try:
        path = f"bridge/{organization.slug}/prod/client"
        client = {"client_id": server.client_id, "token_url": f"{server.url}/token"}
        store.put(path, client_secret="old" * 5, **client)
        refer(organization, "client", type="oauth2")
        definition = {"base_url": server.url, "auth": {"type": "secret", "secret": "shop"}}
        connections.put(owner, "prod", "erp", definition, "anna")
        with pytest.raises(Unavailable):
            ask()
        time.sleep(1.05)
        # Another value that is wrong is doubted as long as the first.
        store.put(path, client_secret="new" * 5, **client)
        with pytest.raises(Unavailable):
            ask()
        time.sleep(1.05)
        for _ in range(3):
            with pytest.raises(ReconnectNeeded, match="invalid_client"):
                ask()
        assert len(server.calls) == 3
        with database.tenant(owner) as connection:
            [(told,)] = connection.execute(
                "SELECT count(*) FROM bridge.audit_events WHERE action = 'token.reconnect_needed'"
            ).fetchall()
        assert told == 1
        store.put(path, client_secret=server.client_secret, **client)
        references.forget()  # as when its time is over
        assert ask().auth["token"] in server.valid
    finally:
        server.close()


def test_what_is_no_refusal_of_what_is_asked_for_now_doubts_nothing(
    organization: Organization, store: TransitService, keyring: Keyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_store, "DOUBT_S", 0.2)
    monkeypatch.setattr(token_store, "RETRY_S", 0.01)
    server, owner = TokenServer(), organization.organization_id
    try:
        path = f"bridge/{organization.slug}/prod/client"
        client = {"client_id": server.client_id, "token_url": f"{server.url}/token"}
        store.put(path, client_secret=server.client_secret, **client)
        refer(organization, "client", type="oauth2")
        definition = {"base_url": server.url, "auth": {"type": "secret", "secret": "shop"}}
        connections.put(owner, "prod", "erp", definition, "anna")
        first = tokens.resolve(owner, "prod", "erp", keyring)
        # An attempt that lost its lease comes back refused, now and later.
        late = token_store.Lease(1, 0, "somebody", None, abandoned=False)
        place = token_store.Place(owner, "prod", "erp")
        assert not token_store.doubt(place, late)
        time.sleep(0.25)
        assert not token_store.doubt(place, late)
        with database.tenant(owner) as connection:
            [row] = connection.execute("SELECT doubted_since FROM bridge.tokens").fetchall()
        assert row == (None,)
        server.client_secret, known = "new" * 5, server.client_secret
        with pytest.raises(Unavailable):
            tokens.resolve(owner, "prod", "erp", keyring, refused=first.token)
        server.client_secret = known
        time.sleep(0.1)  # longer than it is put off
        with database.tenant(owner) as connection:
            connection.execute("UPDATE bridge.tokens SET refused_at = NULL")
        second = tokens.resolve(owner, "prod", "erp", keyring, refused=first.token)
        assert second.token != first.token
        # What was doubted before a token came is over.
        with database.tenant(owner) as connection:
            connection.execute(
                "UPDATE bridge.tokens SET doubted_since = now() - interval '1 hour', refused_at = NULL"
            )
        server.client_secret = "new" * 5
        with pytest.raises(Unavailable):
            tokens.resolve(owner, "prod", "erp", keyring, refused=second.token)
    finally:
        server.close()


def test_a_secret_that_will_be_over_is_used_no_longer_than_that(
    organization: Organization, keyring: Keyring
) -> None:
    owner, ends = organization.organization_id, datetime.now(UTC) + timedelta(seconds=90)
    secrets.put(owner, "prod", "shop", "api_key", {"api_key": random.token_urlsafe()}, "anna", expires_at=ends)
    definition = {"base_url": "https://erp.example/", "auth": {"type": "secret", "secret": "shop"}}
    connections.put(owner, "prod", "erp", definition, "anna")
    assert tokens.resolve(owner, "prod", "erp", keyring).expires_at == pytest.approx(ends.timestamp(), abs=1)
