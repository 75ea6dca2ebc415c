"""Which passwords are taken (NIST SP 800-63B, 5.1.1.2): long, and none that is guessed early."""

from __future__ import annotations

from collections.abc import Iterable

from continuitybridge.errors import ConfigurationError

MIN_CHARACTERS = 12
MAX_CHARACTERS = 256
_JUDGED_CHARACTERS = 64
"""So much of a password is judged by what guessers try; the time that takes grows with the square."""
MIN_SCORE = 3
"""Of zxcvbn's 0 to 4: more than 10^8 guesses, common passwords, words and keyboard walks first."""


class WeakPassword(ConfigurationError):
    """The password is too easily guessed; the detail says why."""

    code = "weak-password"
    title = "The password is too easily guessed"


def check_password(password: str, about: Iterable[str] = ()) -> None:
    """Raises `WeakPassword`. `about` are names of the person, which it must not be made of."""
    if len(password) < MIN_CHARACTERS:
        raise _weak(f"a password has at least {MIN_CHARACTERS} characters")
    if len(password) > MAX_CHARACTERS:
        raise _weak(f"a password has at most {MAX_CHARACTERS} characters")
    names = {part.lower() for each in about for part in (each, each.partition("@")[0]) if len(part) >= 3}
    rest = password.lower()
    for name in sorted(names, key=len, reverse=True):
        rest = rest.replace(name, "")
    if len(rest) < MIN_CHARACTERS // 2:
        raise _weak("a password is not made of the person's name or address")
    # Its word lists take a tenth of a second to load: when a password is set, and not before.
    from zxcvbn import zxcvbn

    found = zxcvbn(password[:_JUDGED_CHARACTERS], user_inputs=sorted(names))
    if found["score"] < MIN_SCORE:
        why = found["feedback"]["warning"] or "it is among the first that are tried"
        raise _weak(f"it is too easily guessed: {why.rstrip('.')}. Take several words that do not belong together")


def _weak(detail: str) -> WeakPassword:
    # Never the value.
    return WeakPassword(detail, field="password")
