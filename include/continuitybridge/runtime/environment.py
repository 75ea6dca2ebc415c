"""What the platform's processes find in their environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from continuitybridge.airflow.configuration import Options, airflow_home, airflow_options
from continuitybridge.database.connections import read_env
from continuitybridge.runtime import keys
from continuitybridge.settings import Settings, project_root

OVERRIDES = ("AIRFLOW__", "AIRFLOW_CONN_", "AIRFLOW_VAR_")
"""What an operator may say to Airflow himself, in `bridge.env` or in the environment."""


_TEMPLATE_HEAD = """\
# Airflow's options that ContinuityBridge needs, for an Airflow that is run by other means than `bridge up`.
# `bridge up` passes all of this by itself; the reasons stand in include/continuitybridge/airflow/configuration.py.
# Fill in {checkout} and {state_dir}; the environment of each of Airflow's processes has BRIDGE_STATE_DIR and
#   AIRFLOW__DATABASE__SQL_ALCHEMY_CONN   as in {state_dir}/bridge.env
#   AIRFLOW__CORE__FERNET_KEY, AIRFLOW__API_AUTH__JWT_SECRET, AIRFLOW__API__SECRET_KEY
#                                         as in {state_dir}/keys/airflow.env
# Written by `make docs`.

"""


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
    """The whole environment of one of the platform's processes: `interpreter_environment` and Airflow's variables;
    those of Airflow that are `given` win."""
    given = os.environ if given is None else given
    return {
        **interpreter_environment(settings, given),
        **airflow_environment(settings),
        **{name: value for name, value in given.items() if name.startswith(OVERRIDES)},
    }


def interpreter_environment(settings: Settings, given: Mapping[str, str] | None = None) -> dict[str, str]:
    """`given` (the caller's environment, by default) with the state directory, for a Python whose output is a log.
    Holds no secret that `given` does not hold."""
    environment = dict(os.environ if given is None else given)
    # Without byte code each of the processes compiles Airflow anew at every start.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    return {**environment, "BRIDGE_STATE_DIR": str(settings.state_dir.absolute()), "PYTHONUNBUFFERED": "1"}


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


def airflow_configuration_template() -> str:
    """`airflow.cfg.template`: the options for an Airflow that somebody runs himself, with the places to fill in.
    Made from the same options as everything else: `make docs` writes it."""
    places = {str(project_root()): "{checkout}", "/var/lib/continuitybridge": "{state_dir}"}
    # The defaults, whatever the environment says.
    settings = Settings.model_construct(state_dir=Path("/var/lib/continuitybridge"))
    text = render_airflow_configuration(airflow_options(settings))
    for found, name in places.items():
        text = text.replace(found, name)
    return _TEMPLATE_HEAD + text
