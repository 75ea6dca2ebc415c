"""Deployments become files that Airflow reads."""

from __future__ import annotations

import os
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from continuitybridge import deployments, lifecycle
from continuitybridge.flows.load import load_flow
from continuitybridge.organizations import Organization

FLOW = """\
flow: {name}
version: {version}
triggers:
  - {{id: by-hand, type: manual_trigger}}
steps:
  - {{id: note, type: logger, config: {{message: "{text}"}}}}
"""


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A bundle of its own directory, as one machine has it."""
    from continuitybridge.airflow import bundle as module

    # What Airflow shows of a DAG stands in its own tables, and the system tests ask those.
    monkeypatch.setattr(module, "_stale", lambda flows: False)
    return new_bundle(tmp_path)


def new_bundle(directory: Path) -> Any:
    from airflow.configuration import conf

    from continuitybridge.airflow.bundle import FlowBundle

    conf.set("dag_processor", "dag_bundle_storage_path", str(directory))
    return FlowBundle(name="flows", refresh_interval=1)


def deploy(organization: Organization, name: str, version: str = "1.0.0", text: str = "x") -> None:
    flow = load_flow(FLOW.format(name=name, version=version, text=text), name=f"{name}.flow.yaml")
    deployments.deploy(organization.organization_id, "prod", flow, "test")


def files(bundle: Any, organization: Organization) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(bundle.path.glob(f"{organization.slug}.*.py"))}


def test_an_environment_whose_flows_ask_people_has_a_dag_of_approvals(
    bundle: Any, make_organization: Callable[[], Organization]
) -> None:
    organization = make_organization()
    name = f"{organization.slug}.prod.approvals.py"
    deploy(organization, "first")
    bundle.refresh()
    assert name not in files(bundle, organization)
    asking = FLOW.replace(
        'note, type: logger, config: {{message: "{text}"}}', "note, type: approval, next: {next}"
    )
    text = asking.format(name="asks", version="1.0.0", next="{approved: end, rejected: end}")
    deployments.deploy(organization.organization_id, "prod", load_flow(text), "test")
    bundle.refresh()
    written = files(bundle, organization)[name]
    assert f'build_approvals_dag("{organization.organization_id}", "{organization.slug}", "prod")' in written
    dag = runpy.run_path(str(bundle.path / name))[f"{organization.slug}.prod._approvals"]
    assert [(task.task_id, task.options) for task in dag.tasks] == [("decide", ["Approve", "Reject"])]
    deployments.set_status(organization.organization_id, "prod", "asks", "remove", "test")
    bundle.refresh()
    assert name not in files(bundle, organization)


def test_a_deploy_writes_a_file_that_names_the_flow_and_its_source_beside_it(
    bundle: Any, make_organization: Callable[[], Organization]
) -> None:
    organization = make_organization()
    deploy(organization, "first")
    bundle.refresh()
    dag_id = f"{organization.slug}.prod.first"
    [(name, text)] = files(bundle, organization).items()
    assert name == f"{organization.slug}.prod.1.py"
    assert f'"{dag_id}": "' in text
    assert (bundle.sources / f"{dag_id}.json").exists()


def test_only_what_changed_is_written_again(bundle: Any, make_organization: Callable[[], Organization]) -> None:
    mine, other = make_organization(), make_organization()
    deploy(mine, "first")
    deploy(other, "first")
    bundle.refresh()
    before = {path: path.stat().st_mtime_ns for path in bundle.path.iterdir() if path.suffix == ".py"}
    deploy(mine, "first", "1.1.0", "y")
    bundle.refresh()
    changed = {path.name for path, at in before.items() if path.stat().st_mtime_ns != at}
    assert changed == {f"{mine.slug}.prod.1.py"}


def test_rolling_back_gives_the_file_as_it_was(bundle: Any, make_organization: Callable[[], Organization]) -> None:
    organization = make_organization()
    deploy(organization, "first")
    bundle.refresh()
    before = files(bundle, organization)
    deploy(organization, "first", "1.1.0", "y")
    bundle.refresh()
    assert files(bundle, organization) != before
    deployments.rollback(organization.organization_id, "prod", "first", "test")
    bundle.refresh()
    assert files(bundle, organization) == before


def test_a_flow_stays_in_its_file_whatever_comes_and_goes(
    bundle: Any, make_organization: Callable[[], Organization]
) -> None:
    organization = make_organization()
    names = [f"flow-{number:02d}" for number in range(53, 0, -1)]
    for name in names:
        deploy(organization, name)
    bundle.refresh()

    def places() -> dict[str, str]:
        found = files(bundle, organization)
        return {name: file for name in names for file, text in found.items() if f'.prod.{name}"' in text}

    before = places()
    assert sorted(set(before.values())) == [f"{organization.slug}.prod.{n}.py" for n in (1, 2)]
    assert sum(file.endswith(".1.py") for file in before.values()) == 50
    deployments.set_status(organization.organization_id, "prod", names[0], "remove", "test")
    deploy(organization, "a-new-one")
    bundle.refresh()
    after = places()
    assert names[0] not in after
    assert after == {name: file for name, file in before.items() if name != names[0]}


def test_a_removed_flow_leaves_nothing(bundle: Any, make_organization: Callable[[], Organization]) -> None:
    organization = make_organization()
    deploy(organization, "first")
    bundle.refresh()
    deployments.set_status(organization.organization_id, "prod", "first", "remove", "test")
    bundle.refresh()
    assert files(bundle, organization) == {}
    assert not (bundle.sources / f"{organization.slug}.prod.first.json").exists()


def test_a_machine_that_comes_later_has_the_same_files(
    bundle: Any, make_organization: Callable[[], Organization], tmp_path: Path
) -> None:
    organization = make_organization()
    for number in range(3):
        deploy(organization, f"flow-{number}")
        bundle.refresh()
    deployments.set_status(organization.organization_id, "prod", "flow-1", "remove", "test")
    bundle.refresh()
    elsewhere = new_bundle(tmp_path / "elsewhere")
    elsewhere.initialize()
    assert files(elsewhere, organization) == files(bundle, organization)


def test_a_worker_beside_the_dag_processor_asks_no_database(
    bundle: Any, make_organization: Callable[[], Organization], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    deploy(make_organization(), "first")
    bundle.refresh()
    from continuitybridge.airflow import bundle as module

    def fail() -> int:
        raise AssertionError("asked the database")

    monkeypatch.setattr(module, "newest_revision", fail)
    new_bundle(tmp_path).initialize()
    # A state that nobody touched for a while is looked after.
    state = bundle.base_dir / "state.json"
    os.utime(state, (0, 0))
    with pytest.raises(AssertionError, match="asked the database"):
        new_bundle(tmp_path).initialize()


def test_a_refresh_that_was_killed_half_way_is_made_up_for(
    bundle: Any, make_organization: Callable[[], Organization]
) -> None:
    organization = make_organization()
    deploy(organization, "first")
    bundle.refresh()
    whole = files(bundle, organization)
    state = (bundle.base_dir / "state.json").read_bytes()
    deploy(organization, "second")
    bundle.refresh()
    both = files(bundle, organization)
    # As after kill -9 before the state was written, and before the file was.
    (bundle.base_dir / "state.json").write_bytes(state)
    for name, text in whole.items():
        (bundle.path / name).write_text(text)
    bundle.refresh()
    assert files(bundle, organization) == both


def test_a_lost_state_is_built_anew(bundle: Any, make_organization: Callable[[], Organization]) -> None:
    organization = make_organization()
    deploy(organization, "first")
    bundle.refresh()
    before = files(bundle, organization)
    (bundle.base_dir / "state.json").write_text("{broken")
    bundle.refresh()
    assert files(bundle, organization) == before


def test_an_organization_that_is_deleted_leaves_no_file_even_where_nobody_looked_meanwhile(
    bundle: Any, tmp_path: Path, make_organization: Callable[[], Organization]
) -> None:
    mine, other = make_organization(), make_organization()
    for each in (mine, other):
        deploy(each, "first")
    bundle.refresh()
    elsewhere = new_bundle(tmp_path / "elsewhere")
    elsewhere.refresh()
    assert files(elsewhere, mine)
    lifecycle.request_deletion(mine.slug, confirm=mine.slug, with_export=False, by="test")
    bundle.refresh()
    assert not files(bundle, mine)
    lifecycle.work(mine.slug)
    deploy(other, "second")
    for each in (bundle, elsewhere):
        each.refresh()
        assert not files(each, mine)
        assert not list(each.sources.glob(f"{mine.slug}.*"))
        assert "second" in "".join(files(each, other).values())
    written = (bundle.base_dir / "state.json").stat().st_mtime_ns
    bundle._update()
    assert (bundle.base_dir / "state.json").stat().st_mtime_ns == written
