"""The graph a flow draws: where errors go, what is reachable, in which order, where it runs in a circle."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence

from continuitybridge.flows.model import END, Flow, Step

Edges = Mapping[str, Sequence[str]]


def routes(step: Step) -> list[tuple[str, str]]:
    """The step's own routes as (port, target), without the one for errors; `end` is a target like any."""
    return [(port, target) for port, targets in step.next.items() for target in targets]


def error_routes(flow: Flow) -> dict[str, str]:
    """Where each step's failures go, for the steps that have such a place.

    A step's own `on_error` comes first, else the flow's. The flow's does not apply to the steps on that route
    itself (the handler and all it leads to): a failure there would come round again. Triggers do not fail.
    """
    found = {step.id: step.on_error for step in flow.steps if step.on_error is not None}
    if flow.on_error is not None:
        own = edges(flow.nodes(), found)
        exempt = reachable(own, [flow.on_error])
        for step in flow.steps:
            if step.id not in found and step.id not in exempt:
                found[step.id] = flow.on_error
    return found


def edges(steps: Iterable[Step], errors: Mapping[str, str]) -> dict[str, list[str]]:
    """Step id → the ids it leads to, by any port or by error, each once and in order; `end` is left out."""
    return {
        step.id: [
            target
            for target in dict.fromkeys(
                [
                    *(target for targets in step.next.values() for target in targets),
                    *([errors[step.id]] if step.id in errors else ()),
                ]
            )
            if target != END
        ]
        for step in steps
    }


def reachable(graph: Edges, start: Iterable[str]) -> set[str]:
    """Everything one arrives at from `start`, itself included; ids that do not exist are left out."""
    waiting = [node for node in start if node in graph]
    seen = set(waiting)
    while waiting:
        for target in graph[waiting.pop()]:
            if target in graph and target not in seen:
                seen.add(target)
                waiting.append(target)
    return seen


def leading(graph: Edges, types: Mapping[str, str]) -> dict[str, tuple[tuple[str, ...], frozenset[str]]]:
    """Node id → (the ids with an edge to it, the types of all nodes on the way to it); empty for a graph with a
    circle. `types` maps node ids to their types."""
    order = topological(graph)
    direct: dict[str, list[str]] = {node: [] for node in graph}
    before: dict[str, set[str]] = {node: set() for node in graph}
    for node in order or ():
        for target in graph[node]:
            if target in direct:
                direct[target].append(node)
                before[target] |= before[node]
                before[target].add(types[node])
    return {node: (tuple(direct[node]), frozenset(before[node])) for node in order or ()}


def topological(graph: Edges) -> list[str] | None:
    """An order in which each step stands before all it leads to, equal graphs giving equal orders and ties
    keeping the graph's; None when the graph has a circle. Targets that do not exist are passed over."""
    order = {node: index for index, node in enumerate(graph)}
    names = list(graph)
    incoming = dict.fromkeys(graph, 0)
    for targets in graph.values():
        for target in targets:
            if target in incoming:
                incoming[target] += 1
    ready = [order[node] for node, count in incoming.items() if not count]
    result: list[str] = []
    while ready:
        node = names[heapq.heappop(ready)]
        result.append(node)
        for target in graph[node]:
            if target in incoming:
                incoming[target] -= 1
                if not incoming[target]:
                    heapq.heappush(ready, order[target])
    return result if len(result) == len(graph) else None


def circles(graph: Edges) -> list[list[str]]:
    """One way round for each knot of steps that lead back to themselves: `["a", "b"]` is a → b → a.

    Every circle lies in exactly one of the knots (strongly connected components) named, so that mending what
    is listed and asking again ends.
    """
    order = {node: index for index, node in enumerate(graph)}
    found = []
    for knot in _knots(graph):
        start = min(knot, key=order.__getitem__)
        if len(knot) > 1 or start in graph[start]:
            found.append(_way_round(graph, start, set(knot)))
    return sorted(found, key=lambda way: order[way[0]])


def _way_round(graph: Edges, start: str, inside: set[str]) -> list[str]:
    """The shortest way from `start` back to it within `inside`."""
    came_from: dict[str, str] = {}
    waiting = [start]
    for node in waiting:
        for target in graph[node]:
            if target == start:
                way = [node]
                while way[-1] != start:
                    way.append(came_from[way[-1]])
                return way[::-1]
            if target in inside and target not in came_from:
                came_from[target] = node
                waiting.append(target)
    return [start]


def _knots(graph: Edges) -> list[list[str]]:
    """Strongly connected components (Tarjan's algorithm, without recursion)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    on_stack: set[str] = set()
    result: list[list[str]] = []
    for root in graph:
        if root in index:
            continue
        work = [(root, iter(graph[root]))]
        index[root] = low[root] = len(index)
        stack.append(root)
        on_stack.add(root)
        while work:
            node, targets = work[-1]
            for target in targets:
                if target not in graph:
                    continue
                if target not in index:
                    index[target] = low[target] = len(index)
                    stack.append(target)
                    on_stack.add(target)
                    work.append((target, iter(graph[target])))
                    break
                if target in on_stack:
                    low[node] = min(low[node], index[target])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[node])
                if low[node] == index[node]:
                    knot = []
                    while True:
                        member = stack.pop()
                        on_stack.discard(member)
                        knot.append(member)
                        if member == node:
                            break
                    result.append(knot)
    return result


def reading_order(graph: Edges, start: Iterable[str]) -> list[str]:
    """An order for people: from `start` along each branch to its end before the next one begins, every step
    after all that lead to it as far as circles allow; what is not reachable comes last, as it stood."""
    done: list[str] = []
    seen: set[str] = set()
    for root in reversed(dict.fromkeys([*start, *graph])):
        if root in seen or root not in graph:
            continue
        seen.add(root)
        work = [(root, reversed(graph[root]))]
        while work:
            node, targets = work[-1]
            for target in targets:
                if target in graph and target not in seen:
                    seen.add(target)
                    work.append((target, reversed(graph[target])))
                    break
            else:
                work.pop()
                done.append(node)
    return done[::-1]
