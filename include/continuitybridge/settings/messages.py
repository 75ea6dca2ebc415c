"""What one message may be and take."""

from __future__ import annotations

from pydantic import Field, SecretStr

from continuitybridge.settings.places import Places


class Messages(Places):
    """Sizes, the payload store, limits of nodes."""

    max_message_bytes: int = Field(default=10 * 1024 * 1024, ge=1, description="Largest accepted payload.")
    payload_offload_bytes: int = Field(
        default=1024 * 1024,
        ge=1,
        description="Payloads above this go to the payload store, encrypted; the database keeps a reference.",
    )
    payload_store_url: str | None = Field(
        default=None,
        description="Where large payloads are kept: an fsspec address such as `file:///srv/payloads` or "
        "`s3://bucket/prefix` (others than these two need their package). Every process must reach it. "
        "Unset: `<state_dir>/payloads`.",
    )
    payload_store_options: SecretStr | None = Field(
        default=None,
        description="What else the payload store needs (credentials, endpoint): a JSON object of fsspec options.",
    )
    max_emitted_messages: int = Field(
        default=10_000, ge=1, description="Most messages one node may emit for one message."
    )
    max_nesting_depth: int = Field(default=200, ge=1, description="Deepest nesting of a parsed payload.")
    node_time_limit_s: float = Field(
        default=10.0, gt=0, description="Longest time one computing node may take for one message."
    )
    node_memory_limit_bytes: int = Field(
        default=1024 * 1024 * 1024,
        ge=64 * 1024 * 1024,
        description="Most memory (address space above the start) the process running nodes may take.",
    )

    @property
    def payload_store(self) -> str:
        """The address of the payload store."""
        return self.payload_store_url or f"file://{self.state_dir.absolute() / 'payloads'}"
