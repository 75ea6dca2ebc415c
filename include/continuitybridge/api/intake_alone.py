"""The application of `bridge intake`."""

from __future__ import annotations

from continuitybridge.guard.middleware import GuardMiddleware
from continuitybridge.settings import get_settings
from continuitybridge.stream.direct import DirectWorker
from continuitybridge.webhooks.server import Alone, App, Below, prepare_process

FACTORY = f"{__name__}:create"


def create() -> App:
    """The application of one worker process."""
    prepare_process()
    guarded = GuardMiddleware(Alone(direct=DirectWorker))
    # The guard tells by its path what a request is for.
    path = get_settings().public_path
    return Below(path, guarded) if path else guarded
