"""What the guard refuses: scanners, crawlers, too much of anything."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network
from typing import TYPE_CHECKING, Any

from pydantic import AliasChoices, BaseModel, Field, field_validator

from continuitybridge.settings.networks import networks

if TYPE_CHECKING:
    from limits import RateLimitItem


def _known(name: str, default: Any, **more: Any) -> Any:
    """A setting that users know by a name without the prefix; with it, it is taken too."""
    return Field(default=default, validation_alias=AliasChoices(name, f"BRIDGE_{name}"), **more)


@lru_cache(maxsize=16)
def route_limits(text: str) -> tuple[tuple[str, str, str], ...]:
    """Method, path without a slash at its end, and limit of each route in a list. Raises ValueError."""
    found = []
    for each in filter(None, map(str.strip, text.split(","))):
        parts = each.split(None, 2)
        if len(parts) != 3:
            raise ValueError(f"{each!r} is no route with a limit: write GET /bridge/audit/export 10/hour")
        found.append((parts[0], parts[1].rstrip("/"), parts[2]))
    return tuple(found)


class Guard(BaseModel):
    """Rules, bounds and rate limits."""

    waf_enabled: bool = _known(
        "WAF_ENABLED",
        True,
        description="Whether requests are judged by their address: rules against scanners and crawlers, blocks, "
        "rate limits of addresses. Bounds of heads and bodies and limits of users and organizations hold anyway.",
    )
    waf_detect_only: bool = _known(
        "WAF_DETECT_ONLY", False, description="Write what would be refused to the log, and let it pass."
    )
    waf_block_bots: bool = _known(
        "WAF_BLOCK_BOTS",
        True,
        description="Refuse clients that name themselves scanners, and crawlers outside of webhooks. What sends "
        "webhooks or is a program (curl, HTTP libraries) passes.",
    )
    waf_block_suspicious: bool = _known(
        "WAF_BLOCK_SUSPICIOUS",
        True,
        description="Refuse addresses that only scanners ask for (`/.env`, `/wp-login.php`).",
    )
    waf_rate_limit_enabled: bool = _known("WAF_RATE_LIMIT_ENABLED", True, description="Count requests by address.")
    waf_rate_limit_window_ms: int = _known(
        "WAF_RATE_LIMIT_WINDOW_MS",
        60_000,
        ge=1_000,
        description="Window, in milliseconds, of `WAF_RATE_LIMIT_MAX_REQUESTS`; whole seconds count.",
    )
    waf_rate_limit_max_requests: int = _known(
        "WAF_RATE_LIMIT_MAX_REQUESTS",
        120,
        ge=1,
        description="Most requests of one address in a window that bear no credential, signing in among them; "
        "webhooks and static files aside.",
    )
    waf_rate_limit_block_duration_ms: int = _known(
        "WAF_RATE_LIMIT_BLOCK_DURATION_MS",
        300_000,
        ge=1_000,
        description="How long, in milliseconds, an address is blocked that looked for holes three times, or went "
        "on far beyond its limit; each further block is six times longer, a week at most.",
    )
    waf_whitelist: str = _known(
        "WAF_WHITELIST",
        "",
        description="Addresses and networks that are neither judged nor counted, separated by commas. Those of "
        "the loopback interface and of trusted proxies never are.",
    )
    waf_max_head_bytes: int = _known(
        "WAF_MAX_HEAD_BYTES", 32 * 1024, ge=1024, description="Most bytes of a request's address and headers."
    )
    waf_max_headers: int = _known("WAF_MAX_HEADERS", 100, ge=10, description="Most headers of a request.")
    waf_max_body_bytes: int = _known(
        "WAF_MAX_BODY_BYTES",
        8 * 1024 * 1024,
        ge=1024,
        description="Largest body of a request that is no webhook (those: `BRIDGE_MAX_MESSAGE_BYTES`).",
    )
    limit_per_address: str = Field(
        default="6000/minute",
        description="Most requests of one address that bear a credential, as `<number>/<second, minute, hour, "
        "day>`; several separated by `;`. Empty: no limit.",
    )
    limit_webhooks_per_address: str = Field(
        default="60000/minute", description="Most requests of one address to webhooks. Empty: no limit."
    )
    limit_per_user: str = Field(
        default="6000/minute", description="Most requests of one user to the API. Empty: no limit."
    )
    limit_per_api_key: str = Field(
        default="3000/minute", description="Most requests by one API key. Empty: no limit."
    )
    limit_per_organization: str = Field(
        default="12000/minute", description="Most requests to the API about one organization. Empty: no limit."
    )
    limit_routes: str = Field(
        default="GET /bridge/audit/export 600/hour",
        description="Most requests of one user, or by one API key, to single addresses of the API, of Airflow's "
        "too: method, path and limit, separated by commas (`GET /bridge/audit/export 10/hour, POST /api/v2/dags "
        "30/minute`). A path holds for all below it; of several that fit the longest counts. Empty: no limit.",
    )
    limit_webhooks_per_organization: str = Field(
        default="600000/minute",
        description="Most webhooks of one organization that are taken; beyond it they are refused with 429 before "
        "they are accepted. Empty: no limit.",
    )

    @field_validator("waf_whitelist")
    @classmethod
    def _are_spared(cls, given: str) -> str:
        networks(given)
        return given

    @field_validator(
        "limit_per_address",
        "limit_webhooks_per_address",
        "limit_per_user",
        "limit_per_api_key",
        "limit_per_organization",
        "limit_webhooks_per_organization",
    )
    @classmethod
    def _are_limits(cls, given: str) -> str:
        if given:
            # Imported where a limit is set: every command of `bridge` would wait a tenth of a second for it.
            from limits import parse_many

            parse_many(given)
        return given

    @field_validator("limit_routes")
    @classmethod
    def _are_of_routes(cls, given: str) -> str:
        if given:
            from limits import parse_many

            for method, path, limit in route_limits(given):
                if not path.startswith("/") or not method.isupper():
                    raise ValueError(f"{method} {path} is no route: write GET /bridge/audit/export 10/hour")
                parse_many(limit)
        return given

    @property
    def waf_rate_limits(self) -> tuple[RateLimitItem, ...]:
        """The limit of an address without a credential."""
        from limits import RateLimitItemPerSecond

        window_s = max(1, self.waf_rate_limit_window_ms // 1000)
        return (RateLimitItemPerSecond(self.waf_rate_limit_max_requests, window_s),)

    @property
    def waf_whitelisted_networks(self) -> tuple[IPv4Network | IPv6Network, ...]:
        """The networks that are not judged."""
        return networks(self.waf_whitelist)
