"""Secret stores of the operator's that stand outside: HashiCorp Vault and those of clouds, through the classes
that Airflow's providers have for them.

`BRIDGE_SECRET_BACKENDS_FILE` declares them by name (YAML, mode 0600, for it may hold credentials). Each has a
prefix that names the organization: whatever a member of it writes down is looked for behind that, in that store,
and nowhere else.

The file is read again when it changes. One that is saved badly changes nothing in a process that read it before;
one that begins with it has no stores until it is put right, and what draws on one waits (`StoresUnreadable`).
"""

from __future__ import annotations

import logging
import os
import re
import stat
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Self
from uuid import UUID

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from continuitybridge.errors import BackendRefused, ConfigurationError, StoresUnreadable, Unavailable
from continuitybridge.settings import get_settings

ANSWER_S = 8.0
"""So long a store's answer is waited for, a turn before that included."""
AT_ONCE = 4
"""Questions to one store that are under way in a process."""
REST_S = 2.0
"""A store that did not answer is not asked again for so long."""
BAD_FILE_S = 5.0
"""A file that could not be read is read again after so long, or when it changes."""

_REFUSALS = (
    "Forbidden",
    "Unauthorized",
    "AccessDenied",
    "PermissionDenied",
    "NoCredentials",
    "ClientAuthentication",
)
_SILENCES = ("Timeout", "ConnectionError", "ConnectError", "VaultDown", "MaxRetryError", "ServiceUnavailable")
_AT_A_GLANCE = object()
_PLACEHOLDERS = {"organization", "organization_id", "environment"}

log = logging.getLogger(__name__)


class Declared(BaseModel):
    """One store. `class` is a secrets backend of Airflow's, made with `arguments`; `read` says which of its two
    questions is asked (`get_variable`, or `get_conn_value`, by which Vault gives all fields of an entry)."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    class_: str = Field(alias="class", pattern=r"^[A-Za-z_][\w]*(\.[A-Za-z_]\w*)+$")
    arguments: dict[str, Any] = Field(default_factory=dict, repr=False)
    read: Literal["variable", "connection"] = "variable"
    prefix: str = "{organization}/{environment}/"

    @field_validator("prefix")
    @classmethod
    def _keeps_organizations_apart(cls, prefix: str) -> str:
        if unknown := set(re.findall(r"\{([^}]*)\}?", prefix)) - _PLACEHOLDERS:
            raise ValueError(f"{', '.join(sorted(unknown))} is not one of {', '.join(sorted(_PLACEHOLDERS))}")
        if "{organization_id}" not in prefix and "{organization}/" not in prefix:
            # Behind a slug alone "acme" could ask for what is "acme-east"'s.
            raise ValueError("it needs {organization_id}, or {organization} and a / right behind it")
        return prefix

    @model_validator(mode="after")
    def _is_a_class(self, info: ValidationInfo) -> Self:
        if info.context is not _AT_A_GLANCE or not self._is_seen():
            self.load()
        return self

    def _is_seen(self) -> bool:
        """Whether the class stands in a file of its module's; no where that cannot be told without importing."""
        module, _, name = self.class_.rpartition(".")
        # By the files alone: what looks for modules wants the packages around some of them imported.
        inside = module.replace(".", "/")
        files = (Path(place, f"{inside}{end}") for place in sys.path for end in (".py", "/__init__.py"))
        file = next((each for each in files if each.is_file()), None)
        return file is not None and re.search(rf"^class {name}\b", file.read_text(), re.MULTILINE) is not None

    def load(self) -> type[Any]:
        """The class; raises `ValueError` where it is not installed or none."""
        module, _, name = self.class_.rpartition(".")
        # Airflow's classes bring Airflow along, which makes itself a home when it is imported, if it has none.
        os.environ.setdefault("AIRFLOW_HOME", str(get_settings().state_dir.absolute() / "airflow"))
        try:
            found = getattr(import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"class {self.class_} cannot be imported: {error}") from None
        if not callable(getattr(found, self.question, None)):
            raise ValueError(f"class {self.class_} has no {self.question}")
        return found  # type: ignore[no-any-return]

    @property
    def question(self) -> str:
        return "get_variable" if self.read == "variable" else "get_conn_value"

    @property
    def described(self) -> tuple[str, str]:
        """Class and prefix."""
        return self.class_, self.prefix

    def place(self, organization_id: UUID, organization: str, environment: str) -> str:
        """The organization's prefix."""
        return self.prefix.format(
            organization=organization, organization_id=organization_id, environment=environment
        )


class Backend:
    """A declared store, asked by a bounded number of threads."""

    def __init__(self, name: str, declared: Declared) -> None:
        self.name = name
        self.declared = declared
        self._turns = threading.BoundedSemaphore(AT_ONCE)
        self._making = threading.Lock()
        self._made: Any = None
        self._rests_until = 0.0

    def ask(self, key: str) -> str | None:
        """What the store holds under this whole key; None where there is nothing. Raises `BackendRefused`, and
        `Unavailable` when it does not answer within `ANSWER_S`."""
        if time.monotonic() < self._rests_until:
            raise self._silent()
        ends = time.monotonic() + ANSWER_S
        if not self._turns.acquire(timeout=ANSWER_S):
            raise self._silent()
        answer: Future[str | None] = Future()
        # Its own limits are the class's affair: whoever asks goes when his time is over.
        thread = threading.Thread(target=self._run, args=(key, answer), name=f"secrets-{self.name}", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            self._turns.release()
            raise self._unavailable() from None
        try:
            return answer.result(max(0.0, ends - time.monotonic()))
        except TimeoutError:
            log.warning("the secret store %s gave no answer within %g s", self.name, ANSWER_S)
            raise self._silent() from None
        except Exception as error:
            # What it says may name places that are nothing to an organization's people.
            log.warning("the secret store %s: %s: %s", self.name, type(error).__name__, error)
            if _is_refusal(error):
                raise BackendRefused(
                    f"the secret store {self.name!r} refuses the platform", backend=self.name, retry_after_s=30
                ) from error
            # What is wrong with one entry is nothing to those who ask for others.
            raise (self._silent() if _is_silence(error) else self._unavailable()) from error

    def _run(self, key: str, answer: Future[str | None]) -> None:
        try:
            with self._making:
                if self._made is None:
                    self._made = self.declared.load()(**self.declared.arguments)
            found = getattr(self._made, self.declared.question)(key)
            answer.set_result(None if found is None else str(found))
        except BaseException as error:
            answer.set_exception(error)
        finally:
            self._turns.release()

    def _silent(self) -> Unavailable:
        self._rests_until = max(self._rests_until, time.monotonic() + REST_S)
        return self._unavailable()

    def _unavailable(self) -> Unavailable:
        return Unavailable(f"the secret store {self.name!r} does not answer", backend=self.name, retry_after_s=5)


def names() -> list[str]:
    """The declared stores. Raises `StoresUnreadable`."""
    return sorted(_all())


def get(name: str) -> Backend:
    """The store of that name; raises `ConfigurationError`, and `StoresUnreadable`."""
    found = _all()
    if name not in found:
        if _stores.bad is not None:
            # It may stand in what cannot be read.
            raise _unreadable()
        valid = ", ".join(sorted(found)) or "none: the operator declares them (BRIDGE_SECRET_BACKENDS_FILE)"
        raise ConfigurationError(
            f"there is no secret store {name!r}; valid are {valid}", field="backend", value=name, valid=valid
        )
    return found[name]


def check(*, at_a_glance: bool = False) -> None:
    """Raise `ConfigurationError` naming what is wrong with the file of stores, as it is now. `at_a_glance` takes a
    class for what it should be that stands in a file where it is looked for: importing it takes seconds, as
    Airflow's bring Airflow along."""
    file = get_settings().secret_backends_file
    if file is not None:
        _signature(file)
        _declared(file, context=_AT_A_GLANCE if at_a_glance else None)


@dataclass(slots=True)
class _Stores:
    """What this process knows of the file: `good`, the last state of it that could be read, and `bad`, what is
    wrong with the present one."""

    file: Path | None = None
    seen: tuple[int, ...] = ()
    good: Mapping[str, Backend] | None = None
    bad: ConfigurationError | None = None
    again_at: float = 0.0


def _all() -> Mapping[str, Backend]:
    """The stores as the file has them; while it is bad, as it had them before."""
    file = get_settings().secret_backends_file
    if file is None:
        return {}
    # Two at once would each make stores, with threads of their own.
    with _reading:
        if _stores.file != file:
            _forget(file)
        _look(file)
        if _stores.good is None:
            raise _unreadable()
        return _stores.good


def _look(file: Path) -> None:
    try:
        seen = _signature(file)
        if seen == _stores.seen and (_stores.bad is None or time.monotonic() < _stores.again_at):
            return
        # Before it is read: a bad one is not read at each use.
        _stores.seen = seen
        _stores.good = _read(file)
    except ConfigurationError as error:
        if _stores.bad is None or _stores.bad.detail != error.detail:
            after = "nothing draws on a store" if _stores.good is None else "the stores stay as they were"
            log.error("%s; until that is put right %s", error.detail, after)
        # What is missing may be installed meanwhile: the file does not show that.
        _stores.bad, _stores.again_at = error, time.monotonic() + BAD_FILE_S
        return
    if _stores.bad is not None:
        log.warning("%s can be read again", file)
    _stores.bad = None


def _signature(file: Path) -> tuple[int, ...]:
    """Another one when the file is another, or may be."""
    try:
        status = file.stat()
    except OSError as error:
        raise ConfigurationError(f"{file}: {error.strerror}", field=_FIELD) from None
    if stat.S_IMODE(status.st_mode) & 0o077:
        raise ConfigurationError(
            f"{file} may be read by others (mode {stat.S_IMODE(status.st_mode):04o}): chmod 600 it",
            field=_FIELD,
        )
    return status.st_ino, status.st_mtime_ns, status.st_size, status.st_mode


def _read(file: Path) -> Mapping[str, Backend]:
    return {name: Backend(name, each) for name, each in _declared(file).items()}


def _declared(file: Path, context: Any = None) -> dict[str, Declared]:
    try:
        given = yaml.safe_load(file.read_text())
    except OSError as error:
        raise ConfigurationError(f"{file}: {error.strerror}", field=_FIELD) from None
    except (yaml.YAMLError, ValueError, RecursionError):
        raise ConfigurationError(f"{file} is no YAML", field=_FIELD) from None
    if given is None:
        # An editor empties a file before it writes it.
        raise ConfigurationError(f"{file} is empty; {{}} declares no store", field=_FIELD)
    try:
        return _FILE.validate_python(given, context=context)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, each['loc']))}: {each['msg']}"
            for each in error.errors(include_input=False, include_url=False, include_context=False)
        )
        raise ConfigurationError(f"{file}: {problems}", field=_FIELD) from None


def _unreadable() -> StoresUnreadable:
    # What is wrong is the operator's affair: the log and `bridge secret stores` tell him.
    return StoresUnreadable(
        "the file that declares the secret stores cannot be read now: the operator has to put it right"
        " (`bridge secret stores` says what is wrong)",
        retry_after_s=BAD_FILE_S,
        field=_FIELD,
    )


def _forget(file: Path | None = None) -> None:
    global _stores
    _stores = _Stores(file)


_stores = _Stores()
_reading = threading.Lock()


def _forked() -> None:
    # Stores have threads of their own, which a new process has not.
    global _reading
    _reading = threading.Lock()
    _forget()


os.register_at_fork(after_in_child=_forked)
_FIELD = "BRIDGE_SECRET_BACKENDS_FILE"
_FILE = TypeAdapter(dict[str, Declared])


def _is_silence(error: BaseException | None) -> bool:
    """Whether nobody answered, or the whole store is away."""
    while error is not None:
        name = type(error).__name__
        if isinstance(error, ConnectionError | TimeoutError) or any(each in name for each in _SILENCES):
            return True
        error = error.__cause__ or error.__context__
    return False


def _is_refusal(error: BaseException | None) -> bool:
    while error is not None:
        told = f"{type(error).__name__} {error}"
        if any(each in told for each in _REFUSALS) or "Authentication Error" in told:
            return True
        error = error.__cause__ or error.__context__
    return False
