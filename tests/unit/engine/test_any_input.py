"""Whatever bytes come in: one outcome per message, the same in a process of its own and in this one."""

from __future__ import annotations

from typing import Any

import pytest
from engine_runs import HEAD, bodies, codes, ids, plan_of, run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from continuitybridge.engine.limits import Limits
from continuitybridge.engine.message import Message
from continuitybridge.engine.runner import run_inline

LIMITS = Limits(max_message_bytes=5_000, max_emitted_messages=20, max_nesting_depth=20, node_time_limit_s=5)

FLOWS = {
    "json": "  - {id: parse, type: json_parser}\n  - {id: all, type: jq, config: {program: '.., (..|numbers)'}}\n",
    "xml": "  - {id: parse, type: xml_parser}\n  - {id: back, type: jq, config: {program: tojson}}\n",
    "csv": "  - {id: parse, type: csv_parser}\n  - {id: rows, type: jq, config: {program: '.[]?'}}\n",
    "raw": "  - {id: note, type: logger, config: {message: '{{ body }}'}}\n  - {id: text, type: json_builder}\n",
}
PLANS = {name: plan_of(HEAD + "steps:\n" + steps) for name, steps in FLOWS.items()}

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=40,
)
seeds = st.sampled_from(
    [
        b"", b"null", b"[" * 300, b'{"a":' * 50, b"<a>", b"<a/>", b"<!DOCTYPE a [<!ENTITY x 'y'>]><a>&x;</a>",
        b'"\\ud800"', b"a,b\n1,2\n", b'a,"', b"\xef\xbb\xbf{}", b"\xff\xfe<\0a\0", b"1e999", b"-", b"\0",
    ]
)  # fmt: skip
wild = st.binary(max_size=6_000) | seeds | st.tuples(seeds, st.binary(max_size=50)).map(b"".join)
headers = st.dictionaries(st.text(max_size=20), st.text(max_size=20), max_size=3)


@pytest.mark.parametrize("flow", sorted(PLANS))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(bodies_in=st.lists(wild | json_values, min_size=1, max_size=8), given_headers=headers)
def test_any_content_gives_one_outcome_per_message(
    flow: str, bodies_in: list[Any], given_headers: dict[str, str]
) -> None:
    sent = [Message(f"m{n}", body, given_headers) for n, body in enumerate(bodies_in)]
    apart = run(PLANS[flow], sent, limits=LIMITS)
    assert set(apart) == {message.id for message in sent}
    for outcome in apart.values():
        assert (outcome.status == "failed") == bool(outcome.failures)
        assert "node-crashed" not in codes(outcome)
    here = run(PLANS[flow], sent, limits=LIMITS, using=run_inline)
    for name, outcome in apart.items():
        assert (outcome.status, ids(outcome), codes(outcome)) == (
            here[name].status,
            ids(here[name]),
            codes(here[name]),
        )
        assert repr(bodies(outcome)) == repr(bodies(here[name]))
