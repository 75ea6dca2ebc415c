"""Whom a name stands for, as Airflow (FAB) knows people."""

from __future__ import annotations

from airflow.providers.fab.auth_manager.models import User
from airflow.utils.session import create_session
from sqlalchemy import func, or_, select


def find(name: str) -> str | None:
    """The user name of whoever is known by this name or e-mail address, however it is spelled; None for nobody."""
    # Folded by the database as FAB has it done: Python folds some letters otherwise.
    given = func.lower(name)
    with create_session() as session:
        return session.scalars(
            select(User.username)
            .where(or_(func.lower(User.username) == given, func.lower(User.email) == given))
            .order_by(func.lower(User.username) != given)
        ).first()
