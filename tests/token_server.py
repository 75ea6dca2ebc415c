"""An authorization server with its resource, and a site with a log-in page, of a test's own, over HTTP."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from http_server import HttpServer

Answer = tuple[int, dict[str, Any] | bytes]


@dataclass
class Call:
    """A request as it came: its path, form or JSON fields, and headers in lower case."""

    path: str
    form: dict[str, str]
    headers: dict[str, str]
    at: float = field(default_factory=time.monotonic)


class TokenServer:
    """Strict as the strictest: refresh tokens rotate, and one that is used again ends the whole family (RFC 9700,
    4.14.2) unless `grace`. `before` is called with each call to the token and introspection endpoints and may take
    its time, or answer. `lifetime_s` of access tokens; what is not in `valid` the resource answers with 401. With
    `tls` it is served by HTTPS."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.client_id, self.client_secret = "bridge", secrets.token_urlsafe(24)
        self.user_name, self.password = "anna", secrets.token_urlsafe(24)
        self.refresh_token: str | None = "rt-" + secrets.token_urlsafe(24)
        self.lifetime_s: int | None = 3600
        self.grace = False
        self.before: Callable[[Call], Answer | None] = lambda call: None
        self.after: Callable[[Call], None] = lambda call: None
        self.calls: list[Call] = []
        self.valid: set[str] = set()
        self.sessions: set[str] = set()
        self.used: set[str] = set()
        self.codes: dict[str, dict[str, str]] = {}
        self.device: dict[str, Any] = {}
        self.introspected: dict[str, dict[str, Any]] = {}
        self._lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers.get("content-length") or 0)).decode()
                is_json = self.headers.get("content-type", "").startswith("application/json")
                form = json.loads(raw or "{}") if is_json else dict(parse_qsl(raw))
                headers = {name.lower(): value for name, value in self.headers.items()}
                self._answer(*server._post(Call(urlsplit(self.path).path, form, headers)))

            def do_GET(self) -> None:
                headers = {name.lower(): value for name, value in self.headers.items()}
                query = dict(parse_qsl(urlsplit(self.path).query))
                self._answer(*server._get(Call(urlsplit(self.path).path, query, headers)))

            def _answer(self, status: int, body: dict[str, Any] | bytes) -> None:
                headers = [] if isinstance(body, bytes) else body.pop("headers", [])
                content = body if isinstance(body, bytes) else json.dumps(body).encode()
                with suppress(OSError):
                    self.send_response(status)
                    for name, value in headers:
                        self.send_header(name, value)
                    self.send_header("content-type", "application/json")
                    self.send_header("content-length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content)

            def log_message(self, *args: Any) -> None:
                pass

        self._server = HttpServer(("127.0.0.1", 0), Handler)
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    # -- what tests read ----------------------------------------------------------------------------------

    def grants(self) -> list[str]:
        """The kinds of tokens that were asked for."""
        return [call.form.get("grant_type", "") for call in self.calls if call.path == "/token"]

    def oauth(self, grant: str = "client_credentials", **more: Any) -> dict[str, Any]:
        """A connection to the resource that authenticates here."""
        auth = {
            "type": "oauth2",
            "grant": grant,
            "token_url": f"{self.url}/token",
            "client_id": self.client_id,
            "client_secret": self.client_secret,
            **more,
        }
        if grant == "refresh_token":
            auth.setdefault("refresh_token", self.refresh_token)
        return {"base_url": f"{self.url}/api", "auth": {k: v for k, v in auth.items() if v is not None}}

    # -- the server ---------------------------------------------------------------------------------------

    def _post(self, call: Call) -> Answer:
        self.calls.append(call)
        if call.path == "/token":
            early = self.before(call)
            if early is not None:
                return early
            with self._lock:
                answer = self._token(call)
            self.after(call)
            return answer
        if call.path == "/device":
            self.device = {"code": secrets.token_urlsafe(16), "polls": 0, **self.device}
            return 200, {
                "device_code": self.device["code"],
                "user_code": "WDJB-MJHT",
                "verification_uri": f"{self.url}/activate",
                "expires_in": self.device.get("expires_in", 600),
                "interval": self.device.get("interval", 1),
            }
        if call.path == "/revoke":
            self.valid.clear()
            if call.form["token"] == self.refresh_token:
                self.refresh_token = None
            return 200, {}
        if call.path == "/introspect":
            return self.before(call) or self._introspect(call)
        if call.path == "/login":
            return self._login(call)
        return self._resource(call)

    def _get(self, call: Call) -> Answer:
        if call.path == "/authorize":
            code = secrets.token_urlsafe(16)
            self.codes[code] = call.form
            query = urlencode({"code": code, "state": call.form["state"]})
            return 302, {"headers": [("location", f"{call.form['redirect_uri']}?{query}")]}
        self.calls.append(call)
        return self._resource(call)

    def _resource(self, call: Call) -> Answer:
        bearer = call.headers.get("authorization", "").removeprefix("Bearer ")
        cookies = dict(part.strip().partition("=")[::2] for part in call.headers.get("cookie", "").split(";"))
        if bearer in self.valid or cookies.get("sid") in self.sessions:
            return 200, {"ok": True}
        return 401, {"error": "invalid_token"}

    def _is_client(self, call: Call) -> bool:
        scheme, _, pair = call.headers.get("authorization", "").partition(" ")
        if scheme == "Basic":
            name, _, secret = base64.b64decode(pair).decode().partition(":")
            return (unquote(name), unquote(secret)) == (self.client_id, self.client_secret)
        return (call.form.get("client_id"), call.form.get("client_secret")) == (self.client_id, self.client_secret)

    def _token(self, call: Call) -> Answer:
        grant = call.form.get("grant_type", "")
        if not self._is_client(call) and not grant.endswith("jwt-bearer"):
            return 401, {"error": "invalid_client"}
        if grant == "client_credentials" or grant.endswith("jwt-bearer"):
            return 200, self._made()
        if grant == "refresh_token":
            return self._refreshed(call.form["refresh_token"])
        if grant == "authorization_code":
            asked = self.codes.pop(call.form["code"], {})
            digest = hashlib.sha256(call.form.get("code_verifier", "").encode()).digest()
            challenge = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
            proven = asked.get("code_challenge_method") == "S256" and asked.get("code_challenge") == challenge
            if not proven or asked.get("redirect_uri") != call.form.get("redirect_uri"):
                return 400, {"error": "invalid_grant"}
            return 200, {**self._made(), "refresh_token": self._rotated()}
        return self._device_code(call)

    def _device_code(self, call: Call) -> Answer:
        self.device["polls"] += 1
        said = self.device.get("says", [])
        if call.form.get("device_code") != self.device.get("code"):
            return 400, {"error": "invalid_grant"}
        if said:
            return 400, {"error": said.pop(0)}
        return 200, {**self._made(), "refresh_token": self._rotated()}

    def _refreshed(self, given: str) -> Answer:
        if given in self.used and not self.grace:
            # Somebody has it who should not: the family ends.
            self.refresh_token = None
            self.valid.clear()
            return 400, {"error": "invalid_grant", "error_description": f"{given} was used before"}
        if given != self.refresh_token and given not in self.used:
            return 400, {"error": "invalid_grant"}
        self.used.add(given)
        return 200, {**self._made(), "refresh_token": self._rotated()}

    def _rotated(self) -> str:
        self.refresh_token = "rt-" + secrets.token_urlsafe(24)
        return self.refresh_token

    def _made(self) -> dict[str, Any]:
        token = "at-" + secrets.token_urlsafe(24)
        self.valid.add(token)
        ends = {} if self.lifetime_s is None else {"expires_in": self.lifetime_s}
        return {"access_token": token, "token_type": "Bearer", **ends}

    def _login(self, call: Call) -> Answer:
        if (call.form.get("user"), call.form.get("password")) != (self.user_name, self.password):
            return 200, {"message": "wrong password"}
        session = secrets.token_urlsafe(16)
        self.sessions.add(session)
        return 302, {
            "headers": [
                ("location", "/home"),
                ("set-cookie", f"sid={session}; Path=/; HttpOnly; Expires=Wed, 21 Oct 2099 07:28:00 GMT"),
                ("set-cookie", "seen=yes; Path=/"),
                ("set-cookie", "foreign=1; Domain=other.example"),
            ]
        }

    def _introspect(self, call: Call) -> Answer:
        if not self._is_client(call):
            return 401, {"error": "invalid_client"}
        return 200, self.introspected.get(call.form.get("token", ""), {"active": False})
