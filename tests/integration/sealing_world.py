"""A session whose master key is sealed by a passphrase, and opens again without one when the test is over."""

from __future__ import annotations

import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from continuitybridge.cli import bridge
from continuitybridge.settings import Settings, get_settings
from continuitybridge.vault import sealing

SHM = Path("/dev/shm")


def in_memory() -> Path:
    """A directory of this test's in memory; among its other temporary files, where these are there too."""
    usual = Path(tempfile.gettempdir())
    return Path(tempfile.mkdtemp(prefix="bridge-test-", dir=usual if usual.is_relative_to(SHM) else SHM))


def vault(*arguments: str, given: str | None = None) -> Result:
    """`bridge vault …`, with what is typed."""
    return CliRunner().invoke(bridge, ["vault", *arguments], input=given)


@pytest.fixture
def passphrase(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The passphrase; the key is unsealed on this machine."""
    directory = in_memory()
    monkeypatch.setenv("BRIDGE_UNSEALED_DIR", str(directory / "unsealed"))
    get_settings.cache_clear()
    # Guesses are dear otherwise, and so is each test.
    monkeypatch.setattr(sealing, "LOG2_N", 10)
    text = secrets.token_urlsafe(24)
    sealed = vault("rotate-master-key", "--to", "passphrase", "--passphrase-file", "-", given=f"{text}\n")
    assert sealed.exit_code == 0, sealed.output
    yield text
    assert vault("unseal", "--passphrase-file", "-", given=f"{text}\n").exit_code == 0
    assert vault("rotate-master-key", "--to", "file").exit_code == 0
    monkeypatch.undo()
    get_settings.cache_clear()
    shutil.rmtree(directory)
