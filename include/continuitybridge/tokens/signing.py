"""JSON Web Tokens of our own (RFC 7519), as connections declare them."""

from __future__ import annotations

import time
from typing import Any
from uuid import uuid4

import jwt

from continuitybridge.connections.auth import JwtAuth
from continuitybridge.tokens.kept import Token, fresh_until


def sign(auth: JwtAuth, *, audience: str | None = None) -> Token:
    """A new token, valid from now on for `lifetime_s`. `audience` where none is declared."""
    at = time.time()
    claims: dict[str, Any] = {
        **auth.claims,
        "iat": int(at),
        "exp": int(at) + auth.lifetime_s,
        "jti": str(uuid4()),
        "iss": auth.issuer,
        "sub": auth.subject,
        "aud": auth.audience or audience,
    }
    value = jwt.encode(
        {name: each for name, each in claims.items() if each is not None},
        auth.key.get_secret_value(),
        auth.algorithm,
        headers={} if auth.key_id is None else {"kid": auth.key_id},
    )
    expires_at = float(claims["exp"])
    return Token(value, int(at * 1000), fresh_until(at, expires_at), expires_at)
