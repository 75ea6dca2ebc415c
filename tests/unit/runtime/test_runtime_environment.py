"""What the platform's processes find in their environment, and the keys generated for them."""

from __future__ import annotations

import configparser
import stat
from pathlib import Path

import pytest
from cryptography.fernet import Fernet
from pydantic import ValidationError

from continuitybridge.runtime import airflow_environment, process_environment
from continuitybridge.runtime.environment import airflow_configuration_template, write_airflow_configuration
from continuitybridge.settings import Settings

ROOT = Path(__file__).resolve().parents[3]


def settings_in(directory: Path) -> Settings:
    return Settings(state_dir=directory / "state", http_port=18299)


def test_keys_are_generated_once_and_readable_by_their_owner_only(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    first = airflow_environment(settings)
    assert airflow_environment(settings) == first
    Fernet(first["AIRFLOW__CORE__FERNET_KEY"])
    assert len(first["AIRFLOW__API_AUTH__JWT_SECRET"]) >= 64
    assert first["AIRFLOW__API__SECRET_KEY"] != first["AIRFLOW__API_AUTH__JWT_SECRET"]
    assert stat.S_IMODE((settings.keys_dir / "airflow.env").stat().st_mode) == 0o600
    assert stat.S_IMODE(settings.keys_dir.stat().st_mode) == 0o700


def test_two_installations_have_different_keys(tmp_path: Path) -> None:
    one, other = (airflow_environment(settings_in(tmp_path / name)) for name in ("one", "other"))
    assert one["AIRFLOW__CORE__FERNET_KEY"] != other["AIRFLOW__CORE__FERNET_KEY"]


def test_servers_listen_on_the_loopback_address_unless_told(tmp_path: Path) -> None:
    environment = airflow_environment(settings_in(tmp_path))
    assert environment["AIRFLOW__API__HOST"] == "127.0.0.1"
    assert environment["AIRFLOW__API__PORT"] == "18299"


@pytest.mark.parametrize(
    ("public_url", "links", "here"),
    [
        (None, "http://127.0.0.1:18299", "http://127.0.0.1:18299"),
        ("https://bridge.example/", "https://bridge.example", "http://127.0.0.1:18299"),
        ("https://example.com/hub", "https://example.com/hub", "http://127.0.0.1:18299/hub"),
    ],
)
def test_airflow_s_links_bear_the_public_address_and_its_tasks_ask_here(
    tmp_path: Path, public_url: str | None, links: str, here: str
) -> None:
    environment = airflow_environment(settings_in(tmp_path).model_copy(update={"public_url": public_url}))
    assert environment["AIRFLOW__API__BASE_URL"] == links
    assert environment["AIRFLOW__CORE__EXECUTION_API_SERVER_URL"] == f"{here}/execution/"


@pytest.mark.parametrize(
    "given",
    [
        "bridge.example",
        "ftp://bridge.example",
        "https://",
        "https://bridge.example?a=b",
        "https://bridge.example:notaport",
        "https://bridge.example:70000",
        "https://[bridge.example",
    ],
)
def test_a_public_address_that_is_none_is_refused(given: str) -> None:
    with pytest.raises(ValidationError, match=r"https://bridge\.example"):
        Settings(public_url=given)


@pytest.mark.parametrize("path", ["/bridge", "/API/", "/ui/hub", "//auth", "/execution"])
def test_a_public_address_below_the_platform_s_own_is_refused(path: str) -> None:
    with pytest.raises(ValidationError, match=r"BRIDGE_PUBLIC_URL.*/hub"):
        Settings(public_url=f"https://example.com{path}")
    assert Settings(public_url="https://example.com/bridges").public_path == "/bridges"


def test_an_operator_s_word_in_bridge_env_wins_and_one_in_the_environment_wins_over_it(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    settings.state_dir.mkdir()
    (settings.state_dir / "bridge.env").write_text("AIRFLOW__CORE__PARALLELISM=3\nBRIDGE_HTTP_PORT=1\n")
    assert airflow_environment(settings)["AIRFLOW__CORE__PARALLELISM"] == "3"
    assert "BRIDGE_HTTP_PORT" not in airflow_environment(settings)
    given = {"AIRFLOW__CORE__PARALLELISM": "5", "AIRFLOW_HOME": "/elsewhere"}
    environment = process_environment(settings, given)
    assert environment["AIRFLOW__CORE__PARALLELISM"] == "5"
    assert environment["AIRFLOW_HOME"] == str(settings.state_dir / "airflow")


def test_processes_keep_their_byte_code_whatever_the_user_s_shell_says(tmp_path: Path) -> None:
    environment = process_environment(settings_in(tmp_path), {"PYTHONDONTWRITEBYTECODE": "1", "PATH": "/bin"})
    assert "PYTHONDONTWRITEBYTECODE" not in environment
    assert environment["PATH"] == "/bin"


def test_airflow_cfg_holds_the_same_options_and_no_secret(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    path = write_airflow_configuration(settings)
    environment = airflow_environment(settings)
    parser = configparser.ConfigParser()
    parser.read(path)
    for section in parser.sections():
        for key, value in parser[section].items():
            assert environment[f"AIRFLOW__{section.upper()}__{key.upper()}"] == value
    assert parser["api"]["port"] == "18299"
    for secret in ("FERNET_KEY", "JWT_SECRET", "SECRET_KEY", "SQL_ALCHEMY_CONN"):
        assert secret.lower() not in path.read_text().lower().replace("external_db", "")


def test_the_template_for_an_airflow_run_otherwise_is_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRIDGE_HTTP_PORT", "18298")
    assert airflow_configuration_template() == (ROOT / "airflow.cfg.template").read_text(), "run: make docs"
