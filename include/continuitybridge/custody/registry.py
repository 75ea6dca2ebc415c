"""All encrypted columns. A test compares them with the database: a `bytea` column is either among them, or among
those that are plain, with the reason."""

from __future__ import annotations

from continuitybridge.audit import encrypted as audit
from continuitybridge.connections import verbs as connections
from continuitybridge.inbox import encrypted as inbox
from continuitybridge.mail import outbox as mail
from continuitybridge.secrets import verbs as secrets
from continuitybridge.sign_in import second_factor
from continuitybridge.tokens import connect as token_connects
from continuitybridge.tokens import store as tokens
from continuitybridge.vault.columns import EncryptedColumn, FingerprintColumn
from continuitybridge.webhooks import endpoints

Column = EncryptedColumn | FingerprintColumn

COLUMNS: tuple[Column, ...] = (
    *connections.COLUMNS,
    *secrets.COLUMNS,
    *endpoints.COLUMNS,
    *inbox.COLUMNS,
    *mail.COLUMNS,
    *second_factor.COLUMNS,
    *tokens.COLUMNS,
    *token_connects.COLUMNS,
    *audit.COLUMNS,
)

PLAIN = {
    ("api_keys", "hash"): "SHA-256 of 256 random bits",
    ("invitations", "hash"): "SHA-256 of a random token",
    ("sign_in_tokens", "hash"): "SHA-256 of 256 random bits",
    ("recovery_codes", "hash"): "scrypt of a code",
    ("token_connects", "state_hash"): "SHA-256 of a random text",
    ("audit_chains", "hash"): "the chain's end",
    ("audit_events", "hash"): "the chain",
    ("audit_events", "previous_hash"): "the chain",
    ("idempotency_keys", "key_hash"): "a hash that finds the key",
    ("data_keys", "wrapped_key"): "under the master key: `vault.rotation.check` opens it",
}
"""Columns of bytes that are not under an organization's data key."""
