"""What a request and a chunk cost in instructions, against what was recorded; and how the two are compared."""

import platform

import pytest

from benchmarks.counted import CALIBRATION, LONG, SHORT
from benchmarks.instructions import (
    MISSING,
    RECORD,
    Record,
    compare,
    count,
    figures_of,
    is_available,
    read_record,
    table,
)

COUNTED = {CALIBRATION: 1000.0} | {
    f"{model} {kind}": figure
    for model in ("openai", "claude")
    for kind, figure in (("whole", 400.0), ("short", 500.0), ("long", 500.0 + 10.0 * (LONG - SHORT)))
}


@pytest.mark.timeout(300)
@pytest.mark.skipif(not is_available(), reason=MISSING)
def test_no_request_and_no_chunk_takes_more_instructions_than_recorded() -> None:
    lines = compare(figures_of(count()), read_record())
    assert not [line.path for line in lines if line.is_dearer], f"if it is meant to be, {RECORD}\n{table(lines)}"


def test_every_path_is_recorded() -> None:
    assert read_record().ratios.keys() == figures_of(COUNTED).keys() - {CALIBRATION}


def test_a_chunk_is_what_a_longer_stream_takes_more() -> None:
    assert figures_of(COUNTED)["chunk, passed on"] == 10.0


@pytest.mark.parametrize(("python", "tolerance"), [(platform.python_version()[:4], 0.05), ("3.1", 0.10)])
def test_only_what_is_dearer_by_more_than_the_tolerance_fails(python: str, tolerance: float) -> None:
    figures = {CALIBRATION: 2000.0, "same": 1000.0, "dearer": 1000.0, "cheaper": 1000.0, "new": 1000.0}
    recorded = {"same": 0.5 / (1 + 0.9 * tolerance), "dearer": 0.5 / (1 + 1.1 * tolerance), "cheaper": 0.6}
    lines = {line.path: line for line in compare(figures, Record(python, recorded))}
    assert [path for path, line in lines.items() if line.is_dearer] == ["dearer"]
    assert [path for path, line in lines.items() if line.is_cheaper] == ["cheaper"]
    assert "| new | 1,000 | 0.5000 | - | - | not recorded |" in table(list(lines.values()))
