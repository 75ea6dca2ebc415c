"""The application of `bridge intake`."""

from __future__ import annotations

from continuitybridge.guard.middleware import GuardMiddleware
from continuitybridge.stream.direct import DirectWorker
from continuitybridge.webhooks.server import Alone, prepare_process

FACTORY = f"{__name__}:create"


def create() -> GuardMiddleware:
    """The application of one worker process."""
    prepare_process()
    return GuardMiddleware(Alone(direct=DirectWorker))
