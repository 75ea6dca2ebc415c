"""A change of Airflow's user, whoever makes it (FAB's pages, its API, its command line), ends his sessions: of his
activity, his roles. (Passwords are in the sessions' stamp already.) With his activity, and with his password, end
the links that he was given before too; with his activity also the invitations that he made as a member. With a
user who is deleted goes what he was here: memberships, API keys, the second factor, identities at providers;
whoever gets his name after him has none of it. For the same reason nobody is renamed: what he is stands under his
name in many places, and would be left to whoever takes it next."""

from __future__ import annotations

from typing import Any

from airflow.providers.fab.auth_manager.models import User
from sqlalchemy import event, inspect

from continuitybridge import api_keys, database, organizations, sessions
from continuitybridge.actor import current_actor
from continuitybridge.errors import Conflict
from continuitybridge.organizations.membership import end_invitations_everywhere
from continuitybridge.sign_in import identities, second_factor, tokens, verbs

_ENDING = ("active", "roles", "groups")
_ENDING_LINKS = ("active", "password")


def install() -> None:
    """Have it so in this process. Idempotent."""
    if not event.contains(User, "after_update", _changed):
        event.listen(User, "before_update", _stays)
        event.listen(User, "after_update", _changed)
        event.listen(User, "before_delete", _leaves)


def refuse_another_name(user: User) -> None:
    """Raises `Conflict` when a user who is stored was given another user name since."""
    state: Any = inspect(user)
    if state.persistent and (before := state.attrs["username"].history.deleted):
        raise Conflict(
            f"nobody is renamed: {before[0]!r} keeps the user name; first and last name and the e-mail address can"
            " change",
            field="username",
            valid=[before[0]],
        )


def _stays(mapper: Any, connection: Any, user: User) -> None:
    refuse_another_name(user)


def _changed(mapper: Any, connection: Any, user: User) -> None:
    state: Any = inspect(user)
    ended, links_ended = (
        any(state.attrs[name].history.has_changes() for name in names) for names in (_ENDING, _ENDING_LINKS)
    )
    links_ended = links_ended and not tokens.are_ended(user.username)
    if not ended and not links_ended:
        return
    # In transactions of their own, before Airflow's: when that one fails, somebody signs in once more for nothing.
    with database.platform() as own:
        if ended:
            sessions.end_all(own, user.username)
        if links_ended:
            # Nor does one hold when the account is active again.
            tokens.end_all(own, user.username)
    if not user.active:
        # After what ends is certain: here trails are told, and others may hold those.
        end_invitations_everywhere(user.username, by=current_actor().name or "airflow")


def _leaves(mapper: Any, connection: Any, user: User) -> None:
    # Before Airflow's transaction, as above: should that one fail, there is a user without rights, and never
    # rights that wait for the next of the name.
    name, by = user.username, current_actor().name or "airflow"
    second_factor.remove(name, by=by)
    identities.unlink(name, by=by)
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
