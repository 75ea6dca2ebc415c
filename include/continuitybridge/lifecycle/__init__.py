"""The beginning and the end of an organization: onboarding, export, deletion."""

from continuitybridge.lifecycle.deletion import (
    Deletion,
    continue_deletions,
    deletion,
    deletions,
    export_directory,
    forgotten,
    request_deletion,
    unforgotten,
    work,
)
from continuitybridge.lifecycle.export import Exported, export

__all__ = [
    "Deletion",
    "Exported",
    "continue_deletions",
    "deletion",
    "deletions",
    "export",
    "export_directory",
    "forgotten",
    "request_deletion",
    "unforgotten",
    "work",
]
