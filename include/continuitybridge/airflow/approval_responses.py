"""A response on Airflow's page of required actions decides at once.

The run of the request writes it too (`approvals`), but its task has to start again for that, and where the
response comes within moments of the request, Airflow may take the restart for a failure, ask anew and forget the
response. So what the api-server has just taken is decided here, by the same verb; the first decision holds.
"""

from __future__ import annotations

import logging
import re
from typing import Any
from uuid import UUID

import orjson
from anyio import to_thread
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from continuitybridge.airflow.approval_names import APPROVE, DAG_NAME, REJECT, RUN_ID_PREFIX, TASK_ID
from continuitybridge.request_paths import path_of

MAX_BODY_BYTES = 64 * 1024
_RESPONSE = re.compile(
    rf"/api/v2/dags/(?P<organization>[^/.]+)\.[^/.]+\.{DAG_NAME}"
    rf"/dagRuns/{RUN_ID_PREFIX}(?P<approval>[0-9a-f-]{{36}})/taskInstances/{TASK_ID}/-1/hitlDetails"
)

log = logging.getLogger("continuitybridge.approvals")


class ApprovalResponseMiddleware:
    """ASGI middleware of the whole api-server; costs other requests a comparison."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = _response_of(scope)
        if found is None:
            await self.app(scope, receive, send)
            return
        body = bytearray()

        async def heard() -> Message:
            message = await receive()
            if len(body) <= MAX_BODY_BYTES:
                body.extend(message.get("body", b""))
            return message

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == 200:
                await self._decide(scope, found, bytes(body))
            await send(message)

        await self.app(scope, heard, watched)

    async def _decide(self, scope: Scope, found: re.Match[str], body: bytes) -> None:
        from continuitybridge.airflow.http_auth import authenticate
        from continuitybridge.errors import NotFound

        try:
            given: Any = orjson.loads(body)
            decision = {APPROVE: "approved", REJECT: "rejected"}[given["chosen_options"][0]]
            comment = str((given.get("params_input") or {}).get("comment") or "")
            user = await authenticate(Request(scope))
            if user is not None:
                await to_thread.run_sync(
                    _decide, found["organization"], UUID(found["approval"]), decision, user.user_name, comment
                )
        except NotFound:
            log.info("approval %s had been decided before, or its time was over", found["approval"])
        except Exception as error:
            # Airflow has taken the response: its task decides too.
            log.warning("approval %s is left to its task: %s", found["approval"], error)


def _response_of(scope: Scope) -> re.Match[str] | None:
    if scope["type"] != "http" or scope["method"] != "PATCH":
        return None
    return _RESPONSE.fullmatch(path_of(scope))


def _decide(organization: str, approval_id: UUID, decision: Any, by: str, comment: str) -> None:
    from continuitybridge import organizations
    from continuitybridge.inbox import waits

    organization_id = organizations.by_slug(organization).organization_id
    message_id = waits.decide(organization_id, approval_id, decision, by=by, comment=comment)
    log.info("message %s %s by %s", message_id, decision, by)
