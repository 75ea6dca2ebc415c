"""Jinja templates over one message, in a sandbox that only reads data.

Names are `body`, `headers`, `vars` and `message` (`id`, `generation`). `a.b` is always the field `b` of the
data, never a Python attribute, so that `body.items` is the order's items. Nothing is called: what computes is a
filter. Loops, conditions and `set` are there; macros, includes and imports are not. What is missing fails
(StrictUndefined): `{{ body.note | default("") }}` says what to put instead.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import quote

from jinja2 import StrictUndefined, TemplateError, Undefined, nodes, pass_eval_context
from jinja2.exceptions import SecurityError, TemplateSyntaxError
from jinja2.meta import TrackingCodeGenerator
from jinja2.nodes import EvalContext
from jinja2.runtime import LoopContext
from jinja2.sandbox import SandboxedEnvironment

from continuitybridge.engine.message import Message
from continuitybridge.errors import ConfigurationError, NodeError, TransformFailed
from continuitybridge.nodes.language import json_text

NAMES = ("body", "headers", "vars", "message")

_REFUSED: dict[type[nodes.Node], str] = {
    nodes.Call: "a template calls nothing; use a filter, as in {{ body.name | upper }}",
    nodes.Pow: "** is not available in templates",
    nodes.Block: "blocks are not available in templates",
    nodes.Macro: "macros are not available in templates",
    nodes.CallBlock: "macros are not available in templates",
    nodes.Include: "a template includes no other file",
    nodes.Import: "a template imports no other file",
    nodes.FromImport: "a template imports no other file",
    nodes.Extends: "a template extends no other file",
}
_REFUSED_FILTERS = ("attr", "random", "pprint", "urlize", "xmlattr")
"""Not about a message's data, or not the same answer when a message is delivered again."""


def scope_of(message: Message) -> dict[str, Any]:
    """What templates see of a message."""
    return {
        "body": message.body,
        "headers": message.headers,
        "vars": message.vars,
        "message": {"id": message.id, "generation": message.generation},
    }


class _Missing(StrictUndefined):
    """What is missing, said in terms of the data and not of Python."""

    @property
    def _undefined_message(self) -> str:
        if self._undefined_hint:
            return self._undefined_hint
        return f"there is no field {self._undefined_name!r}"


class _Environment(SandboxedEnvironment):
    """Data only: no attributes, no methods, no repetition of strings, nothing computed while compiling."""

    intercepted_binops = frozenset({"*", "%"})

    def getattr(self, obj: Any, attribute: str) -> Any:
        if isinstance(obj, LoopContext):
            return super().getattr(obj, attribute)
        return self.getitem(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        try:
            return obj[argument]
        except (TypeError, LookupError):
            return self.undefined(obj=obj, name=argument)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if not isinstance(left, int | float) or not isinstance(right, int | float):
            raise SecurityError(f"{operator} takes numbers")
        return super().call_binop(context, operator, left, right)

    def is_safe_callable(self, obj: Any) -> bool:
        return False


def _environment(finalize: Callable[[EvalContext, Any], Any]) -> _Environment:
    # `pass_eval_context` and no optimizer: constants are not computed at compile time, where no watchdog looks.
    environment = _Environment(
        undefined=_Missing,
        optimized=False,
        finalize=pass_eval_context(finalize),
        keep_trailing_newline=True,
    )
    environment.globals.clear()
    for name in _REFUSED_FILTERS:
        del environment.filters[name]
    environment.filters["split"] = lambda value, separator=None: str(value).split(separator)
    return environment


def _as_text(_: EvalContext, value: Any) -> Any:
    """Text as it is; everything else as JSON, never as Python would write it."""
    if isinstance(value, str | Undefined):
        return value
    if isinstance(value, bytes):
        return value.decode()
    return json_text.dumps(_settled(value))


def _settled(value: Any) -> Any:
    """Filters such as `map` give iterators; data has lists."""
    return list(value) if isinstance(value, Iterator) else value


def _as_url_part(_: EvalContext, value: Any) -> Any:
    """One percent-encoded part of a path (RFC 3986): a value can neither add segments nor a query, and a
    missing one cannot make the path mean something else."""
    if isinstance(value, Undefined):
        return value
    if value is None or value == "" or isinstance(value, dict | list):
        raise TransformFailed(f"a path takes text or numbers, and a value is {json_text.dumps(value)[:100]}")
    return quote(value if isinstance(value, str) else json_text.dumps(value), safe="")


_TEXT = _environment(_as_text)
_URL_PATH = _environment(_as_url_part)


class Template:
    """A text with placeholders, compiled. `render` gives a string.

    `for_path` percent-encodes every value, as a URL's path needs. Raises `ConfigurationError(field=field)` for
    wrong syntax, unknown names or filters and everything the sandbox does not have.
    """

    __slots__ = ("_template", "constant", "text")

    def __init__(self, text: str, *, field: str, for_path: bool = False) -> None:
        self.text = text
        environment = _URL_PATH if for_path else _TEXT
        tree = _parse(environment, text, field)
        self.constant = all(isinstance(part, nodes.TemplateData) for part in _parts(tree))
        self._template = None if self.constant and "{" not in text else _compiled(environment, text, field)

    def render(self, scope: Mapping[str, Any]) -> str:
        """Raises `TransformFailed` when a value is missing or a filter fails on it."""
        if self._template is None:
            return self.text
        try:
            return str(self._template.render(scope))
        except MemoryError:
            raise
        except Exception as error:
            raise _failed(self.text, error) from None


class Value:
    """A text that is one placeholder gives the value itself (an object stays an object, a number a number);
    any other text is a `Template`."""

    __slots__ = ("_expression", "_template", "text")

    def __init__(self, text: str, *, field: str) -> None:
        self.text = text
        self._expression: Callable[..., Any] | None = None
        self._template = Template(text, field=field)
        inner = _ONLY_PLACEHOLDER.fullmatch(text)
        parts = _parts(_parse(_TEXT, text, field))
        if inner and len(parts) == 1 and not isinstance(parts[0], nodes.TemplateData):
            self._expression = _TEXT.compile_expression(inner[1], undefined_to_none=False)

    @property
    def constant(self) -> bool:
        return self._template.constant

    def evaluate(self, scope: Mapping[str, Any]) -> Any:
        """Raises `TransformFailed` as `Template.render` does."""
        if self._expression is None:
            return str(self._template.render(scope))
        try:
            value = self._expression(scope)
            if isinstance(value, Undefined):
                str(value)  # raises, naming what is missing
        except MemoryError:
            raise
        except Exception as error:
            raise _failed(self.text, error) from None
        return str(value) if isinstance(value, str) else _settled(value)


_ONLY_PLACEHOLDER = re.compile(r"\{\{[-+]?(.*?)[-+]?\}\}", re.DOTALL)


def compile_data(data: Any, *, field: str) -> Callable[[Mapping[str, Any]], Any]:
    """JSON data whose strings are `Value`s, as a function of the scope. Keys are taken as they are."""
    if isinstance(data, str):
        return Value(data, field=field).evaluate
    if isinstance(data, Mapping):
        fields = [(str(key), compile_data(value, field=f"{field}.{key}")) for key, value in data.items()]
        return lambda scope: {key: value(scope) for key, value in fields}
    if isinstance(data, list | tuple):
        items = [compile_data(value, field=f"{field}.{index}") for index, value in enumerate(data)]
        return lambda scope: [value(scope) for value in items]
    return lambda scope: data


def _parts(tree: nodes.Template) -> list[nodes.Node]:
    """What a template puts out: literal text and placeholders, or its statements."""
    parts: list[nodes.Node] = []
    for node in tree.body:
        parts += node.nodes if isinstance(node, nodes.Output) else [node]
    return parts


def _parse(environment: _Environment, text: str, field: str) -> nodes.Template:
    try:
        tree = environment.parse(text)
        for kind, reason in _REFUSED.items():
            found = tree.find(kind)
            if found is not None:
                raise ConfigurationError(
                    f"template: {reason}, line {found.lineno}", field=field, value=text, line=found.lineno
                )
        unknown = sorted(_names(environment, tree) - set(NAMES))
    except TemplateSyntaxError as error:
        raise _refused(text, field, error) from None
    except RecursionError:
        raise ConfigurationError("template: nested too deep", field=field) from None
    if unknown:
        raise ConfigurationError(
            f"template: {', '.join(unknown)} is not known here; the names are {', '.join(NAMES)}, "
            f"so a field of the message is {{{{ body.{unknown[0]} }}}}",
            field=field,
            value=text,
            valid=", ".join(NAMES),
        )
    return tree


def _names(environment: _Environment, tree: nodes.Template) -> set[str]:
    """The names a template takes from outside. `jinja2.meta` would compute constants on the way."""
    tracker = TrackingCodeGenerator(environment)
    tracker.optimizer = None
    tracker.visit(tree)
    return tracker.undeclared_identifiers | {n.name for n in tree.find_all(nodes.Name) if n.name == "self"}


def _compiled(environment: _Environment, text: str, field: str) -> Any:
    try:
        return environment.from_string(text)
    except TemplateSyntaxError as error:
        raise _refused(text, field, error) from None
    except (RecursionError, SyntaxError, MemoryError):
        raise ConfigurationError("template: nested too deep", field=field) from None


def _refused(text: str, field: str, error: TemplateSyntaxError) -> ConfigurationError:
    return ConfigurationError(
        f"template: {error.message}, line {error.lineno}", field=field, value=text, line=error.lineno
    )


def _failed(text: str, error: Exception) -> TransformFailed:
    if isinstance(error, NodeError):
        return TransformFailed(f"template: {error.detail}", template=text[:500])
    reason = error.message if isinstance(error, TemplateError) else f"{type(error).__name__}: {error}"
    return TransformFailed(f"template: {reason}", template=text[:500])
