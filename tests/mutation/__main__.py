"""Change the code that guards something, line by line, and count the changes that no test notices (mutmut).

`python tests/mutation [MODULE…]` (make mutation ARGS=…): each module of `modules.yaml` in a copy of its own below
`.mutation`. Ends with 1 when fewer than 90 % of its mutants are killed. Survivors are listed; those that are meant
to live are explained in README.md beside this file.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / ".mutation"
LEAST_PERCENT = 90.0
COPIED = ("tests", "docs", "plugins", "dags", "include/examples", "scripts", "README.md")
TEXTS = (
    r"^\s*raise ",
    r"refused\(",
    r"log\.\w+\(",
    r"field=",
    r"^\s*f?\"[^\"]* [^\"]* [^\"]*\"",
    r"cast\(",
)
"""Lines that are not mutated: words for people, which no test holds to the letter."""
KILLED = {"killed", "timeout", "segfault"}
CONFIGURATION = """\
[tool.mutmut]
source_paths = ["src"]
only_mutate = {mutated}
also_copy = {copied}
do_not_mutate_patterns = {texts}
pytest_add_cli_args_test_selection = {tests}
pytest_add_cli_args = ["-q", "-x", "-p", "no:rerunfailures", "-p", "no:cacheprovider", "-p", "no:xdist"]

[tool.pytest.ini_options]
asyncio_mode = "auto"
markers = ["flaky"]
timeout = 60
"""


def main() -> int:
    modules: dict[str, dict[str, list[str]]] = yaml.safe_load((ROOT / "tests/mutation/modules.yaml").read_text())
    wanted = sys.argv[1:] or list(modules)
    if unknown := set(wanted) - modules.keys():
        raise SystemExit(f"mutation: no module {', '.join(sorted(unknown))}; there are {', '.join(modules)}")
    enough = [tried(name, modules[name]) for name in wanted]
    return 0 if all(enough) else 1


def tried(name: str, module: dict[str, list[str]]) -> bool:
    """Mutate a module and print what became of its mutants; whether enough of them were killed."""
    place = prepared(name, module)
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("BRIDGE_", "AIRFLOW_"))}
    mutmut = [sys.executable, "-m", "mutmut"]
    children = str(os.cpu_count() or 1)
    run = subprocess.run([*mutmut, "run", "--max-children", children], cwd=place, env=environment, check=False,
                         stdout=(place / "log").open("w"), stderr=subprocess.STDOUT)  # fmt: skip
    listed = subprocess.run([*mutmut, "results", "--all", "true"], cwd=place, env=environment, check=False,
                            capture_output=True, text=True).stdout  # fmt: skip
    fates = dict(line.strip().rsplit(": ", 1) for line in listed.splitlines() if ": " in line)
    return reported(name, fates, place, run.returncode)


def prepared(name: str, module: dict[str, list[str]]) -> Path:
    """A fresh copy of the package and its tests, configured for mutmut (which wants the package below `src`)."""
    place = WORK / name
    shutil.rmtree(place, ignore_errors=True)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "include" / "continuitybridge", place / "src" / "continuitybridge", ignore=ignored)
    for each in COPIED:
        source = ROOT / each
        (shutil.copy if source.is_file() else shutil.copytree)(source, _parent(place / each))
    settings: dict[str, Any] = {
        "mutated": [f"src/continuitybridge/{pattern}" for pattern in module["mutate"]],
        "copied": [each for each in COPIED if each != "tests"],
        "tests": module["tests"],
        "texts": list(TEXTS),
    }
    # A list in JSON is one in TOML.
    written = {key: json.dumps(value) for key, value in settings.items()}
    (place / "pyproject.toml").write_text(CONFIGURATION.format(**written))
    return place


def _parent(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def reported(name: str, fates: dict[str, str], place: Path, code: int) -> bool:
    counted = Counter(fates.values())
    killed = sum(counted[fate] for fate in KILLED)
    if not fates or counted["not checked"]:
        print(f"{name}: mutmut ended with {code}, {counted['not checked']} mutants not tried: see {place / 'log'}")
        return False
    percent = 100 * killed / len(fates)
    print(f"{name}: {killed} of {len(fates)} mutants killed, {percent:.1f} % ({dict(counted)})", flush=True)
    for mutant, fate in sorted(fates.items()):
        if fate not in KILLED:
            print(f"  {fate}: {mutant}")
    return percent >= LEAST_PERCENT


if __name__ == "__main__":
    sys.exit(main())
