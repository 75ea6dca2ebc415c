"""Mail, and other ways in which people sign in."""

from __future__ import annotations

from email.utils import parseaddr
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, field_validator, model_validator
from pydantic_settings import NoDecode

from continuitybridge import identity_providers
from continuitybridge.identity_providers import IdentityProvider


class People(BaseModel):
    """The mail server, identity providers."""

    smtp_host: str | None = Field(
        default=None,
        description="Mail server to send by. Unset: no mails are sent, and nothing is offered by mail.",
    )
    smtp_port: int | None = Field(
        default=None,
        ge=1,
        le=65535,
        description="Its port. Unset: 587 with `starttls`, 465 with `tls`, 25 with `none`.",
    )
    smtp_security: Literal["starttls", "tls", "none"] = Field(
        default="starttls",
        description="How the connection to it is protected: `starttls`, `tls` from the beginning, or `none`.",
    )
    smtp_user: str | None = Field(default=None, description="Name to sign in to the mail server. Unset: nobody's.")
    smtp_password_file: Path | None = Field(
        default=None, description="File (0600) with the password of `BRIDGE_SMTP_USER`."
    )
    smtp_ca_file: Path | None = Field(
        default=None,
        description="File with the certificates (PEM) that the mail server's is checked against. Unset: the "
        "system's.",
    )
    smtp_from: str | None = Field(
        default=None,
        description="Whom mails are from (`ContinuityBridge <bridge@example.com>`); needed with the mail server.",
    )

    oidc_providers: Annotated[tuple[IdentityProvider, ...], NoDecode] = Field(
        default=(),
        description="Identity providers that people may sign in by (OpenID Connect): a JSON list of objects with "
        "`name` (in addresses), `label` (on the button), `issuer` (its address, by HTTPS), `client_id`, "
        "`client_secret_file` (0600) and `email_domains` (a list: whose addresses it speaks for); "
        "optional `required_claims` (an object: texts that its ID tokens must hold), `email_verified_by` "
        "(`email_verified`, `xms_edov` or `directory`: what says that an address is its person's) and "
        "`second_factor` (an object: claims of its ID tokens that count as one, each with a list of values).",
    )

    @field_validator("oidc_providers", mode="before")
    @classmethod
    def _are_providers(cls, given: Any) -> Any:
        return identity_providers.parse(given)

    @model_validator(mode="after")
    def _mail_is_whole(self) -> Self:
        if self.smtp_host is None:
            return self
        if not parseaddr(self.smtp_from or "")[1].rpartition("@")[2]:
            raise ValueError("BRIDGE_SMTP_HOST needs BRIDGE_SMTP_FROM with an e-mail address")
        if self.smtp_user is not None and self.smtp_password_file is None:
            raise ValueError("BRIDGE_SMTP_USER needs BRIDGE_SMTP_PASSWORD_FILE")
        if self.smtp_user is not None and self.smtp_security == "none":
            raise ValueError(
                "with BRIDGE_SMTP_USER, BRIDGE_SMTP_SECURITY is starttls or tls: no password in clear"
            )
        return self

    @property
    def smtp_server_port(self) -> int:
        """The mail server's port, set or usual."""
        return self.smtp_port or {"starttls": 587, "tls": 465, "none": 25}[self.smtp_security]
