"""Connections from a file: what is read, what is refused, what is never shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from continuitybridge.engine.services import LocalServices, read_connections
from continuitybridge.errors import ConfigurationError, NotFound


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "connections.yaml"
    path.write_text(text)
    return path


def test_every_kind_of_authentication_is_read(tmp_path: Path) -> None:
    found = read_connections(
        written(
            tmp_path,
            """
plain: {base_url: "http://a.example"}
basic: {base_url: "https://b.example", auth: {type: basic, username: u, password: p}}
bearer: {base_url: "https://c.example", headers: {x-tenant: "7"}, auth: {type: bearer, token: t}}
keyed: {base_url: "https://d.example", auth: {type: api_key, header: x-key, value: v}}
""",
        )
    )
    assert list(found) == ["plain", "basic", "bearer", "keyed"]
    assert found["plain"].auth == {"type": "none"}
    assert found["bearer"].headers == {"x-tenant": "7"}
    assert LocalServices(found).connection("keyed").auth == {"type": "api_key", "header": "x-key", "value": "v"}


def test_an_empty_file_holds_no_connections(tmp_path: Path) -> None:
    assert read_connections(written(tmp_path, "")) == {}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[1]", "expected a mapping of connection names"),
        ("a: canary", "connection 'a': value: expected a mapping"),
        ("a: {base_url: ftp://canary}", "base_url: expected an address"),
        ("a: {base_url: 'http://x', adress: canary}", "adress: unknown key; valid are base_url, headers, auth"),
        ("a: {base_url: 'http://x', headers: {h: 1}}", "headers: expected a mapping of header names to texts"),
        (
            "a: {base_url: 'http://x', auth: {type: digest}}",
            "auth.type: expected one of none, basic, bearer, api_key",
        ),
        ("a: {base_url: 'http://x', auth: {type: bearer, tokn: canary}}", "type bearer has exactly the keys"),
        ("a: {base_url: 'http://x', auth: {type: bearer, token: [canary]}}", "auth: expected a mapping of texts"),
        ("a: [canary", "not a YAML file"),
        ("a: !!python/object/apply:os.system [canary]", "not a YAML file"),
        ("a: \0canary", "not a YAML file"),
    ],
)
def test_a_wrong_file_is_refused_by_name_and_shows_no_value(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        read_connections(written(tmp_path, text))
    assert says in refused.value.detail
    assert "connections.yaml" in refused.value.detail
    assert "canary" not in f"{refused.value.detail} {refused.value.facts}"


def test_secrets_do_not_show_in_a_representation(tmp_path: Path) -> None:
    found = read_connections(
        written(tmp_path, "a: {base_url: 'http://x', headers: {h: canary}, auth: {type: bearer, token: canary}}")
    )
    assert "canary" not in repr(found)


def test_an_unknown_connection_is_not_found_and_the_known_ones_are_named(tmp_path: Path) -> None:
    services = LocalServices(read_connections(written(tmp_path, "warehouse: {base_url: 'http://x'}")))
    with pytest.raises(NotFound, match="no connection 'warehose'; known: warehouse"):
        services.connection("warehose")


def test_the_log_goes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    LocalServices().log("info", "seen", {"message_id": "m1"})
    told = capsys.readouterr()
    assert (told.out, told.err) == ("", "info: seen message_id='m1'\n")
