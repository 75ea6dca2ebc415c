"""The reference of all ways of verification, made from the classes that are them."""

from __future__ import annotations

import inspect
from typing import Any

from continuitybridge.nodes import describe
from continuitybridge.webhooks.verification import VERIFIERS, Verifier
from continuitybridge.webhooks.verification.base import Example

_SECRET = {
    "made": "made when the flow is deployed, or your own",
    "given": "the provider's, given with `bridge endpoint rotate-secret`",
    "none": "none",
}

_HEAD = """\
# Verifying webhooks

A `webhook_trigger` says by which of these ways its senders prove who they are: `verification: github`, or with
settings `verification: {type: hmac, header: X-Signature}`. Written from the code by `make docs`; the examples are
run by the tests. How senders use an endpoint, and what it answers, stands in [webhooks.md](webhooks.md).

Whatever a request's bytes are, one that is not believed is answered with 401. Comparisons take the same time
whatever differs. Timestamps are integers within 300 seconds of now on either side. Several secrets are valid at
once while one is rotated (`bridge endpoint rotate-secret SLUG --overlap-s`), and of several signatures one has to
be right."""


def reference() -> str:
    """The whole page, Markdown."""
    lines = ["| `verification` | what is proved, and how | the secret is |", "|---|---|---|"]
    for name, way in VERIFIERS.items():
        lines.append(f"| [`{name}`](#{name}) | {way.summary} | {_SECRET[way.origin]} |")
    return "\n\n".join([_HEAD, "\n".join(lines), *(page(way, "##") for way in VERIFIERS.values())]) + "\n"


def page(way: type[Verifier[Any]], heading: str = "#") -> str:
    """What one way is, its settings, its examples; Markdown."""
    described = way.Settings.model_json_schema()
    facts = [f"secret: {_SECRET[way.origin]}", "content types: " + ", ".join(f"`{t}`" for t in way.content_types)]
    if way.idempotency:
        facts.append("idempotency key: " + ", ".join(f"`{k}: {v}`" for k, v in way.idempotency.items()))
    parts = [
        f"{heading} {way.name}",
        f"**{way.label}.** {inspect.getdoc(way) or ''}",
        "*" + " · ".join(facts) + "*",
    ]
    if len(described["properties"]) > 1:
        parts.append(describe.configuration(described, without=["type"]))
    for example in way.examples:
        parts += [f"{heading}# {way.label}: {example.title}", _example(way, example)]
    return "\n\n".join(parts)


def _example(way: type[Verifier[Any]], example: Example) -> str:
    head = [f"{example.method} {example.url}"]
    head += [f"{name.decode('latin-1')}: {value.decode('latin-1')}" for name, value in example.headers.items()]
    text = "\n".join(head) + "\n\n" + example.body.decode()
    settings = {"type": way.name, **example.settings} if example.settings else way.name
    said = [f"At {example.at:.0f} s since the epoch"]
    if example.secret:
        said.append(f"with the secret `{example.secret}`")
    parts = [", ".join(said) + ":", describe.fenced(text)]
    if example.settings:
        parts.insert(0, describe.fenced({"verification": settings}))
    return "\n\n".join(parts)
