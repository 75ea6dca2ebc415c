"""An authorization server of a test's own: serves a key set over HTTP and signs tokens."""

from __future__ import annotations

import json
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec

from http_server import HttpServer


class AuthorizationServer:
    """`keys` by id; `status` is what it answers; `asked` counts requests; `more` stands in the set beside the
    keys. With `tls` it is served by HTTPS."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.keys: dict[str, ec.EllipticCurvePrivateKey] = {}
        self.more: list[Any] = []
        self.asked = 0
        self.status = 200
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.asked += 1
                self.send_response(server.status)
                self.send_header("location", "/jwks.json")
                self.end_headers()
                self.wfile.write(json.dumps({"keys": [*map(server.public, server.keys), *server.more]}).encode())

            def log_message(self, *args: Any) -> None:
                pass

        self._server = HttpServer(("127.0.0.1", 0), Handler)
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{self._server.server_port}/jwks.json"

    def make_key(self, kid: str) -> None:
        self.keys[kid] = ec.generate_private_key(ec.SECP256R1())

    def public(self, kid: str) -> dict[str, Any]:
        made: dict[str, Any] = jwt.algorithms.ECAlgorithm.to_jwk(self.keys[kid].public_key(), as_dict=True)
        return {**made, "kid": kid, "alg": "ES256", "use": "sig"}

    def token(self, kid: str, *, key: Any = None, algorithm: str = "ES256", **claims: Any) -> str:
        """A token for `orders` that holds for a minute, with these claims."""
        claims = {"iss": "https://login.example", "aud": "orders", "exp": time.time() + 60, **claims}
        return jwt.encode(claims, key or self.keys[kid], algorithm, headers={"kid": kid})

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
