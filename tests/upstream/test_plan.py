"""Plans that can be ordered, and the independence of the server that plays them."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from . import Piece, Plan, ToolCall


@pytest.mark.parametrize(
    "order", [{"cut": 0}, {"cut": 1, "coalesce": True}, {"fault_at": 1}, {"fault": "error_event", "fault_at": -1}]
)
def test_plans_that_make_no_sense_are_refused(order: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        Plan(**order)


def test_it_imports_nothing_of_the_gateway() -> None:
    code = f"import sys; import {__package__}; sys.exit('gateway' in sys.modules)"
    root = Path(__file__).parents[len(__package__.split("."))]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


def test_a_plan_can_be_written_as_json() -> None:
    plan = msgspec.json.decode(
        b'{"reasoning": ["Hm"], "tool_calls": [{"name": "f", "arguments": ["{", "}"]}]}', type=Plan
    )
    assert plan.words == () and plan.tool_calls == (ToolCall(name="f", arguments=("{", "}")),)
    fragments = [Piece("tool", "{", 0, True), Piece("tool", "}", 0, False)]
    assert list(plan.pieces()) == [Piece("reasoning", "Hm"), *fragments]
