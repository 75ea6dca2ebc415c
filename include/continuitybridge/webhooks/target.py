"""An endpoint as intake needs it: its deployment, its trigger's settings made ready, its opened secrets."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from continuitybridge.errors import Unavailable
from continuitybridge.flows.ordering import CONTINUE, HOLD, Ordering
from continuitybridge.inbox.accept import Mode
from continuitybridge.nodes.http.reply import ResultConfig
from continuitybridge.nodes.triggers.webhook_trigger import Challenge, WebhookTriggerConfig
from continuitybridge.vault.keyring import Cipher
from continuitybridge.webhooks import content, endpoints, network
from continuitybridge.webhooks.idempotency import KeySource
from continuitybridge.webhooks.verification import Headers, Verifier, verifier

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Target:
    """`place` is `organization/environment/slug`. `keys` are (key, its end in seconds since the epoch), the
    newest last; `sealed` says that a secret could not be opened here, `later`, that it may open later; `draining`,
    why its flow takes nothing new now; `suspended`, that its organization is. `networks` None: all may send.
    `max_body_bytes` None: the platform's limit. `hold_s`: how long a request is held for the flow's result; None:
    not at all. `failure_statuses` and `explains`: how a failure is told."""

    organization_id: UUID
    organization: str
    environment: str
    slug: str
    place: str
    flow: str
    version: str
    mode: Mode
    ordering: Ordering | None
    trigger_id: str
    revision: int
    active: bool
    verifier: Verifier[Any]
    keys: tuple[tuple[Any, float], ...]
    sealed: bool
    later: bool
    networks: tuple[network.Network, ...] | None
    methods: frozenset[str]
    content_types: frozenset[str]
    idempotency: KeySource
    challenge: Challenge | None
    max_body_bytes: int | None
    hidden_headers: frozenset[bytes]
    draining: str | None
    suspended: bool
    hold_s: float | None
    failure_statuses: Mapping[str, int]
    explains: bool

    @classmethod
    def of(
        cls,
        row: tuple[Any, ...],
        secrets: Sequence[tuple[UUID, bytes, datetime | None]],
        keyring: Cipher,
    ) -> Target:
        """From a row of the directory's query. Raises `ValueError` for settings that cannot be read."""
        organization_id, organization, environment, slug, flow, version, mode, *rest = row
        ordering_key, holds_order, trigger, revision, active, verification, settings, draining, suspended = rest
        config = endpoints.config_of(slug, verification, settings)
        way = verifier(config.verification)
        keys, sealed, later = _opened(way, keyring, organization_id, environment, slug, secrets)
        result = config.result or ResultConfig()
        return cls(
            organization_id=organization_id,
            organization=organization,
            environment=environment,
            slug=slug,
            place=f"{organization}/{environment}/{slug}",
            flow=flow,
            version=version,
            mode=mode,
            ordering=Ordering(ordering_key, HOLD if holds_order else CONTINUE) if ordering_key else None,
            trigger_id=trigger,
            revision=revision,
            active=active,
            verifier=way,
            keys=tuple(keys),
            sealed=sealed,
            later=later,
            networks=network.networks(tuple(config.allowed_ips)) or None,
            methods=frozenset(config.methods),
            content_types=_content_types(config, way),
            idempotency=KeySource.of(config.idempotency, way.idempotency),
            challenge=config.challenge,
            max_body_bytes=config.max_body_bytes,
            hidden_headers=frozenset(name.encode() for name in way.headers),
            draining=draining,
            suspended=suspended,
            hold_s=result.limit_s if config.reply == "result" else None,
            failure_statuses=result.errors,
            explains=result.explain,
        )

    def valid_keys(self, now: float) -> list[Any]:
        return [key for key, end in self.keys if now < end]

    def kept_headers(self, headers: Headers) -> dict[str, str]:
        """The headers that go with the message."""
        kept = content.kept_headers(headers, self.hidden_headers)
        if self.ordering is not None and (value := headers.get(self.ordering.key.lower().encode())) is not None:
            kept.setdefault(self.ordering.key.lower(), value.decode("latin-1")[: content.MAX_HEADER_BYTES])
        return kept

    @property
    def allow(self) -> tuple[str, ...]:
        """The methods that are answered."""
        return tuple(sorted(self.methods | ({"GET"} if self.challenge is not None else set())))


def _content_types(config: WebhookTriggerConfig, way: Verifier[Any]) -> frozenset[str]:
    given = way.content_types if config.content_types is None else config.content_types
    return frozenset(each.lower() for each in given)


def _opened(
    way: Verifier[Any],
    keyring: Cipher,
    organization_id: UUID,
    environment: str,
    slug: str,
    secrets: Sequence[tuple[UUID, bytes, datetime | None]],
) -> tuple[list[tuple[Any, float]], bool, bool]:
    """The keys of the secrets that serve this way, whether one could not be opened, and whether one cannot now."""
    keys: list[tuple[Any, float]] = []
    sealed = later = False
    for secret_id, ciphertext, expires_at in secrets:
        try:
            serves, secret = endpoints.open_secret(
                keyring, organization_id, environment, slug, secret_id, ciphertext
            )
            if serves == way.name:
                end = float("inf") if expires_at is None else expires_at.astimezone(UTC).timestamp()
                keys.append((way.key(secret), end))
        except Unavailable:
            # The master key is sealed, or kept where nobody answers now. The directory says so once.
            sealed = later = True
        except Exception:
            log.exception("endpoints: secret %s cannot be opened", secret_id)
            sealed = True
    return keys, sealed, later
