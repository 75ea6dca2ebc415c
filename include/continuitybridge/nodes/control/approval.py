"""The node `approval`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from continuitybridge.engine.message import Emit, Message, Park, Resume, Wait
from continuitybridge.errors import Incomplete, LimitExceeded
from continuitybridge.nodes.base import BuildContext, Example, NodeConfig, RunContext, WaitNode, hints
from continuitybridge.nodes.language import json_text
from continuitybridge.nodes.language.condition import Expression
from continuitybridge.nodes.language.problems import Problems
from continuitybridge.nodes.language.template import Template, scope_of

MAX_DETAILS_CHARACTERS = 50_000
MAX_TITLE_CHARACTERS = 300

Decision = Literal["approved", "rejected"]


class ApprovalConfig(NodeConfig):
    """Configuration of `approval`."""

    title: str = Field(
        default="",
        description="What the person reads first: a Jinja template over `body`, `headers`, `vars` and `message`. "
        "Without it, the step's name.",
        json_schema_extra=hints(language="jinja", placeholder="Order {{ body.number }} over {{ body.total }}"),
    )
    details: str | None = Field(
        default=None,
        description="jq expression of what the person sees beside the title. Without it, nothing of the message.",
        json_schema_extra=hints(language="jq", placeholder="{number, buyer, total}"),
    )
    timeout_s: float | None = Field(
        default=None,
        gt=0,
        le=366 * 86_400,
        description="Seconds in which somebody has to decide. Without it the message waits until somebody does.",
    )
    default: Decision | None = Field(
        default=None,
        description="The decision when the time is over. Without it the message leaves by `timeout`, or fails "
        "where that has no route.",
    )
    sample: Decision = Field(
        default="approved",
        description="The decision when the flow is emulated.",
        json_schema_extra=hints(advanced=True),
    )


class Approval(WaitNode[ApprovalConfig]):
    """The message waits for the decision of a person: a customer admin of the organization, a consultant who is
    assigned to it, or a superadmin. They decide by `bridge approvals`, by the API, or on Airflow's page of
    required actions, where each waiting message has a run of the organization's DAG of approvals. The first
    decision holds.

    An approved message leaves by `approved`, another by `rejected`, unchanged both. Who decided, when and with
    which comment stands in the message's trace, and in `vars.approval`: `decision`, `by`, `comment`, `at`.

    `title` and `details` are stored encrypted like payloads and shown to those who may decide; Airflow's page
    shows neither, only the step's name, the message's id and its search keys.

    Under `--emulate`, `sample` is the decision.
    """

    type = "approval"
    category = "control"
    label = "Approval"
    summary = "Holds each message until a person approves or rejects it."
    Config = ApprovalConfig
    ports = ("approved", "rejected", "timeout")
    optional_ports = ("timeout",)
    examples = (
        Example(
            title="Large orders need a person",
            config={"title": "Order {{ body.number }}", "details": "{buyer, total}"},
            input={"number": "PO-7", "buyer": "B", "total": 120000},
            resume=Resume("approved", {"by": "ann", "comment": "as agreed"}),
            output=[("approved", {"number": "PO-7", "buyer": "B", "total": 120000})],
            several=True,
        ),
        Example(
            title="Nobody decided within a day",
            config={"timeout_s": 86400, "default": "rejected"},
            input={"number": "PO-7"},
            resume=Resume("timeout"),
            output=[("rejected", {"number": "PO-7"})],
            several=True,
        ),
    )

    def build(self, context: BuildContext) -> None:
        problems = Problems()
        self._title: Template | None = None
        self._details: Expression | None = None
        if self.config.title:
            with problems.noting():
                self._title = Template(self.config.title, field="title")
        if self.config.details is not None:
            with problems.noting():
                self._details = Expression(self.config.details, field="details")
        problems.raise_any()
        self._routes = context.routes

    def process(self, message: Message, context: RunContext) -> Park:
        shown = self._shown(message)
        return Park(message.body, Wait("person", within_s=self.config.timeout_s, payload=shown))

    def resume(self, message: Message, resume: Resume, context: RunContext) -> Emit:
        decision = resume.how
        if decision == "timeout" and self.config.default is not None:
            decision = self.config.default
        if decision == "timeout" and "timeout" not in self._routes:
            raise Incomplete("nobody decided in time; `default`, or a route for `timeout`, says what then")
        facts = {name: resume.facts.get(name) for name in ("by", "comment", "at")}
        return Emit(message.body, decision, vars={"approval": {"decision": decision, **facts}})

    def emulate(self, message: Message, context: RunContext) -> Emit:
        self._shown(message)
        return self.resume(message, Resume(self.config.sample, {"by": "sample"}), context)

    def _shown(self, message: Message) -> dict[str, Any]:
        title = "" if self._title is None else self._title.render(scope_of(message))[:MAX_TITLE_CHARACTERS]
        details = None
        if self._details is not None:
            details = self._details(message)
            if len(json_text.dumps(details)) > MAX_DETAILS_CHARACTERS:
                raise LimitExceeded(
                    f"the details have more than {MAX_DETAILS_CHARACTERS} characters; choose what a person needs",
                    limit="details",
                    allowed=MAX_DETAILS_CHARACTERS,
                )
        return {"title": title, "details": details}
