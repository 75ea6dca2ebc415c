"""Finds everything that is wrong with a flow, before a message does.

Configurations are checked by building every node through the registry: what a node refuses while it is built (a
bad jq program, a bad stylesheet, a bad cron line) is a problem here.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import semver

from continuitybridge.errors import ConfigurationError, EgressRefused
from continuitybridge.flows import catalog, foreign, graph
from continuitybridge.flows.load import LoadedFlow
from continuitybridge.flows.model import END, ERROR, MODES, OUT, Flow, Step
from continuitybridge.flows.ordering import AFTER_DEAD_LETTER, Ordering, key_reader
from continuitybridge.flows.problems import Problem, nearest, refuse, shown
from continuitybridge.flows.reading import NodePlace
from continuitybridge.flows.source import Path
from continuitybridge.nodes import registry
from continuitybridge.nodes.base import BuildContext
from continuitybridge.nodes.http import address
from continuitybridge.nodes.language.jq_program import JqProgram

CAPTURES = ("errors", "sampled", "all")
_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}")
_ID_VALID = "letters, digits, - and _, at most 64, not beginning with -"
_INDEX_KEY = re.compile(r"[a-z][a-z0-9_]{0,62}")
_LISTED = 30
_MAX_COMPARISONS = 50_000
"""How many known names are compared with misspelt ones before lint gives up proposing."""


def check(loaded: LoadedFlow) -> None:
    """Raise `ConfigurationError` (facts: `problems`, as `Problem.to_dict`) unless the flow has no errors;
    warnings pass."""
    errors = [problem for problem in lint(loaded) if problem.severity == "error"]
    if errors:
        raise refuse(f"the flow {loaded.flow.name or loaded.file!r} is not valid", errors)


def lint(loaded: LoadedFlow) -> list[Problem]:
    """Every problem of the flow, in the order of the source."""
    return _Lint(loaded).problems()


class _Lint:
    def __init__(self, loaded: LoadedFlow) -> None:
        self.loaded = loaded
        self.flow: Flow = loaded.flow
        self.found: list[Problem] = [*loaded.unreadable, *loaded.remarks]
        self.nodes = list(zip(self.flow.nodes(), loaded.places, strict=True))
        self.by_id = {step.id: (step, place) for step, place in reversed(self.nodes)}
        self.leading = self._leading()
        self.compared = 0
        self.meant: set[str] = set()
        """Steps that a misspelt route probably meant: that nothing leads to them needs no telling."""

    def problems(self) -> list[Problem]:
        self.header()
        self.ids()
        self.targets()
        for index, (step, place) in enumerate(self.nodes):
            self.node(step, place, trigger=index < len(self.flow.triggers))
        self.edges_kept()
        self.shape()
        found = dict.fromkeys(self.found)
        return sorted(found, key=lambda problem: (problem.line, problem.column))

    def _leading(self) -> dict[str, tuple[tuple[str, ...], frozenset[str]]]:
        nodes = self.flow.nodes()
        return graph.leading(
            graph.edges(nodes, graph.error_routes(self.flow)), {step.id: step.type for step in nodes}
        )

    # ------------------------------------------------------------ telling
    def tell(self, path: Path, message: str, value: Any = None, **more: Any) -> None:
        value = shown(value) if isinstance(value, Mapping | list | tuple) else value
        self.found.append(self.loaded.document.problem(path, message, value, **more))

    def field(self, name: str, *rest: str) -> Path:
        return (*self.loaded.fields.get(name, (name,)), *rest)

    def nearest(self, name: object, known: Collection[str]) -> str | None:
        self.compared += len(known)
        return nearest(name, known) if self.compared <= _MAX_COMPARISONS else None

    # ------------------------------------------------------------ the flow itself
    def header(self) -> None:
        flow = self.flow
        if flow.name and not foreign.NAME.fullmatch(flow.name):
            self.tell(
                self.field("name"),
                f"{shown(flow.name)} is not a flow's name",
                flow.name,
                valid="lower-case letters, digits, - and _, beginning with a letter, at most 64",
                nearest=foreign.slug(flow.name),
            )
        if flow.version and not semver.Version.is_valid(flow.version):
            better = foreign.full_version(flow.version)
            self.tell(
                self.field("version"),
                f"{shown(flow.version)} is not a semantic version",
                flow.version,
                valid="MAJOR.MINOR.PATCH, for example 1.0.0 (semver.org 2.0.0)",
                nearest=better if better != flow.version else None,
            )
        if flow.capture not in CAPTURES:
            self.tell(
                self.field("capture"),
                f"{shown(flow.capture)} is not a way to capture",
                flow.capture,
                valid=", ".join(CAPTURES),
                nearest=nearest(flow.capture, CAPTURES),
            )
        if flow.mode and flow.mode not in MODES:
            self.tell(
                self.field("mode"),
                f"{shown(flow.mode)} is not a mode",
                flow.mode,
                valid=", ".join(MODES),
                nearest=nearest(flow.mode, MODES),
            )
        if flow.ordering is not None:
            self.ordering(flow.ordering)
        for key in flow.labels:
            if not key:
                self.tell(self.field("labels", key), "a label needs a name", key, valid="a text")
        for key, path in flow.index.items():
            where = self.field("index", key)
            if not _INDEX_KEY.fullmatch(key):
                valid = "lower-case letters, digits and _, beginning with a letter, at most 63"
                self.tell(where, f"{shown(key)} is not the name of a search key", key, valid=valid)
            try:
                JqProgram(path, field=key)
            except ConfigurationError as error:
                self.tell(where, error.detail, path, valid="a jq path such as .order.number")

    def ordering(self, ordering: Ordering) -> None:
        if ordering.key:
            try:
                key_reader(ordering.key)
            except ConfigurationError as error:
                message = f"{shown(ordering.key)} names no place of a key"
                self.tell(self.field("ordering", "key"), message, ordering.key, valid=error.facts["valid"])
        if ordering.after_dead_letter not in AFTER_DEAD_LETTER:
            self.tell(
                self.field("ordering", "after_dead_letter"),
                f"{shown(ordering.after_dead_letter)} is not what may follow a dead letter",
                ordering.after_dead_letter,
                valid=", ".join(AFTER_DEAD_LETTER),
                nearest=nearest(ordering.after_dead_letter, AFTER_DEAD_LETTER),
            )

    def ids(self) -> None:
        first: dict[str, NodePlace] = {}
        for step, place in self.nodes:
            if not step.id:
                continue
            where = (*place.path, "id")
            if not _ID.fullmatch(step.id):
                self.tell(where, f"{shown(step.id)} is not an id", step.id, valid=_ID_VALID)
            if step.id in first:
                line, _ = self.loaded.document.position(first[step.id].path)
                self.tell(
                    where,
                    f"two nodes have the id {shown(step.id)} (the first in line {line})",
                    step.id,
                    valid="an id of its own for each node",
                )
            first.setdefault(step.id, place)

    def targets(self) -> None:
        """Every route leads to a step that exists."""
        steps = dict.fromkeys(step.id for step in self.flow.steps)
        steps_or_end = {**steps, END: None}
        triggers = {trigger.id for trigger in self.flow.triggers}

        def check(where: Path, what: str, target: str, choices: Collection[str]) -> None:
            if target in choices:
                return
            if target in triggers:
                message = f"{what} leads to {target!r}, which is a trigger: messages begin there"
                self.tell(where, message, target, valid=_listed(choices))
                return
            message = f"{what} leads to {target!r}, which does not exist"
            close = self.nearest(target, choices)
            self.tell(where, message, target, valid=_listed(choices), nearest=close)
            self.meant.update([close] if close else [])

        for step, place in self.nodes:
            for port, targets in step.next.items():
                if END in targets and len(targets) > 1:
                    where = place.routes.get((port, END), (*place.path, "next"))
                    self.tell(
                        where, f"{END!r} stands alone: the message leaves or goes on", END, valid="steps, or end"
                    )
                for target in targets:
                    where = place.routes.get((port, target), place.path)
                    check(where, _edge(step.id, port, target), target, steps_or_end)
            if step.on_error is not None:
                check(place.on_error, _edge(step.id, ERROR, step.on_error), step.on_error, steps)
        if self.flow.on_error is not None:
            check(self.field("on_error"), "the flow's error route", self.flow.on_error, steps)

    def edges_kept(self) -> None:
        """Edges of a canvas whose source is gone."""
        ids = self.by_id.keys()
        for index, edge in enumerate(self.flow.extra.get("edges", ())):
            source = str(edge.get("source")) if isinstance(edge, Mapping) else ""
            if source and source not in ids:
                path: Path = ("edges", index)
                if path not in self.loaded.positions:
                    path = ("extra", *path)
                self.tell(
                    path,
                    f"the edge {edge.get('id', '')!r} begins at {source!r}, which does not exist",
                    source,
                    valid=_listed(ids),
                    nearest=self.nearest(source, ids),
                )

    # ------------------------------------------------------------ one node
    def node(self, step: Step, place: NodePlace, *, trigger: bool) -> None:
        if not step.type or place.foreign:
            return
        found = catalog.node_class(step.type)
        if found is None:
            self.unknown_type(step, place)
            return
        if trigger != (found.category == "trigger"):
            what = "no trigger" if trigger else "a trigger"
            valid = ", ".join(name for name in registry.names() if catalog.is_trigger(name) == trigger)
            self.tell((*place.path, "type"), f"{step.type} is {what}", step.type, valid=valid)
        if trigger and step.on_error is not None:
            valid = "on_error on the step that may fail, or on the flow"
            self.tell(place.on_error, "a trigger has no error route: it only begins", step.on_error, valid=valid)
        if trigger and step.isolate:
            where = (*place.path, "isolate")
            self.tell(where, "a trigger is no stage: it only begins", True, valid="isolate on a step")
        self.configuration(step, place)
        self.gathering(step, place)
        if step.type == "webhook_trigger":
            self.slug(step, place)
            self.results(step, place)
        offered = catalog.ports(step.type, step.config)
        if offered is not None:
            self.ports(step, place, offered, found.optional_ports)

    def gathering(self, step: Step, place: NodePlace) -> None:
        """What is ordered by a key must not wait for what may stand behind it."""
        if self.flow.ordering is None or step.type not in ("aggregate", "join") or not step.config.get("key"):
            return
        self.tell(
            (*place.config, "key"),
            f"{step.type} {step.id!r} waits for other messages, and in a flow with ordering those of the same key "
            "run when this one has ended",
            step.config["key"],
            valid=f"no key ({'the children of one split' if step.type == 'aggregate' else 'branches'} of one "
            "message), or a flow without ordering",
        )

    def slug(self, step: Step, place: NodePlace) -> None:
        slug = step.config.get("slug")
        others = [t.id for t in self.flow.triggers if t.type == step.type and t.config.get("slug") == slug]
        if isinstance(slug, str) and step.id in others[1:]:
            self.tell(
                (*place.config, "slug"),
                f"the triggers {others[0]!r} and {step.id!r} have one address",
                slug,
                valid="a slug of its own for each webhook",
            )

    def results(self, step: Step, place: NodePlace) -> None:
        """The steps that a webhook answers from exist, and messages leave the flow there."""
        result = step.config.get("result")
        named = result.get("from") if isinstance(result, Mapping) else None
        steps = {each.id: each for each in self.flow.steps}
        last = [each.id for each in self.flow.steps if any(END in targets for targets in each.next.values())]
        for index, name in enumerate(named if isinstance(named, list) else ()):
            where = (*place.config, "result", "from", index)
            if name not in steps:
                message = f"the result comes from {shown(name)}, which does not exist"
                self.tell(where, message, name, valid=_listed(last), nearest=self.nearest(name, last))
            elif name not in last:
                message = f"the result comes from {shown(name)}, where no message leaves the flow"
                self.tell(where, message, name, valid=_listed(last))

    def unknown_type(self, step: Step, place: NodePlace) -> None:
        names = registry.names()
        canonical = registry.canonical_name(step.type)
        self.tell(
            (*place.path, "type"),
            f"unknown node type {shown(step.type)}" + (f": older flows call {canonical} so" if canonical else ""),
            step.type,
            valid=", ".join(names),
            nearest=canonical or self.nearest(step.type, names),
        )

    def configuration(self, step: Step, place: NodePlace) -> None:
        """Build the node; a file that could not be brought along has been told already."""
        routes = frozenset(step.next)
        sources, before = self.leading.get(step.id, (None, None))
        context = BuildContext(self.flow.name, step.id, self.flow.files, routes, sources, before)
        try:
            node = registry.build(step.type, step.config, context)
            for field, url in node.addresses():
                self.egress(place, field, url)
        except ConfigurationError as error:
            missing = {
                ".".join(map(str, path))
                for path, name in catalog.file_references(step.type, step.config)
                if name not in self.flow.files
            }
            for problem in error.facts.get("problems") or [{"field": "", "message": error.detail}]:
                field = str(problem.get("field") or "")
                if not any(name == field or name.startswith(f"{field}.") for name in missing):
                    self.configuration_problem(step, place, field, problem)

    def egress(self, place: NodePlace, field: str, url: str) -> None:
        """An address that is written down is one that the platform calls."""
        try:
            address.check(url)
        except EgressRefused as refused:
            self.tell(self.config_path(place, field), refused.detail, url, valid="an address of the internet")

    def configuration_problem(self, step: Step, place: NodePlace, field: str, problem: Mapping[str, Any]) -> None:
        message = str(problem.get("message", "is not valid"))
        close = problem.get("nearest")
        if isinstance(close, list | tuple):
            close = close[0] if close else None
        # The nearest name is a fact of its own here; the registry also says it in words.
        message = re.sub(r"; did you mean [^?]*\?$", "", message)
        self.tell(
            self.config_path(place, field),
            message,
            problem.get("value"),
            valid=str(problem.get("valid") or ""),
            nearest=close,
        )

    def config_path(self, place: NodePlace, field: str) -> Path:
        """Where a dotted field of a configuration stands; keys may hold dots themselves."""
        path = place.config
        rest = field.split(".") if field else []
        while rest:
            for length in range(len(rest), 0, -1):
                key: str | int = ".".join(rest[:length])
                candidates: list[str | int] = [key]
                if isinstance(key, str) and key.isdigit():
                    candidates.append(int(key))
                match = next((c for c in candidates if (*path, c) in self.loaded.positions), None)
                if match is not None:
                    path, rest = (*path, match), rest[length:]
                    break
            else:
                return (*path, ".".join(rest))
        return path

    def ports(self, step: Step, place: NodePlace, offered: Sequence[str], optional: Sequence[str]) -> None:
        for port, targets in step.next.items():
            if port not in offered:
                path = next(
                    (path for (name, _), path in place.routes.items() if name == port), (*place.path, "next")
                )
                self.tell(
                    path,
                    f"{step.type} {step.id!r} has no port {port!r} (it leads to {', '.join(targets)})",
                    port,
                    valid=", ".join(offered),
                    nearest=self.nearest(port, offered),
                )
        missing = [port for port in offered if port not in step.next and port not in optional]
        for port in missing:
            self.tell(
                (*place.path, "next"),
                f"missing route: {step.type} {step.id!r} leads nowhere by {port!r}",
                port,
                valid="a step's id, or end",
            )

    # ------------------------------------------------------------ the graph
    def shape(self) -> None:
        flow = self.flow
        if not flow.name and not flow.nodes():
            return  # what is no flow has no shape
        if not flow.triggers and not self.at_fault("triggers"):
            valid = ", ".join(name for name in registry.names() if catalog.is_trigger(name))
            self.tell(self.field("triggers"), "a flow needs a trigger", valid=valid)
        if not flow.steps and not self.at_fault("steps"):
            self.tell(self.field("steps"), "a flow needs a step", valid="at least one")
        errors = graph.error_routes(flow)
        triggers = {trigger.id for trigger in flow.triggers}
        edges = {
            source: [target for target in targets if target not in triggers]
            for source, targets in graph.edges(flow.nodes(), errors).items()
        }
        for way in graph.circles(edges):
            way_round = " → ".join([*way, way[0]])
            if len(way) > 8:
                way_round = " → ".join([*way[:4], "…", *way[-3:], way[0]])
            last, first = way[-1], way[0]
            self.tell(
                self.edge_path(last, first),
                f"the flow runs in a circle: {way_round}",
                first,
                valid="routes that lead forward",
            )
        begin = triggers or {step.id for step in flow.steps[:1]}
        reached = graph.reachable(edges, [*begin, *self.meant])
        for step, place in self.nodes:
            if step.id and step.id not in reached:
                self.tell(
                    (*place.path, "id"),
                    f"nothing leads to the step {step.id!r}",
                    step.id,
                    valid="a route to it, or no such step",
                )

    def at_fault(self, name: str) -> bool:
        """Whether the list itself has been reported: then what it lacks goes without saying."""
        field = ".".join(map(str, self.field(name)))
        return any(problem.field.startswith(field) for problem in self.loaded.unreadable)

    def edge_path(self, source: str, target: str) -> Path:
        step, place = self.by_id[source]
        drawn = next((path for (_, name), path in place.routes.items() if name == target), None)
        if drawn is not None:
            return drawn
        return place.on_error if step.on_error == target else (*place.path, "next")


def _edge(source: str, port: str, target: str) -> str:
    return f"the edge {source} → {target}" if port == OUT else f"the edge {source} --{port}--> {target}"


def _listed(names: Collection[str]) -> str:
    """Names a person may choose from, cut where there are too many to read."""
    shown_names = list(names)[:_LISTED]
    return ", ".join(shown_names) + (", …" if len(names) > _LISTED else "")
