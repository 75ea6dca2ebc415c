"""Identity providers that people may sign in by (OpenID Connect Core 1.0), as the operator configures them.
Who they say somebody is, is judged in `sign_in.identities`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

LOOPBACK = r"http://(127\.0\.0\.1|localhost|\[::1\])(:\d+)?(/|$)"
SECURE = rf"^(https://[^\s/@?#]+(/|$)|{LOOPBACK})[^\s?#]*$"
"""Addresses that a provider may have: HTTPS, or plain HTTP on this machine."""
_GUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_DOMAIN = r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)+$"


EmailVerifiedBy = Literal["email_verified", "xms_edov", "directory"]
_MICROSOFT = (
    *("microsoftonline.com", "microsoftonline.us", "microsoftonline.de", "microsoftonline.cn"),
    *("windows.net", "chinacloudapi.cn", "microsoft.com"),
)
"""Below which Microsoft Entra ID answers, in each of its clouds: the first part of its path is the tenant."""
_CONSUMERS = "9188040d-6c67-4c5b-b112-36a304b66dad"
"""The tenant of everybody's Microsoft account."""
_EVERYBODYS = (
    *("accounts.google.com", "appleid.apple.com", "live.com", "ciamlogin.com", "b2clogin.com"),
    *("gitlab.com", "github.com", "facebook.com", "linkedin.com", "slack.com", "yahoo.com", "twitch.tv"),
)
"""Where anybody opens an account, there and below: no operator's own directory. Known ones, not all."""
_FACTORS = frozenset({"hwk", "mca", "mfa", "otp", "pop", "sc", "sms", "swk", "tel"})
"""Values of `amr` (RFC 8176) that tell of something a person has, or of several factors."""
_NO_LEVEL = re.compile(r"0|urn:oasis:names:tc:SAML:2\.0:ac:classes:(Password\w*|unspecified)")
"""Values of `acr` that tell of a password at most (Core 1.0, section 2; SAML 2.0 Authentication Context)."""


class IdentityProvider(BaseModel):
    """One provider.

    `email_domains`: it speaks for addresses in these domains, and for no others (nor for those in domains below
    them). `email_verified_by`: what says that an address is its person's: the claim `email_verified` (Core 1.0,
    section 5.1); `xms_edov`, which Microsoft Entra ID sends instead; or that the provider is the directory of one
    company, which itself gives addresses to its people. `required_claims`: what its ID tokens must hold, such as
    the tenant of a provider that serves many. `second_factor`: claims of its ID tokens that count as one, `amr`
    (values by RFC 8176) or `acr`, each with the values of which one must be there."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    name: str = Field(pattern=r"^[a-z][a-z0-9-]{0,39}$")
    label: str = Field(default="", max_length=60)
    issuer: str = Field(pattern=SECURE)
    client_id: str = Field(min_length=1, max_length=255)
    client_secret_file: Path
    email_domains: tuple[str, ...] = Field(min_length=1)
    email_verified_by: EmailVerifiedBy = "email_verified"
    required_claims: dict[str, str] = Field(default_factory=dict)
    second_factor: dict[Literal["amr", "acr"], tuple[Annotated[str, Field(min_length=1)], ...]] = Field(
        default_factory=dict
    )

    @field_validator("email_domains", mode="before")
    @classmethod
    def _are_domains(cls, given: Any) -> Any:
        if not isinstance(given, list | tuple):
            return given
        lower = [str(each).lower() for each in given]
        for each in lower:
            if not re.match(_DOMAIN, each):
                raise ValueError(f"{each!r} is no domain such as example.com")
        return lower

    @field_validator("second_factor")
    @classmethod
    def _names_a_value(cls, given: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        for claim, values in given.items():
            if not values:
                raise ValueError(f"names no value of {claim!r} that counts")
            if claim == "amr" and (others := sorted(set(values) - _FACTORS)):
                raise ValueError(f"{others[0]!r} in 'amr' tells of no second factor; valid: {sorted(_FACTORS)}")
            if claim == "acr" and (others := [each for each in values if _NO_LEVEL.fullmatch(each)]):
                raise ValueError(
                    f"{others[0]!r} in 'acr' tells of no second factor; name the provider's level for one"
                )
        return given

    @model_validator(mode="after")
    def _is_one_company(self) -> Self:
        """Raises `ValueError` where others than one company's administrators give addresses."""
        if self.email_verified_by == "email_verified":
            return self
        parts = urlsplit(self.issuer)
        host, tenant = (parts.hostname or "").lower().rstrip("."), parts.path.strip("/").partition("/")[0].lower()
        if _is_below(host, _MICROSOFT) and (not _GUID.fullmatch(tenant) or tenant == _CONSUMERS):
            raise ValueError(
                f"email_verified_by {self.email_verified_by}: the issuer is not one tenant's; it is"
                f" https://{host}/<the directory's (tenant) ID>/v2.0"
            )
        if self.email_verified_by == "directory" and _is_below(host, _EVERYBODYS):
            raise ValueError(f"email_verified_by directory: anybody opens an account at {host}")
        return self

    @property
    def shown(self) -> str:
        """What its button says."""
        return f"Sign in with {self.label or self.name}"

    @property
    def metadata_url(self) -> str:
        """Where it describes itself (OpenID Connect Discovery 1.0, section 4)."""
        return self.issuer.rstrip("/") + "/.well-known/openid-configuration"

    def has_verified_email(self, token: Mapping[str, Any], found: Mapping[str, Any]) -> bool:
        """Whether the address is its person's. `token`: claims of the ID token; `found`: those, and what the
        userinfo endpoint told besides. That it is not is believed in any case."""
        told = found.get("email_verified")
        if told is not None and told not in _YES:
            return False
        if self.email_verified_by == "email_verified":
            return told is not None
        if self.email_verified_by == "xms_edov":
            # Told of the address that stands beside it.
            return "email" in token and token.get("xms_edov") in (*_YES, "1")
        return True

    def shows_second_factor(self, token: Mapping[str, Any]) -> bool:
        """Whether the claims of an ID token tell of a second factor that counts here."""
        for claim, values in self.second_factor.items():
            told = token.get(claim)
            if any(
                isinstance(each, str) and each in values for each in (told if isinstance(told, list) else [told])
            ):
                return True
        return False

    def speaks_for(self, email: str) -> bool:
        # Letters beyond ASCII fold onto others: the Kelvin sign is a k to whoever looks addresses up.
        return email.isascii() and email.rpartition("@")[2].lower() in self.email_domains


_YES = (True, "true")
"""A boolean; some providers write it as a text."""


def _is_below(host: str, hosts: tuple[str, ...]) -> bool:
    return any(host == each or host.endswith(f".{each}") for each in hosts)


def parse(given: Any) -> Any:
    """The list that a setting's text holds. Raises `ValueError`."""
    found = given
    if isinstance(given, str):
        try:
            found = json.loads(given or "[]")
        except json.JSONDecodeError as error:
            raise ValueError(f"is no JSON list: {error}") from None
    if not isinstance(found, list | tuple):
        raise ValueError("is no JSON list of objects")
    names = [each.get("name") if isinstance(each, dict) else getattr(each, "name", None) for each in found]
    if len(set(names)) < len(names):
        raise ValueError("several providers bear one name")
    return found
