"""A systemd unit that starts the platform with the machine."""

from __future__ import annotations

import getpass
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from continuitybridge.errors import ConfigurationError
from continuitybridge.settings import Settings, project_root

Scope = Literal["system", "user"]

NAME = "continuitybridge.service"

_UNIT = """\
[Unit]
Description=ContinuityBridge ({state_dir})
Documentation=file://{root}/docs/operator.md
After=network-online.target{after}
Wants=network-online.target

[Service]
# `bridge up` migrates, starts supervisord and returns when everything is ready.
Type=forking
PIDFile={state_dir}/run/supervisord.pid
Environment="BRIDGE_STATE_DIR={state_dir}"
{user}WorkingDirectory={root}
ExecStart="{bridge}" up
ExecStop="{bridge}" down
Restart=on-failure
RestartSec=5
TimeoutStartSec=300
TimeoutStopSec=120
LimitNOFILE=65536

[Install]
WantedBy={target}
"""


@dataclass(frozen=True, slots=True)
class Unit:
    """The unit, where it belongs, and what the person types next."""

    path: Path
    text: str
    next_commands: tuple[str, ...]


def scope(asked: str | None) -> Scope:
    """The scope to install for: what was asked, else the machine for root and the user for others."""
    if asked in ("system", "user"):
        return asked  # type: ignore[return-value]
    return "system" if os.geteuid() == 0 else "user"


def unit(settings: Settings, scope: Scope) -> Unit:
    """The unit for this checkout and state directory. Settings other than the state directory belong into
    `<state_dir>/bridge.env`, so that no secret stands in the unit."""
    system = scope == "system"
    directory = Path("/etc/systemd/system") if system else _user_units()
    text = _UNIT.format(
        state_dir=_escaped(settings.state_dir.absolute()),
        root=_escaped(project_root()),
        bridge=_escaped(Path(sys.executable).with_name("bridge")),
        user=f"User={getpass.getuser()}\n" if system else "",
        after=" postgresql.service redis-server.service" if system and settings.database_url else "",
        target="multi-user.target" if system else "default.target",
    )
    systemctl = "systemctl" if system else "systemctl --user"
    commands = [f"{systemctl} daemon-reload", f"{systemctl} enable --now {NAME}"]
    if not system:
        commands.append(f"loginctl enable-linger {getpass.getuser()}   # start without signing in")
    return Unit(directory / NAME, text, tuple(commands))


def install(unit: Unit) -> None:
    """Write the unit's file. Raises `ConfigurationError` when there is no systemd or no right to write."""
    if shutil.which("systemctl") is None:
        raise ConfigurationError(
            "systemctl is not here; `bridge service install --print` shows the unit for a machine that has it"
        )
    try:
        unit.path.parent.mkdir(parents=True, exist_ok=True)
        unit.path.write_text(unit.text)
    except PermissionError:
        raise ConfigurationError(
            f"{unit.path} cannot be written: run it as root, or with --user for a unit of your own"
        ) from None


def _user_units() -> Path:
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "systemd" / "user"


def _escaped(path: Path) -> str:
    """systemd expands %x in values."""
    return str(path).replace("%", "%%")
