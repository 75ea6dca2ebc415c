"""Where a request came from: `guard.network`, under the name by which webhooks know it."""

from continuitybridge.guard.network import Address, Network, networks, peer, sender, within

__all__ = ["Address", "Network", "networks", "peer", "sender", "within"]
