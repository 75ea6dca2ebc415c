"""What a worker with the master key is told of an organization."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import pytest

from continuitybridge import connections, database
from continuitybridge.errors import NotFound
from continuitybridge.organizations import Organization
from continuitybridge.stream.access import DirectAccess
from continuitybridge.vault.keyring import Keyring


def put(organization: Organization, url: str) -> None:
    definition = {"base_url": url, "auth": {"type": "bearer", "token": "t-1"}}
    connections.put(organization.organization_id, "prod", "erp", definition, "test")


def test_a_connection_is_kept_until_it_is_said_to_have_changed(organization: Organization) -> None:
    async def run() -> None:
        access = DirectAccess()
        owner = organization.organization_id
        with pytest.raises(NotFound):
            await access.connection(owner, "prod", "erp")
        put(organization, "http://one.example")
        assert (await access.connection(owner, "prod", "erp")).auth["token"] == "t-1"
        put(organization, "http://two.example")
        assert (await access.connection(owner, "prod", "erp")).base_url == "http://one.example/"
        access.forget(owner, "test")
        assert (await access.connection(owner, "prod", "erp")).base_url == "http://one.example/"
        access.forget(owner, "prod")
        assert (await access.connection(owner, "prod", "erp")).base_url == "http://two.example/"

    asyncio.run(run())


def test_keys_are_held_when_they_are_used_and_asked_for_again_when_one_is_missing(
    organization: Organization, keyring: Keyring
) -> None:
    async def run() -> None:
        owner = organization.organization_id
        # A process of its own, as far as its memory goes.
        access = DirectAccess(Keyring(keyring._master))
        assert (await access.keys(owner)).decrypt(owner, "x", "1", keyring.encrypt(owner, "x", "1", b"a")) == b"a"
        with database.platform() as connection:
            keyring.create_key(connection, owner)
        keyring.forget(owner)
        sealed = keyring.encrypt(owner, "x", "1", b"b")
        assert (await access.keys(owner, fresh=True)).decrypt(owner, "x", "1", sealed) == b"b"
        with pytest.raises(NotFound):
            await access.keys(uuid4())

    asyncio.run(run())
