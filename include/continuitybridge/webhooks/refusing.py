"""What a sender is answered whose request is not taken."""

from __future__ import annotations

import logging
import time

from continuitybridge import problems
from continuitybridge.errors import BridgeError, RequestTimeout
from continuitybridge.webhooks.refusals import ANY_ENDPOINT, Refusals
from continuitybridge.webhooks.request import Request, Send

LINGER_S = 2.0
"""How long a refused sender is listened to, so that it reads the answer instead of a reset connection."""
SMALL_WAIT_S = 0.05
"""How long a refusal waits for a small body, so that the connection can be kept."""
WARN_INTERVAL_S = 5.0
"""How often at most the log says why requests get 503."""

log = logging.getLogger("continuitybridge.webhooks.intake")


class Refuser:
    """One process's. `counted` keeps what was refused."""

    def __init__(self, counted: Refusals) -> None:
        self._refusals = counted
        self._warned_at = 0.0

    async def refuse(self, request: Request, error: Exception, send: Send) -> None:
        """Answer with the problem that an error is (RFC 9457), and count it."""
        problem = problems.of(error)
        if not isinstance(error, BridgeError):
            log.error("intake: %s", problem.instance, exc_info=error)
            error = BridgeError("")
        elif problem.status >= 500 and time.monotonic() - self._warned_at > WARN_INTERVAL_S:
            self._warned_at = time.monotonic()
            log.warning("intake: %s: %s", problem.instance, error.detail)
        if request.target is not None:
            self._refusals.note(
                request.target.organization_id, request.target.environment, request.target.slug, error
            )
        elif request.stranger is not None:
            self._refusals.note(request.stranger[0], request.stranger[1], ANY_ENDPOINT, error)
        answer = problem.body()
        headers = [
            (b"content-type", problems.MEDIA_TYPE.encode()),
            (b"content-length", str(len(answer)).encode()),
            *((name.lower().encode(), value.encode()) for name, value in problem.headers.items()),
        ]
        if request.is_small:
            await request.discard(SMALL_WAIT_S)
        if request.more_body and request.scope.get("http_version", "1.1").startswith("1"):
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": problem.status, "headers": headers})
        if request.more_body and not request.awaits_continue and not isinstance(error, RequestTimeout):
            await send({"type": "http.response.body", "body": answer, "more_body": True})
            await request.discard(LINGER_S)
            answer = b""
        await send({"type": "http.response.body", "body": answer})
