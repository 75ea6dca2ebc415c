"""What an organization at ten times its limit does to another's webhooks.

`python -m benchmarks neighbour`: one process of `bridge intake`; an organization sends `QUIET_PER_S` webhooks a
second, alone and beside another that sends ten times what its limit lets in (some 1,000 a minute, the most of any
tier of the predecessor). Pairs are interleaved; latencies count from when a request was due.
"""

from __future__ import annotations

from benchmarks.figures import Figure, interleaved
from benchmarks.intake import FLOW
from benchmarks.load import orders, platform
from benchmarks.load.sender import Load, Sent, finish, start

from continuitybridge.guard import verbs

TITLE = "Intake: one organization beside another at ten times its limit"
LIMIT_PER_S = 17
QUIET_PER_S = 100
SECONDS = 5.0


def figures(rounds: int = 7) -> list[Figure]:
    refused: list[float] = []
    with platform.running(stream_workers=0) as ours:
        organizations = ours.organization(), ours.organization()
        quiet, noisy = (ours.deploy(each, FLOW, "http://127.0.0.1:9") for each in organizations)
        # Known to intake before the first round, which warms up, is over.
        verbs.set_limits(
            organizations[1].organization_id, webhooks=f"{LIMIT_PER_S}/second", api=None, by="benchmark"
        )

        def alone() -> float:
            return _quiet(finish(start(_load(quiet, QUIET_PER_S, 10)))).p99_ms

        def beside() -> float:
            noise = start(_load(noisy, 10 * LIMIT_PER_S, 50))
            sent = _quiet(finish(start(_load(quiet, QUIET_PER_S, 10))))
            loud = finish(noise)
            refused.append(loud.statuses.get("429", 0) / loud.seconds)
            return sent.p99_ms

        without, with_noise = interleaved(rounds, [alone, beside])
    ratios = [noise / still for still, noise in zip(without, with_noise, strict=True)]
    return [
        Figure("the other's p99 beside it, of that alone", "x", ratios, 1.5, at_most=True),
        Figure("p99 alone", "ms", without),
        Figure("p99 beside it", "ms", with_noise),
        Figure("refused with 429", "a second", refused[1:]),
    ]


def _load(endpoint: platform.Endpoint, per_s: float, connections: int) -> Load:
    return Load(
        port=endpoint.port,
        path=endpoint.path,
        body=orders.ORDER,
        secret=endpoint.secret,
        connections=connections,
        seconds=SECONDS,
        rate_per_s=per_s,
    )


def _quiet(sent: Sent) -> Sent:
    if sent.errors or set(sent.statuses) != {"202"}:
        raise RuntimeError(f"the quiet organization was refused: {sent.statuses}, {sent.errors} errors")
    return sent
