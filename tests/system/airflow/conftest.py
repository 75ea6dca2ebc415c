"""One platform for all tests of this directory: its start takes longer than any of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import pytest
from trial import FLOW, Delivery, Tenant, Trial, wait_until

from mail_server import mail_server
from openid_provider import openid_provider


@pytest.fixture(scope="session")
def trial(shared: ExitStack) -> Trial:
    """The running platform. A lease is short, so that what a killed task held is free soon."""
    mails = shared.enter_context(mail_server())
    provider = shared.enter_context(openid_provider())
    secret = Path(shared.enter_context(TemporaryDirectory())) / "oidc.secret"
    secret.write_text(provider.client_secret)
    secret.chmod(0o600)
    oidc = {
        "name": "corporate",
        "label": "Corporate",
        "issuer": provider.issuer,
        "client_id": provider.client_id,
        "client_secret_file": str(secret),
        "email_domains": ["example.com"],
        "second_factor": {"amr": ["mfa"]},
    }
    made = shared.enter_context(
        Trial.running(
            BRIDGE_LEASE_S="8",
            BRIDGE_RETRY_BASE_S="0.5",
            BRIDGE_MAX_ATTEMPTS="3",
            BRIDGE_OUTCOME_INTERVAL_S="2",
            BRIDGE_STREAM_GENERATION_S="40",
            BRIDGE_SMTP_HOST="127.0.0.1",
            BRIDGE_SMTP_PORT=str(mails.port),
            BRIDGE_SMTP_SECURITY="none",
            BRIDGE_SMTP_FROM="bridge@example.com",
            BRIDGE_OIDC_PROVIDERS=json.dumps([oidc]),
        )
    )
    made.mails, made.provider = mails, provider
    return made


@pytest.fixture(scope="session")
def acme(trial: Trial) -> Tenant:
    """An organization with flow `order`, which most tests send through."""
    tenant = trial.organization()
    tenant.deploy("order", FLOW.format(version="1.0.0", path=tenant.slug))
    return tenant


@pytest.fixture(autouse=True)
def _destination_takes_all(trial: Trial) -> Iterator[None]:
    yield

    def take(delivery: Delivery) -> int:
        return 202

    trial.destination.answer = take

    def answers() -> bool:
        try:
            return trial.api("GET", "/dags?limit=1").is_success
        except httpx.TransportError:
            return False

    # A test may have killed what the next one asks first.
    wait_until(answers, within_s=120, what="the api-server answering")
