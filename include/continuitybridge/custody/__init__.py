"""Every encrypted column of the database at once: proving that all opens, bringing all to the current key,
retiring keys that nothing needs any more."""

from continuitybridge.custody.reencrypting import Reencrypted, reencrypt
from continuitybridge.custody.registry import COLUMNS
from continuitybridge.custody.retiring import Retired, retire
from continuitybridge.custody.verifying import Bad, Verified, verify

__all__ = ["COLUMNS", "Bad", "Reencrypted", "Retired", "Verified", "reencrypt", "retire", "verify"]
