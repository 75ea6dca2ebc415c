"""How an endpoint believes a request: one file per way, found here by the name that a trigger gives."""

from continuitybridge.webhooks.verification.api_key import ApiKey
from continuitybridge.webhooks.verification.base import Headers, Verifier
from continuitybridge.webhooks.verification.standard_webhooks import StandardWebhooks

VERIFIERS: dict[str, Verifier] = {verifier.name: verifier for verifier in (StandardWebhooks(), ApiKey())}

__all__ = ["VERIFIERS", "Headers", "Verifier"]
