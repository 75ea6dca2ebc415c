"""The payload store: whatever fsspec reaches by an address. It holds ciphertext under keys of ours and knows
nothing else; `offload` says what is in it and when it goes.

A local directory is written durably: the object is on disk, under its name, when `put` returns. What another store
promises about that, it promises itself (S3: an acknowledged object is kept).
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import fsspec  # type: ignore[import-untyped]
import orjson
from fsspec.implementations.local import LocalFileSystem  # type: ignore[import-untyped]

from continuitybridge.errors import BridgeError, ConfigurationError, Unavailable
from continuitybridge.settings import get_settings


class PayloadLost(BridgeError):
    """A payload that was kept outside the database is not there, or not what it was; facts: `key`."""

    code = "payload-lost"
    title = "The payload is not in the payload store any more"


_IN_TIME: dict[str, dict[str, Any]] = {
    "s3": {"config_kwargs": {"connect_timeout": 5, "read_timeout": 20, "retries": {"max_attempts": 1}}}
}
"""What a protocol needs to give up while the sender of a message still waits; the options given come before it."""


class ObjectStore(Protocol):
    """Objects by key: path segments of letters, digits and hyphens. Each verb raises `Unavailable` when the store
    does not answer, or refuses."""

    def put(self, key: str, data: bytes) -> None:
        """Store an object; returns when it is kept."""

    def get(self, key: str) -> bytes:
        """An object's content; raises `PayloadLost` when there is none."""

    def delete(self, keys: Iterable[str]) -> None:
        """Remove objects; those that are not there count as removed."""

    def clear(self, folder: str) -> int:
        """Remove whatever is left of a folder, the first segment of keys; returns how many objects that were."""


class _Directory:
    """A local directory, by plain system calls: fsspec writes files without waiting for the disk."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def put(self, key: str, data: bytes) -> None:
        path = self._root / key
        part = _part_of(path)
        try:
            for _ in range(10):
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                # The directory goes when its last object is removed, perhaps just now.
                with contextlib.suppress(FileNotFoundError):
                    self._write(part, path, data)
                    return
            raise Unavailable("the payload store's directory vanishes again and again")
        except OSError as error:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            raise Unavailable(f"the payload store cannot be written: {error.strerror}") from error

    @staticmethod
    def _write(part: Path, path: Path, data: bytes) -> None:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def get(self, key: str) -> bytes:
        try:
            return (self._root / key).read_bytes()
        except FileNotFoundError:
            raise PayloadLost("the payload is not in the payload store", key=key) from None
        except OSError as error:
            raise Unavailable(f"the payload store cannot be read: {error.strerror}") from error

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            path = self._root / key
            try:
                path.unlink(missing_ok=True)
                # What a writer left that was killed.
                _part_of(path).unlink(missing_ok=True)
            except OSError as error:
                raise Unavailable(f"the payload store cannot be written: {error.strerror}") from error
            for parent in list(path.parents)[: key.count("/")]:
                try:
                    parent.rmdir()
                except OSError:
                    break

    def clear(self, folder: str) -> int:
        top = self._root / folder
        try:
            left = sum(1 for each in top.rglob("*") if each.is_file())
            shutil.rmtree(top)
        except FileNotFoundError:
            return 0
        except OSError as error:
            raise Unavailable(f"the payload store cannot be written: {error.strerror}") from error
        return left


def _part_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")


class _Remote:
    """Any other fsspec file system."""

    def __init__(self, fs: Any, root: str) -> None:
        self._fs = fs
        self._root = root.rstrip("/")

    def put(self, key: str, data: bytes) -> None:
        path = f"{self._root}/{key}"
        try:
            try:
                self._fs.pipe_file(path, data)
            except FileNotFoundError:
                # One that has directories. An object store has none, and may not let us ask for its buckets.
                self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
                self._fs.pipe_file(path, data)
        except Exception as error:
            raise Unavailable(f"the payload store did not take an object: {type(error).__name__}") from error

    def get(self, key: str) -> bytes:
        try:
            return bytes(self._fs.cat_file(f"{self._root}/{key}"))
        except FileNotFoundError:
            raise PayloadLost("the payload is not in the payload store", key=key) from None
        except Exception as error:
            raise Unavailable(f"the payload store did not give an object: {type(error).__name__}") from error

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            try:
                self._fs.rm_file(f"{self._root}/{key}")
            except FileNotFoundError:
                continue
            except Exception as error:
                raise Unavailable(f"the payload store did not remove an object: {type(error).__name__}") from error

    def clear(self, folder: str) -> int:
        top = f"{self._root}/{folder}"
        try:
            # A listing that was kept from before would not show what came since.
            self._fs.invalidate_cache()
            left = self._fs.find(top)
            for each in left:
                self._fs.rm_file(each)
        except FileNotFoundError:
            return 0
        except Exception as error:
            raise Unavailable(f"the payload store did not remove an object: {type(error).__name__}") from error
        return len(left)


def open_store() -> ObjectStore:
    """The store that the settings name. Raises `ConfigurationError` naming the setting."""
    settings = get_settings()
    options = settings.payload_store_options
    return _open(settings.payload_store, options.get_secret_value() if options else "{}")


@lru_cache(maxsize=4)
def _open(url: str, options: str) -> ObjectStore:
    try:
        given = orjson.loads(options)
        if not isinstance(given, dict):
            raise ValueError
    except ValueError:
        raise ConfigurationError(
            "BRIDGE_PAYLOAD_STORE_OPTIONS must be a JSON object", field="BRIDGE_PAYLOAD_STORE_OPTIONS"
        ) from None
    try:
        fs, root = fsspec.core.url_to_fs(url, **{**_IN_TIME.get(url.partition(":")[0], {}), **given})
    except (ImportError, ValueError, TypeError) as error:
        raise ConfigurationError(
            f"BRIDGE_PAYLOAD_STORE_URL cannot be used: {error}", field="BRIDGE_PAYLOAD_STORE_URL"
        ) from None
    if isinstance(fs, LocalFileSystem):
        return _Directory(Path(root))
    return _Remote(fs, root)
