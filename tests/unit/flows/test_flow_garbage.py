"""Whatever stands where a flow should: it is read, or refused with a place; nothing else happens."""

from __future__ import annotations

import json
from typing import Any

from flow_strategies import UNKNOWN_STEPS, ids, scalars, values
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from continuitybridge.errors import ConfigurationError
from continuitybridge.flows import lint
from continuitybridge.flows.convert import FORMATS, convert
from continuitybridge.flows.load import load_flow
from continuitybridge.flows.plan import compile_flow
from continuitybridge.nodes import registry

KEYS = (
    *("flow", "name", "version", "description", "labels", "index", "capture", "mode", "concurrency", "ordering"),
    *("triggers", "steps", "on_error"),
    *(
        "extra",
        "nodes",
        "edges",
        "bridge",
        "id",
        "type",
        "label",
        "config",
        "data",
        "next",
        "onSuccess",
        "onError",
    ),
    *("isolate", "position", "source", "target", "sourceHandle", "language"),
    *("order", "placed", "ends", "enabled", "branches", "slug", "cron", "schema_file", "file"),
)
types = st.sampled_from([*registry.names(), *UNKNOWN_STEPS, "validator", "timer_trigger", "xslt_transform"])
anything = st.recursive(
    scalars | types | ids | st.just(1),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=6),
    max_leaves=25,
)
parts = st.lists(st.dictionaries(st.sampled_from(KEYS), anything, max_size=6), max_size=4)
documents = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(("flow", "name", "version", "labels", "index"), values),
        **dict.fromkeys(("bridge", "extra", "on_error", "capture"), anything),
        **dict.fromkeys(("triggers", "steps", "nodes", "edges"), parts | anything),
    },
)


@given(documents)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_document_is_linted_converted_and_compiled_or_refused(document: dict[str, Any]) -> None:
    loaded = load_flow(json.dumps(document))
    problems = lint.lint(loaded)
    assert all(problem.line >= 1 and problem.column >= 1 and str(problem) for problem in problems)
    json.dumps([problem.to_dict() for problem in problems])
    for target in FORMATS:
        try:
            text = convert(loaded, target)
        except ConfigurationError:
            continue
        assert target == loaded.format or not load_flow(text).unreadable
    try:
        compile_flow(loaded.flow)
    except ConfigurationError:
        assert problems
