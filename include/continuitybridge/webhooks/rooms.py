"""The room that an intake process has for requests and their bodies, and how organizations share it."""

from __future__ import annotations

from continuitybridge.errors import PayloadTooLarge, RequestTimeout, Unavailable
from continuitybridge.settings import Settings
from continuitybridge.webhooks.admission import SharedRoom
from continuitybridge.webhooks.deadlines import Deadlines
from continuitybridge.webhooks.request import Request
from continuitybridge.webhooks.target import Target


class Rooms:
    """One process's. What a request takes, `leave` gives back."""

    def __init__(self, settings: Settings) -> None:
        self._max_message_bytes = settings.max_message_bytes
        self._requests = SharedRoom(settings.intake_max_requests)
        self._bodies = SharedRoom(settings.intake_max_buffer_bytes)
        self._reading = Deadlines(settings.intake_body_timeout_s)

    def enter(self, request: Request, target: Target) -> None:
        """The request is this endpoint's. Raises `Unavailable` where its organization has no room left."""
        request.target, request.is_counted = target, True
        if not self._requests.take(target.organization_id, 1):
            raise Unavailable("too many requests of the organization are under way")

    def leave(self, request: Request) -> None:
        """Harmless when repeated."""
        if request.target is not None and request.is_counted:
            organization_id = request.target.organization_id
            self._requests.give_back(organization_id, 1)
            self._bodies.give_back(organization_id, request.buffered)
            request.is_counted, request.buffered = False, 0

    async def read(self, request: Request, target: Target) -> bytes:
        """The whole body; its limit holds for what is declared, and for what comes. Raises `PayloadTooLarge`,
        `RequestTimeout`, `Unavailable`."""
        limit = min(target.max_body_bytes or self._max_message_bytes, self._max_message_bytes)
        declared = request.headers.get(b"content-length", b"")
        if declared.isdigit() and int(declared) > limit:
            raise PayloadTooLarge(f"the body has {int(declared)} bytes, {limit} are allowed", allowed=limit)
        chunks: list[bytes] = []
        try:
            with self._reading:
                while request.more_body:
                    chunk = await request.read()
                    is_room = self._bodies.take(target.organization_id, len(chunk))
                    request.buffered += len(chunk)
                    chunks.append(chunk)
                    if request.buffered > limit:
                        raise PayloadTooLarge(f"the body has more than the {limit} bytes allowed", allowed=limit)
                    if not is_room:
                        raise Unavailable("too many bytes of bodies are held")
        except TimeoutError:
            raise RequestTimeout(
                f"the body did not arrive within {self._reading.limit_s:g} s", allowed=self._reading.limit_s
            ) from None
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)
