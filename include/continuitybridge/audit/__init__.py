"""Who did what: an event for each action that changes or reads something sensitive, written in the transaction of
the action, chained by hashes per organization."""

from continuitybridge.actor import Actor, acting, current_actor
from continuitybridge.audit.recording import TrailDamaged, erase_person, record, tolerating

__all__ = ["Actor", "TrailDamaged", "acting", "current_actor", "erase_person", "record", "tolerating"]
