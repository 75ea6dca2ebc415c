"""What a flow's task may say of how it ended."""

from __future__ import annotations

import json

import pytest

from continuitybridge.airflow.execution_fence import _is_an_ending


@pytest.mark.parametrize("state", [[], {}, None, 1, "running"])
def test_a_state_that_is_none_of_the_known_is_refused(state: object) -> None:
    assert not _is_an_ending(json.dumps({"state": state}).encode())
    assert _is_an_ending(b'{"state": "success"}')
