"""`bridge intake` without its commits: endpoints are looked up, requests verified, messages encrypted, and nothing
is written. `python -m benchmarks.load.without_database PORT`."""

from __future__ import annotations

import sys

import uvicorn

from continuitybridge.inbox.accept import Acceptance, Accepted, Lease
from continuitybridge.inbox.accept import rows as _rows
from continuitybridge.inbox.accept.aio import GroupCommit
from continuitybridge.webhooks import server


class WritesNothing(GroupCommit):
    """Says that everything is committed."""

    async def submit(self, acceptance: Acceptance, lease: Lease | None = None) -> Accepted:
        return Accepted(_rows.prepare(acceptance, self._keys).message_id, duplicate=False)


def main(port: int) -> None:
    uvicorn.run(
        server.Alone(commits=WritesNothing),
        host="127.0.0.1",
        port=port,
        http=server.BoundedProtocol,
        ws="none",
        lifespan="on",
        access_log=False,
        log_level="warning",
        proxy_headers=False,
        server_header=False,
        backlog=4096,
    )


if __name__ == "__main__":
    main(int(sys.argv[1]))
