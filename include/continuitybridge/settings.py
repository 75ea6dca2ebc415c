"""Every setting of the platform, with its unit in its name. Read from the environment (prefix `BRIDGE_`) and
from `<state_dir>/bridge.env`, which the first start writes with mode 0600; the environment wins."""

from __future__ import annotations

import os
from collections.abc import Sequence
from email.utils import parseaddr
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import AliasChoices, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from continuitybridge import egress, identity_providers
from continuitybridge.egress import Policy, parse_rules
from continuitybridge.errors import ConfigurationError
from continuitybridge.identity_providers import IdentityProvider

if TYPE_CHECKING:
    from limits import RateLimitItem


def project_root() -> Path:
    """The checkout: where `dags/`, `plugins/` and `include/` stand."""
    return Path(__file__).resolve().parents[2]


def _known(name: str, default: Any, **more: Any) -> Any:
    """A setting that users know by a name without the prefix; with it, it is taken too."""
    return Field(default=default, validation_alias=AliasChoices(name, f"BRIDGE_{name}"), **more)


class Settings(BaseSettings):
    """The platform's configuration. Field descriptions are the reference manual."""

    model_config = SettingsConfigDict(
        env_prefix="BRIDGE_", extra="ignore", hide_input_in_errors=True, populate_by_name=True
    )

    state_dir: Path = Field(
        default_factory=lambda: project_root() / ".bridge",
        description="Directory of everything the platform writes: keys, databases, logs, Airflow's home.",
    )
    host: str = Field(default="127.0.0.1", description="Address every server of the platform binds.")
    http_port: int = Field(default=8080, ge=1, le=65535, description="Port of Airflow's api-server.")
    database_port: int = Field(default=5433, ge=1, le=65535, description="Port of the embedded PostgreSQL.")
    redis_port: int = Field(default=6380, ge=1, le=65535, description="Port of the embedded Valkey.")
    warehouse_port: int = Field(default=8090, ge=1, le=65535, description="Port of the demo warehouse.")
    log_port: int = Field(default=8793, ge=1, le=65535, description="Port on which a worker serves its task logs.")
    triggerer_log_port: int = Field(
        default=8794, ge=1, le=65535, description="Port on which the triggerer serves its logs."
    )

    database_url: SecretStr | None = Field(
        default=None,
        description="PostgreSQL server of your own, as a role that may create roles and databases. "
        "Unset: the embedded server is used.",
    )
    redis_url: SecretStr | None = Field(
        default=None, description="Redis or Valkey server of your own. Unset: the embedded one is used."
    )
    redis_embedded: bool = Field(
        default=False,
        description="Run the embedded Valkey, in which the processes count rate limits together. Without effect "
        "when BRIDGE_REDIS_URL is set.",
    )
    database_app_url: SecretStr | None = Field(
        default=None, description="Connection of the application role (bound by row-level security)."
    )
    database_relay_url: SecretStr | None = Field(
        default=None, description="Connection of the role that moves messages across organizations."
    )
    database_platform_url: SecretStr | None = Field(
        default=None, description="Connection of the role that manages organizations and memberships."
    )
    database_owner_url: SecretStr | None = Field(
        default=None, description="Connection of the role that owns the tables; used by migrations only."
    )
    database_pool_size: int = Field(default=8, ge=1, description="Connections per role and process.")

    master_key_file: Path | None = Field(
        default=None,
        description="File with the master key (0600). Unset: `<state_dir>/keys/master.key`.",
    )
    master_key_kms: str | None = Field(
        default=None,
        description="Key of a key management service that a new installation's master key is: `aws:<ARN>` or "
        "`transit:https://<host>/<mount>/<key>`. One that has a master key moves to it by "
        "`bridge vault rotate-master-key --to`. Unset: a key is made and kept in the file.",
    )
    transit_token_file: Path | None = Field(
        default=None,
        description="File (0600) with the token for a `transit:` master key; read for each call.",
    )
    unsealed_dir: Path | None = Field(
        default=None,
        description="Directory in memory (tmpfs) that holds a sealed master key while it is unsealed. Unset: "
        "`/dev/shm/continuitybridge-<user id>`, with a random ending where somebody else has taken that name.",
    )

    secret_reminder_days: int = Field(
        default=14, ge=1, le=365, description="How many days before a secret expires somebody is reminded of it."
    )

    secret_backends_file: Path | None = Field(
        default=None,
        description="File (YAML, 0600) that declares secret stores outside (HashiCorp Vault, those of clouds), to "
        "which secrets may refer. Unset: there are none.",
    )
    secret_backend_cache_s: float = Field(
        default=60.0,
        gt=0,
        le=3600,
        description="How long a process uses what it read from a secret store outside, in seconds.",
    )

    audit_dir: Path | None = Field(
        default=None,
        description="Directory of the signed checkpoints of audit trails. Best where whoever administers the "
        "database may not write. Unset: `<state_dir>/audit`.",
    )

    export_dir: Path | None = Field(
        default=None,
        description="Directory that organizations are exported to before they are deleted. Unset: "
        "`<state_dir>/exports`.",
    )

    max_message_bytes: int = Field(default=10 * 1024 * 1024, ge=1, description="Largest accepted payload.")
    payload_offload_bytes: int = Field(
        default=1024 * 1024,
        ge=1,
        description="Payloads above this go to the payload store, encrypted; the database keeps a reference.",
    )
    payload_store_url: str | None = Field(
        default=None,
        description="Where large payloads are kept: an fsspec address such as `file:///srv/payloads` or "
        "`s3://bucket/prefix` (others than these two need their package). Every process must reach it. "
        "Unset: `<state_dir>/payloads`.",
    )
    payload_store_options: SecretStr | None = Field(
        default=None,
        description="What else the payload store needs (credentials, endpoint): a JSON object of fsspec options.",
    )
    max_emitted_messages: int = Field(
        default=10_000, ge=1, description="Most messages one node may emit for one message."
    )
    max_nesting_depth: int = Field(default=200, ge=1, description="Deepest nesting of a parsed payload.")
    node_time_limit_s: float = Field(
        default=10.0, gt=0, description="Longest time one computing node may take for one message."
    )
    node_memory_limit_bytes: int = Field(
        default=1024 * 1024 * 1024,
        ge=64 * 1024 * 1024,
        description="Most memory (address space above the start) the process running nodes may take.",
    )

    token_lease_s: float = Field(
        default=15.0,
        ge=0.2,
        description="How long the right to obtain a connection's token holds without renewal: so soon another "
        "process goes on when one died over it.",
    )
    token_request_timeout_s: float = Field(
        default=30.0, gt=0, description="Longest time for an answer of an authorization server or log-in page."
    )
    token_wait_s: float = Field(
        default=45.0, gt=0, description="Longest wait for a token that another process is obtaining."
    )
    lease_s: float = Field(default=60.0, gt=0, description="How long a claim holds without renewal.")
    max_attempts: int = Field(default=8, ge=1, description="Deliveries tried before a dead letter.")
    retry_base_s: float = Field(default=2.0, gt=0, description="First wait before a retry; doubles, with jitter.")
    retry_max_s: float = Field(default=900.0, gt=0, description="Longest wait between two tries.")
    destination_max_concurrency: int = Field(
        default=64, ge=1, description="Most calls to one destination at once, in each process that delivers."
    )
    circuit_failures: int = Field(
        default=10,
        ge=0,
        description="Passing failures in a row after which a destination is left alone for a while. 0: never.",
    )
    circuit_wait_s: float = Field(
        default=5.0,
        gt=0,
        description="How long a destination that failed is left alone; doubles when the next call fails too.",
    )
    circuit_max_wait_s: float = Field(
        default=300.0, gt=0, description="Longest time that a destination that failed is left alone."
    )
    sweep_interval_s: float = Field(default=5.0, gt=0, description="How often the orphan sweep looks.")
    batch_max_messages: int = Field(default=500, ge=1, description="Most messages of one batch run.")
    batch_max_active: int = Field(
        default=2,
        ge=1,
        description="Most batch runs of one flow that the dispatcher has under way; messages that come meanwhile "
        "gather for the next.",
    )
    task_parallelism: int = Field(
        default=8,
        ge=1,
        description="Most Airflow tasks at once on this machine (LocalExecutor), beside the stream workers; also "
        "the slots of Airflow's default pool.",
    )
    stream_workers: int = Field(
        default=2,
        ge=0,
        description="Stream workers that run as Airflow tasks. With one, streams stand still for some seconds "
        "when it is killed; 0: none, for those who run `bridge stream` themselves.",
    )
    stream_max_messages: int = Field(
        default=256, ge=2, description="Most messages that one stream worker holds; one organization: half of it."
    )
    stream_max_bytes: int = Field(
        default=64 * 1024 * 1024, ge=1, description="Most bytes of messages that one stream worker holds."
    )
    stream_lanes: int = Field(
        default=24,
        ge=1,
        description="Most node processes of one stream worker, each for a flow's version that has messages. Where "
        "more have some, they take turns.",
    )
    stream_drain_s: float = Field(
        default=10.0,
        ge=0,
        description="How long a stopping stream worker finishes what is under way; the rest is given back.",
    )
    stream_generation_s: float = Field(
        default=1800.0,
        ge=20.0,
        description="How long a generation of stream workers works before the next one takes over; they overlap "
        "by 20 s.",
    )
    outcome_interval_s: float = Field(
        default=60.0,
        ge=1.0,
        description="How often a flow's outcomes are told to Airflow, as one asset event with their counts.",
    )
    idempotency_window_days: int = Field(default=7, ge=1, description="How long an idempotency key is remembered.")
    retention_short_days: int = Field(
        default=7, ge=1, description="How long settled messages of retention class `short` are kept."
    )
    retention_standard_days: int = Field(
        default=90, ge=1, description="How long settled messages of class `standard`, and failures, are kept."
    )
    retention_long_days: int = Field(
        default=3650, ge=1, description="How long settled messages of retention class `long` are kept."
    )

    public_url: str | None = Field(
        default=None,
        description="Address under which callers reach the platform (`https://bridge.example`), for the links in "
        "answers. Unset: host and port of the api-server.",
    )
    intake_port: int = Field(
        default=8081, ge=1, le=65535, description="Port of `bridge intake`, the intake that runs alone."
    )
    intake_rate_per_s: float = Field(
        default=10_000.0, gt=0, description="Most messages per second of one endpoint, in each process."
    )
    intake_body_timeout_s: float = Field(
        default=20.0, gt=0, description="Longest time a sender may take for its request's head, and for its body."
    )
    intake_max_requests: int = Field(
        default=2_000, ge=1, description="Most requests under way in one intake process; beyond it: 503."
    )
    intake_max_buffer_bytes: int = Field(
        default=256 * 1024 * 1024,
        ge=1024,
        description="Most bytes of bodies that one intake process holds; beyond it: 503.",
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
        "(`reply: result`); beyond it they are answered with 202 at once.",
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
        "optional `required_claims` (an object: texts that its ID tokens must hold).",
    )

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
    limit_webhooks_per_organization: str = Field(
        default="600000/minute",
        description="Most webhooks of one organization that are taken; beyond it they are refused with 429 before "
        "they are accepted. Empty: no limit.",
    )

    @field_validator("oidc_providers", mode="before")
    @classmethod
    def _are_providers(cls, given: Any) -> Any:
        return identity_providers.parse(given)

    @field_validator("trusted_proxies", "waf_whitelist")
    @classmethod
    def _are_networks(cls, given: str) -> str:
        _networks(given)
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

    @property
    def waf_rate_limits(self) -> tuple[RateLimitItem, ...]:
        """The limit of an address without a credential."""
        from limits import RateLimitItemPerSecond

        window_s = max(1, self.waf_rate_limit_window_ms // 1000)
        return (RateLimitItemPerSecond(self.waf_rate_limit_max_requests, window_s),)

    @property
    def waf_whitelisted_networks(self) -> tuple[IPv4Network | IPv6Network, ...]:
        """The networks that are not judged."""
        return _networks(self.waf_whitelist)

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
        return _networks(self.trusted_proxies)

    @property
    def keys_dir(self) -> Path:
        return self.state_dir / "keys"

    @property
    def master_key_path(self) -> Path:
        return self.master_key_file or self.keys_dir / "master.key"

    @property
    def payload_store(self) -> str:
        """The address of the payload store."""
        return self.payload_store_url or f"file://{self.state_dir.absolute() / 'payloads'}"

    @property
    def base_url(self) -> str:
        """Where the api-server answers."""
        return f"http://{self.host}:{self.http_port}"

    @property
    def external_url(self) -> str:
        """Where callers reach the platform; no slash at the end."""
        return (self.public_url or self.base_url).rstrip("/")


def _networks(given: str) -> tuple[IPv4Network | IPv6Network, ...]:
    return tuple(ip_network(each.strip(), strict=False) for each in given.split(",") if each.strip())


def _problem(location: Sequence[int | str], message: str) -> str:
    # What is about several settings names them itself.
    return f"{variable('.'.join(map(str, location)))}: {message}" if location else message


def variable(name: str) -> str:
    """The environment variable of a setting."""
    upper = name.upper()
    return upper if upper.startswith(("WAF_", "BRIDGE_")) else f"BRIDGE_{upper}"


@lru_cache
def get_settings() -> Settings:
    """The process's settings; raises `ConfigurationError` naming each bad key."""
    state_dir = Path(os.environ.get("BRIDGE_STATE_DIR") or project_root() / ".bridge")
    try:
        return Settings(_env_file=state_dir / "bridge.env")
    except ValidationError as error:
        problems = "; ".join(_problem(e["loc"], e["msg"]) for e in error.errors())
        raise ConfigurationError(f"settings are not valid: {problems}") from None


def egress_policy() -> Policy:
    """What this process may call for a tenant: what it was told to follow, else what its settings say."""
    return egress.installed() or get_settings().egress
