"""The master key, secrets, and what is kept for those who have to account for it."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from continuitybridge.settings.places import Places


class Keys(Places):
    """The master key, secret stores outside, audit and export."""

    master_key_file: Path | None = Field(
        default=None,
        description="File with the master key (0600). Unset: `<state_dir>/keys/master.key`.",
    )
    master_key_kms: str | None = Field(
        default=None,
        description="Key of a key management service that a new installation's master key is: `aws:<ARN>`, "
        "`gcp:projects/…/cryptoKeys/<key>` or `transit:https://<host>/<mount>/<key>`. One that has a master key "
        "moves to it by `bridge vault rotate-master-key --to`. Unset: a key is made and kept in the file.",
    )
    transit_token_file: Path | None = Field(
        default=None,
        description="File (0600) with the token for a `transit:` master key; read for each call.",
    )
    unsealed_dir: Path | None = Field(
        default=None,
        description="Directory in memory (tmpfs) that holds a sealed master key while it is unsealed. Unset: "
        "`/dev/shm/continuitybridge-<user id>`, with a random ending where somebody else has taken that name.",
    )

    secret_reminder_days: int = Field(
        default=14, ge=1, le=365, description="How many days before a secret expires somebody is reminded of it."
    )

    secret_backends_file: Path | None = Field(
        default=None,
        description="File (YAML, 0600) that declares secret stores outside (HashiCorp Vault, those of clouds), to "
        "which secrets may refer. Unset: there are none.",
    )
    secret_backend_cache_s: float = Field(
        default=60.0,
        gt=0,
        le=3600,
        description="How long a process uses what it read from a secret store outside, in seconds.",
    )

    audit_dir: Path | None = Field(
        default=None,
        description="Directory of the signed checkpoints of audit trails. Best where whoever administers the "
        "database may not write. Unset: `<state_dir>/audit`.",
    )

    export_dir: Path | None = Field(
        default=None,
        description="Directory that organizations are exported to before they are deleted. Unset: "
        "`<state_dir>/exports`.",
    )

    @property
    def master_key_path(self) -> Path:
        return self.master_key_file or self.keys_dir / "master.key"
