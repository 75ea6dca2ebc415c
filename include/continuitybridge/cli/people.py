"""Whom a name that is typed stands for."""

from __future__ import annotations

_URL = "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"
_FIND = """
SELECT username FROM ab_user WHERE lower(username) = lower(%(name)s) OR lower(email) = lower(%(name)s)
ORDER BY lower(username) <> lower(%(name)s) LIMIT 1
"""
"""As `airflow.people.find`, without Airflow: its import takes longer than the commands that ask."""


def known(name: str, *, otherwise: str = "") -> str:
    """The user name of whoever is called so, or has this e-mail address, however it is spelled. Raises `NotFound`,
    which says what to do `otherwise`; `ConfigurationError` where nothing says which database is Airflow's,
    `Unavailable` when that does not answer, or has no tables."""
    import psycopg

    from continuitybridge.database import urls
    from continuitybridge.errors import ConfigurationError, NotFound, Unavailable
    from continuitybridge.runtime.environment import process_environment
    from continuitybridge.settings import get_settings

    url = process_environment(get_settings()).get(_URL)
    if url is None:
        raise ConfigurationError(f"Airflow's users cannot be looked up: {_URL} is not set", field=_URL)
    parts = {**urls.parse(url, _URL), "connect_timeout": 10}
    try:
        with psycopg.connect(**parts) as connection:
            found = None if "\0" in name else connection.execute(_FIND, {"name": name}).fetchone()
    except psycopg.Error as error:
        raise Unavailable(f"Airflow's users cannot be looked up: {error}") from error
    if found is None:
        raise NotFound(
            f"nobody signs in as {name!r}: `bridge airflow users list` shows who does{otherwise}",
            field="user",
            value=name,
        )
    return str(found[0])
