"""HashiCorp Vault's and OpenBao's Transit engine: `transit:https://<host>[:port]/<mount>/<key>`.

The mount is its whole path, a namespace before it included. The key is one that takes associated data
(`aes256-gcm96`, as Transit makes by default). The token is read from the file `BRIDGE_TRANSIT_TOKEN_FILE` for each
call, so that an agent may renew it; its policy allows `update` on `<mount>/encrypt/<key>` and
`<mount>/decrypt/<key>`. Certificates of an authority of your own: `SSL_CERT_FILE`.
"""

from __future__ import annotations

import stat
from base64 import b64decode, b64encode
from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any, ClassVar
from urllib.parse import urlsplit

import httpx
import orjson

from continuitybridge.errors import BridgeError, ConfigurationError, Unavailable
from continuitybridge.settings import get_settings
from continuitybridge.vault.cipher import DecryptionFailed
from continuitybridge.vault.kms.base import ANSWER_TIMEOUT_S, CONNECT_TIMEOUT_S, KeyServiceRefused

_ALTERED = ("message authentication failed", "invalid ciphertext", "unable to decrypt", "could not decode")


class Transit:
    """A key of a Transit engine."""

    scheme: ClassVar[str] = "transit"

    def __init__(self, name: str) -> None:
        address = urlsplit(name)
        mount, _, key = address.path.strip("/").rpartition("/")
        if not (address.hostname and mount and key) or address.query or address.fragment or address.username:
            raise _not_valid(name, "valid is transit:https://<host>[:port]/<mount>/<key>")
        if address.scheme != "https" and not (address.scheme == "http" and _is_loopback(address.hostname)):
            raise _not_valid(name, "it has to be https; http is for this machine only")
        self._name = f"{mount}/{key}"
        self._base = f"{address.scheme}://{address.netloc}/v1/{mount}"
        self._key = key
        self._client = httpx.Client(timeout=httpx.Timeout(ANSWER_TIMEOUT_S, connect=CONNECT_TIMEOUT_S))

    def wrap(self, key: bytes, context: Mapping[str, str]) -> bytes:
        given = {"plaintext": b64encode(key).decode(), "associated_data": _bound(context)}
        return str(self._call("encrypt", given, "ciphertext")).encode()

    def unwrap(self, wrapped: bytes, context: Mapping[str, str]) -> bytes:
        given = {"ciphertext": wrapped.decode("ascii", "replace"), "associated_data": _bound(context)}
        return b64decode(self._call("decrypt", given, "plaintext"))

    def _call(self, verb: str, given: Mapping[str, str], wanted: str) -> Any:
        headers = {"X-Vault-Token": _token(), "X-Vault-Request": "true"}
        try:
            answer = self._client.post(f"{self._base}/{verb}/{self._key}", json=given, headers=headers)
        except httpx.HTTPError as error:
            told = str(error) or type(error).__name__
            raise Unavailable(f"Transit at {self._base} does not answer: {told}", retry_after_s=5) from error
        try:
            data = answer.json()
            if answer.status_code == 200:
                return data["data"][wanted]
            reasons = [str(each) for each in data.get("errors") or []]
        except (ValueError, KeyError, TypeError, AttributeError):
            reasons = ["an answer that is none of Transit's"]
        raise self._judged(answer.status_code, "; ".join(reasons)[:500])

    def _judged(self, status: int, reason: str) -> BridgeError:
        if status == 400 and any(each in reason for each in _ALTERED):
            return DecryptionFailed("a data key was altered, or wrapped for another place or by another key")
        if status == 429 or status >= 500 or status in (412, 472, 473):
            return Unavailable(f"Transit at {self._base} answers {status}: {reason}", retry_after_s=5)
        return KeyServiceRefused(
            f"Transit refuses {self._name} ({status}): {reason}", key=self._name, reason=reason, retry_after_s=30
        )


def _bound(context: Mapping[str, str]) -> str:
    return b64encode(orjson.dumps(dict(context), option=orjson.OPT_SORT_KEYS)).decode()


def _token() -> str:
    file = get_settings().transit_token_file
    if file is None:
        raise ConfigurationError(
            "Transit needs a token: name the file that holds it", field="BRIDGE_TRANSIT_TOKEN_FILE", value=None
        )
    try:
        mode = stat.S_IMODE(file.stat().st_mode)
        token = file.read_text().strip()
    except OSError as error:
        raise KeyServiceRefused(f"the token file {file} cannot be read: {error.strerror}") from error
    if mode & 0o077:
        raise ConfigurationError(
            f"the token file {file} may be read by others (mode {mode:04o}): chmod 600 it",
            field="BRIDGE_TRANSIT_TOKEN_FILE",
        )
    return token


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _not_valid(name: str, valid: str) -> ConfigurationError:
    return ConfigurationError(
        f"transit:{name} is not a Transit key; {valid}", field="BRIDGE_MASTER_KEY_KMS", value=f"transit:{name}"
    )
