from __future__ import annotations

import secrets
from collections.abc import Callable

import pytest

from continuitybridge import connections, database
from continuitybridge import secrets as stored_secrets
from continuitybridge.errors import BridgeError, ConfigurationError, NotFound
from continuitybridge.organizations import Organization
from continuitybridge.vault.keyring import Keyring


def definition(password: str = "") -> dict[str, object]:
    return {
        "base_url": "https://wms.example/api/",
        "auth": {"type": "basic", "username": "bridge", "password": password or secrets.token_urlsafe()},
    }


def test_a_connection_resolves_with_its_credentials_and_lists_without(
    organization: Organization, keyring: Keyring
) -> None:
    password = secrets.token_urlsafe()
    connections.put(organization.organization_id, "dev", "wms", definition(password), "anna")
    resolved = connections.resolve(organization.organization_id, "dev", "wms", keyring)
    assert resolved.base_url == "https://wms.example/api/"
    assert resolved.auth == {"type": "basic", "username": "bridge", "password": password}
    listed = connections.list_connections(organization.organization_id)
    assert [(c.environment, c.name, c.settings["auth"]) for c in listed] == [("dev", "wms", "basic")]
    assert password not in repr(listed) + repr(resolved)


def test_the_credential_is_not_readable_in_the_table(organization: Organization) -> None:
    password = secrets.token_urlsafe()
    connections.put(organization.organization_id, "dev", "wms", definition(password), "anna")
    with database.tenant(organization.organization_id) as connection:
        row = connection.execute("SELECT c::text FROM bridge.connections c").fetchone()
    assert row is not None
    assert password not in row[0]
    assert password.encode().hex() not in row[0]


def test_swapping_two_ciphertexts_opens_neither(organization: Organization, keyring: Keyring) -> None:
    for name in ("one", "two"):
        connections.put(organization.organization_id, "dev", name, definition(), "anna")
    with database.tenant(organization.organization_id) as connection:
        connection.execute(
            "UPDATE bridge.connections c SET ciphertext = o.ciphertext FROM bridge.connections o"
            " WHERE o.organization_id = c.organization_id AND o.name <> c.name"
        )
    for name in ("one", "two"):
        with pytest.raises(BridgeError):
            connections.resolve(organization.organization_id, "dev", name, keyring)


def test_another_organizations_connection_does_not_exist(
    make_organization: Callable[[], Organization], keyring: Keyring
) -> None:
    ours, theirs = make_organization(), make_organization()
    connections.put(theirs.organization_id, "dev", "wms", definition(), "bert")
    with pytest.raises(NotFound):
        connections.resolve(ours.organization_id, "dev", "wms", keyring)
    with pytest.raises(NotFound):
        connections.remove(ours.organization_id, "dev", "wms")
    assert connections.list_connections(ours.organization_id) == []


def test_setting_it_anew_replaces_it_with_the_next_revision(organization: Organization, keyring: Keyring) -> None:
    connections.put(organization.organization_id, "dev", "wms", definition(), "anna")
    again = connections.put(organization.organization_id, "dev", "wms", {"base_url": "http://127.0.0.1:1"}, "bert")
    assert (again.revision, again.updated_by) == (2, "bert")
    assert connections.resolve(organization.organization_id, "dev", "wms", keyring).auth == {"type": "none"}


@pytest.mark.parametrize(
    ("base_url", "reason"),
    [
        ("http://10.0.0.5/api", "BRIDGE_EGRESS_ALLOW"),
        ("https://0xA9FEA9FE/latest", "BRIDGE_EGRESS_ALLOW"),
        ("http://[::ffff:192.168.0.1]:8080", "BRIDGE_EGRESS_ALLOW"),
        ("https://anna:canary@wms.example/", "user name"),
    ],
)
def test_an_address_that_is_never_called_is_refused_when_it_is_set(
    organization: Organization, base_url: str, reason: str
) -> None:
    with pytest.raises(ConfigurationError, match=reason) as refused:
        connections.put(organization.organization_id, "dev", "wms", {"base_url": base_url}, "anna")
    assert refused.value.facts == {"field": "base_url"}
    assert "canary" not in refused.value.detail
    assert connections.list_connections(organization.organization_id) == []


def test_every_problem_of_a_definition_is_named_and_no_value_quoted(organization: Organization) -> None:
    secret = secrets.token_urlsafe()
    with pytest.raises(ConfigurationError) as refused:
        connections.put(
            organization.organization_id,
            "dev",
            "wms",
            {"base_url": "no url", "auth": {"type": "bearer", "tokn": secret}},
            "anna",
        )
    fields = {problem["field"] for problem in refused.value.facts["problems"]}
    assert fields == {"base_url", "auth.bearer.token", "auth.bearer.tokn"}
    assert secret not in str(refused.value) + repr(refused.value.facts)


def test_an_unknown_environment_is_refused(organization: Organization) -> None:
    with pytest.raises(NotFound):
        connections.put(organization.organization_id, "moon", "wms", definition(), "anna")


def test_a_bad_name_is_refused_by_name(organization: Organization) -> None:
    with pytest.raises(ConfigurationError) as refused:
        connections.put(organization.organization_id, "dev", "Bad Name", definition(), "anna")
    assert refused.value.facts["field"] == "name"


def test_a_connection_takes_the_key_of_a_stored_secret_as_it_is_now(
    organization: Organization, keyring: Keyring
) -> None:
    o = organization.organization_id
    by_secret = {"base_url": "https://wms.example/", "auth": {"type": "secret", "secret": "shop"}}
    with pytest.raises(NotFound):
        connections.put(o, "dev", "wms", by_secret, "anna")
    stored_secrets.put(o, "dev", "shop", "api_key", {"apiKey": "first", "header": "X-Shop"}, "anna")
    connections.put(o, "dev", "wms", by_secret, "anna")
    for key in ("first", "second"):
        stored_secrets.put(o, "dev", "shop", "api_key", {"apiKey": key, "header": "X-Shop"}, "anna")
        found = connections.resolve(o, "dev", "wms", keyring).auth
        assert found == {"type": "api_key", "header": "X-Shop", "value": key}
    stored_secrets.switch(o, "dev", "shop", "anna", enabled=False)
    with pytest.raises(stored_secrets.SecretSwitchedOff):
        connections.resolve(o, "dev", "wms", keyring)
    stored_secrets.put(o, "dev", "other", "custom", {"pin": "1"}, "anna")
    with pytest.raises(ConfigurationError, match="of type api_key"):
        connections.put(o, "dev", "x", {**by_secret, "auth": {"type": "secret", "secret": "other"}}, "anna")
