"""Identity providers that people may sign in by (OpenID Connect Core 1.0), as the operator configures them.
Who they say somebody is, is judged in `sign_in.identities`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

LOOPBACK = r"http://(127\.0\.0\.1|localhost|\[::1\])(:\d+)?(/|$)"
SECURE = rf"^(https://[^\s/@?#]+(/|$)|{LOOPBACK})[^\s?#]*$"
"""Addresses that a provider may have: HTTPS, or plain HTTP on this machine."""
_DOMAIN = r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)+$"


class IdentityProvider(BaseModel):
    """One provider. `email_domains`: it speaks for addresses in these domains, and for no others (nor for those in
    domains below them). `required_claims`: what its ID tokens must hold, such as the tenant of a provider that
    serves many."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    name: str = Field(pattern=r"^[a-z][a-z0-9-]{0,39}$")
    label: str = Field(default="", max_length=60)
    issuer: str = Field(pattern=SECURE)
    client_id: str = Field(min_length=1, max_length=255)
    client_secret_file: Path
    email_domains: tuple[str, ...] = Field(min_length=1)
    required_claims: dict[str, str] = Field(default_factory=dict)

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

    @property
    def shown(self) -> str:
        """What its button says."""
        return f"Sign in with {self.label or self.name}"

    @property
    def metadata_url(self) -> str:
        """Where it describes itself (OpenID Connect Discovery 1.0, section 4)."""
        return self.issuer.rstrip("/") + "/.well-known/openid-configuration"

    def speaks_for(self, email: str) -> bool:
        # Letters beyond ASCII fold onto others: the Kelvin sign is a k to whoever looks addresses up.
        return email.isascii() and email.rpartition("@")[2].lower() in self.email_domains


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
