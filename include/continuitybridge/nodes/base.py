"""What a node type is. One file per node type declares all of it: configuration, documentation, examples,
construction, processing. Listing, reference pages, JSON Schema, form descriptions and lint read it from here.

Nodes know no Airflow, no web server and no database. A node is built once per plan (compile programs there;
raise `ConfigurationError` naming the field) and its `process` is called once per message.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, Literal, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict

from continuitybridge.engine.message import Emit, Message, Park, Reply, Resume

Category = Literal["trigger", "parse", "transform", "route", "connect", "notify", "control"]


class NodeConfig(BaseModel):
    """Base of every node's configuration: unknown keys are refused, values are not coerced from the wrong
    type, and every field has a description (the reference page prints it)."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        arbitrary_types_allowed=False,
        field_title_generator=lambda name, _: name.replace("_", " ").capitalize(),
    )


Language = Literal["jq", "json", "xml", "xslt", "jinja", "cron"]


def hints(
    *,
    language: Language | None = None,
    multiline: bool = False,
    secret: bool = False,
    advanced: bool = False,
    file: bool = False,
    placeholder: str | None = None,
) -> dict[str, Any]:
    """What a form should know of a field beyond its type: `Field(json_schema_extra=hints(language="jq"))`.

    `file` says that the text (or each text of the list or mapping) is the relative name of a side file: loading
    a flow then brings its content along in `BuildContext.files`.
    `language` opens a code editor, `multiline` a text area, `secret` hides the value everywhere (in forms,
    problems and logs), `advanced` folds the field away, `placeholder` shows an example in the empty field.
    """
    given: dict[str, Any] = {}
    if language is not None:
        given["x-language"] = language
    if multiline:
        given["x-multiline"] = True
    if secret:
        given["writeOnly"] = True
    if advanced:
        given["x-advanced"] = True
    if file:
        given["x-file"] = True
    if placeholder is not None:
        given["x-placeholder"] = placeholder
    return given


ConfigT = TypeVar("ConfigT", bound=NodeConfig)


@dataclass(frozen=True)
class Example:
    """A runnable example. The tests build the node from `config`, feed `input` and compare.

    `output` is the expected body, or the list of `(port, body)` when several are expected;
    `fails` is the expected error code instead. `input_headers` go with the input. With `resume` the input is
    what waited, and the output what comes when the wait ends so; of a group, the input is the list of its members'
    bodies.
    """

    title: str
    config: Mapping[str, Any]
    input: Any
    output: Any = None
    fails: str | None = None
    several: bool = False
    input_headers: Mapping[str, str] = field(default_factory=dict)
    resume: Resume | None = None


@dataclass(frozen=True)
class ConnectionInfo:
    """A named connection as a node needs it; `auth` holds secrets and is never logged (repr hides it)."""

    name: str
    base_url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    auth: Mapping[str, str] = field(default_factory=dict, repr=False)
    """`{"type": "none"|"basic"|"bearer"|"api_key", ...}`: basic: username, password; bearer: token;
    api_key: header, value."""
    expires_at: float | None = None
    """Seconds since the epoch after which it is to be asked for again, because its credential ends."""
    token: int | None = None
    """Number of the credential, where another can be obtained; each is higher than those before."""
    renew_on: tuple[int, ...] = ()
    """Statuses of answers that say that the credential does not hold any more."""

    def holds(self, now: float, refused: int | None = None) -> bool:
        """Whether it may still be used: it has not ended, and is not the credential that was `refused`."""
        return (self.expires_at is None or now < self.expires_at) and (refused is None or self.token != refused)


class Services(Protocol):
    """What the outside world offers to nodes while a plan runs."""

    def connection(self, name: str, *, refused: int | None = None) -> ConnectionInfo:
        """The organization's connection of that name in the flow's environment; `NotFound` otherwise,
        `ReconnectNeeded` when it has no credential. `refused` is the number (`ConnectionInfo.token`) of a
        credential that the destination did not take: another is obtained if there is one."""

    def log(self, level: str, text: str, fields: Mapping[str, Any]) -> None:
        """A line in the flow's log."""


@dataclass(frozen=True)
class BuildContext:
    """What a node may use while it is built: where the flow stands (for error texts), side files (`files`
    maps a relative name to its text: XSLT, schemas, lookups), which of its ports lead somewhere, and what leads to
    it: `sources` are the steps and triggers with a route to it, `before` the types of all nodes on the way (None
    for both where that is not known)."""

    flow: str = ""
    node_id: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    routes: frozenset[str] = frozenset({"out"})
    sources: tuple[str, ...] | None = None
    before: frozenset[str] | None = None


@dataclass(frozen=True)
class RunContext:
    """What a node may use while it processes one message."""

    node_id: str
    services: Services
    emulate: bool = False
    now: float = 0.0
    """Seconds since the epoch when the message was given to its process, to a tenth of a second."""
    max_emitted: int = 10_000
    max_nesting_depth: int = 200
    """Deepest nesting a node may build from a payload."""
    flow: str = ""
    organization: str = ""
    environment: str = ""


_ConfigClass = type[NodeConfig]
"""Named here because inside the class `type` is the node's own."""


class _Node(ABC, Generic[ConfigT]):
    type: ClassVar[str]
    category: ClassVar[Category]
    label: ClassVar[str]
    summary: ClassVar[str]
    """One sentence. The class docstring is the long documentation (Markdown)."""
    Config: ClassVar[_ConfigClass]
    examples: ClassVar[tuple[Example, ...]] = ()
    ports: ClassVar[tuple[str, ...]] = ("out",)
    """Port names; a node whose ports depend on its configuration overrides `ports_of`."""
    optional_ports: ClassVar[tuple[str, ...]] = ()
    """Ports that need no route: the node does something else than emit there when `BuildContext.routes` lacks
    them. Every other port must lead somewhere, if only to `end`."""
    legacy_types: ClassVar[tuple[str, ...]] = ()
    """Names under which older flows know this type."""

    config: ConfigT

    def __init__(self, config: ConfigT, context: BuildContext) -> None:
        self.config = config
        self.build(context)

    def build(self, context: BuildContext) -> None:
        """Compile programs, schemas and paths. Raises `ConfigurationError(detail, field=...)`."""

    def addresses(self) -> Iterable[tuple[str, str]]:
        """Field and URL of what the configuration says is called. Lint refuses those that never are."""
        return ()

    @classmethod
    def ports_of(cls, config: ConfigT) -> tuple[str, ...]:
        """The ports this configuration offers; `error` exists on every node and is not listed."""
        return cls.ports

    @classmethod
    def files_within(cls, name: str, text: str) -> tuple[str, ...]:
        """The side files that the side file `name` names in turn (a mapping's or a stylesheet's includes, a
        schema's references), as names relative to the flow. Loading a flow asks for every side file it has
        brought along until no new name comes up; a text that cannot be read names none."""
        return ()

    @classmethod
    def from_legacy(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """Translate a configuration with the predecessor's keys into ours; raises `ConfigurationError`
        naming the key that cannot be expressed. Keys that are already ours pass unchanged."""
        return dict(config)


class Node(_Node[ConfigT]):
    """A node that computes. `process` runs in a killable child process; it must not perform I/O."""

    @abstractmethod
    def process(self, message: Message, context: RunContext) -> Message | Emit | Iterable[Emit] | None:
        """One message in; out: the message itself (changed or not, port `out`), one or several `Emit`s, or
        None when it is dropped. Raises `NodeError`s."""


class AsyncNode(_Node[ConfigT]):
    """A node that talks to the outside world. Several messages may be under way at once."""

    emulated: ClassVar[bool] = True
    """False for a node that is harmless under emulation (nothing leaves the machine)."""

    @abstractmethod
    async def process(self, message: Message, context: RunContext) -> Message | Emit | Iterable[Emit] | None:
        """As `Node.process`; must end within `timeout_s(config)`."""

    @abstractmethod
    def emulate(self, message: Message, context: RunContext) -> Message | Emit | Iterable[Emit] | None:
        """The declared sample's answer: no outside call of any kind."""

    def timeout_s(self) -> float:
        """Upper bound in seconds for one `process` call, its retries included."""
        return 60.0

    def calls(self) -> tuple[str | None, str]:
        """Whom it calls, for pausing and limiting that: a connection's name, or None and an address whose host
        counts. None and "" for a node whose calls nobody pauses or limits."""
        return None, ""

    async def aclose(self) -> None:
        """Release pooled connections when the plan is dropped."""


class WaitNode(_Node[ConfigT]):
    """A node that lets messages wait. It computes like a `Node`, in two halves: `process` parks what comes in, and
    `resume` says where it goes when the wait is over, maybe days later and in another process."""

    names_origin: ClassVar[bool] = False
    """Whether the node asks which step a message comes from: then the engine leaves that step's id in
    `vars["from"]`."""
    repeats: ClassVar[bool] = False
    """Whether a failed `resume` is tried again from the beginning of the wait rather than resumed again."""

    @abstractmethod
    def process(self, message: Message, context: RunContext) -> Park | Message | Emit | None:
        """Park the message, or let it pass as `Node.process` does. Raises `NodeError`s."""

    @abstractmethod
    def resume(
        self, message: Message, resume: Resume, context: RunContext
    ) -> Message | Emit | Iterable[Emit] | None:
        """The parked message, when its wait has ended: as `Node.process`. Of a group, `message.body` is the list
        of its members' bodies, in the order of their members."""

    def emulate(self, message: Message, context: RunContext) -> Park | Message | Emit | Iterable[Emit] | None:
        """What the node does when nothing may wait. Groups are complete when the message has been walked."""
        return self.process(message, context)


class TriggerNode(_Node[ConfigT]):
    """Where messages come from. A trigger does not process: the inbox is the door, and this is its
    configuration. At run time it passes the accepted message on unchanged."""

    replies: bool = False
    """Whether a caller waits for the flow's result: then `reply` makes what it is answered."""

    def process(self, message: Message, context: RunContext) -> Message:
        return message

    def reply_counts(self, node_id: str) -> bool:
        """Whether a message that leaves the flow at this node is its result."""
        return True

    def reply(self, message: Message | None, max_bytes: int) -> Reply:
        """The answer for the message that left the flow (None: none did), with a body of at most `max_bytes`.
        Raises `NodeError` when it cannot be made."""
        raise NotImplementedError


AnyNode = Node[Any] | AsyncNode[Any] | TriggerNode[Any] | WaitNode[Any]
