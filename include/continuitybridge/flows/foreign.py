"""What the two older formats share: the canvas export and the triggers/steps DSL.

Both are open: keys nobody knows are kept. What they have no word for (labels, search keys, the flow's error route,
isolation) stands under a key `bridge`, of the document and of a node. Its `language` also says that types and
configurations are ours; a document without it is the predecessor's, and they are translated.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import semver

from continuitybridge.errors import ConfigurationError
from continuitybridge.flows import catalog
from continuitybridge.flows.model import MAX_CONCURRENCY, Flow, Step
from continuitybridge.flows.reading import NodePlace, Reader, Reading
from continuitybridge.flows.source import Path

LANGUAGE = 1
"""Version of what stands under `bridge`."""
NAME = re.compile(r"[a-z][a-z0-9_-]{0,63}")
"""A flow's name."""

_HEADER_KEYS = frozenset({"name", "version", "description", "bridge"})
_DOCUMENT_WORDS = (
    "language",
    "labels",
    "index",
    "mode",
    "concurrency",
    "ordering",
    "capture",
    "onError",
    "order",
    "placed",
    "extra",
)
_NODE_WORDS = ("trigger", "isolate", "ends", "extra")


def is_ours(data: Mapping[str, Any]) -> bool:
    """Whether the document says that it is written in our words."""
    bridge = data.get("bridge")
    return isinstance(bridge, dict) and isinstance(bridge.get("language"), int)


def document_words(reader: Reader, data: Mapping[str, Any]) -> dict[str, Any]:
    """What stands under the document's `bridge`; nothing when the document is not ours."""
    if not is_ours(data):
        return {}
    words = reader.mapping(("bridge",), data["bridge"])
    reader.known_keys(("bridge",), words, _DOCUMENT_WORDS)
    if words["language"] != LANGUAGE:
        reader.refuse(("bridge", "language"), "is a version not known here", words["language"], valid="1")
    return words


@dataclass(frozen=True)
class NodeWords:
    """What stands under a node's `bridge`. `trigger` says whether it is one where its type does not."""

    trigger: bool | None = None
    isolate: bool = False
    ends: tuple[str, ...] = ()
    extra: Mapping[str, Any] | None = None

    @classmethod
    def read(cls, reader: Reader, item: Mapping[str, Any], path: Path) -> NodeWords:
        at = (*path, "bridge")
        words = reader.mapping(at, item.get("bridge"))
        reader.known_keys(at, words, _NODE_WORDS)
        ends = reader.items((*at, "ends"), words.get("ends"))
        trigger = words.get("trigger")
        return cls(
            trigger=None if trigger is None else reader.flag((*at, "trigger"), trigger),
            isolate=reader.flag((*at, "isolate"), words.get("isolate")),
            ends=tuple(reader.text((*at, "ends", index), port) for index, port in enumerate(ends)),
            extra=reader.mapping((*at, "extra"), words.get("extra")),
        )

    def written(self) -> dict[str, Any]:
        """The node's key `bridge`, where it has anything to say."""
        words = {
            "trigger": self.trigger,
            "isolate": self.isolate or None,
            "ends": list(self.ends) or None,
            "extra": self.extra or None,
        }
        words = {key: value for key, value in words.items() if value is not None}
        return {"bridge": words} if words else {}


def split(extra: Mapping[str, Any], reserved: Collection[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Unknown keys that may stand where they stood, and those whose name this format uses for something else."""
    return (
        {key: value for key, value in extra.items() if key not in reserved},
        {key: value for key, value in extra.items() if key in reserved},
    )


def read_flow(
    reader: Reader,
    data: Mapping[str, Any],
    words: Mapping[str, Any],
    triggers: Iterable[Step],
    steps: Iterable[Step],
    reserved: Collection[str],
) -> Flow:
    """The flow. A name or version that is not in our form is brought into it; the original stays in `extra` and
    is written back as long as it still means the same."""
    ours = is_ours(data)
    extra = {
        key: value
        for key, value in data.items()
        if (key not in reserved and key not in _HEADER_KEYS) or (key == "bridge" and not ours)
    }
    for key in ("nodes", "edges"):
        if key in extra:
            del extra[key]
            reader.refuse((key,), f"{key!r} does not belong beside triggers and steps", valid="no such key")
    extra |= reader.kept(("bridge", "extra"), words.get("extra"))
    title = reader.text(("name",), data.get("name"))
    file = reader.document.file.rsplit("/", 1)[-1].split(".", 1)[0]
    name = slug(title or str(data.get("id") or file))
    if title and title != name:
        extra["name"] = title
    given = reader.text(("version",), data.get("version"))
    version = full_version(given)
    if given and given != version:
        extra["version"] = given
    return Flow(
        name=name,
        version=version,
        description=reader.text(("description",), data.get("description")),
        labels=reader.texts(("bridge", "labels"), words.get("labels")),
        index=reader.texts(("bridge", "index"), words.get("index")),
        capture=reader.text(("bridge", "capture"), words.get("capture", "errors")),
        mode=reader.text(("bridge", "mode"), words.get("mode")),
        concurrency=reader.whole_number(("bridge", "concurrency"), words.get("concurrency"), MAX_CONCURRENCY),
        ordering=reader.ordering(("bridge", "ordering"), words.get("ordering")),
        triggers=tuple(triggers),
        steps=tuple(steps),
        on_error=reader.text(("bridge", "onError"), words.get("onError")) or None,
        extra=extra,
    )


def finish(reader: Reader, flow: Flow, places: Iterable[NodePlace], *, triggers: Path, steps: Path) -> Reading:
    """The result of reading one of the two formats."""
    fields = {
        "name": ("name",),
        "version": ("version",),
        "description": ("description",),
        "labels": ("bridge", "labels"),
        "index": ("bridge", "index"),
        "capture": ("bridge", "capture"),
        **{key: ("bridge", key) for key in ("mode", "concurrency", "ordering")},
        "on_error": ("bridge", "onError"),
        "triggers": triggers,
        "steps": steps,
    }
    if flow.extra.get("enabled") is False:
        reader.remark(
            ("enabled",),
            "has no effect: a deployed flow runs",
            False,
            valid="leave it undeployed, or `bridge flow disable` it",
            severity="warning",
        )
    return Reading(flow, tuple(places), fields, reader.unreadable, reader.remarks)


def translated(reader: Reader, path: Path, step: Step, config: Mapping[str, Any]) -> Step | None:
    """The predecessor's node in our words; None, with a remark, when something in it cannot be expressed."""
    try:
        type_name, ours = catalog.from_predecessor(step.type, config)
    except ConfigurationError as error:
        field = str(error.facts.get("field") or "")
        reader.remark(
            (*path, *field.split(".")) if field else path,
            f"this {step.type} cannot be carried over: {error.detail}",
            error.facts.get("value"),
            valid=str(error.facts.get("valid") or ""),
        )
        return None
    return replace(step, type=type_name, config=ours)


def written_flow(flow: Flow, reserved: Collection[str], **more: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The flow's own fields as the older formats hold them, and what goes under `bridge` (`more`: the format's
    own words there; None for what needs no saying)."""
    extra = dict(flow.extra)
    header: dict[str, Any] = {"name": flow.name, "version": flow.version}
    for key, meaning in (("name", slug), ("version", full_version)):
        original = extra.get(key)
        if isinstance(original, str) and original and meaning(original) == header[key]:
            header[key] = extra.pop(key)
    if flow.description:
        header["description"] = flow.description
    free, kept = split(extra, {*reserved, *_HEADER_KEYS})
    words = {
        "labels": dict(flow.labels) or None,
        "index": dict(flow.index) or None,
        "mode": flow.mode or None,
        "concurrency": flow.concurrency,
        "ordering": flow.ordering and flow.ordering.written(),
        "capture": flow.capture if flow.capture != "errors" else None,
        "onError": flow.on_error,
        **more,
        "extra": kept or None,
    }
    bridge = {"language": LANGUAGE, **{key: value for key, value in words.items() if value is not None}}
    return {**header, **free}, bridge


def slug(title: str) -> str:
    """A title as a flow's name (`Order → Warehouse (v2)` is `order-warehouse-v2`); a name stays as it is."""
    if NAME.fullmatch(title):
        return title
    plain = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode().lower()
    plain = re.sub(r"-{2,}", "-", re.sub(r"[^a-z0-9_]+", "-", plain)).strip("-_")
    if not plain or not plain[0].isalpha():
        plain = f"flow-{plain}"
    return plain[:64].rstrip("-_")


def full_version(text: str) -> str:
    """The predecessor's version as a semantic one (`1.0` is `1.0.0`, none at all is `1.0.0`, its default); what
    is neither stays as it is."""
    match = re.fullmatch(r"v?([0-9]{1,9})(?:\.([0-9]{1,9}))?(?:\.([0-9]{1,9}))?", text.strip())
    if not text:
        return "1.0.0"
    if match is None or semver.Version.is_valid(text):
        return text
    return ".".join(str(int(part or 0)) for part in match.groups())
