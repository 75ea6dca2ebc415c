"""Airflow's own code without a server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from uuid import UUID

import pytest

from continuitybridge.airflow import source as sources
from continuitybridge.airflow.source import DagSource
from continuitybridge.deployments import Deployed
from continuitybridge.flows.load import load_flow
from continuitybridge.flows.plan import compile_flow

Stored = Callable[..., Path]


@pytest.fixture(scope="session")
def compiler() -> ModuleType:
    """The DAG compiler; imported here, because that imports Airflow, which takes seconds."""
    from continuitybridge.airflow import compiler as module

    return module


@pytest.fixture
def stored(tmp_path: Path) -> Stored:
    """Stores what a deploy of a flow's text stores, in the layout of the DAG bundle; gives the file's path."""

    def store(text: str, *, status: str = "active") -> Path:
        flow = load_flow(text, name="flow.yaml").flow
        deployed = Deployed(
            organization_id=UUID(int=1),
            organization="acme",
            organization_name="Acme | *Ltd*",
            environment="prod",
            flow=flow.name,
            version=flow.version,
            revision=7,
            status=status,
            description=flow.description,
            labels=flow.labels,
            deployed_by="somebody",
            plan=compile_flow(flow),
        )
        directory = tmp_path / "sources"
        directory.mkdir(exist_ok=True)
        path = directory / f"{deployed.dag_id}.json"
        path.write_bytes(sources.dump(deployed))
        return path

    return store


@pytest.fixture
def source(stored: Stored) -> Callable[..., DagSource]:
    """The DAG source of a flow's text."""

    def read(text: str, *, status: str = "active") -> DagSource:
        return sources.load(stored(text, status=status))

    return read
