"""`python -m benchmarks.instructions`: instructions per request and per chunk, compared with what was recorded.

It does not time, so a busy machine makes no difference: callgrind counts what the interpreter executes in
`benchmarks.counted`. Each figure is divided by that of a fixed calibration, counted in the same run, since another
build of Python needs another number of instructions for everything. `--record` stores the figures anew.
"""

import argparse
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from benchmarks.counted import CALIBRATION, CALIBRATION_TURNS, COUNTS, LONG, MARKER, SHORT
from tests.harness import RedisServer

RECORDED = Path(__file__).with_suffix(".json")
# The second where another minor version of Python recorded than counts.
TOLERANCE, TOLERANCE_ELSEWHERE = 0.05, 0.10
MISSING = "valgrind is not installed; it counts the instructions (apt-get install valgrind)"
RECORD = "python -m benchmarks.instructions --record"
_LIMIT_S = 240.0
_PYTHON = ".".join(platform.python_version_tuple()[:2])
_ROOT = Path(__file__).resolve().parent.parent
_TOTAL = re.compile(r"^totals: (\d+)", re.MULTILINE)


class Line(NamedTuple):
    """One path: its instructions, their ratio to the calibration's, and the recorded ratio (0 where there is none)."""

    path: str
    instructions: float
    ratio: float
    recorded: float
    tolerance: float

    @property
    def change(self) -> float:
        """0.05 for 5 % more than recorded."""
        return self.ratio / self.recorded - 1 if self.recorded else 0.0

    @property
    def is_dearer(self) -> bool:
        return self.change > self.tolerance

    @property
    def is_cheaper(self) -> bool:
        return self.change < -self.tolerance

    @property
    def verdict(self) -> str:
        if not self.recorded:
            return "not recorded"
        return "**dearer**" if self.is_dearer else "cheaper: record anew" if self.is_cheaper else "as recorded"


class Record(msgspec.Struct, frozen=True):
    """What is stored: the minor version of Python that counted, each path's ratio, and the instructions."""

    python: str = ""
    ratios: dict[str, float] = {}
    instructions: dict[str, int] = {}


def is_available() -> bool:
    """Whether valgrind is here, with the program that switches it on."""
    return shutil.which("valgrind") is not None and shutil.which("vgdb") is not None


def count() -> dict[str, float]:
    """Instructions of each thing that `benchmarks.counted` counts: the median of its repeats."""
    redis = RedisServer(None, "--appendfsync", "no").start()
    try:
        with tempfile.TemporaryDirectory(prefix="gw-instructions-") as folder:
            return _count(Path(folder), redis.url)
    finally:
        redis.stop()


def _count(folder: Path, redis_url: str) -> dict[str, float]:
    out = folder / "out"
    command = ["valgrind", "--tool=callgrind", "--instr-atstart=no", f"--dump-before={MARKER}"]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("GATEWAY_", "COV_", "PYTEST_"))}
    settings = {"GATEWAY_REDIS_URL": redis_url, "GATEWAY_DATA_DIR": str(folder / "state")}
    settings |= {"PYTHONHASHSEED": "0", COUNTS: "1"}
    ran = subprocess.run(
        [*command, f"--callgrind-out-file={out}", sys.executable, "-m", "benchmarks.counted"],
        cwd=_ROOT,
        env=kept | settings,
        capture_output=True,
        text=True,
        timeout=_LIMIT_S,
    )
    if ran.returncode:
        raise RuntimeError(f"the counted process failed:\n{ran.stderr[-4000:]}")
    samples: dict[str, list[int]] = {}
    for number, name in enumerate(json.loads(ran.stdout)):
        # Part n ends with the n-th mark, and each of what was counted stands between two.
        found = _TOTAL.search(Path(f"{out}.{2 * number + 2}").read_text())
        if found is None:
            raise RuntimeError(f"callgrind wrote no total for {name!r}")
        samples.setdefault(name, []).append(int(found[1]))
    return {name: statistics.median(values) for name, values in samples.items()}


def figures_of(counted: Mapping[str, float]) -> dict[str, float]:
    """Instructions per path, one turn of the calibration among them; a chunk's is what a longer stream takes more."""
    figures = {CALIBRATION: counted[CALIBRATION] / CALIBRATION_TURNS}
    for model, title in (("openai", "passed on"), ("claude", "translated")):
        short, long = counted[f"{model} short"], counted[f"{model} long"]
        figures[f"request, whole answer, {title}"] = counted[f"{model} whole"]
        figures[f"request, stream of {SHORT} chunks, {title}"] = short
        figures[f"chunk, {title}"] = (long - short) / (LONG - SHORT)
    return figures


def compare(figures: Mapping[str, float], recorded: Record) -> list[Line]:
    """A line for each path but the calibration."""
    unit = figures[CALIBRATION]
    tolerance = TOLERANCE if recorded.python == _PYTHON else TOLERANCE_ELSEWHERE
    return [
        Line(path, instructions, instructions / unit, recorded.ratios.get(path, 0.0), tolerance)
        for path, instructions in figures.items()
        if path != CALIBRATION
    ]


def read_record() -> Record:
    """What the file says; empty where there is none."""
    return msgspec.json.decode(RECORDED.read_bytes(), type=Record) if RECORDED.exists() else Record()


def table(lines: list[Line]) -> str:
    rows = ["| path | instructions | ratio | recorded | change | |", "|---|---|---|---|---|---|"]
    for line in lines:
        change = f"{line.change:+.1%}" if line.recorded else "-"
        recorded = f"{line.recorded:.4f}" if line.recorded else "-"
        cells = (line.path, f"{line.instructions:,.0f}", f"{line.ratio:.4f}", recorded, change, line.verdict)
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def record(figures: Mapping[str, float]) -> None:
    """Store the ratios, and the instructions beside them, which are for people."""
    ratios = {line.path: round(line.ratio, 4) for line in compare(figures, Record())}
    stored = Record(_PYTHON, ratios, {path: round(figure) for path, figure in figures.items()})
    RECORDED.write_bytes(msgspec.json.format(msgspec.json.encode(stored), indent=2) + b"\n")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.instructions", description=__doc__)
    parser.add_argument("--record", action="store_true", help="store what was counted, to compare with from then on")
    arguments = parser.parse_args()
    if not is_available():
        sys.exit(MISSING)
    figures = figures_of(count())
    lines = compare(figures, read_record())
    print(f"{table(lines)}\n\nRatios are to a turn of the calibration, which took {figures[CALIBRATION]:,.0f}.")
    if arguments.record:
        record(figures)
    elif any(line.is_dearer for line in lines):
        sys.exit(f"More than {lines[0].tolerance:.0%} dearer than recorded. If it is meant to be: {RECORD}")
    elif any(line.is_cheaper or not line.recorded for line in lines):
        print(f"Let the next change be measured against this one: {RECORD}")


if __name__ == "__main__":
    main()
