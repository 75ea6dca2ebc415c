"""API keys: made, shown once, listed, revoked; and what a caller may do who bears one."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator

import httpx
import psycopg
import pytest
from click.testing import CliRunner

from continuitybridge import api, api_keys, database
from continuitybridge.cli import bridge
from continuitybridge.errors import NotAuthenticated
from continuitybridge.organizations import Organization

from .conftest import Deployed, Server, SignIn

BearKey = Callable[..., httpx.Client]


@pytest.fixture
def by_key(server: Server) -> Iterator[BearKey]:
    """A client whose requests are signed in by a key, as the api-server's middleware does it."""
    made: list[httpx.Client] = []

    def by_key(key: str, *, superadmin: bool = False) -> httpx.Client:
        holder, token = api_keys.verify(key), secrets.token_urlsafe(24)
        server.users[token] = api.SignedIn(holder.user_name, superadmin=superadmin, api_key=holder)
        made.append(httpx.Client(base_url=server.url, headers={"authorization": f"Bearer {token}"}, timeout=60))
        return made[-1]

    yield by_key
    for client in made:
        client.close()


def test_a_key_is_made_shown_once_used_listed_and_revoked(
    deployed: Callable[[], Deployed], sign_in: SignIn
) -> None:
    organization = deployed().organization
    admin = sign_in({organization: "customer_admin"})
    made = admin.post("/bridge/api-keys", json={"name": "shop", "scope": "write", "days": 30})
    assert made.status_code == 201, made.text
    key = made.json()["key"]
    assert key.startswith("cb_")
    assert len(key) >= 46
    assert api_keys.verify(key).user_name == admin.name
    [shown] = admin.get("/bridge/api-keys").json()
    assert (shown["name"], shown["scope"], shown["user_name"]) == ("shop", "write", admin.name)
    assert shown["last_used_at"] is not None
    assert key not in json.dumps(shown)
    assert key.startswith(shown["beginning"])
    assert admin.post("/bridge/api-keys", json={"name": "shop"}).status_code == 409
    assert admin.client.delete(f"/bridge/api-keys/{shown['key_id']}").json()["revoked_at"]
    with pytest.raises(NotAuthenticated):
        api_keys.verify(key)
    assert admin.post("/bridge/api-keys", json={"name": "shop"}).status_code == 201
    trail = admin.get("/bridge/audit?action=api_key").json()["events"]
    assert [each["action"] for each in trail] == ["api_key.created", "api_key.revoked", "api_key.created"]
    assert key not in json.dumps(trail)


def test_the_database_knows_a_key_by_its_hash_only(organization: Organization) -> None:
    made = api_keys.create(organization.organization_id, "shop", user_name="anna", by="anna")
    with psycopg.connect(database.owner_url()) as connection:
        connection.execute("ALTER TABLE bridge.api_keys NO FORCE ROW LEVEL SECURITY")
        rows = str(connection.execute("SELECT * FROM bridge.api_keys").fetchall())
        connection.rollback()
    assert made.key not in rows
    assert made.key[12:] not in rows


@pytest.mark.parametrize(
    ("wanted", "field"),
    [({"name": ""}, "name"), ({"name": "n", "days": 0}, "days"), ({"name": "n", "scope": "all"}, "scope")],
)
def test_a_wrong_wish_is_refused_by_its_field(
    deployed: Callable[[], Deployed], sign_in: SignIn, wanted: dict[str, object], field: str
) -> None:
    admin = sign_in({deployed().organization: "customer_admin"})
    refused = admin.post("/bridge/api-keys", json=wanted)
    assert refused.status_code == 422
    assert field in refused.text


def test_only_who_may_change_something_sees_or_makes_keys(
    deployed: Callable[[], Deployed], sign_in: SignIn
) -> None:
    mine, theirs = deployed().organization, deployed().organization
    reader, admin = sign_in({mine: "customer_user"}), sign_in({mine: "customer_admin"})
    other = api_keys.create(theirs.organization_id, "theirs", user_name="x", by="x")
    assert reader.get("/bridge/api-keys").status_code == 403
    assert reader.post("/bridge/api-keys", json={"name": "n"}).status_code == 403
    assert admin.get(f"/bridge/api-keys?organization={theirs.slug}").status_code == 404
    assert admin.post(f"/bridge/api-keys?organization={theirs.slug}", json={"name": "n"}).status_code == 404
    assert admin.client.delete(f"/bridge/api-keys/{other.shown.key_id}").status_code == 404
    assert api_keys.verify(other.key).organization == theirs.slug


@pytest.mark.parametrize("superadmin", [False, True])
def test_a_key_reaches_one_organization_and_no_further_than_its_scope(
    deployed: Callable[[], Deployed], sign_in: SignIn, by_key: BearKey, superadmin: bool
) -> None:
    mine, other = deployed().organization, deployed().organization
    roles = {} if superadmin else {mine: "customer_admin", other: "customer_admin"}
    user = sign_in(roles, superadmin=superadmin)
    o = mine.organization_id
    keys = {
        scope: api_keys.create(o, scope, user_name=user.name, scope=scope, by=user.name).key
        for scope in ("read", "write")
    }
    reading, writing = (by_key(keys[scope], superadmin=superadmin) for scope in ("read", "write"))
    for client in (reading, writing):
        assert [each["slug"] for each in client.get("/bridge/me").json()["organizations"]] == [mine.slug]
        assert client.get("/bridge/me").json()["superadmin"] is False
        assert client.get(f"/bridge/flows?organization={mine.slug}").status_code == 200
        assert client.get(f"/bridge/flows?organization={other.slug}").status_code == 404
        assert client.post("/bridge/api-keys", json={"name": "more"}).status_code == 403
        assert client.get("/bridge/api-keys").status_code == 403
    path = f"/bridge/flows/{mine.slug}/dev/orders/disable"
    assert reading.post(path).status_code == 403
    assert writing.post(path).status_code == 200
    assert writing.post(path.replace(mine.slug, other.slug)).status_code == 404


def test_a_key_ends_with_its_users_membership(
    deployed: Callable[[], Deployed], sign_in: SignIn, by_key: BearKey
) -> None:
    from continuitybridge import organizations

    organization = deployed().organization
    user = sign_in({organization: "customer_admin"})
    made = api_keys.create(organization.organization_id, "k", user_name=user.name, scope="write", by=user.name)
    client = by_key(made.key)
    assert client.get(f"/bridge/flows?organization={organization.slug}").status_code == 200
    organizations.remove_member(organization.organization_id, user.name)
    assert client.get(f"/bridge/flows?organization={organization.slug}").status_code == 404
    organizations.add_member(organization.organization_id, user.name, "customer_user")
    assert client.post(f"/bridge/flows/{organization.slug}/dev/orders/disable").status_code == 403


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE bridge.api_keys SET revoked_at = now(), revoked_by = 'anna' WHERE organization_id = %s",
        "DELETE FROM bridge.api_keys WHERE organization_id = %s",
        "UPDATE bridge.organizations SET status = 'deleting' WHERE organization_id = %s",
    ],
)
def test_a_key_that_another_process_ends_does_not_hold_at_the_next_request(
    organization: Organization, change: str
) -> None:
    made = api_keys.create(organization.organization_id, "k", user_name="anna", by="anna")
    for _ in range(2):
        assert api_keys.verify(made.key).user_name == "anna"
    # By the table alone, of which this process hears nothing.
    with psycopg.connect(database.owner_url()) as connection:
        for table in ("api_keys", "organizations"):
            connection.execute(f"ALTER TABLE bridge.{table} NO FORCE ROW LEVEL SECURITY")
        assert connection.execute(change, (organization.organization_id,)).rowcount == 1
        for table in ("api_keys", "organizations"):
            connection.execute(f"ALTER TABLE bridge.{table} FORCE ROW LEVEL SECURITY")
    with pytest.raises(NotAuthenticated):
        api_keys.verify(made.key)


def test_a_key_that_is_expired_or_was_never_made_does_not_hold(organization: Organization) -> None:
    made = api_keys.create(organization.organization_id, "k", user_name="anna", days=1, by="anna")
    with psycopg.connect(database.owner_url()) as connection:
        connection.execute("ALTER TABLE bridge.api_keys NO FORCE ROW LEVEL SECURITY")
        connection.execute("UPDATE bridge.api_keys SET expires_at = now() WHERE key_id = %s", (made.shown.key_id,))
        connection.execute("ALTER TABLE bridge.api_keys FORCE ROW LEVEL SECURITY")
    for key in (made.key, "cb_" + secrets.token_urlsafe(32), "cb_", ""):
        with pytest.raises(NotAuthenticated):
            api_keys.verify(key)


def test_the_command_makes_lists_and_revokes(organization: Organization, airflow_user: Callable[..., str]) -> None:
    name = airflow_user(f"anna-{secrets.token_hex(4)}")

    def run(*arguments: str) -> str:
        done = CliRunner().invoke(bridge, ["api-key", *arguments, "-o", organization.slug])
        assert done.exit_code == 0, done.output
        return done.stdout

    key = run("create", "shop", "--user", f"{name}@USERS.example", "--scope", "write").strip()
    found = api_keys.verify(key)
    assert (found.scope, found.user_name) == ("write", name)
    [listed] = json.loads(run("list", "--json"))
    assert listed["name"] == "shop"
    assert "is revoked" in run("revoke", listed["key_id"])
    with pytest.raises(NotAuthenticated):
        api_keys.verify(key)
