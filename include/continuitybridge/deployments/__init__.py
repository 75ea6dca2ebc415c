"""Flow versions, which never change, and deployments: which version runs where."""

from continuitybridge.deployments.catalog import Deployed, deployed, get_plan, list_since
from continuitybridge.deployments.suspension import resume, suspend
from continuitybridge.deployments.verbs import (
    Deployment,
    FlowVersion,
    deploy,
    diff,
    history,
    list_deployments,
    rollback,
    set_status,
    version_source,
    versions,
)

__all__ = [
    "Deployed",
    "Deployment",
    "FlowVersion",
    "deploy",
    "deployed",
    "diff",
    "get_plan",
    "history",
    "list_deployments",
    "list_since",
    "resume",
    "rollback",
    "set_status",
    "suspend",
    "version_source",
    "versions",
]
