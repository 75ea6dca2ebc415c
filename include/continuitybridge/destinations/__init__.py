"""Destinations: pausing and draining them, how many calls at once, the circuit that opens when they fail."""

from continuitybridge.destinations.shared import CHANNEL, record, states
from continuitybridge.destinations.verbs import (
    Destination,
    cancel,
    configure,
    drain,
    list_destinations,
    pause,
    resume,
    show,
)

__all__ = [
    "CHANNEL",
    "Destination",
    "cancel",
    "configure",
    "drain",
    "list_destinations",
    "pause",
    "record",
    "resume",
    "show",
    "states",
]
