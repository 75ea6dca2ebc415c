"""Reads a flow from any of the formats in the field and tells which it was.

- `yaml`: our flow language (a key `flow`),
- `canvas`: the canvas export (a key `nodes`),
- `dsl`: the predecessor's DSL (a key `name` beside `triggers` or `steps`).

Each may be written as YAML or JSON.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from continuitybridge.errors import NotFound
from continuitybridge.flows import canvas, catalog, dsl, native
from continuitybridge.flows.model import Flow
from continuitybridge.flows.problems import Problem, refuse
from continuitybridge.flows.reading import NodePlace, Reading
from continuitybridge.flows.source import MAX_SOURCE_BYTES, Document, Path, parse

Format = Literal["yaml", "canvas", "dsl"]

MAX_FILE_BYTES = 1024 * 1024
"""Largest side file."""
MAX_FILES_BYTES = 8 * 1024 * 1024
"""Most that the side files of one flow may have together."""

_READERS: Mapping[Format, Callable[[Document], Reading]] = {
    "yaml": native.read,
    "canvas": canvas.read,
    "dsl": dsl.read,
}


@dataclass(frozen=True)
class LoadedFlow:
    """A flow with its source.

    `unreadable` are parts of the source that no flow can hold, `remarks` what else was found while reading; lint
    reports both. `places` stand beside `flow.nodes()`; `fields` says where the flow's own fields are.
    """

    flow: Flow
    format: Format
    text: str
    document: Document
    places: tuple[NodePlace, ...]
    fields: Mapping[str, Path]
    unreadable: tuple[Problem, ...] = ()
    remarks: tuple[Problem, ...] = ()

    @property
    def file(self) -> str:
        """The name of the source, as problems give it."""
        return self.document.file

    @property
    def positions(self) -> Mapping[Path, tuple[int, int]]:
        """Path into the source (keys and list indexes) → (line, column), both from 1."""
        return self.document.positions


def load_flow(source: pathlib.Path | str, *, name: str = "", files: Mapping[str, str] | None = None) -> LoadedFlow:
    """Read a flow. A `Path` is a file to read; a `str` is the source itself and never a path.

    `name` is what problems call the source (default: the path). Side files come from `files` (relative name →
    text) or, without it, from beside the file. The result may hold problems: `lint` tells them all.
    Raises `ConfigurationError` (facts: problems) when the text is not YAML or JSON, `NotFound` for a missing file.
    """
    base = None
    if isinstance(source, pathlib.Path):
        name = name or str(source)
        base = source.parent
        source = _read_source(source, name)
    document = parse(source, name or "flow")
    format_ = detect(document.data)
    reading = _READERS[format_](document)
    found, remarks = _side_files(reading, document, base, files)
    return LoadedFlow(
        flow=replace(reading.flow, files=found),
        format=format_,
        text=source,
        document=document,
        places=reading.places,
        fields=reading.fields,
        unreadable=tuple(reading.unreadable),
        remarks=(*reading.remarks, *remarks),
    )


def detect(data: Any) -> Format:
    """Which format a document is; what could be any of them is read as our language, whose problems say more."""
    if isinstance(data, dict) and "flow" not in data:
        if "steps" in data or "triggers" in data:
            return "dsl" if "name" in data else "yaml"
        if "nodes" in data or "edges" in data:
            return "canvas"
    return "yaml"


def _read_source(path: pathlib.Path, name: str) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_SOURCE_BYTES + 1)
    except OSError as error:
        raise NotFound(f"{name}: {error.strerror}", field="file", value=name) from None
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        if len(raw) > MAX_SOURCE_BYTES and error.start > MAX_SOURCE_BYTES - 4:
            return raw.decode("utf-8", "ignore") + " " * 4  # cut within a character; refused for its size
        line = raw.count(b"\n", 0, error.start) + 1
        problem = Problem(name, line, 1, "", None, f"not UTF-8 at byte {error.start}", valid="UTF-8 text")
        raise refuse("the source cannot be read", [problem]) from None


# ---------------------------------------------------------------- side files
def _side_files(
    reading: Reading, document: Document, base: pathlib.Path | None, given: Mapping[str, str] | None
) -> tuple[dict[str, str], list[Problem]]:
    """The files that configurations name, and those which these files name in turn."""
    found: dict[str, str] = {}
    problems: list[Problem] = []
    budget = MAX_FILES_BYTES
    for step, place in zip(reading.flow.nodes(), reading.places, strict=True):
        asked: set[str] = set()
        waiting = [
            ((*place.config, *path), name) for path, name in catalog.file_references(step.type, step.config)
        ]
        for path, name in waiting:
            if name in asked:
                continue
            asked.add(name)
            if name not in found:
                try:
                    found[name] = _side_file(name, base, given, budget)
                except _NoFile as error:
                    problems.append(document.problem(path, str(error), name, valid=error.valid))
                    continue
                # Even an empty file costs something: their number is bounded too.
                budget -= max(len(found[name].encode("utf-8", "surrogatepass")), 1024)
            waiting += [(path, inner) for inner in catalog.files_within(step.type, name, found[name])]
    return dict(sorted(found.items())), problems


class _NoFile(Exception):
    def __init__(self, message: str, valid: str) -> None:
        super().__init__(message)
        self.valid = valid


def _side_file(name: str, base: pathlib.Path | None, given: Mapping[str, str] | None, budget: int) -> str:
    parts = pathlib.PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\\" in name or "\0" in name:
        raise _NoFile(f"the file name {name!r} leads out of the flow's folder", "a name relative to the flow")
    if given is not None:
        if name not in given:
            raise _NoFile(f"the file {name!r} was not given with the flow", ", ".join(sorted(given)))
        text = given[name]
        size = len(text.encode("utf-8", "surrogatepass"))
    else:
        if base is None:
            raise _NoFile(f"the file {name!r} was not given with the flow", "a file given with the flow")
        path = base / name
        if not path.resolve().is_relative_to(base.resolve()):
            raise _NoFile(f"the file {name!r} leads out of the flow's folder", "a file below the flow's folder")
        try:
            with path.open("rb") as file:
                raw = file.read(MAX_FILE_BYTES + 1)
            text, size = raw.decode("utf-8"), len(raw)
        except OSError as error:
            raise _NoFile(f"the file {name!r} cannot be read: {error.strerror}", "an existing file") from None
        except UnicodeDecodeError:
            raise _NoFile(f"the file {name!r} is not UTF-8", "UTF-8 text") from None
    if size > min(MAX_FILE_BYTES, budget):
        raise _NoFile(
            f"the file {name!r} is too large",
            f"at most {MAX_FILE_BYTES} bytes, and {MAX_FILES_BYTES} for all files of a flow",
        )
    return text
