"""References to secret stores over HTTP."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from continuitybridge.organizations import Organization
from continuitybridge.settings import get_settings

from .conftest import SignIn


def test_an_administrator_refers_to_a_store_and_sees_no_more_than_its_name(
    sign_in: SignIn, make_organization: Callable[[], Organization], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    organization = make_organization()
    file = tmp_path / "stores.yaml"
    file.touch(mode=0o600)
    file.write_text(
        "corp: {class: airflow.providers.hashicorp.secrets.vault.VaultBackend, arguments: {token: t0p}}"
    )
    monkeypatch.setenv("BRIDGE_SECRET_BACKENDS_FILE", str(file))
    get_settings.cache_clear()
    admin = sign_in({organization: "customer_admin"})
    place = f"/bridge/secrets/{organization.slug}/prod/shop"
    try:
        assert admin.get("/bridge/secrets/stores").json() == ["corp"]
        reference = {"backend": "corp", "path": "erp/shop"}
        made = admin.client.put(place, json={"type": "api_key", "reference": reference})
        assert made.status_code == 200, made.text
        for wrong, told in (
            ({"type": "api_key"}, "one of value and reference"),
            ({"type": "api_key", "reference": reference, "value": {"api_key": "x"}}, "one of value and reference"),
            ({"type": "api_key", "reference": {**reference, "backend": "aws"}}, "valid are corp"),
            ({"type": "api_key", "reference": {**reference, "path": "../theirs"}}, "is not valid"),
            ({"type": "nothing", "reference": reference}, "is not known"),
        ):
            refused = admin.client.put(place, json=wrong)
            assert refused.status_code == 422, refused.text
            assert told in refused.text
            assert "t0p" not in refused.text
    finally:
        monkeypatch.undo()
        get_settings.cache_clear()
