from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from continuitybridge import database, deployments
from continuitybridge.deployments import Deployment
from continuitybridge.errors import BridgeError, ConfigurationError, Conflict, NotFound
from continuitybridge.flows.load import load_flow
from continuitybridge.organizations import Organization
from continuitybridge.webhooks import endpoints

FLOW = """\
flow: {name}
version: {version}
description: Orders to the warehouse
labels: {{team: logistics}}
triggers:
  - id: order-in
    type: webhook_trigger
    config: {{slug: {slug}}}
steps:
  - id: parse
    type: json_parser
  - id: map
    type: jq
    config: {{program: '{program}'}}
"""


class Deployer:
    """Deploys variations of one flow as a person would: from a file."""

    def __init__(self, organization: Organization, directory: Path) -> None:
        self.organization = organization
        self.directory = directory

    def __call__(
        self,
        version: str = "1.0.0",
        *,
        program: str = ".",
        name: str = "orders",
        slug: str = "orders",
        environment: str = "dev",
    ) -> Deployment:
        file = self.directory / f"{name}-{version}.flow.yaml"
        file.write_text(FLOW.format(name=name, version=version, program=program, slug=slug))
        return deployments.deploy(self.organization.organization_id, environment, load_flow(file), "anna")


@pytest.fixture
def deploy(organization: Organization, tmp_path: Path) -> Deployer:
    return Deployer(organization, tmp_path)


def test_a_deploy_shows_its_secret_once_and_is_what_every_process_reads(
    deploy: Deployer, organization: Organization
) -> None:
    done = deploy()
    assert (done.version, done.status, done.changed) == ("1.0.0", "active", True)
    assert done.new_secrets["orders"].startswith("whsec_")
    assert done.new_secrets["orders"] not in repr(done)
    found = deployments.deployed(organization.slug, "dev", "orders")
    assert found.dag_id == f"{organization.slug}.dev.orders"
    assert (found.version, found.description, found.labels) == (
        "1.0.0",
        "Orders to the warehouse",
        {"team": "logistics"},
    )
    assert set(found.plan.nodes) == {"order-in", "parse", "map"}
    assert deployments.get_plan(organization.organization_id, "orders", "1.0.0") == found.plan


def test_deploying_the_same_again_changes_nothing(deploy: Deployer, organization: Organization) -> None:
    first, second = deploy(), deploy()
    assert (second.changed, second.revision, second.new_secrets) == (False, first.revision, {})
    assert len(deployments.history(organization.organization_id, "dev", "orders")) == 1


def test_comments_and_spacing_do_not_make_another_content(deploy: Deployer, organization: Organization) -> None:
    deploy()
    file = deploy.directory / "again.flow.yaml"
    text = FLOW.format(name="orders", version="1.0.0", program=".", slug="orders")
    file.write_text("# reviewed\n" + text.replace("\ntriggers", "\n\ntriggers"))
    assert not deployments.deploy(organization.organization_id, "dev", load_flow(file), "anna").changed


def test_other_content_under_an_existing_version_is_refused_with_the_difference(
    deploy: Deployer, organization: Organization
) -> None:
    deploy()
    with pytest.raises(Conflict) as refused:
        deploy(program=".order")
    assert "-    config: {program: '.'}" in refused.value.facts["diff"]
    assert "+    config: {program: '.order'}" in refused.value.facts["diff"]
    source, _ = deployments.version_source(organization.organization_id, "orders", "1.0.0")
    assert "'.'" in source


def test_the_database_itself_refuses_to_change_a_version(deploy: Deployer, organization: Organization) -> None:
    deploy()
    for statement in (
        "UPDATE bridge.flow_versions SET source = 'x'",
        "UPDATE bridge.flow_versions SET plan = '{}'",
        "DELETE FROM bridge.flow_versions",
    ):
        with pytest.raises(psycopg.Error), database.tenant(organization.organization_id) as connection:
            connection.execute(statement)
    assert len(deployments.versions(organization.organization_id, "orders")) == 1


def test_a_flow_with_problems_is_refused_whole(organization: Organization, tmp_path: Path) -> None:
    file = tmp_path / "bad.flow.yaml"
    file.write_text(FLOW.format(name="orders", version="1.0.0", program=".[", slug="orders"))
    with pytest.raises(ConfigurationError) as refused:
        deployments.deploy(organization.organization_id, "dev", load_flow(file), "anna")
    assert refused.value.facts["problems"]
    with pytest.raises(NotFound):
        deployments.versions(organization.organization_id, "orders")


def test_a_slug_of_another_flow_is_refused_and_nothing_of_the_deploy_stays(
    deploy: Deployer, organization: Organization
) -> None:
    deploy()
    with pytest.raises(Conflict, match="'orders'"):
        deploy(name="returns")
    with pytest.raises(NotFound):
        deployments.versions(organization.organization_id, "returns")
    assert [d.flow for d in deployments.list_deployments(organization.organization_id)] == ["orders"]


def test_rolling_back_goes_to_the_version_before_and_back_is_by_name(
    deploy: Deployer, organization: Organization
) -> None:
    deploy("1.0.0")
    deploy("1.1.0", program=".order")
    deploy("2.0.0", program=".orders")
    organization_id = organization.organization_id
    assert deployments.rollback(organization_id, "dev", "orders", "anna").version == "1.1.0"
    assert deployments.rollback(organization_id, "dev", "orders", "anna").version == "1.0.0"
    with pytest.raises(Conflict):
        deployments.rollback(organization_id, "dev", "orders", "anna")
    assert deployments.rollback(organization_id, "dev", "orders", "anna", to="2.0.0").version == "2.0.0"
    assert [entry.action for entry in deployments.history(organization_id, "dev", "orders")] == [
        "rollback",
        "rollback",
        "rollback",
        "deploy",
        "deploy",
        "deploy",
    ]
    with pytest.raises(NotFound):
        deployments.rollback(organization_id, "dev", "orders", "anna", to="9.9.9")


def test_a_rollback_brings_back_the_endpoints_of_its_version(deploy: Deployer, organization: Organization) -> None:
    deploy("1.0.0", slug="orders")
    deploy("2.0.0", slug="purchase-orders")
    slugs = [e.slug for e in endpoints.list_endpoints(organization.organization_id)]
    assert slugs == ["purchase-orders"]
    done = deployments.rollback(organization.organization_id, "dev", "orders", "anna")
    assert [e.slug for e in endpoints.list_endpoints(organization.organization_id)] == ["orders"]
    assert done.new_secrets == {}, "its senders keep their secret"


def test_the_difference_of_two_versions_names_the_changed_line(
    deploy: Deployer, organization: Organization
) -> None:
    deploy("1.0.0")
    deploy("1.1.0", program=".order")
    shown = deployments.diff(organization.organization_id, "orders", "1.0.0", "1.1.0")
    assert "+    config: {program: '.order'}" in shown
    assert deployments.diff(organization.organization_id, "orders", "1.0.0", "1.0.0") == ""


def test_environments_run_versions_of_their_own(deploy: Deployer, organization: Organization) -> None:
    deploy("1.0.0", environment="prod")
    deploy("1.1.0", program=".order", environment="dev")
    listed = {v.version: v.environments for v in deployments.versions(organization.organization_id, "orders")}
    assert listed == {"1.1.0": ["dev"], "1.0.0": ["prod"]}
    with pytest.raises(NotFound):
        deploy("1.0.0", environment="moon")


def test_disabling_and_removing_keep_the_versions(deploy: Deployer, organization: Organization) -> None:
    deploy()
    organization_id = organization.organization_id
    assert deployments.set_status(organization_id, "dev", "orders", "disable", "anna").status == "disabled"
    assert endpoints.get(organization_id, "dev", "orders").flow_status == "disabled"
    assert deployments.set_status(organization_id, "dev", "orders", "enable", "anna").status == "active"
    assert deployments.set_status(organization_id, "dev", "orders", "remove", "anna").status == "removed"
    assert deployments.list_deployments(organization_id) == []
    assert endpoints.list_endpoints(organization_id) == []
    assert len(deployments.versions(organization_id, "orders")) == 1
    with pytest.raises(NotFound):
        deployments.set_status(organization_id, "dev", "orders", "enable", "anna")
    assert deploy().status == "active"


def test_another_organizations_flows_do_not_exist(
    deploy: Deployer, make_organization: Callable[[], Organization]
) -> None:
    deploy()
    other = make_organization().organization_id
    for call in (
        lambda: deployments.versions(other, "orders"),
        lambda: deployments.version_source(other, "orders", "1.0.0"),
        lambda: deployments.rollback(other, "dev", "orders", "bert"),
        lambda: deployments.set_status(other, "dev", "orders", "remove", "bert"),
    ):
        with pytest.raises(NotFound):
            call()
    assert deployments.list_deployments(other) == []


def test_a_reader_that_asks_for_what_is_new_misses_no_deploy(
    make_organization: Callable[[], Organization], tmp_path: Path
) -> None:
    """Deploys run at once while a reader polls by revision: each must be seen, whichever commits first."""
    deployers = [Deployer(make_organization(), tmp_path / str(n)) for n in range(8)]
    for each in deployers:
        each.directory.mkdir()
    seen: set[tuple[str, str]] = set()
    revision = max((d.revision for d in deployments.list_since()), default=0)
    with ThreadPoolExecutor(8) as pool:
        running = [pool.submit(each, name=f"flow-{n}", slug=f"s-{n}") for n in range(4) for each in deployers]
        while not all(done.done() for done in running):
            for found in deployments.list_since(revision):
                seen.add((found.organization, found.flow))
                revision = found.revision
        for done in running:
            done.result()
    for found in deployments.list_since(revision):
        seen.add((found.organization, found.flow))
    assert seen == {(each.organization.slug, f"flow-{n}") for each in deployers for n in range(4)}


def test_two_deploys_of_one_new_version_store_it_once(organization: Organization, tmp_path: Path) -> None:
    def attempt(n: int) -> str | BridgeError:
        each = Deployer(organization, tmp_path / str(n))
        each.directory.mkdir()
        try:
            return each(program=f".v{n % 2}").version
        except Conflict as refused:
            return refused

    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(attempt, range(6)))
    assert sum(isinstance(result, Conflict) for result in results) == 3
    assert len(deployments.versions(organization.organization_id, "orders")) == 1
