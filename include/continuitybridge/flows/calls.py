"""What a flow calls: checked when it is deployed, where it is known which other flows there are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from continuitybridge.flows.load import LoadedFlow
from continuitybridge.flows.problems import Problem, nearest, shown

_MOST_NAMED = 30


def problems(loaded: LoadedFlow, deployed: Mapping[str, Sequence[str]]) -> list[Problem]:
    """What is wrong with the flow's calls of other flows, where `deployed` are the flows (name → their triggers)
    that it could call."""
    flow, found = loaded.flow, []
    known = {**deployed, flow.name: [trigger.id for trigger in flow.triggers]}
    for step, place in zip(flow.nodes(), loaded.places, strict=True):
        if step.type != "subflow":
            continue
        name, trigger = str(step.config.get("flow")), step.config.get("trigger")
        if name not in known:
            where, value, valid = "flow", name, _listed(known)
            message = f"flow {shown(name)} is not deployed here"
        elif trigger is not None and trigger not in known[name]:
            where, value, valid = "trigger", trigger, _listed(known[name])
            message = f"flow {name!r} has no trigger {shown(trigger)}"
        else:
            continue
        path = (*place.config, where)
        close = nearest(value, known if where == "flow" else known[name])
        found.append(loaded.document.problem(path, message, value, valid=valid, nearest=close))
    return found


def _listed(names: Iterable[str]) -> str:
    return ", ".join(list(names)[:_MOST_NAMED])
