"""A change of Airflow's user, whoever makes it (FAB's pages, its API, its command line), ends his sessions: of his
activity, his roles, his name. (Passwords are in the sessions' stamp already.)"""

from __future__ import annotations

from typing import Any

from airflow.providers.fab.auth_manager.models import User
from sqlalchemy import event, inspect

from continuitybridge import database, sessions

_ENDING = ("active", "roles", "groups", "username")


def install() -> None:
    """Have it so in this process. Idempotent."""
    if not event.contains(User, "after_update", _changed):
        event.listen(User, "after_update", _changed)


def _changed(mapper: Any, connection: Any, user: User) -> None:
    state: Any = inspect(user)
    changed = [name for name in _ENDING if state.attrs[name].history.has_changes()]
    if not changed:
        return
    # In a transaction of its own, before Airflow's: when that one fails, somebody signs in once more for nothing.
    names = {user.username, *(state.attrs["username"].history.deleted or ())}
    with database.platform() as own:
        for name in names:
            sessions.end_all(own, name)
