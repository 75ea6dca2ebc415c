"""Look for secrets in the files of this repository (detect-secrets). Run by `make lint`.

Ends with 1 for what `leaks.yaml` does not explain, naming file and line, never the secret. `--explain WHY` adds
what was found to that file with this reason.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import yaml
from detect_secrets import SecretsCollection
from detect_secrets.core.potential_secret import PotentialSecret
from detect_secrets.settings import default_settings

ROOT = Path(__file__).resolve().parents[2]
EXPLAINED = Path(__file__).with_name("leaks.yaml")
NOT_READ = (".whl", ".png", ".ico", ".woff2", "requirements.txt", "requirements-dev.txt", "leaks.yaml")
INVENTED = {"Secret Keyword", "Basic Auth Credentials"}
"""Kinds that go by the words around a value. In tests a value after `password=` is made up for the test."""


def main() -> int:
    parser = argparse.ArgumentParser(description="Secrets in the files of this repository.")
    parser.add_argument("--explain", metavar="WHY", help="add what is found to leaks.yaml with this reason")
    parser.add_argument("files", nargs="*", help="these files in place of all")
    given = parser.parse_args()
    os.chdir(ROOT)
    entries = yaml.safe_load(EXPLAINED.read_text()) or []
    known = {(entry["file"], each) for entry in entries for each in entry["sha1"]}
    found = [
        each
        for each in scan(given.files or repository_files())
        if (each.filename, each.secret_hash) not in known
        and not (each.filename.startswith("tests/") and each.type in INVENTED)
    ]
    if given.explain:
        explain(found, given.explain)
        return 0
    for each in found:
        print(f"leaks: {each.filename}:{each.line_number}: {each.type}")
    if found:
        print("leaks: none of these? Then say why: python scripts/checks/leaks.py --explain WHY FILE")
    return 1 if found else 0


def repository_files() -> list[str]:
    """What git keeps; every file that is not hidden where there is no git."""
    listed = subprocess.run(["git", "ls-files", "-z"], capture_output=True, text=True, check=False)
    if listed.returncode == 0:
        names = [name for name in listed.stdout.split("\0") if name]
    else:
        names = [str(path) for path in Path().rglob("*") if path.is_file() and path.parts[0][0] != "."]
    return [name for name in names if not name.endswith(NOT_READ) and Path(name).is_file()]


def scan(files: list[str]) -> list[PotentialSecret]:
    collection = SecretsCollection()
    with default_settings():
        collection.scan_files(*files)
    return sorted((secret for _, secret in collection), key=lambda each: (each.filename, each.line_number))


def explain(found: list[PotentialSecret], why: str) -> None:
    by_file: dict[str, set[str]] = defaultdict(set)
    for each in found:
        by_file[each.filename].add(each.secret_hash)
    with EXPLAINED.open("a") as file:
        for name, hashes in sorted(by_file.items()):
            listed = "".join(f"\n    - {each}" for each in sorted(hashes))
            file.write(f"- file: {name}\n  why: {why}\n  sha1:{listed}\n")


if __name__ == "__main__":
    sys.exit(main())
