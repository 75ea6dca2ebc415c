"""An OpenID provider of a test's own: real HTTP, discovery, code flow with PKCE, signed ID tokens. It signs in
whoever `person` is, without asking, and can be told to lie.

Written without the library that the platform uses, so that the two check each other.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa

from http_server import HttpServer

Lie = Callable[[dict[str, Any]], dict[str, Any]]


@dataclass
class OpenIdProvider:
    """`person`: claims of whoever signs in; `lie` changes the claims of the ID token; `describe` the description;
    `algorithm` and `key` sign it; `answer_state` comes back instead of the client's; `drips`: addresses that never
    end, in their "head" or "body"; `padding`: what others hold besides; `packs`: the content encoding of answers.
    `tokens`: how many were asked for."""

    client_id: str = "bridge"
    client_secret: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    person: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.own_key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.codes: dict[str, dict[str, str]] = {}
        self.honest()
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                parts = urlsplit(self.path)
                if parts.path in provider.drips:
                    self._drip()
                    return
                query = {name: values[0] for name, values in parse_qs(parts.query).items()}
                if parts.path == "/.well-known/openid-configuration":
                    self._json(provider.description())
                elif parts.path == "/keys":
                    self._json({"keys": [provider.public_key()]})
                elif parts.path == "/userinfo":
                    self._json(provider.at_userinfo)
                elif parts.path == "/authorize":
                    self.send_response(302)
                    self.send_header("location", provider.authorize(query))
                    self.end_headers()
                else:
                    self.send_error(404)

            def do_POST(self) -> None:
                if self.path in provider.drips:
                    self._drip()
                    return
                body = self.rfile.read(int(self.headers["content-length"])).decode()
                given = {name: values[0] for name, values in parse_qs(body).items()}
                self._json(*provider.exchange(given, self.headers.get("authorization", "")))

            def _drip(self) -> None:
                """A byte now and then, of a head or of a body, for as long as somebody listens."""
                whole = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
                self.wfile.write(whole + (b"x: " if provider.drips[self.path] == "head" else b"\r\n{"))
                with contextlib.suppress(OSError):
                    while True:
                        self.wfile.write(b" ")
                        time.sleep(0.02)

            def _json(self, content: Any, status: int = 200) -> None:
                if (more := provider.padding.get(self.path)) is not None:
                    content = {**content, "padding": more}
                body = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                if provider.packs is not None:
                    encoding, pack = provider.packs
                    body = pack(body)
                    self.send_header("content-encoding", encoding)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                with contextlib.suppress(ConnectionError):
                    self.wfile.write(body)

            def log_message(self, *args: Any) -> None:
                pass

        self._server = HttpServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.issuer = f"http://127.0.0.1:{self._server.server_port}"

    def honest(self) -> None:
        """Tell the truth again."""
        self.lie: Lie = lambda claims: claims
        self.describe: Lie = lambda description: description
        self.algorithm: str = "RS256"
        self.key: Any = self.own_key
        self.answer_state: str | None = None
        self.at_userinfo: dict[str, Any] = {}
        self.drips: dict[str, str] = {}
        self.padding: dict[str, str] = {}
        self.packs: tuple[str, Callable[[bytes], bytes]] | None = None
        self.tokens = 0

    def description(self) -> dict[str, Any]:
        return self.describe(
            {
                "issuer": self.issuer,
                "authorization_endpoint": f"{self.issuer}/authorize",
                "token_endpoint": f"{self.issuer}/token",
                "jwks_uri": f"{self.issuer}/keys",
                "userinfo_endpoint": f"{self.issuer}/userinfo",
                "id_token_signing_alg_values_supported": ["RS256", "HS256", "none"],
            }
        )

    def public_key(self) -> dict[str, Any]:
        made: dict[str, Any] = jwt.algorithms.RSAAlgorithm.to_jwk(self.own_key.public_key(), as_dict=True)
        return {**made, "kid": "one", "alg": "RS256", "use": "sig"}

    def authorize(self, query: dict[str, str]) -> str:
        """Where the browser goes: back, with a code."""
        assert (query["response_type"], query["client_id"]) == ("code", self.client_id)
        assert query["code_challenge_method"] == "S256"
        assert "openid" in query["scope"].split()
        code = secrets.token_urlsafe(16)
        self.codes[code] = query
        back = {"code": code, "state": self.answer_state or query["state"]}
        return f"{query['redirect_uri']}?{urlencode(back)}"

    def exchange(self, given: dict[str, str], authorization: str) -> tuple[dict[str, Any], int]:
        self.tokens += 1
        basic = f"{quote(self.client_id)}:{quote(self.client_secret)}"
        asked = self.codes.pop(given.get("code", ""), None)
        challenge = base64.urlsafe_b64encode(hashlib.sha256(given.get("code_verifier", "").encode()).digest())
        if unquote(base64.b64decode(authorization.removeprefix("Basic ")).decode()) != unquote(basic):
            return {"error": "invalid_client"}, 401
        if (
            asked is None
            or challenge.decode().rstrip("=") != asked["code_challenge"]
            or given["redirect_uri"] != asked["redirect_uri"]
        ):
            return {"error": "invalid_grant"}, 400
        now = int(time.time())
        claims = {"iss": self.issuer, "aud": self.client_id, "iat": now, "exp": now + 60, "nonce": asked["nonce"]}
        token = self._sign(self.lie({**claims, **self.person}))
        return {"access_token": secrets.token_urlsafe(16), "token_type": "Bearer", "id_token": token}, 200

    def _sign(self, claims: dict[str, Any]) -> str:
        if self.algorithm != "HS256":
            return jwt.encode(claims, self.key, algorithm=self.algorithm, headers={"kid": "one"})
        # By hand: the library does not lend itself to a public key as a secret.
        header = {"alg": "HS256", "typ": "JWT", "kid": "one"}
        parts = [base64.urlsafe_b64encode(json.dumps(each).encode()).rstrip(b"=") for each in (header, claims)]
        signature = hmac.digest(self.key, b".".join(parts), "sha256")
        return b".".join([*parts, base64.urlsafe_b64encode(signature).rstrip(b"=")]).decode()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def openid_provider() -> Iterator[OpenIdProvider]:
    made = OpenIdProvider()
    try:
        yield made
    finally:
        made.close()
