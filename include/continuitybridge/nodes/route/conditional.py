"""The node `conditional`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from continuitybridge.engine.message import Emit, Message
from continuitybridge.errors import ConfigurationError
from continuitybridge.nodes.base import BuildContext, Example, Node, NodeConfig, RunContext, hints
from continuitybridge.nodes.language import legacy, side_file
from continuitybridge.nodes.language.condition import Condition
from continuitybridge.nodes.language.problems import Problems

OTHERWISE = "otherwise"
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


def _named(branches: dict[str, str]) -> dict[str, str]:
    for name in branches:
        if not _NAME.fullmatch(name) or name in (OTHERWISE, "error"):
            raise ValueError(
                f"a branch is named with up to 64 letters, digits, - and _, and neither {OTHERWISE} nor error: "
                f"{name!r}"
            )
    return branches


class ConditionalConfig(NodeConfig):
    """Configuration of `conditional`."""

    branches: Annotated[dict[str, str], AfterValidator(_named)] = Field(
        min_length=1,
        description="Branch name → jq expression. The first one that holds, in this order, takes the message. "
        "It sees the body as `.`, and `$headers`, `$vars` and `$message`.",
        json_schema_extra=hints(language="jq", placeholder='domestic: .country == "CH"'),
    )


class Conditional(Node[ConditionalConfig]):
    """Every branch is a port of that name; what no branch takes goes along `otherwise`. An expression holds when
    its first output is neither `false` nor `null`. Comparisons such as `.country == "CH"` or
    `.total >= 1000 and .currency == "EUR"` are answered without starting jq, by jq's own rules: a missing field
    is `null`, and `null < false < true < numbers < strings < arrays < objects`.

    The message itself is not changed. An expression that fails on a message (a field of a text, for example)
    fails the message; `.a.b?` and `//` tell jq what to do instead.
    """

    type = "conditional"
    category = "route"
    label = "Conditional"
    summary = "Sends each message along the first branch whose expression holds."
    Config = ConditionalConfig
    legacy_types = ("switch",)
    examples = (
        Example(
            title="Domestic orders one way, large ones another",
            config={"branches": {"domestic": '.country == "CH"', "large": ".total >= 1000"}},
            input={"country": "DE", "total": 1200},
            output=[("large", {"country": "DE", "total": 1200})],
            several=True,
        ),
        Example(
            title="What no branch takes goes on as otherwise",
            config={"branches": {"domestic": '.country == "CH"'}},
            input={"country": "FR"},
            output=[("otherwise", {"country": "FR"})],
            several=True,
        ),
        Example(
            title="By a header",
            config={"branches": {"edi": '$headers["x-source"] == "edi"'}},
            input={},
            input_headers={"x-source": "edi"},
            output=[("edi", {})],
            several=True,
        ),
    )

    def build(self, context: BuildContext) -> None:
        problems = Problems()
        self._branches: list[tuple[str, Condition]] = []
        for name, text in self.config.branches.items():
            with problems.noting():
                self._branches.append((name, Condition(text, field=f"branches.{name}")))
        problems.raise_any()

    def process(self, message: Message, context: RunContext) -> Emit:
        for name, holds in self._branches:
            if holds(message):
                return Emit(message.body, name)
        return Emit(message.body, OTHERWISE)

    @classmethod
    def ports_of(cls, config: ConditionalConfig) -> tuple[str, ...]:
        return (*config.branches, OTHERWISE)

    @classmethod
    def from_legacy(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """`field`/`operator`/`value`, `conditions` (YAML text or data, with `logic`) or `condition` (a plain
        comparison in JavaScript) become the branch `true`; the old `false` edge is `otherwise`."""
        if "branches" in config:
            return dict(config)
        given = {key: value for key, value in config.items() if value not in (None, "", [], {})}
        # What a registry record was attached to has no say in where a message goes.
        for key in ("interfaceId", "templateId", "passthrough"):
            given.pop(key, None)
        if "conditions" in given:
            expression = _conditions(given.pop("conditions"), given.pop("logic", "AND"))
            for key in ("field", "operator", "value", "condition"):
                given.pop(key, None)  # the executor did not look at them beside `conditions`
        elif "field" in given:
            given.pop("condition", None)
            expression = legacy.comparison(
                str(given.pop("field")),
                str(given.pop("operator", "equals")),
                given.pop("value", config.get("value")),
                key="operator",
            )
        elif "condition" in given:
            expression = _javascript(str(given.pop("condition")))
        else:
            raise ConfigurationError("nothing to decide by", field="branches", valid="branches")
        if given:
            key = sorted(given)[0]
            raise ConfigurationError(f"{key} cannot be expressed", field=key, value=given[key], valid="branches")
        return {"branches": {"true": expression}}


def _conditions(given: Any, logic: Any) -> str:
    if isinstance(given, str):
        given = side_file.parse_data("conditions", given, field="conditions")
    if isinstance(given, Mapping) and "conditions" in given:
        logic = given.get("logic", logic)
        given = given["conditions"]
    items = given if isinstance(given, list) else [given]
    word = str(logic).strip().lower()
    if word not in ("and", "or"):
        raise ConfigurationError(
            f"logic {logic!r} is neither AND nor OR", field="conditions", value=logic, valid="AND, OR"
        )
    parts = []
    for item in items:
        if not isinstance(item, Mapping) or "field" not in item or "operator" not in item:
            raise ConfigurationError(
                "a condition has field, operator and value",
                field="conditions",
                value=item,
                valid="field, operator, value",
            )
        parts.append(
            legacy.comparison(str(item["field"]), str(item["operator"]), item.get("value"), key="conditions")
        )
    if not parts:
        raise ConfigurationError("conditions is empty", field="conditions")
    return parts[0] if len(parts) == 1 else f" {word} ".join(f"({part})" for part in parts)


_JS_TOKEN = re.compile(
    r"""\s*(?:(?P<op>===|!==|==|!=|<=|>=|<|>)|(?P<and>&&)|(?P<or>\|\|)|(?P<bracket>[()])
    |(?P<string>"[^"\\]*"|'[^'"\\]*')|(?P<number>-?\d+(?:\.\d+)?\b)|(?P<word>true|false|null|undefined)\b
    |(?P<path>[A-Za-z_$][\w$]*(?:\.[A-Za-z_$][\w$]*|\[\d+\])*))""",
    re.VERBOSE,
)
_JS_ROOTS = ("input", "data", "payload", "item", "msg", "$", "body")


def _javascript(source: str) -> str:
    """A JavaScript expression of comparisons, `&&`, `||` and brackets as jq; anything more is refused."""
    parts: list[str] = []
    at, text = 0, source.rstrip().rstrip(";")
    while at < len(text):
        match = _JS_TOKEN.match(text, at)
        if match is None or match.lastgroup is None:
            break
        parts.append(_as_jq(match.lastgroup, match[match.lastgroup]))
        at = match.end()
    expression = " ".join(parts)
    try:
        fits = at >= len(text) and Condition(expression, field="condition").is_fast
    except ConfigurationError:
        fits = False
    if not fits:
        raise ConfigurationError(
            f"condition: {source!r} is more than comparisons joined by && and ||; write it as a jq expression "
            "under branches",
            field="condition",
            value=source,
            valid="branches",
        )
    return expression


def _as_jq(kind: str, text: str) -> str:
    match kind:
        case "op":
            return {"===": "==", "!==": "!="}.get(text, text)
        case "and" | "or":
            return kind
        case "string":
            return f'"{text[1:-1]}"'
        case "word":
            return text.replace("undefined", "null")
        case "path":
            root, _, rest = text.partition(".")
            return legacy.jq_path(rest if root in _JS_ROOTS and rest else text)
    return text
