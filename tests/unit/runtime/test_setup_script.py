"""`make setup`: what it tells uv of pip's configuration."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def setup() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bridge_setup", ROOT / "scripts" / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_an_index_a_certificate_and_a_proxy_of_pip_reach_uv(setup: ModuleType) -> None:
    listing = (
        "global.index-url='https://mirror.example/simple'\n"
        "global.cert='/etc/ssl/company.pem'\n"
        "global.proxy='http://proxy.example:3128'\n"
        "global.timeout='180'\n"
    )
    assert setup.uv_settings(setup.pip_settings(listing)) == {
        "UV_INDEX_STRATEGY": "unsafe-best-match",
        "UV_DEFAULT_INDEX": "https://mirror.example/simple",
        "SSL_CERT_FILE": "/etc/ssl/company.pem",
        "ALL_PROXY": "http://proxy.example:3128",
        "UV_HTTP_TIMEOUT": "180",
    }


def test_several_indexes_are_all_asked_as_pip_would(setup: ModuleType) -> None:
    listing = "global.extra-index-url='\\nhttps://one.example/simple\\nhttps://two.example/simple'\n"
    settings = setup.uv_settings(setup.pip_settings(listing))
    assert settings["UV_INDEX"] == "https://one.example/simple https://two.example/simple"


def test_the_environment_wins_over_pip_conf_and_the_install_section_over_the_global_one(setup: ModuleType) -> None:
    listing = (
        ":env:.index-url='https://environment.example/simple'\n"
        "global.index-url='https://global.example/simple'\n"
        "global.find-links='/global'\n"
        "install.find-links='/wheels /more'\n"
        "download.index-url='https://not.ours/simple'\n"
    )
    settings = setup.uv_settings(setup.pip_settings(listing))
    assert settings["UV_DEFAULT_INDEX"] == "https://environment.example/simple"
    assert settings["UV_FIND_LINKS"] == "/wheels,/more"


def test_an_offline_installation_stays_offline(setup: ModuleType) -> None:
    listing = "global.no-index='true'\nglobal.find-links='/wheels'\n"
    assert setup.uv_settings(setup.pip_settings(listing))["UV_NO_INDEX"] == "1"


def test_a_python_that_does_not_suit_is_refused_by_its_name() -> None:
    result = subprocess.run(
        [ROOT / "scripts" / "setup"],
        env={"PATH": "/usr/bin:/bin", "PYTHON": "/bin/false"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert "PYTHON=/bin/false is not a CPython 3.11, 3.12 or 3.13" in result.stderr
