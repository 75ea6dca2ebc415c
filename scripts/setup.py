"""Make `.venv`: the locked packages and this checkout, byte-compiled. Run by `scripts/setup` (make setup).

Uses nothing but the standard library. Does nothing when the lock and the interpreter have not changed. Packages
come as wheels only. pip's ordinary configuration (pip.conf, PIP_* variables) is respected: uv, which installs far
faster but does not read it, is told the same indexes, certificates and proxy.
"""

from __future__ import annotations

import argparse
import compileall
import fcntl
import hashlib
import os
import shutil
import ssl
import subprocess
import sys
import time
import venv
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
BOOTSTRAP = ROOT / "requirements-bootstrap.txt"


def main() -> int:
    parser = argparse.ArgumentParser(description="Make .venv from the lock.")
    parser.add_argument("--dev", action="store_true", help="with what tests and linters need")
    dev = parser.parse_args().dev
    locks = [ROOT / "requirements.txt", *([ROOT / "requirements-dev.txt"] if dev else [])]
    checkout = os.open(ROOT, os.O_RDONLY)
    fcntl.flock(checkout, fcntl.LOCK_EX)
    try:
        set_up(locks, "dev" if dev else "run")
    except subprocess.CalledProcessError as error:
        print(f"setup: {' '.join(map(str, error.cmd))} ended with {error.returncode} (see above)", file=sys.stderr)
        return 1
    return 0


def set_up(locks: list[Path], kind: str) -> None:
    """Bring `.venv` to what the locks say; `kind` names the stamp that remembers it."""
    stamp, wanted = VENV / f".setup-{kind}", fingerprint(locks)
    if stamp.is_file() and stamp.read_text() == wanted:
        compile_ours()
        return
    began = time.monotonic()
    if not usable():
        if Path(sys.prefix).resolve() == VENV.resolve():  # it was moved here, or is damaged: use what it came from
            os.execv(sys._base_executable, [sys._base_executable, *sys.argv])  # type: ignore[attr-defined]
        step(f"Python {sys.version.split()[0]}: making {VENV.relative_to(ROOT)}")
        make_venv()
    pip = [str(PYTHON), "-m", "pip", "--disable-pip-version-check", "install", "-qq"]
    subprocess.run([*pip, "--only-binary", ":all:", "-r", str(BOOTSTRAP)], check=True)
    environment = uv_environment()
    step(f"installing {', '.join(lock.name for lock in locks)}")
    uv = [str(VENV / "bin" / "uv"), "pip", "install", "--python", str(PYTHON)]
    requirements = [argument for lock in locks for argument in ("-r", str(lock))]
    subprocess.run(
        [*uv, "--quiet", "--no-build", "--compile-bytecode", *requirements], env=environment, check=True
    )
    step("installing this checkout (the command .venv/bin/bridge)")
    editable = ["--quiet", "--no-deps", "--no-build-isolation", "--reinstall", "--editable", str(ROOT)]
    subprocess.run([*uv, *editable], env=environment, check=True)
    compile_ours()
    stamp.write_text(wanted)
    step(f"done in {time.monotonic() - began:.0f} s")


def fingerprint(locks: list[Path]) -> str:
    """Changes when anything does that the environment was made from."""
    digest = hashlib.sha256()
    for file in (*locks, BOOTSTRAP, ROOT / "pyproject.toml", Path(__file__)):
        digest.update(file.read_bytes() + b"\0")
    return f"{ROOT} {'.'.join(map(str, sys.version_info[:3]))} {digest.hexdigest()}\n"


def usable() -> bool:
    """Whether `.venv` works, was made at this path (its scripts name it) and by this minor version of Python."""
    if not PYTHON.exists():
        return False
    code = "import sys, pip, sysconfig; print(*sys.version_info[:2], sysconfig.get_path('scripts'), end='')"
    probe = subprocess.run([str(PYTHON), "-c", code], capture_output=True, text=True, check=False)
    wanted = [*map(str, sys.version_info[:2]), str(VENV / "bin")]
    scripts = [script for script in (VENV / "bin").glob("pip*") if str(PYTHON) in script.read_text()]
    return probe.stdout.split(maxsplit=2) == wanted and bool(scripts)


def make_venv() -> None:
    """A fresh environment with pip in it, from the wheel beside this script: Debian keeps Python's own copy in a
    package of its own (python3.x-venv), which may be missing."""
    shutil.rmtree(VENV, ignore_errors=True)
    venv.create(VENV, symlinks=True)
    # Pip runs straight from the archive.
    wheel = next((ROOT / "scripts" / "wheels").glob("pip-*.whl"))
    subprocess.run([str(PYTHON), str(wheel / "pip"), "install", "-qq", "--no-index", str(wheel)], check=True)


def uv_environment() -> dict[str, str]:
    """The process's environment with pip's configuration said in uv's words; what is said to uv itself wins."""
    listing = subprocess.run(
        [str(PYTHON), "-m", "pip", "--disable-pip-version-check", "config", "list"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    return {**uv_settings(pip_settings(listing)), **os.environ, "VIRTUAL_ENV": str(VENV)}


def pip_settings(listing: str) -> dict[str, str]:
    """`pip config list` as a mapping of option to value. Weakest first: global, install, environment (`:env:`)."""
    found: dict[str, dict[str, str]] = {"global": {}, "install": {}, ":env:": {}}
    for line in listing.splitlines():
        key, _, value = line.partition("=")
        section, _, option = key.rpartition(".")
        if section in found:
            found[section][option] = value.strip("'\"")
    return {**found["global"], **found["install"], **found[":env:"]}


def uv_settings(pip: Mapping[str, str]) -> dict[str, str]:
    """uv's environment variables for pip's options. Like pip, it asks all indexes and takes the best match."""
    words = {option: " ".join(value.replace("\\n", " ").split()) for option, value in pip.items()}
    settings = {"UV_INDEX_STRATEGY": "unsafe-best-match", "UV_HTTP_TIMEOUT": words.get("timeout", "120")}
    for option, variable in (
        ("index-url", "UV_DEFAULT_INDEX"),
        ("extra-index-url", "UV_INDEX"),
        ("find-links", "UV_FIND_LINKS"),
        ("trusted-host", "UV_INSECURE_HOST"),
        ("cert", "SSL_CERT_FILE"),
        ("client-cert", "SSL_CLIENT_CERT"),
        ("proxy", "ALL_PROXY"),
        ("keyring-provider", "UV_KEYRING_PROVIDER"),
    ):
        if words.get(option):
            settings[variable] = words[option]
    if "UV_FIND_LINKS" in settings:
        settings["UV_FIND_LINKS"] = settings["UV_FIND_LINKS"].replace(" ", ",")
    if words.get("no-index", "").lower() in {"1", "true", "yes", "on"}:
        settings["UV_NO_INDEX"] = "1"
    store = ssl.get_default_verify_paths()
    if "SSL_CERT_FILE" not in settings and (store.cafile or store.capath):
        settings["UV_SYSTEM_CERTS"] = "1"
    return settings


def compile_ours() -> None:
    """Byte-compile the package: also where PYTHONDONTWRITEBYTECODE keeps Python from doing so as it imports."""
    compileall.compile_dir(ROOT / "include" / "continuitybridge", quiet=1)


def step(text: str) -> None:
    print(f"setup: {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
