"""The tutorial, command by command, as it is written."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from running_platform import ROOT, Platform

TUTORIAL = ROOT / "docs" / "tutorial.md"


def test_every_command_of_the_tutorial_works_and_the_replayed_order_reaches_the_warehouse(
    platform: Platform, tmp_path: Path
) -> None:
    blocks = re.findall(r"^```\n(.*?)^```$", TUTORIAL.read_text(), flags=re.S | re.M)
    assert len(blocks) == 8
    script = "set -eu\n" + "\n".join(blocks)
    result = subprocess.run(
        ["sh", "-c", script],
        env={**platform.environment, "BRIDGE_URL": platform.url()},
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
    assert '"order_number":"S-1"' in result.stdout.replace(": ", ":").replace("\\", "")
    assert "webhook shop-order: secret cbh_" in result.stdout
    assert "validation-failed" in result.stdout
    assert re.search(r"\S+ runs again on 1\.1\.0, generation 2", result.stdout)
    assert "aurora.prod.shop-order 1.1.0 removed" in result.stdout
