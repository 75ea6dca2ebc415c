"""A request's path as the platform's addresses are written: without the public address's own path."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def path_of(scope: Mapping[str, Any], path: str | None = None) -> str:
    """The path below the server's root path, also within what is mounted there. `path`: instead of the scope's."""
    # A mount extends root_path by its own prefix and keeps the server's in app_root_path.
    root = scope.get("app_root_path", scope.get("root_path", ""))
    return _below(root, scope["path"] if path is None else path)


def path_in_mount(scope: Mapping[str, Any]) -> str:
    """The path below the mount that the application is."""
    return _below(scope.get("root_path", ""), scope["path"])


def _below(root: str, path: str) -> str:
    """What is left of a path when a root is taken off that is whole segments of it, as routing does: below `/u`
    the path `/ui/dags` is `/ui/dags`, and nothing else."""
    if root and path.startswith(root) and path[len(root) : len(root) + 1] in ("", "/"):
        return path[len(root) :]
    return path
