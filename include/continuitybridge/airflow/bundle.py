"""The DAG bundle that turns deployments into DAGs.

Every second `refresh` asks the database for deployments after the last revision seen and rewrites, atomically, the
generated files they concern: one per organization and environment, a further one after every 50 flows. A file
names its flows and their sources' fingerprints; the sources stand beside it, one JSON file per flow, so that a
task reads its own flow only.

Unversioned: Airflow's run of a message that began on an older flow version finds the DAG's newest tasks, and the
stage operator then finishes that message on its own version (see `stages`).
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from uuid import UUID

from airflow.dag_processing.bundles.base import BaseDagBundle

from continuitybridge import database
from continuitybridge.airflow import source as sources
from continuitybridge.airflow.compiler import SOURCES_DIR
from continuitybridge.deployments import Deployed, gone_since, list_since, newest_revision
from continuitybridge.nodes.control.approval import Approval

FLOWS_PER_FILE = 50
"""A change costs parsing its file: 50 flows of six nodes take half a second."""

TOUCH_AGAIN_S = 2.0
GIVE_UP_S = 60.0
"""How long a rewritten file is watched until Airflow has read it."""

KEPT_CURRENT_S = 5.0
"""A DAG processor that refreshes every second touched the state within this time."""

_STATE = "state.json"

_TEMPLATE = '''\
"""Generated from the deployments of {organization} in {environment}; changes made here are overwritten."""
# airflow dag
from continuitybridge.airflow.compiler import build_dags

globals().update(build_dags(__file__, {flows}))
'''

_APPROVALS_TEMPLATE = '''\
"""Generated from the deployments of {organization} in {environment}; changes made here are overwritten."""
# airflow dag
from continuitybridge.airflow.approvals import build_approvals_dag

globals().update(build_approvals_dag("{organization_id}", "{organization}", "{environment}"))
'''

_log = logging.getLogger(__name__)


class FlowBundle(BaseDagBundle):
    """DAGs of all deployed flows. `refresh` may be called by several processes at once (a lock file per machine);
    a crash in it leaves old files or new ones, and the next call goes on."""

    supports_versioning = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._seen: dict[str, dict[str, str]] | None = None
        self._unread: dict[str, _Rewritten] = {}

    @property
    def path(self) -> Path:
        return self.base_dir / "generated"

    @property
    def sources(self) -> Path:
        """Beside the path, not in it: Airflow looks into every file in there each second."""
        return self.base_dir / SOURCES_DIR

    def get_current_version(self) -> None:
        return None

    def initialize(self) -> None:
        """Also called in every task. On the machine of the DAG processor the files are current already; a worker
        elsewhere brings its own up to date."""
        if not self._kept_current():
            self._update()
        super().initialize()

    def refresh(self) -> None:
        """Bring the files up to date with the deployments, and see to it that Airflow reads them."""
        state = self._update()
        os.utime(self.base_dir / _STATE)
        self._watch(state["files"])

    def _kept_current(self) -> bool:
        try:
            return time.time() - (self.base_dir / _STATE).stat().st_mtime < KEPT_CURRENT_S
        except FileNotFoundError:
            return False

    def _update(self) -> dict[str, Any]:
        self.path.mkdir(parents=True, exist_ok=True)
        state = self._read_state()
        if newest_revision() != state["revision"] or not (self.base_dir / _STATE).exists():
            with self.lock():
                state = self._apply(self._read_state())
        return state

    def _apply(self, state: dict[str, Any]) -> dict[str, Any]:
        gone = gone_since(state["revision"])
        changed = list_since(state["revision"])
        for organization, _ in gone:
            self._remove_all(organization, state)
        if gone:
            state["revision"] = gone[-1][1]
        if not changed:
            self._write_state(state)
            return state
        places = _places({(each.organization_id, each.environment) for each in changed})
        flows: dict[str, dict[str, str]] = state["files"]
        touched = set()
        for deployed in changed:
            place = places.get((deployed.organization_id, deployed.environment, deployed.flow))
            if place is None:
                continue  # Its organization has just been deleted: see `_remove_all`.
            name = _file_name(deployed, place)
            path = self.sources / f"{deployed.dag_id}.json"
            content = flows.setdefault(name, {})
            if deployed.status == "removed":
                if content.pop(deployed.dag_id, None) is not None:
                    touched.add(name)
                continue
            text = sources.dump(deployed)
            mark = sources.fingerprint(text)
            if content.get(deployed.dag_id) != mark or not path.exists():
                _write(path, text)
                content[deployed.dag_id] = mark
                touched.add(name)
        for name in sorted(touched):
            self._write_file(name, flows[name])
        self._write_approvals(state.setdefault("approvals", {}), changed)
        state["revision"] = max(changed[-1].revision, state["revision"])
        self._write_state(state)
        for removed in (each for each in changed if each.status == "removed"):
            (self.sources / f"{removed.dag_id}.json").unlink(missing_ok=True)
        return state

    def _remove_all(self, organization: str, state: dict[str, Any]) -> None:
        """What is left of an organization that is gone, on a machine that did not see its flows removed."""
        for kept in (state["files"], state.setdefault("approvals", {})):
            for name in [each for each in kept if each.startswith(f"{organization}.")]:
                (self.path / name).unlink(missing_ok=True)
                del kept[name]
        for path in self.sources.glob(f"{organization}.*.json"):
            path.unlink(missing_ok=True)

    def _write_file(self, name: str, content: Mapping[str, str]) -> None:
        path = self.path / name
        if not content:
            path.unlink(missing_ok=True)
            return
        organization, environment, _ = name.split(".", 2)
        listed = "".join(f"    {json.dumps(dag)}: {json.dumps(mark)},\n" for dag, mark in sorted(content.items()))
        text = _TEMPLATE.format(
            organization=organization, environment=environment, flows=f"{{\n{listed}}}"
        ).encode()
        if not path.exists() or path.read_bytes() != text:
            _write(path, text)

    def _write_approvals(self, state: dict[str, list[str]], changed: Iterable[Deployed]) -> None:
        """A DAG of approvals for each environment with a flow that asks people. `state`: which flows those are."""
        for deployed in changed:
            name = f"{deployed.organization}.{deployed.environment}.approvals.py"
            asking = set(state.get(name, ()))
            asks = any(node.type == Approval.type for node in deployed.plan.nodes.values())
            if asks and deployed.status != "removed":
                asking.add(deployed.flow)
            else:
                asking.discard(deployed.flow)
            state[name] = sorted(asking)
            path = self.path / name
            if not asking:
                path.unlink(missing_ok=True)
            elif not path.exists():
                _write(
                    path,
                    _APPROVALS_TEMPLATE.format(
                        organization_id=deployed.organization_id,
                        organization=deployed.organization,
                        environment=deployed.environment,
                    ).encode(),
                )

    def _watch(self, files: dict[str, dict[str, str]]) -> None:
        """Airflow skips a file that changes while it is being read, until `min_file_process_interval` is over.
        So whatever it has not taken within two seconds is touched again."""
        if self._seen is not None:
            for name, flows in files.items():
                if flows != self._seen.get(name):
                    self._unread[name] = _Rewritten(flows)
        self._seen = files
        now = time.monotonic()
        for name, rewritten in list(self._unread.items()):
            if now - rewritten.touched_at < TOUCH_AGAIN_S:
                continue
            if now - rewritten.at > GIVE_UP_S or not _stale(rewritten.flows):
                del self._unread[name]
            elif (path := self.path / name).exists():
                rewritten.touched_at = now
                os.utime(path)

    def _write_state(self, state: dict[str, Any]) -> None:
        _write(self.base_dir / _STATE, json.dumps(state, sort_keys=True).encode())

    def _read_state(self) -> dict[str, Any]:
        try:
            state = json.loads((self.base_dir / _STATE).read_bytes())
        except (FileNotFoundError, ValueError):
            return {"format": sources.FORMAT, "revision": 0, "files": {}}
        if state.get("format") != sources.FORMAT:
            return {"format": sources.FORMAT, "revision": 0, "files": {}}
        return dict(state)


class _Rewritten:
    def __init__(self, flows: dict[str, str]) -> None:
        self.flows = flows
        self.at = self.touched_at = time.monotonic()


def _places(environments: Iterable[tuple[UUID, str]]) -> dict[tuple[UUID, str, str], int]:
    """Each flow's place, from 0, in the order in which its environment first saw it: it never changes, so a flow
    never moves to another file."""
    organizations, names = zip(*sorted(environments, key=str), strict=True)
    with database.relay() as connection:
        rows = connection.execute(
            "SELECT organization_id, environment, flow, row_number() OVER"
            " (PARTITION BY organization_id, environment ORDER BY min(revision)) - 1"
            " FROM bridge.deployment_history WHERE (organization_id, environment) IN"
            " (SELECT * FROM unnest(%s::uuid[], %s::text[])) GROUP BY 1, 2, 3",
            (list(organizations), list(names)),
        ).fetchall()
    return {(row[0], row[1], row[2]): row[3] for row in rows}


def _file_name(deployed: Deployed, place: int) -> str:
    return f"{deployed.organization}.{deployed.environment}.{place // FLOWS_PER_FILE + 1}.py"


def _stale(flows: Mapping[str, str]) -> bool:
    """Whether Airflow's newest version of any of these DAGs is made from another source."""
    from continuitybridge.airflow.visible import visible_dags

    visible = visible_dags(flows)
    return any(dag_id not in visible or visible[dag_id].fingerprint != mark for dag_id, mark in flows.items())


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_bytes(content)
    fresh.replace(path)
