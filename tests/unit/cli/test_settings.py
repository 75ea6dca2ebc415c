from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from continuitybridge.cli import bridge
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
