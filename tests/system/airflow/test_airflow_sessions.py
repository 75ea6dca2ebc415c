"""Sessions at a real Airflow: what begins them, and that each ends at the next request after what ends it."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from urllib.parse import urlsplit

import httpx
import pyotp
import pytest
from trial import Trial, wait_until

_number = count(1)
Person = tuple[str, str, str]
"""Name, password, the organization's slug."""
MEMBERS = """
from continuitybridge import organizations
owner = organizations.by_slug({slug!r}).organization_id
for name in {names!r}:
    organizations.add_member(owner, name, "customer_admin")
"""
FAB = """
import os
from continuitybridge.runtime.environment import process_environment
from continuitybridge.settings import get_settings
os.environ.update(process_environment(get_settings()))
from airflow.providers.fab.www.app import create_app
app = create_app(enable_plugins=False)
with app.app_context():
    manager = app.appbuilder.sm
    user = manager.find_user(username={name!r})
    {change}
    assert manager.update_user(user)
"""
PAGES = ("/ui/dags", "/api/v2/dags", "/bridge/me", "/auth/resetmypassword/form")


@contextmanager
def browser(trial: Trial, cookies: httpx.Cookies | None = None) -> Iterator[httpx.Client]:
    """From an address of its own, so that what is refused to it is refused to no other."""
    transport = httpx.HTTPTransport(local_address=f"127.0.2.{next(_number)}")
    headers = {"accept": "text/html,application/json", "origin": trial.url}
    with httpx.Client(base_url=trial.url, timeout=60, transport=transport, headers=headers) as client:
        client.cookies.update(cookies or {})
        yield client


@pytest.fixture(scope="module")
def people(trial: Trial) -> Iterator[Person]:
    """Members of one organization, made together: each command takes seconds to begin."""
    tenant = trial.organization()
    names = [f"person-{number}" for number in range(18)]
    passwords = trial.accounts(names)
    trial.python(MEMBERS.format(slug=tenant.slug, names=names))
    return ((name, password, tenant.slug) for name, password in passwords.items())


def csrf(page: httpx.Response) -> str:
    found = re.search(r'name="csrf_token"[^>]*value="([^"]+)"', page.text)
    assert found, page.text
    return found[1]


def sign_in(client: httpx.Client, name: str, password: str) -> httpx.Response:
    form = {"username": name, "password": password, "csrf_token": csrf(client.get("/auth/login/"))}
    return client.post("/auth/login/", data=form)


def seen(client: httpx.Client) -> list[int]:
    return [client.get(path).status_code for path in PAGES]


def mailed_token(trial: Trial, address: str) -> str:
    assert trial.mails is not None
    mails = trial.mails
    [mail] = wait_until(lambda: mails.to(address), within_s=30, what=f"a mail to {address}")
    match = re.search(r"/bridge/sign-in/[a-z-]+#(\S+)", str(mail.get_body(("plain",)).get_content()))
    assert match
    mails.mails.clear()
    return match[1]


def events(trial: Trial, slug: str, name: str, action: str) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(
        trial.bridge("audit", "list", "-o", slug, "--action", action, "--actor", name, "--json").stdout
    )
    return found


def test_a_mailed_link_signs_in_to_all_of_airflows_pages(trial: Trial, people: Iterator[Person]) -> None:
    name, _, slug = next(people)
    with browser(trial) as client:
        assert client.post("/bridge/sign-in/link", data={"email": f"{name}@example.com"}).status_code == 202
        token = mailed_token(trial, f"{name}@example.com")
        done = client.post("/bridge/sign-in/confirm", data={"token": token})
        assert (done.status_code, done.headers["location"]) == (303, "/")
        assert seen(client) == [200, 200, 200, 200]
        assert client.get("/bridge/me").json()["user_name"] == name
        for cookie in done.headers.get_list("set-cookie"):
            assert "httponly" in cookie.lower()
            assert "samesite=lax" in cookie.lower() or cookie.startswith("session=")
    with browser(trial) as other:
        assert other.post("/bridge/sign-in/confirm", data={"token": token}).status_code == 404
    [event] = events(trial, slug, name, "sign_in.succeeded")
    assert event["actor"] == name
    assert str(event["address"]).startswith("127.0.2.")


@pytest.mark.parametrize("path", ["/api/v2/auth/logout", "/auth/logout"])
def test_signing_out_ends_the_token_and_the_session_and_no_others(
    trial: Trial, people: Iterator[Person], path: str
) -> None:
    name, password, _ = next(people)
    with browser(trial) as client, browser(trial) as other:
        for each in (client, other):
            assert sign_in(each, name, password).status_code in (302, 303)
            assert seen(each) == [200] * 4
        with browser(trial, client.cookies) as thief:
            assert seen(thief) == [200] * 4
            client.get(path)
            assert seen(thief)[:3] == [401] * 3
            assert thief.get("/auth/resetmypassword/form").status_code in (302, 303)
            thief.cookies.delete("_token")
            thief.get("/auth/login/")
            assert "_token" not in thief.cookies, "a session that was kept gives no new token"
        assert seen(other) == [200] * 4


@pytest.mark.parametrize("what", ["deactivated", "role of Airflow", "role", "removed", "everywhere", "password"])
def test_every_session_and_token_ends_at_the_next_request(
    trial: Trial, people: Iterator[Person], what: str
) -> None:
    name, password, slug = next(people)
    trial.sign_in(name, password)
    program = trial._clients[name]
    with browser(trial) as client:
        sign_in(client, name, password)
        assert seen(client) == [200] * 4
        assert program.get("/bridge/me").status_code == 200
        if what == "deactivated":
            gone_and_back = "user.active = False; assert manager.update_user(user); user.active = True"
            trial.python(FAB.format(name=name, change=gone_and_back))
        elif what == "role of Airflow":
            trial.python(FAB.format(name=name, change="user.roles = [manager.find_role('Viewer')]"))
        elif what == "role":
            trial.bridge("organization", "member", "add", "-o", slug, name, "--role", "customer_user")
        elif what == "removed":
            trial.bridge("organization", "member", "remove", "-o", slug, name)
        elif what == "everywhere":
            assert program.post("/bridge/me/end-sessions").status_code == 204
        else:
            form = {"csrf_token": csrf(client.get("/auth/resetmypassword/form"))}
            new = "plum lantern orbit quiver"
            for current in ({}, {"current": "wrong"}):
                # Whoever holds a session only changes nothing.
                wanted = {**form, **current, "password": new, "conf_password": new}
                client.post("/auth/resetmypassword/form", data=wanted)
                assert program.get("/bridge/me").status_code == 200
            form["current"] = password
            weak = client.post(
                "/auth/resetmypassword/form", data={**form, "password": name, "conf_password": name}
            )
            assert weak.status_code == 200
            assert "at least 12 characters" in weak.text
            assert program.get("/bridge/me").status_code == 200
            with browser(trial, client.cookies) as same:
                answer = same.post(
                    "/auth/resetmypassword/form", data={**form, "password": new, "conf_password": new}
                )
                assert answer.status_code in (302, 303)
            told = events(trial, slug, name, "password.changed")
            assert [(each["action"], each["actor"]) for each in told] == [("password.changed", name)]
        assert program.get("/bridge/me").status_code == 401
        assert program.get("/api/v2/dags").status_code == 401
        assert seen(client)[:3] == [401] * 3
        assert client.get("/auth/resetmypassword/form").status_code in (302, 303)
        client.get("/auth/login/")
        assert "_token" not in client.cookies


def test_whoever_holds_a_session_does_not_guess_the_password_to_change_it(
    trial: Trial, people: Iterator[Person]
) -> None:
    name, password, _ = next(people)
    page, new = "/auth/resetmypassword/form", "plum lantern orbit quiver"
    with browser(trial) as client:
        sign_in(client, name, password)
        form = {"csrf_token": csrf(client.get(page)), "password": new, "conf_password": new}
        for _ in range(5):
            assert client.post(page, data={**form, "current": "wrong"}).status_code in (302, 303)
        locked = client.post(page, data={**form, "current": password})
        assert (locked.status_code, 0 < int(locked.headers["retry-after"]) <= 900) == (429, True)
        assert seen(client) == [200] * 4
    trial.sign_in(name, password)


def test_a_superadmin_or_a_link_sets_another_password_and_the_trail_tells_of_it(
    trial: Trial, people: Iterator[Person]
) -> None:
    name, password, slug = next(people)
    trial.sign_in(name, password)
    before = trial._clients[name]
    page = f"/auth/resetpassword/form?pk={before.get('/ui/auth/me').json()['id']}"
    new = "plum lantern orbit quiver"
    with browser(trial) as client:
        sign_in(client, "admin", (trial.state_dir / "keys" / "admin.password").read_text().strip())
        form = {"csrf_token": csrf(client.get(page)), "password": new, "conf_password": new}
        assert client.post(page, data=form).status_code in (302, 303)
    assert before.get("/bridge/me").status_code == 401
    trial.sign_in(name, new)
    [told] = events(trial, slug, "admin", "password.changed")
    assert (told["actor"], told["target"]) == ("admin", name)
    with browser(trial) as client:
        client.post("/bridge/sign-in/reset", data={"email": f"{name}@example.com"})
        link = mailed_token(trial, f"{name}@example.com")
        again = {"token": link, "password": f"{new} marble", "again": f"{new} marble"}
        assert client.post("/bridge/sign-in/new-password", data=again).status_code == 200
        assert client.post("/bridge/sign-in/new-password", data=again).status_code == 404
    assert trial._clients[name].get("/bridge/me").status_code == 401
    trial.sign_in(name, f"{new} marble")
    assert len(events(trial, slug, name, "password.reset")) == 1


KEY = """
from continuitybridge import api_keys, organizations
owner = organizations.by_slug({slug!r}).organization_id
print(api_keys.create(owner, {name!r}, user_name={name!r}, scope="write", by="test").key)
"""


@pytest.mark.parametrize("way", ["command", "API"])
def test_whoever_gets_the_name_of_a_deleted_user_gets_none_of_his_rights(
    trial: Trial, people: Iterator[Person], way: str
) -> None:
    name, _, slug = next(people)
    headers = {"x-api-key": trial.python(KEY.format(slug=slug, name=name)).split()[-1]}
    with browser(trial) as client:
        assert client.get("/bridge/me", headers=headers).status_code == 200
        if way == "command":
            trial.bridge("airflow", "users", "delete", "-u", name)
        else:
            trial.api("GET", "/version")
            assert trial._clients["admin"].delete(f"/auth/fab/v1/users/{name}").status_code in (200, 204)
        [password] = trial.accounts([name]).values()
        assert client.get("/bridge/me", headers=headers).status_code == 401
    trial.sign_in(name, password)
    me = trial._clients[name].get("/bridge/me")
    assert me.status_code == 200
    assert slug not in me.text


def test_nobody_is_renamed(trial: Trial, people: Iterator[Person]) -> None:
    name, password, slug = next(people)
    trial.api("GET", "/version")
    admin = trial._clients["admin"]
    asked = admin.patch(f"/auth/fab/v1/users/{name}", json={"username": f"{name}-new", "first_name": "Zoe"})
    assert (asked.status_code, asked.json()["field"]) == (409, "username"), asked.text
    with browser(trial) as client:
        sign_in(client, "admin", (trial.state_dir / "keys" / "admin.password").read_text().strip())
        users = client.get("/auth/users/list/?_flt_0_username=" + name).text
        edit = re.search(r"/auth/users/edit/\d+", users)
        assert edit
        page = client.get(edit[0])
        assert 'name="first_name"' in page.text
        assert 'name="username"' not in page.text
    trial.sign_in(name, password)
    assert slug in trial._clients[name].get("/bridge/me").text
    assert admin.get(f"/auth/fab/v1/users/{name}").json()["first_name"] == "A", "nothing of it was done"


INVITE = """
from continuitybridge import invitations, organizations
owner = organizations.by_slug({slug!r}).organization_id
print(invitations.invite(owner, {email!r}, "customer_user", by="test").token)
"""


def test_an_invitation_that_is_accepted_twice_at_once_makes_one_member(
    trial: Trial, people: Iterator[Person]
) -> None:
    _, _, slug = next(people)
    email = f"twice-{next(_number)}@example.com"
    form = {
        "token": trial.python(INVITE.format(slug=slug, email=email)).split()[-1],
        "first_name": "Twice",
        "last_name": "Clicked",
        "password": "plum lantern orbit quiver",
        "again": "plum lantern orbit quiver",
    }

    def join(_: int) -> int:
        with browser(trial) as client:
            return client.post("/bridge/sign-in/join", data=form).status_code

    with ThreadPoolExecutor(4) as pool:
        answers = sorted(pool.map(join, range(4)))
    assert answers[0] == 303
    assert set(answers[1:]) <= {404, 409}, answers
    trial.sign_in(email, form["password"])
    assert slug in trial._clients[email].get("/bridge/me").text


def test_the_operator_is_told_when_nobody_is_called_so(trial: Trial, people: Iterator[Person]) -> None:
    name, password, _ = next(people)
    for command in ("end-sessions", "remove-second-factor"):
        refused = trial.bridge("person", command, f"{name}-nobody", check=False)
        assert refused.returncode
        assert f"nobody signs in as '{name}-nobody'" in refused.stderr
    trial.sign_in(name, password)
    assert trial._clients[name].get("/bridge/me").status_code == 200
    trial.bridge("person", "end-sessions", f"{name}@EXAMPLE.com")
    assert trial._clients[name].get("/bridge/me").status_code == 401


def test_weak_passwords_are_taken_by_no_way(trial: Trial) -> None:
    trial.api("GET", "/version")
    admin = trial._clients["admin"]
    account = {
        "username": f"weak-{next(_number)}",
        "email": f"weak-{next(_number)}@example.com",
        "first_name": "A",
        "last_name": "B",
        "roles": [{"name": "Member"}],
    }
    for weak in ("password1234", account["username"] + "-12", "short"):
        made = admin.post("/auth/fab/v1/users", json={**account, "password": weak})
        assert made.status_code == 422, made.text
        assert made.json()["code"] == "weak-password"
    good = "plum lantern orbit quiver"
    assert admin.post("/auth/fab/v1/users", json={**account, "password": good}).status_code in (200, 201)
    changed = admin.patch(
        f"/auth/fab/v1/users/{account['username']}", json={**account, "password": "password1234"}
    )
    assert changed.status_code == 422
    made = trial.python(
        "import os, subprocess, sys\n"
        "from continuitybridge.runtime.environment import process_environment\n"
        "from continuitybridge.settings import get_settings\n"
        "env = {**os.environ, **process_environment(get_settings())}\n"
        "done = subprocess.run([sys.executable, '-m', 'airflow', 'users', 'create', '-u', 'cli-weak', '-f', 'A',"
        " '-l', 'B', '-e', 'cli-weak@example.com', '-r', 'Member', '-p', 'password1234'], env=env,"
        " capture_output=True, text=True)\n"
        "print(done.returncode, done.stdout, done.stderr)\n"
    )
    assert not made.startswith("0 ")
    assert "too easily guessed" in made


def test_a_member_whose_organization_requires_a_second_factor_gets_in_by_no_way_before(
    trial: Trial, people: Iterator[Person]
) -> None:
    name, password, _ = next(people)
    slug = trial.organization().slug
    trial.bridge("organization", "member", "add", "-o", slug, name, "--role", "customer_user")
    trial.sign_in(name, password)
    trial.bridge("organization", "require-second-factor", slug)
    assert trial._clients[name].get("/bridge/me").status_code == 401
    there = "/bridge/sign-in/second-factor"
    with browser(trial) as client:
        refused = client.post("/auth/token", json={"username": name, "password": password})
        assert refused.status_code == 401
        assert refused.json()["detail"]["code"] == "second-factor-enrolment-needed"
        assert refused.json()["detail"]["address"].endswith(there)
        led = sign_in(client, name, password)
        assert led.status_code == 302
        assert urlsplit(led.headers["location"]).path == f"{there}/begin"
        assert client.get("/bridge/me").status_code == 401
    trial.bridge("organization", "require-second-factor", slug, "--off")
    trial.sign_in(name, password)
    assert trial._clients[name].get("/bridge/me").status_code == 200


def test_with_a_second_factor_no_way_in_does_without_its_code(trial: Trial, people: Iterator[Person]) -> None:
    name, password, slug = next(people)
    trial.sign_in(name, password)
    program = trial._clients[name]
    assert program.post("/bridge/me/second-factor", json={"password": "wrong"}).status_code == 422
    begun = program.post("/bridge/me/second-factor", json={"password": password}).json()
    assert begun["uri"].startswith("otpauth://totp/")
    assert begun["qr"].startswith("<svg")
    code = pyotp.TOTP(begun["secret"])
    confirmed = program.post("/bridge/me/second-factor/confirm", json={"code": code.now()})
    assert confirmed.status_code == 200, confirmed.text
    recovery = confirmed.json()["recovery_codes"]
    assert program.get("/bridge/me").status_code == 401, "sessions of before end"

    def later() -> str:
        """A code that was not used yet: the next step's is taken as well."""
        return code.at(int(time.time()) + 30)

    def token(**more: str) -> httpx.Response:
        with browser(trial) as client:
            return client.post("/auth/token", json={"username": name, "password": password, **more})

    missing = token()
    assert missing.status_code == 401
    assert missing.json()["detail"]["code"] == "second-factor-needed"
    assert token(code="000000").json()["detail"]["code"] == "second-factor-wrong"
    used = later()
    assert token(code=used).status_code == 201
    assert token(code=used).status_code == 401, "a code holds once"
    assert token(code=recovery[0]).status_code == 201
    assert token(code=recovery[0]).status_code == 401
    with browser(trial) as client:
        asked = sign_in(client, name, password)
        assert asked.status_code == 200
        assert "Code of your authenticator app" in asked.text
        assert client.get("/bridge/me").status_code == 401
        form = {"csrf_token": csrf(asked), "username": name}
        wrong = client.post("/auth/login/", data={**form, "code": "123456"})
        assert wrong.status_code == 200
        assert client.get("/bridge/me").status_code == 401
        right = client.post("/auth/login/", data={**form, "code": recovery[1]})
        assert right.status_code in (302, 303)
        assert seen(client) == [200] * 4
    with browser(trial) as client:
        client.post("/bridge/sign-in/link", data={"email": f"{name}@example.com"})
        link = mailed_token(trial, f"{name}@example.com")
        asked = client.post("/bridge/sign-in/confirm", data={"token": link})
        assert asked.status_code == 200
        assert "_token" not in client.cookies
        done = client.post("/bridge/sign-in/confirm", data={"token": link, "code": recovery[2]})
        assert done.status_code == 303
        assert seen(client) == [200] * 4
    with browser(trial) as client:
        for _ in range(6):
            assert "Code of your authenticator app" in sign_in(client, name, password).text, "no failure yet"
        asked = client.post("/auth/token", json={"username": name, "password": password})
        assert asked.json()["detail"]["code"] == "second-factor-needed"
        tries = [
            client.post("/auth/token", json={"username": name, "password": password, "code": "000000"}).status_code
            for _ in range(6)
        ]
    assert tries == [401] * 5 + [429]
    assert {"sign_in.succeeded", "sign_in.failed", "sign_in.locked"} <= {
        str(each["action"]) for each in events(trial, slug, name, "sign_in")
    }
