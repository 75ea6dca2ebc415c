"""A pytest plugin that tries mutants: pytest runs as ever until its fixtures of the session stand, then each
mutant gets a fork of this process, with its function changed in place, a fresh copy of the database and the tests
that go through the changed lines, quickest first, until one fails.

So starting Python, importing, collecting and starting servers are paid for once. What a mutant left in the
database or in files is gone before the next. Tests that look at a process they start see no mutant in it.
"""

from __future__ import annotations

import ast
import contextlib
import gc
import hashlib
import json
import os
import re
import shutil
import signal
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import coverage
import pytest
from _pytest.runner import runtestprotocol
from becoming import Live, NotImportable, become
from mutants import PACKAGE, Mutant

KILLED, SURVIVED, TIMEOUT, UNSEEN = "killed", "survived", "timeout", "unseen"
BROKEN = 3
TEST_BUDGET_S = 12.0
"""So much of the covering tests' time a mutant is given (by their time without a mutant)."""
SLOWER = 3.0
SPARE_S = 8.0
"""A mutant that takes so many times as long as its tests did, and that much more, hangs: it is killed."""
STILL_S = 5.0
"""A process that does not get on for so long was halted: what its tests waited for meanwhile tells nothing."""


class Halted(Exception):
    """All stood still while a child was at work, as when a machine sleeps: it is to be tried again."""


class Trial:
    """`wanted`: the mutants to try, of `files`. `memory`: fates and the tests' coverage, kept as JSON. `anew`:
    fixtures of the session that each mutant makes for itself, as a server in a thread, which no fork has."""

    def __init__(
        self, wanted: list[Mutant], files: list[str], memory: Path, until: float, anew: Collection[str] = ()
    ) -> None:
        self._anew = anew
        self._to_finish: list[tuple[Any, Any]] = []
        self._wanted = wanted
        self._memory = memory
        self._until = until
        self._files = files
        self.fates: dict[str, dict[str, Any]] = {}
        self.finished = False
        self._lines: dict[str, dict[str, list[int]]] = {}
        self._seconds: dict[str, float] = {}
        self._server: Any = None
        self._controlled = False
        self._others: dict[str, dict[str, Any]] = {}
        """Fates of mutants that are not wanted now."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        items = {item.nodeid: item for item in session.items}
        if not self._stand(session, items):
            return True
        session._setupstate.teardown_exact(session)  # type: ignore[attr-defined,arg-type]
        for fixture, request in reversed(self._to_finish):
            fixture.finish(request)
        place = self._place()
        gc.collect()
        live = Live()
        gc.freeze()
        if failed := self._control(items, place, live):
            print("\nfails in a fork without a mutant:", failed, file=sys.__stderr__)
            return True
        tried = 0
        for mutant in self._wanted:
            if mutant.id in self.fates:
                continue
            if time.monotonic() > self._until:
                self._keep()
                return True
            self.fates[mutant.id] = self._tried(mutant, items, place, live)
            tried += 1
            if tried % 20 == 0:
                self._keep()
        self._keep()
        self.finished = True
        return True

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any, request: Any) -> Any:
        made = yield
        if fixturedef.argname in self._anew:
            self._to_finish.append((fixturedef, request))
        if fixturedef.argname == "postgres":
            self._server = made
        return made

    def _place(self) -> Place:
        from continuitybridge.database import connections

        connections.close_pools()
        server = self._server
        return Place(server and server.admin_url, server and server.data_dir.parent)

    # What stands without a mutant.

    def _stand(self, session: pytest.Session, items: Mapping[str, pytest.Item]) -> bool:
        """Run the tests as they are; which lines each goes through is kept for as long as nothing changed."""
        tests = sorted({item.path for item in items.values()})
        sources = [Path(__file__), *(PACKAGE / file for file in self._files), *tests]
        state = _digest(sources)
        kept = json.loads(self._memory.read_text()) if self._memory.exists() else {}
        known = kept.get("state") == state and set(kept["seconds"]) == set(items)
        self._controlled = known and bool(kept.get("controlled"))
        if known:
            self._lines, self._seconds = kept["lines"], kept["seconds"]
            quickest: dict[object, pytest.Item] = {}
            for item in sorted(items.values(), key=lambda item: -self._seconds[item.nodeid]):
                for each in (item.path, *_of_session(item)):
                    quickest[each] = item
            to_run = [item for item in items.values() if item in quickest.values()]
        else:
            to_run = list(items.values())
        self._recall(kept, state)
        files = [str(PACKAGE / file) for file in self._files]
        watch = coverage.Coverage(data_file=None, include=files, config_file=False, messages=False)
        if not known:
            watch.start()
        failed = []
        awake = Awake()
        for at, item in enumerate(to_run):
            began = awake.now()
            if not known:
                watch.switch_context(item.nodeid)
            following = to_run[at + 1] if at + 1 < len(to_run) else session
            if failure := _failure(item, following):
                failed.append(failure)
            self._seconds.setdefault(item.nodeid, awake.now() - began)
        awake.stop()
        if not known:
            watch.stop()
            self._lines = _contexts(watch, items)
        if failed:
            print("\nthese fail without a mutant:", *failed, sep="\n  ", file=sys.__stderr__)
            return False
        self._state = state
        self._keep()
        return True

    def _recall(self, kept: Mapping[str, Any], state: str) -> None:
        """A mutant that was killed stays so while its file is the same; others are tried again for other tests."""
        digests = {file: _digest([PACKAGE / file]) for file in self._files}
        same = kept.get("state") == state
        wanted = {each.id for each in self._wanted}
        for name, fate in kept.get("fates", {}).items():
            if fate["source"] == digests.get(name.partition(":")[0]) and (
                same or fate["fate"] in (KILLED, TIMEOUT)
            ):
                (self.fates if name in wanted else self._others)[name] = fate
        self._digests = digests

    def _keep(self) -> None:
        self._memory.parent.mkdir(parents=True, exist_ok=True)
        fresh = self._memory.with_suffix(".new")
        fresh.write_text(
            json.dumps(
                {
                    "state": self._state,
                    "controlled": self._controlled,
                    "lines": self._lines,
                    "seconds": self._seconds,
                    "fates": self._others | self.fates,
                }
            )
        )
        fresh.replace(self._memory)

    def _control(self, items: Mapping[str, pytest.Item], place: Place, live: Live) -> str:
        """Which test fails in a process as a mutant's, without a mutant: it would make mutants seem killed."""
        if self._controlled:
            return ""
        in_order = [items[name] for name in sorted(items, key=lambda name: self._seconds[name])]
        limit = SPARE_S + SLOWER * sum(self._seconds[name] for name in items)
        while True:
            place.renew()
            with contextlib.suppress(Halted):
                _, failed = _forked(None, in_order, live, limit)
                break
        self._controlled = not failed
        self._keep()
        return failed

    # One mutant.

    def _tried(self, mutant: Mutant, items: Mapping[str, pytest.Item], place: Place, live: Live) -> dict[str, Any]:
        began = time.monotonic()
        chosen = [items[name] for name in self._covering(mutant)]
        told: dict[str, Any] = {"source": self._digests[mutant.file]}
        if not chosen:
            return {**told, "fate": UNSEEN}
        limit = SPARE_S + SLOWER * sum(self._seconds[item.nodeid] for item in chosen)
        while True:
            place.renew()
            with contextlib.suppress(Halted):
                status, by = _forked(mutant, chosen, live, limit)
                break
        if status is not None and os.waitstatus_to_exitcode(status) == BROKEN:
            raise RuntimeError(f"{mutant.id} ({mutant.change}): {by}")
        fate = TIMEOUT if status is None else SURVIVED if status == 0 else KILLED
        return {**told, "fate": fate, "by": by.partition("\n")[0], "s": round(time.monotonic() - began, 2)}

    def _covering(self, mutant: Mutant) -> list[str]:
        if mutant.function == "":
            # A value of the module: before all others come the tests that go where its name stands.
            found = [name for name, by_file in self._lines.items() if mutant.file in by_file]
            near = {name for file, lines in self._naming(mutant).items() for name in self._through(file, lines)}
        else:
            lines = range(mutant.first, mutant.last + 1)
            body = range(mutant.body[0], mutant.body[1] + 1)
            found = self._through(mutant.file, body if mutant.in_head else lines)
            near = set()
        spent, chosen = 0.0, []
        for name in sorted(self._in_turn([*found, *(near - set(found))]), key=lambda name: name not in near):
            spent += self._seconds[name]
            if chosen and spent > TEST_BUDGET_S:
                break
            chosen.append(name)
        return chosen

    def _naming(self, mutant: Mutant) -> dict[str, list[int]]:
        """Lines of the target's files that have the name of the mutant's value in them."""
        statement = next(
            each
            for each in ast.parse((PACKAGE / mutant.file).read_text()).body
            if each.lineno <= mutant.first <= (each.end_lineno or 0)
        )
        named = [
            each.id
            for each in ast.walk(statement)
            if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)
        ]
        name = re.compile(rf"\b({'|'.join(named)})\b")
        return {
            file: [
                at
                for at, line in enumerate((PACKAGE / file).read_text().splitlines(), 1)
                if named and name.search(line)
            ]
            for file in self._files
        }

    def _in_turn(self, names: list[str]) -> list[str]:
        """Quickest first; of a test with many cases one, and each further one behind those of all the others."""
        cases: Counter[str] = Counter()
        turns: dict[str, int] = {}
        for name in sorted(names, key=lambda name: self._seconds[name]):
            test = name.partition("[")[0]
            turns[name] = cases[test]
            cases[test] += 1
        return sorted(turns, key=lambda name: turns[name])

    def _through(self, file: str, lines: Collection[int]) -> list[str]:
        return [
            name for name, by_file in self._lines.items() if any(line in lines for line in by_file.get(file, ()))
        ]


class Awake:
    """A clock that stands still when all does, as when a machine sleeps: no test takes longer for that."""

    def __init__(self) -> None:
        self._over = threading.Event()
        self._halted_s = 0.0
        self._ticked = time.monotonic()
        self._thread = threading.Thread(target=self._tick, daemon=True)
        self._thread.start()

    def _tick(self) -> None:
        while not self._over.wait(0.2):
            now = time.monotonic()
            if now - self._ticked > STILL_S:
                self._halted_s += now - self._ticked
            self._ticked = now

    def now(self) -> float:
        """Seconds, of which only differences tell something."""
        time_s = time.monotonic() - self._halted_s
        # Halted just now, and the thread has not seen it yet.
        return time_s if time.monotonic() - self._ticked < STILL_S else self._ticked - self._halted_s

    def stop(self) -> None:
        """Before anything forks."""
        self._over.set()
        self._thread.join()


class Place:
    """The session's database and directory, as they were when its fixtures stood."""

    def __init__(self, url: str | None, state_dir: Path | None) -> None:
        self._url = url
        self._state_dir = state_dir
        if url is None or state_dir is None:
            return
        self._kept = state_dir.with_name(f"{state_dir.name}-kept")
        # What a test left listening is in the way of a copy, and would come again.
        self._execute(
            f"ALTER DATABASE {_DATABASE} ALLOW_CONNECTIONS false",
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{_DATABASE}'",
            "DROP DATABASE IF EXISTS kept",
            f"CREATE DATABASE kept TEMPLATE {_DATABASE}",
            f"ALTER DATABASE {_DATABASE} ALLOW_CONNECTIONS true",
        )
        shutil.copytree(state_dir, self._kept, ignore=shutil.ignore_patterns("postgres", "*.sock*"))

    def renew(self) -> None:
        if self._url is None or self._state_dir is None:
            return
        self._execute(
            f"DROP DATABASE IF EXISTS {_DATABASE} WITH (FORCE)",
            f"CREATE DATABASE {_DATABASE} TEMPLATE kept STRATEGY FILE_COPY",
        )
        for each in self._state_dir.iterdir():
            if each.name != "postgres" and ".sock" not in each.name:
                shutil.rmtree(each) if each.is_dir() else each.unlink()
        shutil.copytree(self._kept, self._state_dir, dirs_exist_ok=True)

    def _execute(self, *statements: str) -> None:
        import psycopg

        from continuitybridge.database import bootstrap

        with psycopg.connect(self._url or "", autocommit=True, dbname="postgres") as connection:
            for statement in statements:
                connection.execute(statement)  # type: ignore[call-overload]
            bootstrap._grant_database(connection)


_DATABASE = "continuitybridge"


def _failure(item: pytest.Item, following: Any) -> str:
    """Run a test; its name, and how it failed in some words, or "" when it did not."""
    reports = runtestprotocol(item, log=False, nextitem=following)
    failed = next((each for each in reports if each.failed), None)
    return "" if failed is None else f"{item.nodeid}\n{failed.longreprtext[-600:]}"


def _forked(
    mutant: Mutant | None, chosen: list[pytest.Item], live: Live, limit_s: float
) -> tuple[int | None, str]:
    """How a process ended that was the mutant, None when it had to be killed; and the test that failed. Raises
    `Halted`."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _be(mutant, chosen, live, writing)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        status = _waited(child, limit_s)
        return (status, pipe.read()) if status is not None else (None, "it took too long")


def _be(mutant: Mutant | None, chosen: list[pytest.Item], live: Live, writing: int) -> None:
    """In the child: be the mutant, and end with 1 when a test fails."""
    os.setsid()
    code = 0
    try:
        for cache in live.caches:
            cache.cache_clear()
        if mutant is not None:
            become(mutant, live)
    except NotImportable:
        os.write(writing, b"import")
        os._exit(1)
    except BaseException as error:
        os.write(writing, f"{type(error).__name__}: {error}"[:500].encode())
        os._exit(BROKEN)
    try:
        for at, item in enumerate(chosen):
            following = chosen[at + 1] if at + 1 < len(chosen) else item.session
            if failure := _failure(item, following):
                os.write(writing, failure.encode())
                code = 1
                break
    except BaseException as error:
        os.write(writing, f"{type(error).__name__}: {error}"[:500].encode())
        code = 1
    finally:
        os._exit(code)


def _waited(child: int, limit_s: float) -> int | None:
    """How a child ended; None when it had to be killed. Raises `Halted`."""
    now = time.monotonic()
    deadline = now + limit_s
    pause = 0.005
    halted = False
    while now < deadline and not halted:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            _end(child)
            return status
        time.sleep(pause)
        pause = min(pause * 1.2, 0.1)
        before, now = now, time.monotonic()
        halted = now - before > STILL_S
    _end(child)
    os.waitpid(child, 0)
    if halted:
        raise Halted
    return None


def _end(group: int) -> None:
    """What the child started goes with it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def _of_session(item: pytest.Item) -> list[object]:
    """The fixtures of the session that it asks for."""
    asked = item._fixtureinfo.name2fixturedefs.values()  # type: ignore[attr-defined]
    return [each[-1] for each in asked if each[-1].scope == "session"]


def _contexts(watch: coverage.Coverage, items: Mapping[str, pytest.Item]) -> dict[str, dict[str, list[int]]]:
    found: dict[str, dict[str, list[int]]] = defaultdict(dict)
    data = watch.get_data()
    for file in data.measured_files():
        short = str(Path(file).relative_to(PACKAGE))
        for line, contexts in data.contexts_by_lineno(file).items():
            for each in contexts:
                if each in items:
                    found[each].setdefault(short, []).append(line)
    return found


def _digest(files: list[Path]) -> str:
    found = hashlib.sha256()
    for file in files:
        found.update(file.read_bytes())
    return found.hexdigest()[:16]
