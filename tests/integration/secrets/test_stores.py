"""The file that declares stores of secrets: what is refused in it, and what goes on while it is bad or a store
does not answer."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from stores_world import VAULT, Picky, refer, run

from continuitybridge import connections, tokens
from continuitybridge.errors import (
    BridgeError,
    ConfigurationError,
    StoresUnreadable,
    Unavailable,
    Verdict,
)
from continuitybridge.organizations import Organization
from continuitybridge.runtime import platform
from continuitybridge.secrets import backends, references
from continuitybridge.settings import get_settings
from continuitybridge.vault import Keyring


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
