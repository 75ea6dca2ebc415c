"""Stores outside that secrets are referred to, as their file declares them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml
from click.testing import CliRunner, Result
from key_services import TransitService

from continuitybridge import secrets
from continuitybridge.cli import bridge
from continuitybridge.organizations import Organization
from continuitybridge.secrets import backends, references
from continuitybridge.settings import get_settings
from continuitybridge.vault import Keyring

VAULT = "airflow.providers.hashicorp.secrets.vault.VaultBackend"


class Picky:
    """A store with entries that it stumbles over, and others that come."""

    asked: ClassVar[list[str]] = []

    def get_variable(self, key: str) -> str | None:
        Picky.asked.append(key)
        if key.endswith("bad"):
            raise ValueError("no such mount")
        return None if key.endswith("none") else "here"


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
