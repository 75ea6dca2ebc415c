"""What ends here with a change of Airflow's user, however it is made."""

from __future__ import annotations

from uuid import uuid4

import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from continuitybridge import database, sessions
from continuitybridge.errors import NotFound
from continuitybridge.settings import Settings
from continuitybridge.sign_in import tokens


def test_with_the_account_s_activity_end_its_sessions_and_its_links(settings: Settings) -> None:
    from airflow.providers.fab.auth_manager.models import User

    from continuitybridge.airflow import user_changes

    user_changes.install()
    name = f"person-{uuid4().hex[:10]}"
    engine = create_engine("sqlite://")
    User.metadata.create_all(engine)
    with database.platform() as connection:
        links = [tokens.issue(connection, purpose, name) for purpose in ("link", "reset", "enrol")]
    with Session(engine) as airflow:
        user = User(username=name, email=f"{name}@example.com", first_name="A", last_name="B", active=True)
        airflow.add(user)
        airflow.commit()
        user.first_name = "C"
        airflow.commit()
        assert sessions.since(name) is None
        assert tokens.find(links[2], "enrol") == name
        for active in (False, True):
            user.active = active
            airflow.commit()
    assert sessions.since(name) is not None
    for purpose, link in zip(("link", "reset", "enrol"), links, strict=True):
        with pytest.raises(NotFound):
            tokens.find(link, purpose)  # type: ignore[arg-type]
