"""AWS KMS: `aws:arn:aws:kms:<region>:<account>:key/<id>`, a symmetric key.

Credentials, proxies and endpoints are found as by every program of AWS (`AWS_*`, `~/.aws`, the role of a container
or machine). The role needs `kms:Encrypt` and `kms:Decrypt` on the key. Data keys are bound to the encryption
context, which CloudTrail shows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    HTTPClientError,
    MetadataRetrievalError,
    NoCredentialsError,
    PartialCredentialsError,
    SSOError,
    TokenRetrievalError,
)
from botocore.exceptions import ConnectionError as NoConnection
from botocore.session import get_session

from continuitybridge.errors import BridgeError, ConfigurationError, Unavailable
from continuitybridge.vault.cipher import DecryptionFailed
from continuitybridge.vault.kms.base import ANSWER_TIMEOUT_S, CONNECT_TIMEOUT_S, KeyServiceRefused

_ARN = re.compile(r"arn:aws[a-z-]*:kms:(?P<region>[a-z0-9-]+):\d{12}:key/[A-Za-z0-9-]+")
_ALTERED = {"InvalidCiphertextException", "IncorrectKeyException"}
_NO_CREDENTIALS = (
    *(NoCredentialsError, PartialCredentialsError, CredentialRetrievalError),
    *(MetadataRetrievalError, TokenRetrievalError, SSOError),
)
_BUSY = {
    "ThrottlingException",
    "Throttling",
    "TooManyRequestsException",
    "LimitExceededException",
    "RequestLimitExceeded",
    "KMSInternalException",
    "DependencyTimeoutException",
    "KeyUnavailableException",
    "ServiceUnavailable",
}


class AwsKms:
    """A key of AWS KMS."""

    scheme: ClassVar[str] = "aws"

    def __init__(self, name: str) -> None:
        match = _ARN.fullmatch(name)
        if match is None:
            raise ConfigurationError(
                f"aws:{name} is not the ARN of a key; valid is aws:arn:aws:kms:<region>:<account>:key/<id> (no "
                "alias: it may name another key tomorrow)",
                field="BRIDGE_MASTER_KEY_KMS",
                value=f"aws:{name}",
            )
        self._name = name
        self._region = match["region"]
        self._client: Any = None

    def wrap(self, key: bytes, context: Mapping[str, str]) -> bytes:
        blob: bytes = self._call("encrypt", Plaintext=key, EncryptionContext=dict(context))["CiphertextBlob"]
        return blob

    def unwrap(self, wrapped: bytes, context: Mapping[str, str]) -> bytes:
        key: bytes = self._call("decrypt", CiphertextBlob=wrapped, EncryptionContext=dict(context))["Plaintext"]
        return key

    def _call(self, verb: str, **given: Any) -> Any:
        try:
            client = self._client
            if client is None:
                # It looks for credentials while it is made, and never again where it found none.
                client = self._client = self._new_client()
            return getattr(client, verb)(KeyId=self._name, **given)
        except ClientError as error:
            raise self._judged(error) from error
        except _NO_CREDENTIALS as error:
            self._client = None
            raise Unavailable(f"there are no credentials for AWS KMS now: {error}", retry_after_s=5) from error
        except (HTTPClientError, NoConnection) as error:
            raise Unavailable(f"AWS KMS does not answer: {error}", retry_after_s=5) from error
        except (BotoCoreError, ValueError, OSError) as error:
            # A profile that is not there, an endpoint that is none, a file that cannot be read.
            self._client = None
            raise KeyServiceRefused(f"AWS KMS cannot be asked: {error}", key=self._name) from error

    def _new_client(self) -> Any:
        return get_session().create_client(
            "kms",
            region_name=self._region,
            config=Config(
                connect_timeout=CONNECT_TIMEOUT_S,
                read_timeout=ANSWER_TIMEOUT_S,
                retries={"total_max_attempts": 2, "mode": "standard"},
                max_pool_connections=10,
            ),
        )

    def _judged(self, error: ClientError) -> BridgeError:
        code = error.response.get("Error", {}).get("Code", "")
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if code in _ALTERED:
            return DecryptionFailed("a data key was altered, or wrapped for another place or by another key")
        if code in _BUSY or status >= 500 or status == 429:
            return Unavailable(f"AWS KMS is too busy or out of order ({code or status})", retry_after_s=5)
        message = error.response.get("Error", {}).get("Message", "")
        return KeyServiceRefused(
            f"AWS KMS refuses {self._name}: {code} {message}".strip(),
            key=self._name,
            reason=code,
            retry_after_s=30,
        )
