"""Encryption of everything that is an organization's: data keys per organization, wrapped by a master key."""

from continuitybridge.vault.keyring import PLATFORM, Cipher, DataKeys, Keyring
from continuitybridge.vault.master import MasterKey, load_or_create

__all__ = ["PLATFORM", "Cipher", "DataKeys", "Keyring", "MasterKey", "load_or_create"]
