"""Replays of messages that a query finds: what would happen, and a job that does it at a rate.

Modules: `query` finds messages, `preview` says what a replay of them would do, `jobs` keeps and works jobs. How
one message is replayed stands in `inbox.replay`.
"""

from continuitybridge.inbox.replays.jobs import Job, cancel, list_jobs, show, start
from continuitybridge.inbox.replays.preview import Group, Preview, Previewed, preview
from continuitybridge.inbox.replays.query import Query
from continuitybridge.inbox.replays.worker import ReplayWorker, work

__all__ = [
    "Group",
    "Job",
    "Preview",
    "Previewed",
    "Query",
    "ReplayWorker",
    "cancel",
    "list_jobs",
    "preview",
    "show",
    "start",
    "work",
]
