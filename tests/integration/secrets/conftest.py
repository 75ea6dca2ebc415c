"""An OpenBao for the tests of this directory, which is started once, and the file that declares it as a store."""

from __future__ import annotations

from key_services import transit_service
from stores_world import declare, store

__all__ = ["declare", "store", "transit_service"]
