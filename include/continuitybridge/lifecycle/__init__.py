"""The beginning and the end of an organization: onboarding, export, deletion."""

from continuitybridge.lifecycle.deletion import (
    Deletion,
    continue_deletions,
    deletion,
    deletions,
    export_directory,
    forgotten,
    request_deletion,
    sweep,
    unforgotten,
    work,
)
from continuitybridge.lifecycle.export import Exported, export
from continuitybridge.lifecycle.onboarding import Onboarded, onboard

__all__ = [
    "Deletion",
    "Exported",
    "Onboarded",
    "continue_deletions",
    "deletion",
    "deletions",
    "export",
    "export_directory",
    "forgotten",
    "onboard",
    "request_deletion",
    "sweep",
    "unforgotten",
    "work",
]
