"""Client certificates, as a proxy that ended TLS hands them on."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Literal, Self
from urllib.parse import unquote_to_bytes

from pydantic import Field, field_validator, model_validator

from continuitybridge.nodes.base import hints
from continuitybridge.webhooks.verification.base import Example, Received, VerificationSettings, Verifier
from continuitybridge.webhooks.verification.keyed_hash import HEADER_NAME

MAX_CERTIFICATE_BYTES = 32 * 1024
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_TRAEFIK = b"x-forwarded-tls-client-cert"
_XFCC = re.compile(rb'(?:^|;)Cert="([^"]*)"', re.IGNORECASE)
_PEM = b"-----BEGIN CERTIFICATE-----"


class MutualTlsSettings(VerificationSettings):
    type: Literal["mtls"] = Field(default="mtls", description="The way's name.")
    header: str = Field(
        default="Client-Cert",
        pattern=HEADER_NAME,
        description="Header in which the proxy hands the certificate on: as RFC 9440 has it, as URL-encoded PEM "
        "(nginx, AWS), base64 DER (HAProxy; Traefik, in `X-Forwarded-Tls-Client-Cert` with the chain too), or "
        "Envoy's `X-Forwarded-Client-Cert` with `Cert`.",
    )
    fingerprints: list[str] = Field(
        default=[],
        description="SHA-256 fingerprints of the certificates that are taken, in hex, colons or not.",
        json_schema_extra=hints(placeholder="3f:5a:…"),
    )
    subjects: list[str] = Field(
        default=[],
        description="Names that are taken: a subject's common name, or a DNS name or URI of the certificate. The "
        "proxy must have checked who issued it.",
        json_schema_extra=hints(placeholder="erp.example.com"),
    )

    @field_validator("fingerprints")
    @classmethod
    def _are_fingerprints(cls, given: list[str]) -> list[str]:
        for each in given:
            if not _FINGERPRINT.fullmatch(_plain(each)):
                raise ValueError(f"{each!r} is no SHA-256 fingerprint: 64 hexadecimal digits, colons or not")
        return given

    @model_validator(mode="after")
    def _names_somebody(self) -> Self:
        if not (self.fingerprints or self.subjects):
            raise ValueError("fingerprints or subjects are needed: who may send?")
        return self


class MutualTls(Verifier[MutualTlsSettings]):
    """Mutual TLS that a reverse proxy ends: it hands the client's certificate on in a header, which is believed
    from the addresses in `BRIDGE_TRUSTED_PROXIES` only (the proxy has to remove the header from what clients
    send). The certificate must be valid now and be named by `fingerprints`, which pin it whatever the proxy
    checked, or by `subjects`, for which the proxy must check the issuer.

    There is no secret: rotate by naming the old and the new certificate for a while.
    """

    name = "mtls"
    label = "Mutual TLS"
    summary = "A client certificate that a trusted proxy hands on in a header."
    Settings = MutualTlsSettings
    headers: tuple[str, ...] = ("client-cert", "client-cert-chain")
    origin = "none"
    scheme = "Certificate"
    examples = (
        Example(
            "Pinned, in the header of RFC 9440",
            settings={
                "fingerprints": [
                    "b9:b5:61:94:3f:43:99:6e:0b:7b:37:b2:e4:6b:95:de:"
                    "71:a5:c4:91:61:83:ea:f9:2c:7d:9e:9f:a9:81:13:d7"
                ]
            },
            headers={
                b"client-cert": b""
                b":MIIBGjCBwaADAgECAgEBMAoGCCqGSM49BAMCMBYxFDASBgNVBAMMC2VycC5leGFtcGxlMCAXDTI2MDEwMTAwMDA"
                b"wMFoYDzIwNTYwMTAxMDAwMDAwWjAWMRQwEgYDVQQDDAtlcnAuZXhhbXBsZTBZMBMGByqGSM49AgEGCCqGSM49AwE"
                b"HA0IABBSYNJH5xSUHFpNByHe8x+V3PNCHfCucQfP5S0M26/WeJVm/BxL8V/DosQ2D454+ntEjZvkxitxmPhtBEnM"
                b"kjKowCgYIKoZIzj0EAwIDSAAwRQIgIN3XbFb62uYH5r+LY91oKUzf7BiFOGfgSOo6a7FcgJECIQCU5R3Sm6FvXAW"
                b"JTnZJ0U6+PIc8piOQRghF9HTQ+h0MYA==:"
            },
            proxied=True,
        ),
    )

    def __init__(self, settings: MutualTlsSettings) -> None:
        super().__init__(settings)
        self._header = settings.header.lower().encode()
        self.headers = (settings.header.lower(), *type(self).headers)
        self._fingerprints = frozenset(_plain(each) for each in settings.fingerprints)
        self._subjects = frozenset(settings.subjects)

    def takes_get(self) -> bool:
        return True

    def key(self, secret: str) -> Any:
        return None

    def verify(self, received: Received, keys: Sequence[Any], now: float) -> None:
        if not received.proxied:
            raise self.refused("certificates are believed from a trusted proxy only (BRIDGE_TRUSTED_PROXIES)")
        value = received.headers.get(self._header, b"")
        if not value or len(value) > MAX_CERTIFICATE_BYTES:
            raise self.refused(f"a client certificate is needed in {self.settings.header}")
        certificate = self._read(value)
        at = datetime.fromtimestamp(now, UTC)
        if not certificate.not_valid_before_utc <= at <= certificate.not_valid_after_utc:
            raise self.refused("the certificate is not valid now")
        from cryptography.hazmat.primitives.hashes import SHA256

        if certificate.fingerprint(SHA256()).hex() in self._fingerprints:
            return
        if self._subjects.isdisjoint(_names(certificate)):
            raise self.refused("the certificate is not one that is taken here")

    def _read(self, value: bytes) -> Any:
        from cryptography import x509

        wrapped = _XFCC.search(value)
        text = unquote_to_bytes(wrapped[1] if wrapped else value).strip()
        try:
            if text.startswith(_PEM):
                return x509.load_pem_x509_certificate(text)
            # Behind the sender's own certificate Traefik hands on those above it. In other headers, and behind a
            # blank, what follows is what a repeated header adds: nobody knows whose the first is.
            own = text.partition(b",")[0] if self._header == _TRAEFIK and b" " not in text else text
            return x509.load_der_x509_certificate(base64.b64decode(own.strip(b":"), validate=True))
        except Exception:
            # Whatever a parser of certificates makes of bytes that are none.
            raise self.refused("the certificate cannot be read") from None


def _plain(fingerprint: str) -> str:
    return fingerprint.replace(":", "").lower()


def _names(certificate: Any) -> set[str]:
    """The common names, DNS names and URIs of a certificate."""
    from cryptography import x509

    try:
        names = {str(each.value) for each in certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)}
        others = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return names
    except Exception:
        return set()
    names.update(others.get_values_for_type(x509.DNSName))
    names.update(others.get_values_for_type(x509.UniformResourceIdentifier))
    return names
