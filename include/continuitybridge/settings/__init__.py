"""Every setting of the platform, with its unit in its name. Read from the environment (prefix `BRIDGE_`) and
from `<state_dir>/bridge.env`, which the first start writes with mode 0600; the environment wins.

Each module here declares those of one subject.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from pydantic import ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from continuitybridge import egress
from continuitybridge.egress import Policy
from continuitybridge.errors import ConfigurationError
from continuitybridge.settings.delivery import Delivery
from continuitybridge.settings.doors import Doors
from continuitybridge.settings.guard import Guard
from continuitybridge.settings.keys import Keys
from continuitybridge.settings.messages import Messages
from continuitybridge.settings.people import People
from continuitybridge.settings.places import Places, project_root

__all__ = ["Settings", "egress_policy", "get_settings", "project_root", "variable"]


# The reference page shows those of the last base first.
class Settings(Guard, People, Doors, Delivery, Messages, Keys, Places, BaseSettings):
    """The platform's configuration. Field descriptions are the reference manual."""

    model_config = SettingsConfigDict(
        env_prefix="BRIDGE_", extra="ignore", hide_input_in_errors=True, populate_by_name=True
    )


def _problem(location: Sequence[int | str], message: str) -> str:
    # What is about several settings names them itself.
    return f"{variable('.'.join(map(str, location)))}: {message}" if location else message


def variable(name: str) -> str:
    """The environment variable of a setting."""
    upper = name.upper()
    return upper if upper.startswith(("WAF_", "BRIDGE_")) else f"BRIDGE_{upper}"


@lru_cache
def get_settings() -> Settings:
    """The process's settings; raises `ConfigurationError` naming each bad key."""
    state_dir = Path(os.environ.get("BRIDGE_STATE_DIR") or project_root() / ".bridge")
    try:
        return Settings(_env_file=state_dir / "bridge.env")
    except ValidationError as error:
        problems = "; ".join(_problem(e["loc"], e["msg"]) for e in error.errors())
        raise ConfigurationError(f"settings are not valid: {problems}") from None


def egress_policy() -> Policy:
    """What this process may call for a tenant: what it was told to follow, else what its settings say."""
    return egress.installed() or get_settings().egress
