"""OAuth clients whose secret stays in a store outside: it is changed there, or stays wrong."""

from __future__ import annotations

import time
from typing import Any

import pytest
from key_services import TransitService
from stores_world import refer

from continuitybridge import connections, database, tokens
from continuitybridge.errors import (
    ReconnectNeeded,
    Unavailable,
)
from continuitybridge.organizations import Organization
from continuitybridge.secrets import references
from continuitybridge.tokens import store as token_store
from continuitybridge.vault import Keyring
from token_server import TokenServer


def test_a_client_whose_secret_is_changed_at_the_server_first_goes_on_by_itself(
    organization: Organization, store: TransitService, keyring: Keyring
) -> None:
    server = TokenServer()
    try:
        path = f"bridge/{organization.slug}/prod/client"
        client = {"client_id": server.client_id, "token_url": f"{server.url}/token"}
        store.put(path, client_secret="old" * 5, **client)
        refer(organization, "client", type="oauth2")
        definition = {"base_url": server.url, "auth": {"type": "secret", "secret": "shop"}}
        connections.put(organization.organization_id, "prod", "erp", definition, "anna")
        with pytest.raises(Unavailable):
            tokens.resolve(organization.organization_id, "prod", "erp", keyring)
        store.put(path, client_secret=server.client_secret, **client)
        # Neither the value that was read nor the wait for the old one holds it up.
        found = tokens.resolve(organization.organization_id, "prod", "erp", keyring)
        assert found.auth["token"] in server.valid
    finally:
        server.close()


def test_a_client_whose_secret_outside_stays_wrong_is_given_up_once_until_it_changes(
    organization: Organization, store: TransitService, keyring: Keyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_store, "DOUBT_S", 1.0)
    monkeypatch.setattr(token_store, "RETRY_S", 0.3)
    server, owner = TokenServer(), organization.organization_id

    def ask() -> Any:
        return tokens.resolve(owner, "prod", "erp", keyring)

    try:
        path = f"bridge/{organization.slug}/prod/client"
        client = {"client_id": server.client_id, "token_url": f"{server.url}/token"}
        store.put(path, client_secret="old" * 5, **client)
        refer(organization, "client", type="oauth2")
        definition = {"base_url": server.url, "auth": {"type": "secret", "secret": "shop"}}
        connections.put(owner, "prod", "erp", definition, "anna")
        with pytest.raises(Unavailable):
            ask()
        time.sleep(1.05)
        # Another value that is wrong is doubted as long as the first.
        store.put(path, client_secret="new" * 5, **client)
        with pytest.raises(Unavailable):
            ask()
        time.sleep(1.05)
        for _ in range(3):
            with pytest.raises(ReconnectNeeded, match="invalid_client"):
                ask()
        assert len(server.calls) == 3
        with database.tenant(owner) as connection:
            [(told,)] = connection.execute(
                "SELECT count(*) FROM bridge.audit_events WHERE action = 'token.reconnect_needed'"
            ).fetchall()
        assert told == 1
        store.put(path, client_secret=server.client_secret, **client)
        references.forget()  # as when its time is over
        assert ask().auth["token"] in server.valid
    finally:
        server.close()


def test_what_is_no_refusal_of_what_is_asked_for_now_doubts_nothing(
    organization: Organization, store: TransitService, keyring: Keyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_store, "DOUBT_S", 0.2)
    monkeypatch.setattr(token_store, "RETRY_S", 0.01)
    server, owner = TokenServer(), organization.organization_id
    try:
        path = f"bridge/{organization.slug}/prod/client"
        client = {"client_id": server.client_id, "token_url": f"{server.url}/token"}
        store.put(path, client_secret=server.client_secret, **client)
        refer(organization, "client", type="oauth2")
        definition = {"base_url": server.url, "auth": {"type": "secret", "secret": "shop"}}
        connections.put(owner, "prod", "erp", definition, "anna")
        first = tokens.resolve(owner, "prod", "erp", keyring)
        # An attempt that lost its lease comes back refused, now and later.
        late = token_store.Lease(1, 0, "somebody", None, abandoned=False)
        place = token_store.Place(owner, "prod", "erp")
        assert not token_store.doubt(place, late)
        time.sleep(0.25)
        assert not token_store.doubt(place, late)
        with database.tenant(owner) as connection:
            [row] = connection.execute("SELECT doubted_since FROM bridge.tokens").fetchall()
        assert row == (None,)
        server.client_secret, known = "new" * 5, server.client_secret
        with pytest.raises(Unavailable):
            tokens.resolve(owner, "prod", "erp", keyring, refused=first.token)
        server.client_secret = known
        time.sleep(0.1)  # longer than it is put off
        with database.tenant(owner) as connection:
            connection.execute("UPDATE bridge.tokens SET refused_at = NULL")
        second = tokens.resolve(owner, "prod", "erp", keyring, refused=first.token)
        assert second.token != first.token
        # What was doubted before a token came is over.
        with database.tenant(owner) as connection:
            connection.execute(
                "UPDATE bridge.tokens SET doubted_since = now() - interval '1 hour', refused_at = NULL"
            )
        server.client_secret = "new" * 5
        with pytest.raises(Unavailable):
            tokens.resolve(owner, "prod", "erp", keyring, refused=second.token)
    finally:
        server.close()
