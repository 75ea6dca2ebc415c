"""What an answer tells a browser about how careful to be (OWASP Secure Headers, HTTP Headers Cheat Sheet).

Our own pages run no script and no style that stands in the page itself. Airflow's pages need both, so that their
policy says only who may frame them and that they embed no plug-ins. Pages of the platform may frame each other.
"""

from __future__ import annotations

HSTS_S = 365 * 24 * 3600
"""For how long a browser that saw the platform by HTTPS does not ask for it otherwise."""

Headers = tuple[tuple[bytes, bytes], ...]

_ALL: Headers = (
    (b"x-content-type-options", b"nosniff"),
    # Not `no-referrer`: browsers then leave out the Origin that tells our forms from others'.
    (b"referrer-policy", b"same-origin"),
    # For browsers that do not know frame-ancestors.
    (b"x-frame-options", b"SAMEORIGIN"),
)
_OURS: Headers = (*_ALL, (b"cross-origin-resource-policy", b"same-origin"))

AIRFLOWS: Headers = (*_ALL, (b"content-security-policy", b"frame-ancestors 'self'; object-src 'none'"))
DATA: Headers = (
    *_OURS,
    (
        b"content-security-policy",
        b"default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'",
    ),
)
PAGES: Headers = (
    *_OURS,
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
        b"connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'self'",
    ),
)
HSTS: Headers = ((b"strict-transport-security", f"max-age={HSTS_S}".encode()),)
