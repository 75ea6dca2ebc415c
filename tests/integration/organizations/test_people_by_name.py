"""Commands that take a person's name: it is somebody's, and counts as he bears it."""

from __future__ import annotations

from collections.abc import Callable
from uuid import uuid4

import pytest
from click.testing import CliRunner, Result

from continuitybridge import api_keys, organizations
from continuitybridge.cli import bridge
from continuitybridge.organizations import Organization

COMMANDS = [
    ("organization", "member", "add", "NAME", "-o", "ORGANIZATION"),
    ("api-key", "create", "shop", "--user", "NAME", "-o", "ORGANIZATION"),
    ("person", "limit", "NAME", "--max-organizations", "1"),
    ("person", "end-sessions", "NAME"),
]
SPELLINGS: dict[str, Callable[[str], str]] = {
    "the name": str,
    "capitals": str.upper,
    "the address": lambda name: f"{name}@USERS.example",
}
NOBODYS: dict[str, Callable[[str], str]] = {
    "another": lambda name: f"{name}-2",
    "none": lambda name: "",
    "with a NUL": lambda name: f"{name}\0",
    "with a blank": lambda name: f"{name} ",
    "with what is not seen": lambda name: f"{name}\N{ZERO WIDTH SPACE}",
    "with a letter that looks alike": lambda name: f"\N{CYRILLIC SMALL LETTER A}{name[1:]}",
}


def run(command: tuple[str, ...], name: str, organization: Organization) -> Result:
    named = {"NAME": name, "ORGANIZATION": organization.slug}
    return CliRunner().invoke(bridge, [named.get(part, part) for part in command])


@pytest.mark.parametrize("how", NOBODYS)
def test_a_name_that_nobody_has_is_refused(
    how: str, organization: Organization, airflow_user: Callable[..., str]
) -> None:
    given = NOBODYS[how](airflow_user(f"a{uuid4().hex[:8]}"))
    for command in COMMANDS:
        refused = run(command, given, organization)
        assert refused.exit_code != 0, command
        assert f"nobody signs in as {given!r}" in refused.stderr
        assert ("bridge invitation create" in refused.stderr) == (command[1] == "member")
    assert organizations.members(organization.organization_id) == []
    assert api_keys.list_keys(organization.organization_id) == []


@pytest.mark.parametrize("how", SPELLINGS)
def test_a_name_counts_as_its_person_bears_it(
    how: str, organization: Organization, airflow_user: Callable[..., str]
) -> None:
    name = airflow_user(f"Zoë-{uuid4().hex[:8]}")
    for command in COMMANDS:
        done = run(command, SPELLINGS[how](name), organization)
        assert done.exit_code == 0, done.output
    assert [each.user_name for each in organizations.members(organization.organization_id)] == [name]
    assert [each.user_name for each in api_keys.list_keys(organization.organization_id)] == [name]
