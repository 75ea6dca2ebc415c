"""The node `subflow`."""

from __future__ import annotations

from typing import Any

from pydantic import Field, JsonValue

from continuitybridge.engine.message import Body, Emit, Message, Park, Resume, Wait
from continuitybridge.errors import Incomplete, InvalidPayload, SubflowFailed
from continuitybridge.nodes.base import BuildContext, Example, NodeConfig, RunContext, WaitNode, hints
from continuitybridge.nodes.language.condition import Expression


class SubflowConfig(NodeConfig):
    """Configuration of `subflow`."""

    flow: str = Field(
        pattern=r"^[a-z][a-z0-9_-]{0,63}$",
        description="Name of the flow that is called. It must be deployed in the same environment.",
        json_schema_extra=hints(placeholder="check-credit"),
    )
    trigger: str | None = Field(
        default=None, min_length=1, description="Trigger of that flow by which the message enters; else its first."
    )
    send: str = Field(
        default=".",
        min_length=1,
        description="jq expression of what is sent there.",
        json_schema_extra=hints(language="jq", placeholder="{customer, total}"),
    )
    field: str | None = Field(
        default=None,
        min_length=1,
        description="Put the result under this name into the message, which must be an object. Without it the "
        "result is the new body.",
    )
    timeout_s: float | None = Field(
        default=None,
        gt=0,
        le=366 * 86_400,
        description="Seconds within which the result must be there. The called flow is not stopped.",
    )
    sample: JsonValue = Field(
        default=None,
        description="The result when the flow is emulated; null: what was sent.",
        json_schema_extra=hints(advanced=True, language="json"),
    )


class Subflow(WaitNode[SubflowConfig]):
    """Calls another flow of the same organization and environment, in the version deployed there, and waits for
    its result. The call is a message of its own, `<message>.<step>`, with the called flow's traces, retries and
    triage; this message stays under way until that one is settled. (`<message>.~<step>` where the step's id is a
    number, which would be a child's.) A called flow that is paused runs it when it goes on; one that is drained
    takes it, as part of a message that was accepted before; one that is disabled or was taken out fails this node.

    What leaves the called flow is the result: one message is that message's body, several are a list of theirs.
    When nothing leaves it (a filter dropped it), this message leaves by `empty`, and ends there where that has no
    route. When the called message becomes a dead letter, this node fails (`subflow-failed`): along its error
    route, or into triage. Replaying from that failure calls again under the same id, so that a dead letter there
    runs again rather than a second time. When the time is over the node fails too.

    A flow may call itself; a chain of more than 8 calls fails.

    Under `--emulate`, `sample` is the result.
    """

    type = "subflow"
    category = "control"
    label = "Subflow"
    summary = "Calls another flow of the organization and goes on with its result."
    Config = SubflowConfig
    ports = ("out", "empty")
    optional_ports = ("empty",)
    repeats = True
    examples = (
        Example(
            title="Check the buyer's credit on the way",
            config={"flow": "check-credit", "send": "{buyer, total}", "field": "credit"},
            input={"buyer": "B", "total": 120},
            resume=Resume("done", {"results": [{"granted": True}]}),
            output={"buyer": "B", "total": 120, "credit": {"granted": True}},
        ),
        Example(
            title="The called flow failed",
            config={"flow": "check-credit"},
            input={"buyer": "B"},
            resume=Resume("failed"),
            fails="subflow-failed",
        ),
    )

    def build(self, context: BuildContext) -> None:
        self._send = Expression(self.config.send, field="send")
        self._whole = self.config.send.strip() == "."
        self._routes = context.routes

    def process(self, message: Message, context: RunContext) -> Park:
        sent = self._sent(message)
        options = {"flow": self.config.flow, "trigger": self.config.trigger}
        return Park(message.body, Wait("flow", within_s=self.config.timeout_s, payload=sent, options=options))

    def resume(self, message: Message, resume: Resume, context: RunContext) -> Message | Emit | None:
        called: dict[str, Any] = {"flow": self.config.flow, "message_id": resume.facts.get("message_id")}
        if resume.how == "timeout":
            raise Incomplete(f"flow {self.config.flow} gave no result in time", **called)
        if resume.how != "done":
            reason = resume.facts.get("reason") or "its message is a dead letter"
            raise SubflowFailed(f"flow {self.config.flow} gave no result: {reason}", **called)
        results = list(resume.facts.get("results", ()))
        if not results:
            return Emit(message.body, "empty") if "empty" in self._routes else None
        return self._with(message, results[0] if len(results) == 1 else results)

    def emulate(self, message: Message, context: RunContext) -> Message:
        sent = self._sent(message)
        return self._with(message, sent if self.config.sample is None else self.config.sample)

    def _sent(self, message: Message) -> Body:
        return message.body if self._whole else self._send(message)

    def _with(self, message: Message, result: Body) -> Message:
        if self.config.field is None:
            message.body = result
        elif not isinstance(message.body, dict):
            raise InvalidPayload(f"the result goes into field {self.config.field}, and the message has no fields")
        else:
            message.body = {**message.body, self.config.field: result}
        return message
