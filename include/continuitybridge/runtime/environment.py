"""What the platform's processes find in their environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from continuitybridge.airflow.configuration import Options, airflow_home, airflow_options
from continuitybridge.database.connections import read_env
from continuitybridge.runtime import keys
from continuitybridge.settings import Settings

OVERRIDES = ("AIRFLOW__", "AIRFLOW_CONN_", "AIRFLOW_VAR_")
"""What an operator may say to Airflow himself, in `bridge.env` or in the environment."""


def airflow_environment(settings: Settings) -> dict[str, str]:
    """Airflow's home and every `AIRFLOW__*` variable, for the supervisor, the tests and the command line alike.

    Later ones win: the options the product needs, the generated keys, `<state_dir>/bridge.env` (the database's
    URL, written by the bootstrap, and what the operator added). Holds secrets; not for a command line or a log.
    """
    stored = read_env(settings.state_dir / "bridge.env")
    return {
        **{f"AIRFLOW__{s.upper()}__{k.upper()}": value for (s, k), value in airflow_options(settings).items()},
        **keys.airflow_keys(settings),
        **{name: value for name, value in stored.items() if name.startswith(OVERRIDES)},
        "AIRFLOW_HOME": str(airflow_home(settings)),
        # Airflow writes a file of 3,000 lines, keys included, where it finds none.
        "AIRFLOW_CONFIG": str(airflow_home(settings) / "airflow.cfg"),
    }


def process_environment(settings: Settings, given: Mapping[str, str] | None = None) -> dict[str, str]:
    """The whole environment of one of the platform's processes: `given` (the caller's, by default), the state
    directory and Airflow's variables; those of Airflow that are `given` win."""
    given = os.environ if given is None else given
    environment = {
        **given,
        **airflow_environment(settings),
        **{name: value for name, value in given.items() if name.startswith(OVERRIDES)},
        "BRIDGE_STATE_DIR": str(settings.state_dir.absolute()),
        "PYTHONUNBUFFERED": "1",
    }
    # Without byte code each of the processes compiles Airflow anew at every start.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    return environment


def write_airflow_configuration(settings: Settings) -> Path:
    """Write `airflow.cfg` into Airflow's home, so that `airflow` called by hand reads the same options. It has no
    secrets: those are in the environment that `bridge airflow` gives."""
    path = airflow_home(settings) / "airflow.cfg"
    path.parent.mkdir(parents=True, exist_ok=True)
    keys.write_private(path, render_airflow_configuration(airflow_options(settings)))
    return path


def render_airflow_configuration(options: Options) -> str:
    """The options as `airflow.cfg` reads them."""
    sections: dict[str, list[str]] = {}
    for (section, key), value in options.items():
        # A literal % is written twice: the format knows %(name)s.
        sections.setdefault(section, []).append(f"{key} = {value.replace('%', '%%')}")
    return "\n".join(
        line for section in sorted(sections) for line in (f"[{section}]", *sorted(sections[section]), "")
    )
