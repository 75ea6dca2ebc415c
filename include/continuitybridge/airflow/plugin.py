"""What Airflow loads of ours. `plugins/continuitybridge_plugin.py` names it."""

from __future__ import annotations

import sys
from functools import cached_property
from typing import Any

from airflow.plugins_manager import AirflowPlugin

from continuitybridge.airflow.api_key_sign_in import ApiKeyMiddleware
from continuitybridge.airflow.approval_responses import ApprovalResponseMiddleware
from continuitybridge.airflow.execution_fence import ExecutionFenceMiddleware
from continuitybridge.airflow.guard import AirflowGuardMiddleware
from continuitybridge.airflow.identity import TaskIdentityMiddleware
from continuitybridge.airflow.listener import MarkListener
from continuitybridge.airflow.old_addresses import OldAddressesMiddleware
from continuitybridge.airflow.same_origin import SameOriginMiddleware
from continuitybridge.airflow.schedules import ZonedCronsTimetable
from continuitybridge.airflow.sign_in_lockout import SignInLockoutMiddleware
from continuitybridge.airflow.sign_out import SignOutMiddleware


class ContinuityBridgePlugin(AirflowPlugin):
    """The API and the intake under `/bridge`, the guard before Airflow's own addresses, the identity of
    asking tasks, the marks of people."""

    name = "continuitybridge"
    timetables = [ZonedCronsTimetable]  # noqa: RUF012  (as the base class declares it)
    listeners = [MarkListener()]  # noqa: RUF012
    fastapi_root_middlewares = [  # noqa: RUF012
        {"middleware": TaskIdentityMiddleware, "args": [], "kwargs": {}, "name": "ContinuityBridge task identity"},
        {"middleware": ExecutionFenceMiddleware, "args": [], "kwargs": {}, "name": "ContinuityBridge task fence"},
        {"middleware": ApprovalResponseMiddleware, "args": [], "kwargs": {}, "name": "ContinuityBridge approvals"},
        {"middleware": AirflowGuardMiddleware, "args": [], "kwargs": {}, "name": "ContinuityBridge guard"},
        # Behind the guard in this list is before it on the way in.
        {"middleware": ApiKeyMiddleware, "args": [], "kwargs": {}, "name": "ContinuityBridge API keys"},
        {"middleware": SignInLockoutMiddleware, "args": [], "kwargs": {}, "name": "ContinuityBridge lockout"},
        {"middleware": OldAddressesMiddleware, "args": [], "kwargs": {}, "name": "ContinuityBridge old addresses"},
        {"middleware": SignOutMiddleware, "args": [], "kwargs": {}, "name": "ContinuityBridge sign-out"},
        {"middleware": SameOriginMiddleware, "args": [], "kwargs": {}, "name": "ContinuityBridge same origin"},
    ]

    @cached_property
    def fastapi_apps(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """Asked for by the api-server only, so that no other process pays for building them."""
        from continuitybridge.airflow.accounts import AirflowAccounts
        from continuitybridge.airflow.http_auth import authenticate
        from continuitybridge.api import mounts
        from continuitybridge.vault.rotation import check_master_key

        # Raised here, it stops the api-server.
        check_master_key()
        mounted = mounts(authenticate, accounts=AirflowAccounts())
        return [{"app": app, "url_prefix": prefix, "name": name} for name, prefix, app in mounted]

    @classmethod
    def on_load(cls, *args: Any, **kwargs: Any) -> None:
        """The scheduler's workers are forks of it, and the node processes forks of theirs: what they need is there
        already. A task then takes 0.3 CPU-seconds less."""
        if "scheduler" in sys.argv:
            from continuitybridge.airflow import compiler, services, work  # noqa: F401
            from continuitybridge.engine import child  # noqa: F401
            from continuitybridge.nodes import registry
            from continuitybridge.nodes.http.client import tls_context

            for name in registry.names():
                registry.get(name)
            # As the node calls it: the cache tells positional from named arguments.
            tls_context(True)
