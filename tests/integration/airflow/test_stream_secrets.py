"""A stream worker gets the keys and connections of the organizations whose messages it holds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest

from continuitybridge import connections, database
from continuitybridge.errors import NotFound, ReconnectNeeded, Unavailable
from continuitybridge.inbox.accept import Acceptance, accept
from continuitybridge.inbox.payloads import PAYLOAD
from continuitybridge.organizations import Organization
from continuitybridge.settings import get_settings
from continuitybridge.stream.access import Access
from continuitybridge.vault.keyring import Keyring
from token_server import TokenServer

BODY = b'{"po": 1}'


def accepted(organization: Organization, keyring: Keyring) -> str:
    return accept(
        Acceptance(
            organization_id=organization.organization_id,
            environment="prod",
            flow="order",
            version="1.0.0",
            source="webhook",
            body=BODY,
            content_type="application/json",
        ),
        keyring,
    ).message_id


def lease(message_id: str, owner: str, seconds: float = 60) -> bytes:
    """Lease the message as a worker does; gives its ciphertext."""
    with database.relay() as connection:
        [(payload,)] = connection.execute(
            "UPDATE bridge.messages SET state = 'claimed', lease_owner = %s, epoch = epoch + 1,"
            " lease_until = now() + make_interval(secs => %s) WHERE message_id = %s RETURNING payload",
            (owner, seconds, message_id),
        ).fetchall()
    return bytes(payload)


class Worker:
    """A stream worker whose api-server is the real secrets backend, asked as this task."""

    def __init__(self) -> None:
        from airflow.sdk.exceptions import AirflowSecretsBackendAccessDenied

        from continuitybridge.airflow import secrets
        from continuitybridge.airflow.leased_access import LeasedAccess

        task_id = uuid4()
        self.owner = secrets.stream_owner(task_id)
        self.asked = 0
        self.api_server_is_away = False
        task = secrets.StreamTask(self.owner)
        backend = secrets.OrganizationSecrets()

        def ask(conn_id: str) -> str | None:
            self.asked += 1
            if self.api_server_is_away:
                raise Unavailable("the api-server does not answer")
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(secrets, "_asker", lambda: task)
                try:
                    found = backend.get_connection(conn_id)
                except AirflowSecretsBackendAccessDenied:
                    return None
            return str(found.login or found.extra)

        self.access: Access = LeasedAccess(lambda: ask(secrets.KEYS), ask)

    async def read(self, organization: Organization, message_id: str, payload: bytes, **how: bool) -> bytes:
        keys = await self.access.keys(organization.organization_id, **how)
        return keys.decrypt(organization.organization_id, PAYLOAD, message_id, payload)


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Worker:
    from continuitybridge.airflow import services

    # Masking tells the supervisor of the task; there is none here.
    monkeypatch.setattr(services, "_hide", lambda info: None)
    return Worker()


async def test_a_worker_reads_what_is_leased_to_it_and_asks_once_for_all(
    worker: Worker, make_organization: Callable[[], Organization], keyring: Keyring
) -> None:
    organizations = [make_organization() for _ in range(3)]
    messages = [accepted(organization, keyring) for organization in organizations]
    payloads = [lease(message, worker.owner) for message in messages]
    held = list(zip(organizations, messages, payloads, strict=True))
    assert await asyncio.gather(*(worker.read(*each) for each in held)) == [BODY] * 3
    assert [await worker.read(*each) for each in held] == [BODY] * 3
    assert worker.asked == 1


async def test_a_worker_gets_no_key_of_an_organization_of_which_it_holds_nothing(
    worker: Worker, make_organization: Callable[[], Organization], keyring: Keyring
) -> None:
    mine, theirs, late = make_organization(), make_organization(), make_organization()
    lease(accepted(mine, keyring), worker.owner)
    foreign, ended = accepted(theirs, keyring), accepted(late, keyring)
    held = ((theirs, foreign, lease(foreign, "stream/another")), (late, ended, lease(ended, worker.owner, 0)))
    for each in held:
        with pytest.raises(NotFound):
            await worker.read(*each)


async def test_a_key_that_was_made_meanwhile_is_there_when_asked_for_anew(
    worker: Worker, organization: Organization, keyring: Keyring
) -> None:
    first = accepted(organization, keyring)
    assert await worker.read(organization, first, lease(first, worker.owner)) == BODY
    with database.platform() as connection:
        keyring.create_key(connection, organization.organization_id)
    keyring.forget()
    second = accepted(organization, keyring)
    payload = lease(second, worker.owner)
    with pytest.raises(NotFound):
        await worker.read(organization, second, payload)
    assert await worker.read(organization, second, payload, fresh=True) == BODY


async def test_keys_are_forgotten_unless_the_organization_has_a_message_again(
    worker: Worker, organization: Organization, keyring: Keyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    from continuitybridge.airflow import leased_access

    message = accepted(organization, keyring)
    payload = lease(message, worker.owner)
    assert await worker.read(organization, message, payload) == BODY
    monkeypatch.setattr(leased_access, "REFRESH_S", 0.0)
    lease(message, worker.owner, seconds=0)
    with pytest.raises(NotFound):
        await worker.read(organization, message, payload)


async def test_while_the_api_server_is_away_what_is_held_is_used_for_a_bounded_time(
    worker: Worker, organization: Organization, keyring: Keyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    from continuitybridge.airflow import leased_access

    definition = {"base_url": "http://127.0.0.1:9", "auth": {"type": "bearer", "token": "token-1"}}
    connections.put(organization.organization_id, "prod", "target", definition, "test")
    place = (organization.organization_id, "prod", "target")
    message = accepted(organization, keyring)
    payload = lease(message, worker.owner)
    assert await worker.read(organization, message, payload) == BODY
    await worker.access.connection(*place)
    monkeypatch.setattr(leased_access, "REFRESH_S", 0.0)
    monkeypatch.setattr(leased_access, "CONNECTIONS_KEPT_S", 0.0)
    worker.api_server_is_away = True
    assert await worker.read(organization, message, payload) == BODY
    assert (await worker.access.connection(*place)).auth["token"] == "token-1"
    monkeypatch.setattr(leased_access, "KEPT_S", 0.0)
    with pytest.raises(Unavailable):
        await worker.read(organization, message, payload)
    with pytest.raises(Unavailable):
        await worker.access.connection(*place)
    worker.api_server_is_away = False
    monkeypatch.setattr(leased_access, "KEPT_S", 60.0)
    assert await worker.read(organization, message, payload) == BODY


async def test_a_connection_is_there_while_a_message_of_its_environment_is_leased(
    worker: Worker, make_organization: Callable[[], Organization], keyring: Keyring
) -> None:
    mine, theirs = make_organization(), make_organization()

    def put(organization: Organization, environment: str, token: str) -> None:
        definition = {"base_url": "http://127.0.0.1:9", "auth": {"type": "bearer", "token": token}}
        connections.put(organization.organization_id, environment, "target", definition, "test")

    for organization in (mine, theirs):
        put(organization, "prod", "token-1")
        put(organization, "test", "token-1")
    lease(accepted(mine, keyring), worker.owner)
    place = (mine.organization_id, "prod", "target")
    found = await asyncio.gather(*(worker.access.connection(*place) for _ in range(5)))
    assert {info.auth["token"] for info in found} == {"token-1"}
    assert worker.asked == 1
    put(mine, "prod", "token-2")
    worker.access.forget(mine.organization_id, "prod")
    assert (await worker.access.connection(*place)).auth["token"] == "token-2"
    for missing in (
        (theirs.organization_id, "prod", "target"),
        (mine.organization_id, "test", "target"),
        (mine.organization_id, "prod", "unknown"),
        (mine.organization_id, "prod:target", ""),
    ):
        with pytest.raises(NotFound):
            await worker.access.connection(*missing)


async def test_a_worker_gets_the_access_token_alone_and_another_when_that_is_refused(
    worker: Worker, organization: Organization, keyring: Keyring
) -> None:
    provider = TokenServer()
    try:
        organization_id = organization.organization_id
        connections.put(organization_id, "prod", "erp", provider.oauth("refresh_token"), "anna")
        lease(accepted(organization, keyring), worker.owner)
        first, again = [await worker.access.connection(organization_id, "prod", "erp") for _ in range(2)]
        assert first is again
        assert first.auth == {"type": "bearer", "token": next(iter(provider.valid))}
        second = await worker.access.connection(organization_id, "prod", "erp", refused=first.token)
        assert second.auth["token"] in provider.valid - {first.auth["token"]}
        assert await worker.access.connection(organization_id, "prod", "erp", refused=first.token) is second
        assert provider.grants() == ["refresh_token"] * 2
        connections.put(
            organization_id, "prod", "erp", provider.oauth("refresh_token", refresh_token="not-theirs"), "anna"
        )
        worker.access.forget(organization_id, "prod")
        asked = worker.asked
        for _ in range(3):
            with pytest.raises(ReconnectNeeded, match="invalid_grant") as refused:
                await worker.access.connection(organization_id, "prod", "erp")
        assert refused.value.facts["connection"] == "erp"
        assert worker.asked == asked + 1
    finally:
        provider.close()


async def test_units_whose_credential_is_refused_at_once_ask_for_another_once(
    worker: Worker, organization: Organization, keyring: Keyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    from continuitybridge.airflow import leased_access

    monkeypatch.setattr(leased_access, "REFUSED_KEPT_S", 60.0)
    provider = TokenServer()
    try:
        place = (organization.organization_id, "prod", "erp")
        connections.put(*place, provider.oauth("refresh_token"), "anna")
        lease(accepted(organization, keyring), worker.owner)
        first = await worker.access.connection(*place)
        assert first.token is not None
        asked = worker.asked
        found = await asyncio.gather(*(worker.access.connection(*place, refused=first.token) for _ in range(9)))
        assert {info.token for info in found} != {first.token}
        assert worker.asked == asked + 1
        # That nobody answers is not found out by each of them anew.
        worker.api_server_is_away = True
        second = found[0].token
        for _ in range(3):
            tried = (worker.access.connection(*place, refused=second) for _ in range(3))
            failed = await asyncio.gather(*tried, return_exceptions=True)
            assert {type(error) for error in failed} == {Unavailable}
        assert worker.asked == asked + 2
        # A connection that was put right meanwhile is asked for at once.
        worker.api_server_is_away = False
        worker.access.forget(*place[:2])
        await worker.access.connection(*place, refused=second)
        assert worker.asked == asked + 3
    finally:
        provider.close()


def test_the_task_that_refreshes_ahead_is_told_how_it_went_and_nothing_else(
    organization: Organization, keyring: Keyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow.sdk.exceptions import AirflowSecretsBackendAccessDenied

    from continuitybridge.airflow import secrets

    provider = TokenServer()
    try:
        organization_id = organization.organization_id
        connections.put(organization_id, "prod", "erp", provider.oauth(), "anna")
        backend = secrets.OrganizationSecrets()
        name = f"{organization_id}:prod:erp"

        def ask(asker: secrets.Asker, conn_id: str) -> str:
            monkeypatch.setattr(secrets, "_asker", lambda: asker)
            found = backend.get_connection(conn_id)
            return f"{found.login}{found.extra or ''}{found.password or ''}"

        assert ask(secrets.RefreshTask(), secrets.TOKEN_PREFIX + name) == "refreshed"
        assert len(provider.valid) == 1
        for asker, conn_id in (
            (secrets.RefreshTask(), secrets.KEYS),
            (secrets.RefreshTask(), secrets.CONNECTION_PREFIX + name),
            (secrets.RefreshTask(), secrets.TOKEN_PREFIX + "x"),
            (secrets.FlowTask(organization_id, "prod"), secrets.TOKEN_PREFIX + name),
            (secrets.StreamTask("stream/x@"), secrets.TOKEN_PREFIX + name),
        ):
            with pytest.raises(AirflowSecretsBackendAccessDenied):
                ask(asker, conn_id)
    finally:
        provider.close()


def test_what_cannot_be_given_now_is_refused_so_that_nobody_else_is_asked(
    organization: Organization, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow.models.connection import Connection
    from airflow.sdk.exceptions import AirflowSecretsBackendAccessDenied

    from continuitybridge.airflow import secrets

    monkeypatch.setattr(secrets, "_asker", lambda: secrets.FlowTask(organization.organization_id, "prod"))
    monkeypatch.setattr("airflow.configuration.ensure_secrets_loaded", lambda: [secrets.OrganizationSecrets()])
    # Another master key than the one that wrapped the organization's keys.
    monkeypatch.setenv("BRIDGE_MASTER_KEY_FILE", str(tmp_path / "another.key"))
    get_settings.cache_clear()
    try:
        with pytest.raises(AirflowSecretsBackendAccessDenied) as refused:
            Connection.get_connection_from_secrets(secrets.KEYS)
    finally:
        monkeypatch.undo()
        get_settings.cache_clear()
    assert getattr(refused.value, "status_code", None) == 503
