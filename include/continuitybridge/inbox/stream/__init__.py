"""Claiming and settling for stream workers: over all organizations, on connections of their own.

Modules: `claim` finds the flows that have something to do and takes units of them, `settling` writes what became
of them. Guarantees as in `inbox.claim` and `inbox.settle`.
"""

from continuitybridge.inbox.batches import FlowKey
from continuitybridge.inbox.stream.claim import Sealed, StreamClaims, Wanted
from continuitybridge.inbox.stream.settling import Hear, StreamSettlements

__all__ = ["FlowKey", "Hear", "Sealed", "StreamClaims", "StreamSettlements", "Wanted"]
