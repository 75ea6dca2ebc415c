"""Ask for known vulnerabilities of the installed packages (pip-audit, OSV). Run by `make lint`.

Ends with 1 when one is known that `advisories.yaml` does not accept, or accepts until a day that has passed. When
the advisory service cannot be reached it says so, loudly, and ends with 0: a build behind a wall is not broken.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import yaml

SERVICE = "https://api.osv.dev/v1/query"
ACCEPTED = Path(__file__).with_name("advisories.yaml")
PROBE = json.dumps({"package": {"name": "pip", "ecosystem": "PyPI"}, "version": "0"}).encode()


def main() -> int:
    parser = argparse.ArgumentParser(description="Known vulnerabilities of the installed packages.")
    parser.add_argument("--service", default=SERVICE, help="address of the OSV query")
    parser.add_argument("--path", help="directory of packages in place of this environment's")
    parser.add_argument("--accepted", type=Path, default=ACCEPTED, help="file of the accepted ones")
    given = parser.parse_args()
    accepted = read_accepted(given.accepted)
    if (reason := unreachable(given.service)) is not None:
        return skipped(given.service, reason)
    where = ["--path", given.path] if given.path else ["--local", "--skip-editable"]
    done = subprocess.run(
        [sys.executable, "-m", "pip_audit", "--vulnerability-service", "osv", "--osv-url", given.service,
         "--format", "json", "--progress-spinner", "off", "--timeout", "10", *where],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    try:
        report = json.loads(done.stdout)
    except ValueError:
        if (reason := unreachable(given.service)) is not None:
            return skipped(given.service, reason)
        print(f"advisories: pip-audit failed\n{done.stderr[-2000:]}", file=sys.stderr)
        return 1
    return judged(report["dependencies"], accepted)


def read_accepted(file: Path) -> dict[str, dict[str, Any]]:
    """The accepted advisories by id; each has a `why` and a day `until` which it holds."""
    entries = yaml.safe_load(file.read_text()) or []
    for entry in entries:
        if set(entry) != {"id", "why", "until"} or not isinstance(entry["until"], datetime.date):
            raise SystemExit(f"advisories: {file}: an entry has id, why and until (a day), not {entry}")
    return {entry["id"]: entry for entry in entries}


def unreachable(service: str) -> str | None:
    """Why the service does not answer; None when it does. What it refuses (4xx) is an answer."""
    request = urllib.request.Request(service, PROBE, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=5):
            return None
    except urllib.error.HTTPError as error:
        return f"it answered {error.code}" if error.code >= 500 else None
    except OSError as error:
        return str(getattr(error, "reason", error))


def skipped(service: str, reason: str) -> int:
    print(
        "*" * 100,
        f"advisories: SKIPPED. {service} cannot be reached: {reason}.",
        "Nobody looked for known vulnerabilities of the packages. Run make lint where the network allows it.",
        "*" * 100,
        sep="\n", file=sys.stderr,
    )  # fmt: skip
    return 0


def judged(packages: list[dict[str, Any]], accepted: dict[str, dict[str, Any]]) -> int:
    today, bad, used = datetime.datetime.now(datetime.UTC).date(), 0, set()
    for package in packages:
        for found in package.get("vulns", ()):
            names = {found["id"], *found.get("aliases", ())}
            entry = next((accepted[name] for name in sorted(names & accepted.keys())), None)
            if entry is not None:
                used.add(entry["id"])
                if entry["until"] >= today:
                    continue
            fixed = ", ".join(found["fix_versions"]) or "no version"
            late = f"; it was accepted until {entry['until']}" if entry else ""
            print(f"advisories: {package['name']} {package['version']}: {found['id']} (fixed in: {fixed}){late}")
            bad += 1
    for name in sorted(accepted.keys() - used):
        print(f"advisories: {name} is accepted and no longer there: remove it")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
