"""The platform's own data key: rotated, everything under it brought to the new version, the former one retired."""

from __future__ import annotations

from uuid import uuid4

import pyotp
from click.testing import CliRunner

from continuitybridge import custody, database, mail
from continuitybridge.cli import bridge
from continuitybridge.sign_in import second_factor
from continuitybridge.vault import PLATFORM, Keyring

LETTER = mail.Letter(kind="trial", to="bert@shop.example", subject="x", paragraphs=("y",))


def run(*arguments: str, status: int = 0) -> str:
    done = CliRunner().invoke(bridge, ["vault", *arguments])
    assert done.exit_code == status, done.output
    return done.output


def test_the_platforms_own_key_is_rotated_and_what_is_under_it_follows() -> None:
    name = f"anna-{uuid4().hex[:8]}"
    enrolment = second_factor.begin(name)
    with database.platform() as connection:
        mail.put(connection, None, LETTER)
    keys = Keyring.open()
    before = int.from_bytes(keys.encrypt(PLATFORM, "place", "1", b"x")[1:5], "big")
    assert f"the platform encrypts under version {before + 1}" in run("rotate-data-key", "--platform")
    said = run("reencrypt", "--platform")
    assert f"were brought to version {before + 1}" in said
    assert not said.startswith("the platform: 0 rows")
    kept = run("retire-keys", "--platform", status=1)
    assert f"version {before} is kept: followed at" in kept
    assert custody.retire(PLATFORM, by="anna", after_s=0).versions == (before,)
    assert not [each for each in custody.verify(PLATFORM, Keyring.open()) if each.broken]
    # The person's app goes on.
    assert second_factor.confirm(name, pyotp.TOTP(enrolment.secret).now())


def test_whose_key_is_meant_has_to_be_said() -> None:
    assert "--platform" in run("rotate-data-key", status=2)
