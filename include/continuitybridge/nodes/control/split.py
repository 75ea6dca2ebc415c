"""The node `split`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from continuitybridge.engine.message import Body, Emit, Message
from continuitybridge.errors import ConfigurationError, InvalidPayload
from continuitybridge.nodes import _legacy
from continuitybridge.nodes.base import BuildContext, Example, Node, NodeConfig, RunContext, hints
from continuitybridge.nodes.control import _gathering
from continuitybridge.nodes.language import legacy
from continuitybridge.nodes.language.condition import Expression
from continuitybridge.nodes.language.problems import Problems

_FIELD = re.compile(r"\.([A-Za-z_][A-Za-z_0-9]*)", re.ASCII)
_ALL = "*"


class SplitConfig(NodeConfig):
    """Configuration of `split`."""

    items: str = Field(
        default=".",
        min_length=1,
        description="jq path of the list. `.lines // []` takes a missing list for an empty one.",
        json_schema_extra=hints(language="jq", placeholder=".lines"),
    )
    item: str | None = Field(
        default=None,
        min_length=1,
        description="Name under which the item (or list of items) stands in its message. Without it the item is "
        "the message, with the kept fields beside its own.",
        json_schema_extra=hints(placeholder="line"),
    )
    keep: list[str] = Field(
        default_factory=list,
        description="Fields of the message that each of its children gets too. `*`: all but the list.",
        json_schema_extra=hints(placeholder="number"),
    )
    by: str | None = Field(
        default=None,
        description="jq expression: items for which it gives the same value go into one child, as a list. It sees "
        "the child that the item alone would make.",
        json_schema_extra=hints(language="jq", placeholder=".line.warehouse"),
    )
    size: int | None = Field(
        default=None,
        ge=1,
        le=100_000,
        description="Most items per child: then each child holds a list. Without it a child holds one item, or "
        "with `by` all that belong together.",
    )

    @model_validator(mode="after")
    def _named(self) -> SplitConfig:
        if self.keep and self.item is None and (self.size is not None or self.by is not None):
            raise ValueError("item is required where kept fields stand beside a list of items")
        return self


class Split(Node[SplitConfig]):
    """Each item becomes a message of its own, a child: `<parent>.<n>`, counted from 1 in the order of the list, so
    that running again gives the same ids. The message it came from is settled when all its children are.

    What a child knows of its split stands in `vars.split`: `parent` (the id), `index` (from 1), `count`, `by` (the
    value that its items share) and `outer` (the split around this one). An `aggregate` further on puts the
    children together again; none is needed.

    An empty list leaves by the port `empty`, with the message as it is, and ends there where `empty` has no
    route. What is no list fails the message.

    In older flows a distributor built a list of distributions; here each is a message. Its strategies
    `by_warehouse`, `by_item` and `custom` are read; `by_carrier` and its rules for outputs are not: write `by`, or
    a `conditional`.
    """

    type = "split"
    category = "control"
    label = "Split"
    summary = "Makes a message of each item of a list, or of each group of items."
    Config = SplitConfig
    ports = ("out", "empty")
    optional_ports = ("empty",)
    legacy_types = ("data_split", "distributor", "loop")
    examples = (
        Example(
            title="One message per line, with the order's number",
            config={"items": ".lines", "keep": ["number"]},
            input={"number": "PO-7", "buyer": "B", "lines": [{"sku": "A-1"}, {"sku": "B-2"}]},
            output=[("out", {"number": "PO-7", "sku": "A-1"}), ("out", {"number": "PO-7", "sku": "B-2"})],
            several=True,
        ),
        Example(
            title="One message per warehouse",
            config={"items": ".lines", "item": "lines", "keep": ["*"], "by": ".lines.warehouse"},
            input={
                "number": "PO-7",
                "lines": [
                    {"sku": "A-1", "warehouse": "ZRH"},
                    {"sku": "B-2", "warehouse": "GVA"},
                    {"sku": "C-3", "warehouse": "ZRH"},
                ],
            },
            output=[
                (
                    "out",
                    {
                        "number": "PO-7",
                        "lines": [{"sku": "A-1", "warehouse": "ZRH"}, {"sku": "C-3", "warehouse": "ZRH"}],
                    },
                ),
                ("out", {"number": "PO-7", "lines": [{"sku": "B-2", "warehouse": "GVA"}]}),
            ],
            several=True,
        ),
        Example(
            title="Two at a time",
            config={"size": 2},
            input=[1, 2, 3],
            output=[("out", [1, 2]), ("out", [3])],
            several=True,
        ),
        Example(title="An empty list", config={"items": ".lines"}, input={"lines": []}, output=[], several=True),
        Example(title="No list", config={"items": ".lines"}, input={"lines": "A-1"}, fails="invalid-payload"),
    )

    def build(self, context: BuildContext) -> None:
        problems = Problems()
        with problems.noting():
            self._items = Expression(self.config.items, field="items")
        self._by: Expression | None = None
        if self.config.by is not None:
            with problems.noting():
                self._by = Expression(self.config.by, field="by")
        problems.raise_any()
        plain = _FIELD.fullmatch(self.config.items)
        self._list_field = plain[1] if plain else None
        self._empty: Literal["empty"] | None = "empty" if "empty" in context.routes else None
        self._one = self.config.size is None and self._by is None

    def process(self, message: Message, context: RunContext) -> Iterable[Emit] | Emit | None:
        items = self._items(message)
        if not isinstance(items, list):
            raise InvalidPayload(
                f"{self.config.items} is no list but {_kind(items)}", path=self.config.items, found=_kind(items)
            )
        if not items:
            return Emit(message.body, self._empty) if self._empty else None
        kept = self._kept(message.body)
        groups = self._groups(message, items, kept)
        outer = message.vars.get("split")
        return [
            Emit(
                self._child(kept, content),
                vars={
                    "split": {
                        "parent": message.id,
                        "index": n,
                        "count": len(groups),
                        **({} if self._by is None else {"by": value}),
                        **({} if outer is None else {"outer": outer}),
                    }
                },
                child=True,
            )
            for n, (value, content) in enumerate(groups, 1)
        ]

    def _kept(self, body: Body) -> dict[str, Any]:
        if not self.config.keep:
            return {}
        if not isinstance(body, Mapping):
            raise InvalidPayload(f"there are no fields to keep: the message is {_kind(body)}", found=_kind(body))
        if _ALL in self.config.keep:
            return {name: value for name, value in body.items() if name != self._list_field}
        return {name: body[name] for name in self.config.keep if name in body}

    def _groups(self, message: Message, items: list[Any], kept: Mapping[str, Any]) -> list[tuple[Any, Any]]:
        """(value of `by`, content) of each child."""
        if self._one:
            return [(None, item) for item in items]
        together: dict[str, tuple[Any, list[Any]]] = {}
        if self._by is None:
            together[""] = (None, items)
        else:
            for item in items:
                value = self._by(message.derive(self._child(kept, item)))
                key = json.dumps(value, sort_keys=True)
                together.setdefault(key, (value, []))[1].append(item)
        size = self.config.size or len(items)
        return [
            (value, content[at : at + size])
            for value, content in together.values()
            for at in range(0, len(content), size)
        ]

    def _child(self, kept: Mapping[str, Any], content: Any) -> Body:
        name = self.config.item
        if name is not None:
            return {**kept, name: content}
        if not kept:
            return content
        if not isinstance(content, Mapping):
            raise InvalidPayload(
                f"an item is {_kind(content)}, beside which no fields can be kept; `item` gives it a name",
                found=_kind(content),
            )
        return {**kept, **content}

    @classmethod
    def from_legacy(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """A distributor's `splitStrategy` and `distributionRules`; a path under `path`, `items`, `arrayPath` or
        `field`, `batchSize` for `size`."""
        given = {key: value for key, value in config.items() if value not in (None, "", [], {})}
        if "splitStrategy" in given or "distributionRules" in given:
            return _distributed(given)
        for key in ("mode", "rules", "sendToAll", "defaultOutput"):
            if key in given:
                raise _legacy.refused(key, given[key], "what chooses an output is a conditional here")
        for key in ("path", "arrayPath", "field", "itemsPath"):
            if key in given:
                given.setdefault("items", _gathering.old_path(given[key], key))
                del given[key]
        if "batchSize" in given:
            given.setdefault("size", _legacy.integer(given.pop("batchSize"), "batchSize"))
        return given


_BY_WAREHOUSE = (
    '.items | .warehouse // .location // (if .fulfillmentType == "dropship" then "dropship_vendor" '
    'elif (.storeStock // 0) > 0 then "retail_store" else "main_warehouse" end)'
)
_COMPARISON = re.compile(r"\s*(?P<path>[\w.$\[\]]+)\s*(?P<op>===|!==|==|!=|<=|>=|<|>)\s*(?P<value>.+?)\s*")


def _distributed(given: dict[str, Any]) -> dict[str, Any]:
    strategy = given.pop("splitStrategy", "by_warehouse")
    rules = given.pop("distributionRules", [])
    given.pop("includeMetadata", None)
    if given:
        key = sorted(given)[0]
        raise _legacy.refused(key, given[key], "a distributor has splitStrategy and distributionRules")
    translated = {"items": ".items", "item": "items", "keep": [_ALL]}
    if strategy == "by_item":
        return {**translated, "size": 1}
    if strategy == "by_warehouse":
        return {**translated, "by": _BY_WAREHOUSE}
    if strategy == "custom" and isinstance(rules, list):
        return {**translated, "by": _by_rules(rules)}
    raise _legacy.refused("splitStrategy", strategy, "write a jq expression under `by`")


def _by_rules(rules: list[Any]) -> str:
    parts = []
    for rule in rules:
        text = str(rule.get("condition", "")) if isinstance(rule, Mapping) else ""
        match = _COMPARISON.fullmatch(text)
        if match is None:
            raise _legacy.refused("distributionRules", text, "is not path, comparison and value")
        target = next((rule[key] for key in ("target", "warehouse", "carrier", "name") if rule.get(key)), None)
        literal = match["value"].strip("\"'")
        try:
            value = json.loads(literal)
        except ValueError:
            value = literal
        operator = match["op"].replace("===", "==").replace("!==", "!=")
        condition = legacy.comparison(match["path"], operator, value, key="distributionRules")
        parts.append(f"if {condition} then {json.dumps(target)}")
    if not parts:
        raise ConfigurationError("distributionRules is empty", field="distributionRules")
    return ".items | " + " el".join(parts) + ' else "unassigned" end'


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bytes: "unparsed bytes", bool: "true or false"}
    return "null" if value is None else names.get(type(value), "a number")
