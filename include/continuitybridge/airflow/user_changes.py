"""A change of Airflow's user, whoever makes it (FAB's pages, its API, its command line), ends his sessions: of his
activity, his roles, his name. (Passwords are in the sessions' stamp already.) With a user who is deleted goes what
he was here: memberships, API keys, the second factor; whoever gets his name after him has none of it."""

from __future__ import annotations

from typing import Any

from airflow.providers.fab.auth_manager.models import User
from sqlalchemy import event, inspect

from continuitybridge import api_keys, database, organizations, sessions
from continuitybridge.actor import current_actor
from continuitybridge.sign_in import second_factor, verbs

_ENDING = ("active", "roles", "groups", "username")


def install() -> None:
    """Have it so in this process. Idempotent."""
    if not event.contains(User, "after_update", _changed):
        event.listen(User, "after_update", _changed)
        event.listen(User, "before_delete", _leaves)


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


def _leaves(mapper: Any, connection: Any, user: User) -> None:
    # Before Airflow's transaction, as above: should that one fail, there is a user without rights, and never
    # rights that wait for the next of the name.
    name, by = user.username, current_actor().name or "airflow"
    second_factor.remove(name, by=by)
    verbs.end_sessions(name, by=by)
    with database.platform() as own:
        keys = own.execute(
            "SELECT organization_id, key_id FROM bridge.api_keys"
            " WHERE lower(user_name) = lower(%s) AND revoked_at IS NULL",
            (name,),
        ).fetchall()
        places = own.execute(
            "SELECT organization_id FROM bridge.memberships WHERE user_name = %s", (name,)
        ).fetchall()
    for organization_id, key_id in keys:
        api_keys.revoke(organization_id, key_id, by=by)
    for (organization_id,) in places:
        organizations.remove_member(organization_id, name, by=by)
