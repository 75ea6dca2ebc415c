"""A deployed flow explained in Markdown, for Airflow's own pages. Pure text; imports no Airflow."""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import urlencode

from continuitybridge.airflow.configuration import STREAM_DAG
from continuitybridge.airflow.source import DagSource
from continuitybridge.flows.model import STREAM
from continuitybridge.flows.plan import Plan, PlanNode
from continuitybridge.settings import get_settings

_IN_BATCHES = """\
## How messages run
In **batches** (`mode: batch`): messages that came in make a run of this DAG, many together; a task runs one stage
of the flow for all of them."""

_AS_STREAM = """\
## How messages run
As a **stream** (`mode: stream`): resident workers (DAG `{stream}`) take each message as it comes in and run it
whole, in milliseconds. Such messages make no run here. What Airflow starts itself, by the Trigger button or its
REST API, runs here as a batch, through the same steps."""

_MESSAGES = """\
[How its messages are doing]({messages}), newest first; `&state=dead` shows those in triage. The asset `{asset}`
tells every {interval:g} s how many ended, and how."""

_BUTTONS = """\
## What Airflow's buttons do
- **Pause** holds accepted messages until the flow runs again; nothing is lost.
- **Trigger** sends one message by hand; the payload stands in `payload`.
- **Clear** runs again only what is not settled. To send a delivered message again, replay it.
- **Mark success** settles what is left in the run as skipped; **mark failed** gives it to a later run.
- A task is red when messages of its run became dead letters: they wait in triage, nothing runs twice."""


def render(source: DagSource) -> str:
    """The page of a flow: triggers and endpoints, how messages run, the way of a message, steps, routes."""
    plan = source.plan
    settings = get_settings()
    query = urlencode(
        {"organization": source.organization, "environment": source.environment, "flow": source.flow}
    )
    how = _AS_STREAM.format(stream=STREAM_DAG) if plan.mode == STREAM else _IN_BATCHES
    messages = _MESSAGES.format(
        messages=f"{settings.external_url}/bridge/messages?{query}",
        asset=source.asset_uri,
        interval=settings.outcome_interval_s,
    )
    parts = [
        f"# {source.flow} {source.version}",
        _escape(source.description),
        f"Organization **{_escape(source.organization_name)}** (`{source.organization}`), environment "
        f"**{source.environment}**." + (" **Disabled:** messages wait." if source.status != "active" else ""),
        "## How messages come in",
        "\n".join(_trigger(source, plan.nodes[trigger]) for trigger in plan.triggers),
        f"{how}\n\n{messages}",
        "## The way of a message",
        f"```text\n{diagram(plan)}\n```",
        "## Steps",
        _steps(plan),
        _BUTTONS,
    ]
    return "\n\n".join(part for part in parts if part)


def diagram(plan: Plan) -> str:
    """Routes as text: what follows without a choice on one line, then a line per branch and per error route."""
    lines: list[str] = []
    drawn: set[str] = set()
    for node in plan.nodes.values():
        if node.id not in drawn:
            lines.extend(_chain(plan, node.id, drawn))
        if _single_way(node) is None and _leads_on(node):
            lines.extend(f"{node.id} ─[{port}]→ {', '.join(to) or 'end'}" for port, to in node.next.items())
        if node.on_error:
            lines.append(f"{node.id} ─[error]→ {node.on_error}")
    return "\n".join(lines)


def _chain(plan: Plan, first: str, drawn: set[str]) -> list[str]:
    chain = [first]
    drawn.add(first)
    while (following := _single_way(plan.nodes[chain[-1]])) is not None:
        chain.append(following)
        if following in drawn:
            return [" → ".join(chain)]
        drawn.add(following)
    if not _leads_on(plan.nodes[chain[-1]]):
        chain.append("end")
    return [" → ".join(chain)] if len(chain) > 1 else []


def node_title(node: PlanNode) -> str:
    """How a person knows the node."""
    return node.label or node.id


def stage_title(plan: Plan, nodes: Iterable[str]) -> str:
    """A stage's name in the graph: its steps in order, shortened in the middle."""
    triggers = set(plan.triggers)
    titles = [node_title(plan.nodes[node]) for node in nodes if node not in triggers] or [
        node_title(plan.nodes[node]) for node in nodes
    ]
    if len(titles) > 3:
        titles = [titles[0], "…", titles[-1]]
    return " → ".join(titles)[:200]


def _single_way(node: PlanNode) -> str | None:
    if len(node.next) == 1:
        (targets,) = node.next.values()
        if len(targets) == 1:
            return targets[0]
    return None


def _leads_on(node: PlanNode) -> bool:
    return any(node.next.values())


def _trigger(source: DagSource, node: PlanNode) -> str:
    config = node.config
    title = f"- **{_escape(node_title(node))}** (`{node.type}`): "
    if node.type == "webhook_trigger":
        path = f"/bridge/hooks/{source.organization}/{source.environment}/{config.get('slug', '')}"
        way = config.get("verification", "standard_webhooks")
        way = way if isinstance(way, str) else way.get("type", "")
        methods = ", ".join(config.get("methods", ["POST"]))
        return f"{title}`{methods} {path}`, verified by {_escape(way)}"
    if node.type == "scheduler":
        return f"{title}at `{config.get('cron', '')}` in {config.get('timezone', 'UTC')}"
    if node.type == "manual_trigger":
        return (
            f"{title}the Trigger button, or `POST /api/v2/dags/{source.dag_id}/dagRuns` with "
            '`{"logical_date": null, "conf": {"payload": …}}`'
        )
    return title + "see its reference page"


def _steps(plan: Plan) -> str:
    triggers = set(plan.triggers)
    rows = ["| step | type | task |", "| --- | --- | --- |"]
    for node in plan.nodes.values():
        if node.id not in triggers:
            label = f" {_escape(node.label)}" if node.label and node.label != node.id else ""
            rows.append(f"| `{node.id}`{label} | `{node.type}` | `{node.stage}` |")
    return "\n".join(rows)


def _escape(text: str) -> str:
    """Text of an author, harmless in Markdown tables and headings."""
    for character in ("\\", "`", "*", "_", "[", "]", "<", "|"):
        text = text.replace(character, "\\" + character)
    return text
