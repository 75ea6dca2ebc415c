"""Who calls the platform, and whom it calls: intake, proxies, egress, answers, old addresses."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from continuitybridge.egress import Policy, parse_rules
from continuitybridge.settings.networks import networks
from continuitybridge.settings.places import Places

OWN_PATHS = frozenset({"bridge", "api", "ui", "auth", "execution"})
"""How the platform's addresses begin, Airflow's among them."""


class Doors(Places):
    """Ways in and out."""

    public_url: str | None = Field(
        default=None,
        description="Address under which callers reach the platform (`https://bridge.example`), for the links in "
        "answers, in mails and of logs. Where it has a path (`https://example.com/hub`), the proxy hands it on "
        "with each request; it does not begin with one of the platform's own (`/bridge`, `/api`, `/ui`, `/auth`, "
        "`/execution`). Unset: host and port of the api-server.",
    )
    intake_port: int = Field(
        default=8081, ge=1, le=65535, description="Port of `bridge intake`, the intake that runs alone."
    )
    intake_rate_per_s: float = Field(
        default=10_000.0, gt=0, description="Most messages per second of one endpoint, in each process."
    )
    intake_body_timeout_s: float = Field(
        default=20.0,
        gt=0,
        description="Longest time a sender may take for its request's head, for its body, and "
        "to read on in its answer.",
    )
    intake_max_requests: int = Field(
        default=2_000,
        ge=1,
        description="Most requests under way in one intake process; beyond it: 503. An organization may have nine "
        "tenths of what the others leave.",
    )
    intake_max_buffer_bytes: int = Field(
        default=256 * 1024 * 1024,
        ge=1024,
        description="Most bytes of bodies that one intake process holds; beyond it: 503. An organization may have "
        "nine tenths of what the others leave.",
    )
    intake_drain_s: float = Field(
        default=20.0, gt=0, description="How long a stopping intake waits for requests under way."
    )
    trusted_proxies: str = Field(
        default="",
        description="Addresses and networks of the reverse proxies in front of the platform, separated by commas "
        "(`10.0.0.0/8, 2001:db8::1`). Only their `X-Forwarded-For` and client certificates are believed. Empty: "
        "nobody's.",
    )
    egress_allow: str = Field(
        default="",
        description="What flows, connections and key sets may call beside the public internet: networks, "
        "addresses and host names, each at one port or at all, separated by commas (`10.20.0.0/16, "
        "127.0.0.1:8090, [fd00::1]:443, erp.internal:8443`). The address at which a cloud gives out credentials "
        "counts only where it is named itself; the platform's own ports are never called.",
    )
    intake_max_held: int = Field(
        default=1_000,
        ge=0,
        description="Most requests that one intake process holds until their flow has dealt with the message "
        "(`reply: result`); beyond it they are answered with 202 at once. An organization may have nine tenths of "
        "what the others leave.",
    )
    intake_lanes: int = Field(
        default=8,
        ge=0,
        description="Most node processes of one intake process, in which it runs messages itself whose senders "
        "wait for the result (`reply: result`), each for a flow's version; 0: stream workers run those too.",
    )
    reply_max_bytes: int = Field(default=1024 * 1024, ge=1, description="Largest body of a flow's answer.")
    reply_kept_hours: int = Field(
        default=24,
        ge=1,
        description="How long a flow's answer is kept at least, for requests that are repeated with their "
        "idempotency key and for the message's status; a day more at most.",
    )
    legacy_organization: str | None = Field(
        default=None, description="Organization (slug) that the old address `/api/webhook/<slug>` belongs to."
    )
    legacy_environment: str = Field(
        default="prod", description="Environment that the old address `/api/webhook/<slug>` belongs to."
    )

    @field_validator("public_url")
    @classmethod
    def _is_address(cls, given: str | None) -> str | None:
        try:
            parts = urlsplit(given or "http://unset")
            # A port that is none shows when it is asked for.
            is_one = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            is_one = False
        if not is_one or parts.query or parts.fragment:
            raise ValueError("an address such as https://bridge.example or https://example.com/hub is needed")
        first = parts.path.strip("/").partition("/")[0].lower()
        if first in OWN_PATHS:
            # It could not be told from what stands below it.
            raise ValueError(
                f"BRIDGE_PUBLIC_URL: its path /{first} is one of the platform's own addresses; valid is another,"
                " such as https://example.com/hub, or none"
            )
        return given

    @field_validator("trusted_proxies")
    @classmethod
    def _are_proxies(cls, given: str) -> str:
        networks(given)
        return given

    @field_validator("egress_allow")
    @classmethod
    def _are_rules(cls, given: str) -> str:
        parse_rules(given)
        return given

    @property
    def egress(self) -> Policy:
        """What may be called for a tenant."""
        return Policy.of(self.egress_allow, self)

    @property
    def trusted_networks(self) -> tuple[IPv4Network | IPv6Network, ...]:
        """The networks of the trusted proxies."""
        return networks(self.trusted_proxies)

    @property
    def public_path(self) -> str:
        """What stands before every path, where the public address has one; no slash at the end."""
        return urlsplit(self.public_url or "").path.rstrip("/")

    @property
    def base_url(self) -> str:
        """Where the api-server answers on this machine; no slash at the end."""
        return f"http://{self.host}:{self.http_port}{self.public_path}"

    @property
    def external_url(self) -> str:
        """Where callers reach the platform; no slash at the end."""
        return (self.public_url or self.base_url).rstrip("/")
