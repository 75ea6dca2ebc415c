"""Flow versions, which never change, and deployments: which version runs where."""

from continuitybridge.deployments.catalog import (
    Deployed,
    deployed,
    get_plan,
    gone_since,
    list_since,
    newest_revision,
)
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
    "gone_since",
    "history",
    "list_deployments",
    "list_since",
    "newest_revision",
    "resume",
    "rollback",
    "set_status",
    "suspend",
    "version_source",
    "versions",
]
