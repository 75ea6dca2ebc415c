"""What AWS KMS is asked, to the letter, and what each of its answers means."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable
from pathlib import Path

import pytest
from key_answers import CONTEXT, KEY, PLACE, Says, failed, full, is_away, is_refused, says, silent

from continuitybridge.errors import ConfigurationError, Unavailable
from continuitybridge.vault.cipher import DecryptionFailed
from continuitybridge.vault.kms import aws

__all__ = ["says"]
BUSY = (
    *("DependencyTimeoutException", "KMSInternalException", "KeyUnavailableException", "LimitExceededException"),
    *(
        "RequestLimitExceeded",
        "ServiceUnavailable",
        "Throttling",
        "ThrottlingException",
        "TooManyRequestsException",
    ),
)
ARN = "arn:aws-cn:kms:cn-north-1:123456789012:key/1234abcd-12ab"


def aws_key(environment: Callable[..., None], url: str) -> aws.AwsKms:
    environment(AWS_ENDPOINT_URL_KMS=url, AWS_ACCESS_KEY_ID="AKTESTS", AWS_SECRET_ACCESS_KEY="none")
    return aws.AwsKms(ARN)


@pytest.fixture
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two tries of Amazon's client."""
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0)


@pytest.mark.usefixtures("_no_pauses")
def test_amazon_is_asked_for_this_key_in_its_region_with_the_place(
    environment: Callable[..., None], says: Says
) -> None:
    key = aws_key(environment, says.url)
    says.answer(200, {"CiphertextBlob": b64encode(b"boxed").decode(), "KeyId": ARN})
    assert key.wrap(KEY, PLACE.context) == b"boxed"
    says.answer(200, {"Plaintext": b64encode(KEY).decode(), "KeyId": ARN})
    assert key.unwrap(b"boxed", PLACE.context) == KEY
    [(_, head, wraps), (_, _, unwraps)] = says.asked
    assert "/cn-north-1/kms/" in head["authorization"]
    assert wraps == {"KeyId": ARN, "EncryptionContext": CONTEXT, "Plaintext": b64encode(KEY).decode()}
    boxed = b64encode(b"boxed").decode()
    assert unwraps == {"KeyId": ARN, "EncryptionContext": CONTEXT, "CiphertextBlob": boxed}


@pytest.mark.usefixtures("_no_pauses")
def test_amazons_answers_are_told_apart(environment: Callable[..., None], says: Says) -> None:
    key = aws_key(environment, says.url)

    def answers(status: int, code: str | None, message: str = "") -> Unavailable | DecryptionFailed:
        says.answer(status, {} if code is None else {"__type": code, "message": message})
        with pytest.raises((Unavailable, DecryptionFailed)) as raised:
            key.unwrap(b"boxed", PLACE.context)
        return raised.value

    for code in BUSY:
        error = answers(400, code)
        assert isinstance(error, Unavailable)
        assert is_away(error, "AWS KMS is too busy", code)
    for status in (429, 500, 503):
        error = answers(status, "Odd")
        assert isinstance(error, Unavailable)
        assert is_away(error, "Odd")
    error = answers(500, None)
    assert isinstance(error, Unavailable)
    assert is_away(error, "500")
    for code in ("InvalidCiphertextException", "IncorrectKeyException"):
        assert isinstance(answers(400, code), DecryptionFailed)
    for status, code in ((400, "DisabledException"), (499, "Odd"), (428, "Odd"), (430, "Odd")):
        error = answers(status, code, "not that key")
        assert isinstance(error, Unavailable)
        assert is_refused(error, f"AWS KMS refuses {ARN}: {code} not that key", key=ARN, reason=code)
        assert error.facts["retry_after_s"] == 30


@pytest.mark.usefixtures("_no_pauses")
def test_amazon_is_tried_twice_and_not_waited_for_longer(
    environment: Callable[..., None], says: Says, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = aws_key(environment, says.url)
    says.answer(503, {"__type": "ServiceUnavailable"})
    failed(lambda: key.wrap(KEY, PLACE.context))
    assert len(says.asked) == 2
    # Who does not answer, and who takes no connection, each has a time of its own.
    for server, limit in ((silent, "ANSWER_TIMEOUT_S"), (full, "CONNECT_TIMEOUT_S")):
        with monkeypatch.context() as patched, server() as url:
            patched.setattr(aws, limit, 0.1)
            other = aws_key(environment, url)
            error, took_s = failed(lambda other=other: other.wrap(KEY, PLACE.context))  # type: ignore[misc]
        assert is_away(error, "AWS KMS does not answer", url)
        assert took_s < 4


def test_what_amazons_client_cannot_work_with_is_told_by_the_key(
    environment: Callable[..., None], tmp_path: Path
) -> None:
    key = aws_key(environment, "no address")
    assert is_refused(failed(lambda: key.wrap(KEY, PLACE.context))[0], "AWS KMS cannot be asked", key=ARN)
    # Another client is made for the next one, who may find it mended.
    with silent() as url:
        environment(AWS_ENDPOINT_URL_KMS=url.replace("127.0.0.1", "127.0.0.1.invalid."))
        assert is_away(failed(lambda: key.wrap(KEY, PLACE.context))[0], "does not answer")


def test_a_key_of_amazons_with_another_name_is_refused() -> None:
    for name in ("alias/house", ARN.replace("123456789012", "1"), f"{ARN}\n", f"x{ARN}", "x"):
        with pytest.raises(ConfigurationError, match="is not the ARN of a key") as refused:
            aws.AwsKms(name)
        assert refused.value.facts["field"] == "BRIDGE_MASTER_KEY_KMS"
        assert refused.value.facts["value"] == f"aws:{name}"
