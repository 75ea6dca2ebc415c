"""What flows ask of the node library: ports, triggers, side files, and the translation of older flows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from pydantic import ValidationError

from continuitybridge.errors import ConfigurationError
from continuitybridge.flows.model import OUT
from continuitybridge.nodes import registry
from continuitybridge.nodes.base import _Node

PREDECESSOR_TRIGGERS = frozenset(
    {
        "ingress",
        "interface_source",
        "sftp_poller",
        "azure_blob_poller",
        "database_poller",
        "mqtt_subscriber",
        "webhook_trigger",
        "manual_trigger",
        "timer_trigger",
        "scheduler",
    }
)
"""Types that began a flow in the predecessor; a canvas does not say which of its nodes do."""

PREDECESSOR_DATA_KEYS = frozenset(
    {
        *("interfaceId", "mappings", "code", "url", "method", "headers", "body", "host", "port", "remotePath"),
        *("condition", "template", "format", "options", "webhookSlug", "webhookMethod", "cronExpression"),
        *("splitStrategy", "distributionRules", "joinStrategy", "joinTimeout", "minimumJoins"),
        *("mqttBroker", "mqttTopic", "mqttQos", "mqttRetain"),
        *("wcsEndpoint", "wcsProtocol", "conveyorZone", "sortingRules"),
    }
)
"""Keys of a canvas node's `data` that configured the node beside `data.config`."""


def node_class(type_name: str) -> type[_Node[Any]] | None:
    """The class of a node type; None when nobody has one of that name."""
    return registry.get(type_name) if type_name in registry.names() else None


def is_ours(type_name: str) -> bool:
    """Whether the name, ours or the predecessor's, is of a node type that we have."""
    return registry.canonical_name(type_name) is not None


def is_trigger(type_name: str) -> bool:
    """Whether a node of this type begins a flow; types that are not ours yet are known by name."""
    found = node_class(type_name)
    return type_name in PREDECESSOR_TRIGGERS if found is None else found.category == "trigger"


def ports(type_name: str, config: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The ports a node offers in this configuration; None when that cannot be told (unknown type, or the ports
    depend on a configuration that is wrong)."""
    found = node_class(type_name)
    if found is None:
        return None
    if found.ports_of.__func__ is _Node.ports_of.__func__:  # type: ignore[attr-defined]
        return found.ports
    try:
        return tuple(found.ports_of(found.Config.model_validate(plain(config))))
    except (ValidationError, ConfigurationError):
        return None


def has_out(type_name: str, offered: Sequence[str] | None) -> bool:
    """Whether the linear default (on to the following step) applies to a node that offers these ports."""
    return node_class(type_name) is None if offered is None else OUT in offered


def from_predecessor(type_name: str, config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Our type and configuration for the predecessor's; unchanged where the type is not one of ours.

    Raises `ConfigurationError` naming what cannot be expressed.
    """
    name = registry.canonical_name(type_name)
    if name is None:
        return type_name, dict(config)
    try:
        return name, registry.get(name).from_legacy(plain(config))
    except (TypeError, ValueError, AttributeError, LookupError) as error:
        # A value of another shape than that key ever had.
        raise ConfigurationError(f"the configuration cannot be translated: {error}") from error


def plain(value: Any) -> Any:
    """Mappings and tuples as dicts and lists, which is what configuration models take."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


Pattern = tuple[str | None, ...]
"""A path into a configuration; None stands for every list item or every key."""


def file_references(type_name: str, config: Mapping[str, Any]) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """The side files a configuration names: (path into the configuration, relative name)."""
    found = node_class(type_name)
    if found is None:
        return
    for pattern in _file_fields(found):
        yield from _follow(config, pattern, ())


def files_within(type_name: str, name: str, text: str) -> tuple[str, ...]:
    """The side files that a side file of such a node names in turn."""
    found = node_class(type_name)
    return () if found is None else found.files_within(name, text)


def _follow(value: Any, pattern: Pattern, path: tuple[str | int, ...]) -> Iterator[tuple[Any, str]]:
    if not pattern:
        if isinstance(value, str):
            yield path, value
        elif isinstance(value, Mapping | list | tuple):
            yield from _follow(value, (None,), path)
        return
    step, rest = pattern[0], pattern[1:]
    if isinstance(value, Mapping):
        for key, item in value.items():
            if step is None or step == key:
                yield from _follow(item, rest, (*path, key))
    elif isinstance(value, list | tuple) and step is None:
        for index, item in enumerate(value):
            yield from _follow(item, rest, (*path, index))


@cache
def _file_fields(node: type[_Node[Any]]) -> tuple[Pattern, ...]:
    schema = node.Config.model_json_schema()
    return tuple(dict.fromkeys(_marked(schema, schema, (), frozenset())))


def _marked(root: Any, node: Any, path: Pattern, seen: frozenset[str]) -> Iterator[Pattern]:
    if not isinstance(node, dict):
        return
    if node.get("x-file"):
        yield path
        return
    reference = node.get("$ref")
    if isinstance(reference, str) and reference not in seen:
        target = root.get("$defs", {}).get(reference.rsplit("/", 1)[-1])
        yield from _marked(root, target, path, seen | {reference})
    for name, child in node.get("properties", {}).items():
        yield from _marked(root, child, (*path, name), seen)
    for child in (node.get("items"), node.get("additionalProperties")):
        yield from _marked(root, child, (*path, None), seen)
    for combination in ("anyOf", "oneOf", "allOf"):
        for child in node.get(combination, ()):
            yield from _marked(root, child, path, seen)
