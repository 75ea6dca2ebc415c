"""Webhooks while the master key is sealed: refused, and the sender is told when to come again."""

from __future__ import annotations

from pathlib import Path

from sealing_world import passphrase, vault

from .conftest import Deploy, end, run_intake

__all__ = ["passphrase"]


def test_what_cannot_be_encrypted_is_not_accepted_until_it_is_unsealed(
    deploy: Deploy, passphrase: str, tmp_path: Path
) -> None:
    hook = deploy()
    vault("seal")
    intake = run_intake(tmp_path)
    try:
        refused = intake.post(hook)
        assert refused.status_code == 503, refused.text
        assert int(refused.headers["retry-after"]) > 0
        assert vault("unseal", "--passphrase-file", "-", given=f"{passphrase}\n").exit_code == 0
        accepted = intake.post(hook)
        assert accepted.status_code == 202, accepted.text
    finally:
        end(intake)
