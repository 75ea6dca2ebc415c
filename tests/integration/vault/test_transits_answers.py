"""What a Transit engine is asked, to the letter, and what each of its answers means."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable
from pathlib import Path

import pytest
from key_answers import BOUND, KEY, PLACE, Says, failed, full, is_away, is_refused, says, silent

from continuitybridge.errors import ConfigurationError, Unavailable
from continuitybridge.vault.cipher import DecryptionFailed
from continuitybridge.vault.kms import service, transit

__all__ = ["says"]


def transit_key(environment: Callable[..., None], tmp_path: Path, url: str) -> transit.Transit:
    file = tmp_path / "token"
    file.touch(mode=0o600)
    file.write_text(" the-token\n")
    environment(BRIDGE_TRANSIT_TOKEN_FILE=str(file))
    return transit.Transit(f"{url}/XTeam/a/transit/houseX")


def test_transit_is_asked_at_the_mount_with_the_token_and_the_place(
    environment: Callable[..., None], says: Says, tmp_path: Path
) -> None:
    key = transit_key(environment, tmp_path, says.url)
    says.answer(200, {"data": {"ciphertext": "vault:v1:boxed"}})
    assert key.wrap(KEY, PLACE.context) == b"vault:v1:boxed"
    says.answer(200, {"data": {"plaintext": b64encode(KEY).decode()}})
    assert key.unwrap(b"vault:v1:boxed", dict(reversed(PLACE.context.items()))) == KEY
    # What is no text of Transit's goes to it as it is: it says so.
    key.unwrap(b"\xff", PLACE.context)
    [(path, head, wraps), (other_path, other_head, unwraps), (_, _, odd)] = says.asked
    bound = b64encode(BOUND).decode()
    assert (path, wraps) == (
        "/v1/XTeam/a/transit/encrypt/houseX",
        {"plaintext": b64encode(KEY).decode(), "associated_data": bound},
    )
    assert (other_path, unwraps) == (
        "/v1/XTeam/a/transit/decrypt/houseX",
        {"ciphertext": "vault:v1:boxed", "associated_data": bound},
    )
    assert odd["ciphertext"] == "�"
    for each in (head, other_head):
        assert (each["x-vault-token"], each["x-vault-request"]) == ("the-token", "true")


def test_transits_answers_are_told_apart(environment: Callable[..., None], says: Says, tmp_path: Path) -> None:
    key, name = transit_key(environment, tmp_path, says.url), "XTeam/a/transit/houseX"

    def answers(status: int, body: object) -> Unavailable:
        says.answer(status, body)
        return failed(lambda: key.unwrap(b"vault:v1:boxed", PLACE.context))[0]

    for status in (412, 429, 472, 473, 500, 503):
        told = (f"Transit at {says.url}/v1/XTeam/a/transit answers {status}: sealed; standby",)
        assert is_away(answers(status, {"errors": ["sealed", "standby"]}), *told)
    for status in (400, 403, 411, 413, 428, 430, 471, 474, 499):
        error = answers(status, {"errors": ["permission denied"]})
        told = (f"Transit refuses {name} ({status}): permission denied",)
        assert is_refused(error, *told, key=name, reason="permission denied", retry_after_s=30)
    assert is_refused(answers(403, {"errors": None}), reason="")
    assert is_refused(answers(403, {"errors": ["long" * 200]}), reason="long" * 125)
    odd = "an answer that is none of Transit's"
    for status, body in ((404, b"<html>"), (200, {"data": {}}), (200, {"data": None}), (404, ["x"]), (200, {})):
        assert is_refused(answers(status, body), odd, reason=odd)
    altered = ("cipher: message authentication failed", "invalid ciphertext: no prefix")
    for reason in (*altered, "unable to decrypt", "could not decode"):
        says.answer(400, {"errors": [reason]})
        with pytest.raises(DecryptionFailed, match="altered"):
            key.unwrap(b"vault:v1:boxed", PLACE.context)
        assert is_refused(answers(403, {"errors": [reason]}))


def test_transit_is_not_waited_for_longer_than_its_time(
    environment: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for server, limit in ((silent, "ANSWER_TIMEOUT_S"), (full, "CONNECT_TIMEOUT_S")):
        with monkeypatch.context() as patched, server() as url:
            patched.setattr(transit, limit, 0.1)
            key = transit_key(environment, tmp_path, url)
            error, took_s = failed(lambda key=key: key.wrap(KEY, PLACE.context))  # type: ignore[misc]
        assert is_away(error, f"Transit at {url}/v1/XTeam/a/transit does not answer: timed out")
        assert took_s < 4


def test_transits_token_is_read_for_each_call_from_a_file_of_its_readers_own(
    environment: Callable[..., None], says: Says, tmp_path: Path
) -> None:
    key, file = transit_key(environment, tmp_path, says.url), tmp_path / "token"
    says.answer(200, {"data": {"ciphertext": "vault:v1:boxed"}})
    for mode in (0o640, 0o604, 0o601):
        file.chmod(mode)
        with pytest.raises(ConfigurationError, match=f"mode {mode:04o}.: chmod 600") as open_to_all:
            key.wrap(KEY, PLACE.context)
        assert open_to_all.value.facts["field"] == "BRIDGE_TRANSIT_TOKEN_FILE"
    file.chmod(0o700)
    file.write_text("another")
    key.wrap(KEY, PLACE.context)
    assert [head["x-vault-token"] for _, head, _ in says.asked] == ["another"]
    file.unlink()
    assert is_refused(failed(lambda: key.wrap(KEY, PLACE.context))[0], f"{file} cannot be read: No such file")


def test_without_a_file_for_transits_token_the_setting_is_named(
    environment: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BRIDGE_TRANSIT_TOKEN_FILE", raising=False)
    environment()
    with pytest.raises(ConfigurationError) as missing:
        transit.Transit("https://vault.example/transit/house").wrap(KEY, PLACE.context)
    assert missing.value.facts["field"] == "BRIDGE_TRANSIT_TOKEN_FILE"


def test_a_transit_key_with_another_name_is_refused() -> None:
    for name, told in (
        ("http://vault.example/transit/house", "it has to be https"),
        ("http://10.0.0.1/transit/house", "it has to be https"),
        ("ftp://127.0.0.1/transit/house", "it has to be https"),
        ("https:///transit/house", "valid is transit:https://"),
        ("https://vault.example/house", "valid is transit:https://"),
        ("https://vault.example/transit//", "valid is transit:https://"),
        ("https://vault.example/transit/house?x=1", "valid is transit:https://"),
        ("https://vault.example/transit/house#x", "valid is transit:https://"),
        ("https://me@vault.example/transit/house", "valid is transit:https://"),
    ):
        with pytest.raises(ConfigurationError, match=told) as refused:
            service(f"transit:{name}")
        assert refused.value.facts["field"] == "BRIDGE_MASTER_KEY_KMS"
        assert refused.value.facts["value"] == f"transit:{name}"


def test_on_the_machine_itself_transit_needs_no_certificate() -> None:
    for host in ("localhost:8200", "127.0.0.9", "[::1]:8200"):
        transit.Transit(f"http://{host}/transit/house")
