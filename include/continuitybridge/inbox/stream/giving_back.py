"""What a worker cannot begin."""

from __future__ import annotations

from continuitybridge import database
from continuitybridge.inbox import units
from continuitybridge.inbox.replies import Notices
from continuitybridge.inbox.stream.claim import Sealed


def postpone(sealed: Sealed, owner: str) -> None:
    """Give back a unit that cannot be begun now: it comes back later, and the attempt does not count."""
    with database.relay() as connection:
        units.postpone(
            connection, sealed.organization_id, sealed.message_id, sealed.hand_over_id, owner, sealed.epoch
        )


def bury(sealed: Sealed, owner: str, code: str) -> None:
    """Make a unit a dead letter that can never be begun."""
    notices = Notices()
    with database.relay(after=notices) as connection:
        units.bury(
            connection,
            sealed.organization_id,
            sealed.message_id,
            sealed.hand_over_id,
            owner,
            sealed.epoch,
            code,
            notices=notices,
        )
