from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from continuitybridge import private_files
from continuitybridge.cli import bridge
from continuitybridge.errors import ConfigurationError
from continuitybridge.settings import Settings, get_settings

PAGE = Path(__file__).parents[3] / "docs" / "settings.md"


@pytest.fixture(autouse=True)
def fresh_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRIDGE_STATE_DIR", str(tmp_path))
    get_settings.cache_clear()


def test_the_reference_page_is_what_the_settings_say() -> None:
    done = CliRunner().invoke(bridge, ["settings", "--markdown"])
    assert done.output == PAGE.read_text(), "run: bridge settings --markdown > docs/settings.md"


def test_every_setting_says_what_it_is() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_values_that_are_secret_are_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRIDGE_DATABASE_URL", "postgresql://me:hunter2@127.0.0.1/db")
    get_settings.cache_clear()
    shown = CliRunner().invoke(bridge, ["settings"]).output
    assert "BRIDGE_DATABASE_URL" in shown
    assert "hunter2" not in shown


def test_a_bad_setting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRIDGE_HTTP_PORT", "eighty")
    get_settings.cache_clear()
    done = CliRunner().invoke(bridge, ["settings"])
    assert done.exit_code == 2
    assert "BRIDGE_HTTP_PORT" in done.output


GOOD = {
    "name": "acme",
    "issuer": "https://login.acme.example",
    "client_id": "bridge",
    "client_secret_file": "/etc/bridge/acme.secret",
    "email_domains": ["Acme.example"],
}


def providers(monkeypatch: pytest.MonkeyPatch, given: str) -> Settings:
    monkeypatch.setenv("BRIDGE_OIDC_PROVIDERS", given)
    get_settings.cache_clear()
    return get_settings()


def test_identity_providers_are_read_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    [found] = providers(monkeypatch, json.dumps([GOOD])).oidc_providers
    assert found.email_domains == ("acme.example",)
    assert found.speaks_for("anna@ACME.example")
    assert not found.speaks_for("anna@acme.example.org")
    assert providers(monkeypatch, "").oidc_providers == ()


@pytest.mark.parametrize(
    "given",
    [
        "[",
        json.dumps(GOOD),
        json.dumps([GOOD, GOOD]),
        json.dumps([{**GOOD, "issuer": "http://login.acme.example"}]),
        json.dumps([{**GOOD, "issuer": "https://user@login.acme.example"}]),
        json.dumps([{**GOOD, "email_domains": []}]),
        json.dumps([{**GOOD, "email_domains": ["*"]}]),
        json.dumps([{**GOOD, "email_domains": "acme.example"}]),
        json.dumps([{**GOOD, "client_secret": "x"}]),
        json.dumps([{**GOOD, "name": "../acme"}]),
    ],
)
def test_a_bad_identity_provider_stops_the_start_with_the_settings_name(
    monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    with pytest.raises(ConfigurationError, match="BRIDGE_OIDC_PROVIDERS"):
        providers(monkeypatch, given)


def test_a_secret_file_that_others_may_read_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("x\n")
    file.chmod(0o600)
    assert private_files.read(file, "BRIDGE_OIDC_PROVIDERS") == "x"
    file.chmod(0o640)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        private_files.read(file, "BRIDGE_OIDC_PROVIDERS")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        private_files.read(tmp_path / "nothing", "BRIDGE_OIDC_PROVIDERS")
