"""``python -m tests.reliability.table`` writes ``docs/reliability.md`` from the results of the last runs.

With ``tests`` as its argument it prints the tests that are evidence for some row, for pytest to run.
"""

import sys
import time
from collections.abc import Iterable
from pathlib import Path

from tests.reliability.results import Results, Run, load
from tests.reliability.rows import ROWS, Row

DOC = Path(__file__).parent.parent.parent / "docs" / "reliability.md"

HEAD = """# Reliability

What happens to money and to clients in fifty faults. `make reliability` runs every row and writes this page; `make
test` runs all rows but those marked "slow". The code under test is `gateway serve` as it is installed, against a real
Redis; only the providers are simulated. In the runs with many clients, 200 of them use one account through three
gateways; a quarter leaves at random and a twelfth gets a provider that fails.

The judge is outside of the gateway: *delivered* is what clients counted, each token at its price; *charged* and
*absorbed* (cost that no balance could cover, the operator's) are read from Redis; *leaked* is what was still held,
leased, open or unsettled once everything should have been at rest, and every run waits for that. Each request is
compared by itself: nobody pays for more than the provider sent, and who stays until the end pays for exactly what was
received. The difference between charged and delivered was on its way to clients that left or whose gateway died.
Amounts are µ$, summed over a row's runs.
"""


def main() -> None:
    """Reads the command line."""
    if sys.argv[1:] == ["tests"]:
        names = dict.fromkeys(name for row in ROWS for name in row.evidence)
        print("\n".join(names))
        return
    DOC.write_text(render(load()))


def render(results: Results) -> str:
    """The page."""
    lines = [HEAD, *_facts(results), ""]
    lines += [
        "| # | fault | expected | outcome | charged | delivered | absorbed | leaked |",
        "|--:|---|---|---|--:|--:|--:|--:|",
    ]
    lines += [_line(row, results) for row in ROWS]
    lines += ["", "## Runs with many clients", ""]
    lines += [
        "| rows | run | ends | charged | in flight | undercharged | at rest after | seed |",
        "|---|---|---|--:|--:|--:|--:|--:|",
    ]
    lines += _crowds(results)
    lines += ["", "## How each fault is brought about", "", "| # | how | evidence |", "|--:|---|---|"]
    lines += [_evidence(row) for row in ROWS]
    return "\n".join(lines) + "\n"


def _facts(results: Results) -> list[str]:
    if not results.tests:
        return ["Nothing has been run yet."]
    at = max(tried.at for tried in results.tests.values())
    rows = sum(_status(row, results).startswith("held") for row in ROWS)
    day = time.strftime("%Y-%m-%d", time.gmtime(at))
    redis = " and ".join(results.redis)
    return [f"Last run: {day}, Redis {redis}, {results.machine}. {rows} of {len(ROWS)} rows held."]


def _matching(name: str, tests: Iterable[str]) -> list[str]:
    return [test for test in tests if test == name or test.startswith(f"{name}[")]


def _tests_of(row: Row, results: Results) -> list[str]:
    return [test for name in row.evidence for test in _matching(name, results.tests)]


def _runs_of(row: Row, results: Results) -> list[Run]:
    return [run for test in _tests_of(row, results) for run in results.runs.get(test, ()) if run.row == row.number]


def _status(row: Row, results: Results) -> str:
    tried = [results.tests[test] for test in _tests_of(row, results)]
    if any(test.result == "failed" for test in tried):
        return "**FAILED**"
    own = [name for name in row.evidence if name.startswith("tests/reliability/")]
    ran = [test for test in _tests_of(row, results) if results.tests[test].result == "passed"]
    missing = [name for name in own if not _matching(name, ran)]
    if not ran or missing:
        reasons = dict.fromkeys(test.reason for test in tried if test.reason)
        return f"not run: {row.not_run or '; '.join(reasons) or 'left out of this run'}"
    return f"held ({len(ran)} test{'s' if len(ran) > 1 else ''})"


def _line(row: Row, results: Results) -> str:
    status = _status(row, results)
    runs = _runs_of(row, results) if status.startswith("held") else []
    found = "; ".join(dict.fromkeys(run.outcome for run in runs))
    figures = [_sum(runs, name) for name in ("charged", "delivered", "absorbed", "leaked")]
    cells = [str(row.number), row.fault, row.expected, f"{status}{': ' if found else ''}{found}", *figures]
    return f"| {' | '.join(cells)} |"


def _sum(runs: list[Run], name: str) -> str:
    values = [value for run in runs if (value := getattr(run, name)) is not None]
    return f"{sum(values):,}" if values else "–"


def _crowds(results: Results) -> list[str]:
    lines = []
    for test, runs in sorted(results.runs.items()):
        if runs[0].clients < 100 or results.tests[test].result != "passed":
            continue
        run = runs[0]
        rows = ", ".join(str(each.row) for each in runs)
        ends = ", ".join(f"{count} {end}" for end, count in run.ends.items())
        name = test.partition("::test_")[2].replace("_", " ").replace("|", "\\|")
        figures = [f"{run.charged:,}", f"{run.in_flight:,}", f"{run.undercharged:,}", f"{run.rest_s} s", str(run.seed)]
        lines.append(f"| {rows} | {name} | {ends} | {' | '.join(figures)} |")
    return lines


def _evidence(row: Row) -> str:
    names = []
    for name in row.evidence:
        path, _, test = name.partition("::")
        names.append(f"`{test.rpartition('::')[2]}` in [{Path(path).name}](../{path})")
    return f"| {row.number} | {row.injected} | {'; '.join(names) or row.not_run} |"


if __name__ == "__main__":
    main()
