"""Signatures as GitHub makes them."""

from __future__ import annotations

from types import MappingProxyType
from typing import Literal

from pydantic import Field

from continuitybridge.webhooks.verification._signing import HubSignature
from continuitybridge.webhooks.verification.base import Example, VerificationSettings


class GitHubSettings(VerificationSettings):
    type: Literal["github"] = Field(default="github", description="The way's name.")


class GitHub(HubSignature[GitHubSettings]):
    """`X-Hub-Signature-256: sha256=<hex>`, HMAC-SHA256 of the body. Enter the secret that the deploy shows into
    the webhook's settings at GitHub. The older `X-Hub-Signature` (SHA-1) is not looked at.

    Nothing in the signature is a time: who records a request can send it again. `X-GitHub-Delivery` is the
    idempotency key unless the trigger names another, so that a repetition does not run twice while it is
    remembered.
    """

    name = "github"
    label = "GitHub"
    summary = "HMAC-SHA256 of the body in X-Hub-Signature-256."
    Settings = GitHubSettings
    content_types = ("application/json", "application/x-www-form-urlencoded")
    idempotency = MappingProxyType({"header": "x-github-delivery"})
    examples = (
        Example(
            "GitHub's own test values",
            secret="It's a Secret to Everybody",  # noqa: S106
            headers={
                b"x-hub-signature-256": b"sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
            },
            body=b"Hello, World!",
        ),
    )
