"""Where calls may go that a tenant can configure: not into the platform's own network.

A host is judged by the addresses that it has when it is connected to, and the connection goes to an address that
was judged: a name that answers otherwise a moment later changes nothing. What stands in a flow or a connection as
an address is refused when it is written. `connecting` opens the connections.
"""

from continuitybridge.egress.policy import Policy, install, installed
from continuitybridge.egress.rules import parse_rules

__all__ = ["Policy", "install", "installed", "parse_rules"]
