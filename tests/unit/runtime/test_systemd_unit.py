"""The systemd unit."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from continuitybridge.runtime import systemd
from continuitybridge.settings import Settings


@pytest.mark.parametrize("scope", ["system", "user"])
def test_the_unit_starts_this_checkout_with_its_state_directory(tmp_path: Path, scope: systemd.Scope) -> None:
    unit = systemd.unit(Settings(state_dir=tmp_path / "100% mine"), scope)
    assert f'Environment="BRIDGE_STATE_DIR={tmp_path}/100%% mine"' in unit.text
    assert '/.venv/bin/bridge" up' in unit.text
    assert ("User=" in unit.text) == (scope == "system")
    assert unit.path.name == "continuitybridge.service"


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze on this machine")
    unit = systemd.unit(Settings(state_dir=tmp_path / "state"), "system")
    file = tmp_path / unit.path.name
    file.write_text(unit.text)
    result = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(file)], capture_output=True, text=True, check=False
    )
    assert unit.path.name not in result.stderr, result.stderr
