"""What Google Cloud KMS is asked, to the letter, and what each of its answers means."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Callable
from pathlib import Path

import pytest
from key_answers import BOUND, KEY, PLACE, Says, failed, is_away, is_refused, says, silent
from key_services import GcpService

from continuitybridge.errors import ConfigurationError, Unavailable
from continuitybridge.vault.cipher import DecryptionFailed
from continuitybridge.vault.kms import gcp

__all__ = ["says"]
NAME = "projects/p/locations/europe-west3/keyRings/r/cryptoKeys/k"


@pytest.fixture
def google(
    gcp_service: GcpService, environment: Callable[..., None], says: Says, monkeypatch: pytest.MonkeyPatch
) -> gcp.GcpKms:
    monkeypatch.setattr(gcp.GcpKms, "endpoint", says.url)
    environment(**gcp_service.environment)
    return gcp.GcpKms(NAME)


def wrapped_by(google: gcp.GcpKms, **other: object) -> dict[str, object]:
    return {
        "ciphertext": b64encode(b"boxed").decode(),
        "ciphertextCrc32c": str(google._crc(b"boxed")),
        "verifiedPlaintextCrc32c": True,
        "verifiedAdditionalAuthenticatedDataCrc32c": True,
        **other,
    }


def test_google_is_asked_for_this_key_with_the_place_and_sums_of_all(google: gcp.GcpKms, says: Says) -> None:
    says.answer(200, wrapped_by(google))
    assert google.wrap(KEY, dict(reversed(PLACE.context.items()))) == b"boxed"
    says.answer(200, {"plaintext": b64encode(KEY).decode(), "plaintextCrc32c": str(google._crc(KEY))})
    assert google.unwrap(b"boxed", PLACE.context) == KEY
    [(path, _, wraps), (other_path, _, unwraps)] = says.asked
    assert path.partition("?")[0] == f"/v1/{NAME}:encrypt"
    assert other_path.partition("?")[0] == f"/v1/{NAME}:decrypt"
    for given, field, data in ((wraps, "plaintext", KEY), (unwraps, "ciphertext", b"boxed")):
        for name, sent in ((field, data), ("additionalAuthenticatedData", BOUND)):
            assert b64decode(given[name]) == sent
            assert given[f"{name}Crc32c"] == str(google._crc(sent))


def test_what_google_did_not_get_or_give_whole_is_not_kept(google: gcp.GcpKms, says: Says) -> None:
    for other in (
        {"verifiedPlaintextCrc32c": False},
        {"verifiedAdditionalAuthenticatedDataCrc32c": False},
        {"ciphertextCrc32c": "1"},
    ):
        says.answer(200, wrapped_by(google, **other))
        assert is_away(failed(lambda: google.wrap(KEY, PLACE.context))[0], "garbled")
    says.answer(200, {"plaintext": b64encode(KEY).decode(), "plaintextCrc32c": "1"})
    assert is_away(failed(lambda: google.unwrap(b"boxed", PLACE.context))[0], "garbled")


def test_googles_answers_are_told_apart(google: gcp.GcpKms, says: Says) -> None:
    def answers(status: int, message: str, call: Callable[[], object]) -> Unavailable:
        says.answer(status, {"error": {"code": status, "message": message, "status": "UNKNOWN"}})
        says.asked.clear()
        error, _ = failed(call)
        # Its client would try again by itself.
        assert len(says.asked) == 1
        return error

    def wrap() -> bytes:
        return google.wrap(KEY, PLACE.context)

    def unwrap() -> bytes:
        return google.unwrap(b"boxed", PLACE.context)

    for status in (408, 429, 500, 503):
        assert is_away(answers(status, "later", wrap), f"Google Cloud KMS is too busy or out of order ({status})")
    told = "Decryption failed: verify that 'name' refers to the correct CryptoKey."
    for status, message, call in (
        *((403, "denied", wrap), (404, "none", unwrap), (407, "x", wrap), (409, "x", wrap), (428, "x", wrap)),
        *((430, "x", wrap), (499, "x", wrap), (400, "x", unwrap), (400, told, wrap), (412, told, unwrap)),
    ):
        error = answers(status, message, call)
        refused = f"Google Cloud KMS refuses {NAME}: {status} POST "
        assert str(error).endswith(f": {message}")
        assert is_refused(error, refused, key=NAME, reason=str(status), retry_after_s=30)
    says.answer(400, {"error": {"code": 400, "message": told, "status": "INVALID_ARGUMENT"}})
    with pytest.raises(DecryptionFailed, match="altered"):
        unwrap()


def test_google_is_not_waited_for_longer_than_its_time(
    google: gcp.GcpKms, says: Says, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gcp, "ANSWER_TIMEOUT_S", 0.1)
    with silent() as url:
        monkeypatch.setattr(gcp.GcpKms, "endpoint", url)
        error, took_s = failed(lambda: google.wrap(KEY, PLACE.context))
    assert is_away(error, "Google Cloud KMS does not answer")
    assert took_s < 4


def test_a_file_of_googles_credentials_that_is_none_is_told_and_read_again(
    google: gcp.GcpKms, says: Says, environment: Callable[..., None], gcp_service: GcpService, tmp_path: Path
) -> None:
    file = tmp_path / "account.json"
    file.write_text("{}")
    environment(GOOGLE_APPLICATION_CREDENTIALS=str(file))
    assert is_away(failed(lambda: google.wrap(KEY, PLACE.context))[0], "no credentials for Google Cloud KMS")
    good = Path(gcp_service.environment["GOOGLE_APPLICATION_CREDENTIALS"]).read_text()
    environment(GOOGLE_APPLICATION_CREDENTIALS=str(tmp_path))
    assert is_refused(failed(lambda: google.wrap(KEY, PLACE.context))[0], "cannot be asked", key=NAME)
    environment(GOOGLE_APPLICATION_CREDENTIALS=str(file))
    file.write_text(good)
    says.answer(200, wrapped_by(google))
    assert google.wrap(KEY, PLACE.context) == b"boxed"


def test_a_key_of_googles_with_another_name_is_refused() -> None:
    for name in ("projects/p", f"{NAME}/cryptoKeyVersions/1", NAME.upper(), f"{NAME}\n", f"/{NAME}"):
        with pytest.raises(ConfigurationError, match="is not the name of a key") as refused:
            gcp.GcpKms(name)
        assert refused.value.facts["field"] == "BRIDGE_MASTER_KEY_KMS"
        assert refused.value.facts["value"] == f"gcp:{name}"
