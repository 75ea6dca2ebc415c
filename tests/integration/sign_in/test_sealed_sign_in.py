"""Signing in while the master key is sealed."""

from __future__ import annotations

from uuid import uuid4

import pyotp
import pytest
from sealing_world import passphrase, vault

from continuitybridge.sign_in import second_factor
from continuitybridge.vault import Keyring
from continuitybridge.vault.sealing import Sealed

__all__ = ["passphrase"]


def test_a_second_factor_that_cannot_be_checked_lets_nobody_in_and_counts_again_later(passphrase: str) -> None:
    name = f"anna-{uuid4().hex[:8]}"
    code = pyotp.TOTP(second_factor.begin(name).secret)
    second_factor.confirm(name, code.now())
    vault("seal")
    Keyring.open().forget()
    with pytest.raises(Sealed):
        second_factor.require(name, "000000")
    assert vault("unseal", "--passphrase-file", "-", given=f"{passphrase}\n").exit_code == 0
    with pytest.raises(second_factor.WrongCode):
        second_factor.require(name, "000000" if code.now() != "000000" else "000001")
