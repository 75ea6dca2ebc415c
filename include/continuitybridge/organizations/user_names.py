"""What a user name may be: what the sign-in forms can take, be it a name or an e-mail address."""

from __future__ import annotations

from email_validator import EmailNotValidError, validate_email

from continuitybridge.errors import ConfigurationError

MAX_CHARACTERS = 254
"""As the forms take; the longest e-mail address (RFC 3696, erratum 1690) too."""


def check_user_name(name: str) -> None:
    """Raises `ConfigurationError` for a name that nobody can sign in by."""
    try:
        if not 0 < len(name) <= MAX_CHARACTERS:
            raise ValueError(f"it has 1 to {MAX_CHARACTERS} characters")
        if name != name.strip() or not name.isprintable():
            raise ValueError("it has no spaces around it and no control characters in it")
        if "@" in name:
            # As invitations take one, which makes it the user's name.
            validate_email(name, check_deliverability=False, globally_deliverable=False)
    except (ValueError, EmailNotValidError) as error:
        raise ConfigurationError(
            f"{name!r} is neither a user name nor an e-mail address: {error}", field="user_name", value=name
        ) from None
