"""What a user name may be: what somebody can type into the sign-in form and Airflow keeps, be it a name, an e-mail
address or what looks like one."""

from __future__ import annotations

import unicodedata

from continuitybridge.errors import ConfigurationError

MAX_CHARACTERS = 256
_NOT_TYPED = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode's categories of control and formatting characters, halves of characters and ends of lines."""
_JOINERS = "\u200c\u200d"
"""Formatting characters that some scripts need within a word."""


def may_be_a_members(name: str) -> bool:
    """Whether the database could hold the name."""
    return "\0" not in name and not any(unicodedata.category(each) == "Cs" for each in name)


def check_user_name(name: str) -> None:
    """Raises `ConfigurationError` for a name that nobody can sign in by."""
    if not 0 < len(name) <= MAX_CHARACTERS:
        problem = f"it has {len(name)} characters; valid are 1 to {MAX_CHARACTERS}"
    elif name != name.strip():
        problem = "it has blanks around it"
    elif any(unicodedata.category(each) in _NOT_TYPED and each not in _JOINERS for each in name):
        problem = "it has control characters in it"
    else:
        return
    raise ConfigurationError(f"{name!r} is no user name: {problem}", field="user_name", value=name)
