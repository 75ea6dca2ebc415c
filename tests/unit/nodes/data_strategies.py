"""Hypothesis strategies for message bodies."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

NAMES = st.sampled_from(["a", "b", "c", "a b", "é", "", "items", "0"])
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from(["", "CH", "5", "-1", "true", "2025-03-01", "LB", "A-1"])
)
JSON_DATA: st.SearchStrategy[Any] = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)
BODIES = JSON_DATA | st.binary(max_size=40) | st.floats() | st.text()
"""Anything a message may hold, NaN and infinities included."""
