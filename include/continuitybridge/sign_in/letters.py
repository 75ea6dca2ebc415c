"""The mails that this room writes."""

from __future__ import annotations

from continuitybridge.mail import Letter
from continuitybridge.settings import get_settings
from continuitybridge.sign_in.accounts import Account

PREFIX = "/bridge/sign-in"
"""Where the pages stand."""


def address_of(page: str, token: str) -> str:
    """A page's address with a token behind `#`: browsers do not send that part, so that no log, proxy or mail
    scanner's request holds it."""
    return f"{get_settings().external_url}{PREFIX}/{page}#{token}"


def sign_in_link(account: Account, token: str) -> Letter:
    return Letter(
        kind="sign_in_link",
        to=account.email,
        subject="Your sign-in link for ContinuityBridge",
        paragraphs=(f"Hello {account.first_name or account.user_name},", "here is the link that you asked for."),
        button=("Sign in", address_of("confirm", token)),
        closing=(
            "It works once, within 15 minutes.",
            "Did you not ask for it? Then somebody typed your address; nothing happens unless you open the link.",
        ),
    )


def reset(account: Account, token: str) -> Letter:
    return Letter(
        kind="password_reset",
        to=account.email,
        subject="Choose a new password for ContinuityBridge",
        paragraphs=(
            f"Hello {account.first_name or account.user_name},",
            f"here is the link to choose a new password for the account {account.user_name}.",
        ),
        button=("Choose a new password", address_of("new-password", token)),
        closing=(
            "It works once, within 30 minutes. Until then your password stays as it is.",
            "Did you not ask for it? Then leave this mail alone.",
        ),
    )


def password_changed(account: Account) -> Letter:
    return Letter(
        kind="password_changed",
        to=account.email,
        subject="Your password for ContinuityBridge was changed",
        paragraphs=(
            f"Hello {account.first_name or account.user_name},",
            "your password was changed a moment ago, by a link that was mailed to you. "
            "Every session that there was has ended.",
        ),
        closing=("Was it not you? Then tell your administrator at once.",),
    )
