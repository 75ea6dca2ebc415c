"""Google Cloud KMS: `gcp:projects/<project>/locations/<location>/keyRings/<ring>/cryptoKeys/<key>`, a key for
symmetric encryption. Needs Google's client (`INSTALL`), which is no part of the lock.

Credentials are found as by every program of Google's (`GOOGLE_APPLICATION_CREDENTIALS`, `gcloud`, the account of
the machine or pod). They need `roles/cloudkms.cryptoKeyEncrypterDecrypter` on the key. Data keys are bound to
their place by additional authenticated data; what goes over the wire is checked by CRC32C, both ways.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import orjson

from continuitybridge.errors import BridgeError, ConfigurationError, Unavailable
from continuitybridge.vault.cipher import DecryptionFailed
from continuitybridge.vault.kms.base import ANSWER_TIMEOUT_S, KeyServiceRefused

INSTALL = ".venv/bin/pip install -c requirements.txt -c requirements-dev.txt google-cloud-kms google-crc32c"
_NAME = re.compile(
    r"projects/[a-z0-9.:-]{1,128}/locations/[a-z0-9-]{1,63}/keyRings/[A-Za-z0-9_-]{1,63}/cryptoKeys/[A-Za-z0-9_-]{1,63}"
)
_BUSY = frozenset({408, 429})
_SCOPES = ("https://www.googleapis.com/auth/cloud-platform", "https://www.googleapis.com/auth/cloudkms")
"""Those that Google's client asks for."""


class GcpKms:
    """A key of Google Cloud KMS; each encryption takes its primary version, so that rotating there needs nothing
    here but wrapping anew."""

    scheme: ClassVar[str] = "gcp"
    endpoint: ClassVar[str | None] = None
    """Where it is asked, unless where Google's client asks."""

    def __init__(self, name: str) -> None:
        if not _NAME.fullmatch(name):
            raise ConfigurationError(
                f"gcp:{name} is not the name of a key; valid is "
                "gcp:projects/<project>/locations/<location>/keyRings/<ring>/cryptoKeys/<key> (no version)",
                field="BRIDGE_MASTER_KEY_KMS",
                value=f"gcp:{name}",
            )
        try:
            import google.cloud.kms
            import google_crc32c

            from continuitybridge.vault.kms.google_credentials import Clients
        except ImportError:
            raise ConfigurationError(
                f"Google's client is not installed; in the checkout: {INSTALL}",
                field="BRIDGE_MASTER_KEY_KMS",
                value=f"gcp:{name}",
            ) from None
        self._name = name
        self._kms = google.cloud.kms
        self._crc: Callable[[bytes], int] = google_crc32c.value
        self._clients = Clients(self._new_client, _SCOPES)

    def wrap(self, key: bytes, context: Mapping[str, str]) -> bytes:
        bound = _bound(context)
        given = {
            "name": self._name,
            "plaintext": key,
            "plaintext_crc32c": self._crc(key),
            "additional_authenticated_data": bound,
            "additional_authenticated_data_crc32c": self._crc(bound),
        }
        found = self._call("encrypt", given)
        whole = found.verified_plaintext_crc32c and found.verified_additional_authenticated_data_crc32c
        wrapped = bytes(found.ciphertext)
        if not whole or found.ciphertext_crc32c != self._crc(wrapped):
            raise _garbled()
        return wrapped

    def unwrap(self, wrapped: bytes, context: Mapping[str, str]) -> bytes:
        bound = _bound(context)
        given = {
            "name": self._name,
            "ciphertext": wrapped,
            "ciphertext_crc32c": self._crc(wrapped),
            "additional_authenticated_data": bound,
            "additional_authenticated_data_crc32c": self._crc(bound),
        }
        found = self._call("decrypt", given)
        key = bytes(found.plaintext)
        if found.plaintext_crc32c != self._crc(key):
            raise _garbled()
        return key

    def _call(self, verb: str, given: Mapping[str, Any]) -> Any:
        from google.api_core.exceptions import GoogleAPICallError
        from google.auth.exceptions import GoogleAuthError, TransportError
        from requests.exceptions import RequestException

        try:
            client = self._clients.get()
            return getattr(client, verb)(request=dict(given), timeout=ANSWER_TIMEOUT_S, retry=None)
        except GoogleAPICallError as error:
            raise self._judged(verb, error) from error
        except (TransportError, RequestException) as error:
            raise Unavailable(f"Google Cloud KMS does not answer: {error}", retry_after_s=5) from error
        except GoogleAuthError as error:
            # They are looked for again: what was found is kept.
            self._clients.forget()
            raise Unavailable(
                f"there are no credentials for Google Cloud KMS now: {error}", retry_after_s=5
            ) from error
        except (ValueError, OSError) as error:
            # A file of credentials that cannot be read, or is none.
            self._clients.forget()
            raise KeyServiceRefused(f"Google Cloud KMS cannot be asked: {error}", key=self._name) from error

    def _new_client(self, credentials: Any) -> Any:
        options = None if self.endpoint is None else {"api_endpoint": self.endpoint}
        # Over HTTP: a channel of gRPC does not survive a fork.
        return self._kms.KeyManagementServiceClient(
            credentials=credentials, transport="rest", client_options=options
        )

    def _judged(self, verb: str, error: Any) -> BridgeError:
        status, message = int(error.code or 0), str(error.message or "")
        if verb == "decrypt" and status == 400 and "Decryption failed" in message:
            return DecryptionFailed("a data key was altered, or wrapped for another place or by another key")
        if status in _BUSY or status >= 500:
            return Unavailable(f"Google Cloud KMS is too busy or out of order ({status})", retry_after_s=5)
        return KeyServiceRefused(
            f"Google Cloud KMS refuses {self._name}: {status} {message}".strip(),
            key=self._name,
            reason=str(status),
            retry_after_s=30,
        )


def _bound(context: Mapping[str, str]) -> bytes:
    return orjson.dumps(dict(context), option=orjson.OPT_SORT_KEYS)


def _garbled() -> Unavailable:
    return Unavailable("what Google Cloud KMS got or gave was garbled on the way", retry_after_s=5)
