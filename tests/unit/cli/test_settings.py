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
        json.dumps([{**GOOD, "email_verified_by": "me"}]),
        json.dumps([{**GOOD, "email_verified_by": True}]),
        json.dumps([{**GOOD, "second_factor": {"amr": []}}]),
        json.dumps([{**GOOD, "second_factor": {"amr": [""]}}]),
        json.dumps([{**GOOD, "second_factor": {"amr": ["mfa", "pwd"]}}]),
        json.dumps([{**GOOD, "second_factor": True}]),
        json.dumps([{**GOOD, "second_factor": {"sub": ["one"]}}]),
        json.dumps([{**GOOD, "second_factor": {"email_verified": ["true"]}}]),
        json.dumps([{**GOOD, "second_factor": {"acr": ["0"]}}]),
        json.dumps([{**GOOD, "second_factor": {"acr": ["urn:oasis:names:tc:SAML:2.0:ac:classes:Password"]}}]),
        *(
            json.dumps([{**GOOD, "second_factor": {"amr": [each]}}])
            for each in ("PWD", "pin", "kba", "wia", "geo", "rba", "user", "MFA")
        ),
    ],
)
def test_a_bad_identity_provider_stops_the_start_with_the_settings_name(
    monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    with pytest.raises(ConfigurationError, match="BRIDGE_OIDC_PROVIDERS"):
        providers(monkeypatch, given)


TENANT = "6babcaad-604b-40ac-a9d7-9fd97c0b779f"


@pytest.mark.parametrize("by", ["xms_edov", "directory"])
@pytest.mark.parametrize(
    ("issuer", "one_companys"),
    [
        (f"https://login.microsoftonline.com/{TENANT}/v2.0", True),
        (f"https://sts.windows.net/{TENANT}/", True),
        ("https://login.microsoftonline.com/common/v2.0", False),
        ("https://LOGIN.microsoftonline.com/organizations/v2.0", False),
        ("https://login.microsoftonline.us/consumers/v2.0", False),
        ("https://login.microsoftonline.com/{tenantid}/v2.0", False),
        (f"https://login.microsoftonline.com/common/{TENANT}/v2.0", False),
        ("https://login.microsoftonline.com/9188040d-6c67-4c5b-b112-36a304b66dad/v2.0", False),
        ("https://login.microsoftonline.com", False),
        ("https://login.microsoftonline.com./common/v2.0", False),
        (f"https://login.microsoftonline.us/{TENANT}/v2.0", True),
        ("https://login.microsoftonline.de/common/v2.0", False),
        ("https://login.chinacloudapi.cn/common", False),
        ("https://login.partner.microsoftonline.cn/organizations/v2.0", False),
        (f"https://notmicrosoftonline.com/{TENANT[1:]}", True),
    ],
)
def test_addresses_that_a_directory_gives_are_taken_of_one_companys_only(
    monkeypatch: pytest.MonkeyPatch, by: str, issuer: str, one_companys: bool
) -> None:
    given = json.dumps([{**GOOD, "issuer": issuer, "email_verified_by": by}])
    if one_companys:
        [found] = providers(monkeypatch, given).oidc_providers
        assert found.email_verified_by == by
    else:
        with pytest.raises(ConfigurationError, match="not one tenant's"):
            providers(monkeypatch, given)


@pytest.mark.parametrize(
    "issuer",
    [
        "https://accounts.google.com",
        "https://Accounts.google.com.",
        f"https://acme.ciamlogin.com/{TENANT}/v2.0",
        "https://appleid.apple.com",
        "https://login.live.com",
        "https://gitlab.com",
        "https://www.facebook.com",
    ],
)
def test_where_anybody_opens_an_account_is_nobodys_directory(monkeypatch: pytest.MonkeyPatch, issuer: str) -> None:
    with pytest.raises(ConfigurationError, match="anybody opens an account"):
        providers(monkeypatch, json.dumps([{**GOOD, "issuer": issuer, "email_verified_by": "directory"}]))


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
