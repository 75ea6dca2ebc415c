"""Claiming and settling for stream workers: over all organizations, on connections of their own.

Modules: `claim` finds the flows that have something to do and takes units of them, `settling` writes what became
of them. Guarantees as in `inbox.claim` and `inbox.settle`.
"""

from continuitybridge.inbox.batches import FlowKey
from continuitybridge.inbox.stream.claim import Sealed, StreamClaims, Wanted
from continuitybridge.inbox.stream.settling import StreamSettlements

__all__ = ["FlowKey", "Sealed", "StreamClaims", "StreamSettlements", "Wanted"]
