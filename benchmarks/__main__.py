"""`python -m benchmarks`: measures the gateway beside its peers and prints Markdown tables.

Rounds are interleaved: in each, every target is started fresh, measured and stopped before the next one. The target has
the first core for itself; the mock upstream and the load share the last.
"""

import argparse
import importlib.util
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from http.client import HTTPException
from itertools import groupby

import redis

from benchmarks import report
from benchmarks.books import AdminClient, Books
from benchmarks.driving import Figures, LoadFailed, Mock, mock_upstream
from benchmarks.pace import FULL, QUICK, Pace
from benchmarks.peers import PEERS
from benchmarks.plans import PLANS, ROOT
from benchmarks.scenarios import BY_DEFAULT, SCENARIOS
from benchmarks.targets import CPUS, Target, TargetFailed, running

FILES_NEEDED = 16384
FAILURES = (LoadFailed, OSError, subprocess.SubprocessError, HTTPException, redis.RedisError)
STAYS_ZERO = ("books_off_microusd", "books_records_off", "books_below_zero", "overspend_microusd")


def why_missing(name: str) -> str | None:
    """The reason why a target cannot be measured here, or None."""
    if name == "gateway":
        is_there = importlib.util.find_spec("gateway") is not None or (ROOT / "src" / "gateway" / "cli.py").exists()
        return None if is_there else "the package gateway is not installed"
    if name in PEERS and not PEERS[name].is_there():
        return f"{PEERS[name].title} is not installed (make bench-peers)"
    return None


def listed(names: list[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        chosen = text.split(",")
        if unknown := set(chosen) - set(names):
            raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: not one of {', '.join(names)}")
        return [name for name in names if name in chosen]  # in our order: direct first

    return parse


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="short windows, one round: a first look, not a figure")
    parser.add_argument("--rounds", type=int, help="3 unless told; 1 with --quick")
    parser.add_argument("--targets", type=listed(list(PLANS)), default=list(PLANS), help=f"of {', '.join(PLANS)}")
    kinds = f"comma-separated, of {', '.join(SCENARIOS)}; unless told, all but soak"
    parser.add_argument("--scenarios", type=listed(list(SCENARIOS)), default=BY_DEFAULT, help=kinds)
    parser.add_argument("--soak-s", type=float, default=FULL.soak_s, help="length of the scenario soak; 1800")
    arguments = parser.parse_args()
    arguments.rounds = arguments.rounds or (1 if arguments.quick else 3)
    arguments.pace = replace(QUICK if arguments.quick else FULL, soak_s=arguments.soak_s)
    return arguments


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def raise_file_limit() -> None:
    """Children inherit it; 5,000 streams are 10,000 sockets in a gateway."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < FILES_NEEDED:
        wanted = FILES_NEEDED if hard == resource.RLIM_INFINITY else min(FILES_NEEDED, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def measure_scenario(name: str, target: Target, mock: Mock, books: Books | None, pace: Pace) -> Figures:
    """The scenario's figures, and how the books stand after it; what failed leaves a mark and no figures."""
    began = time.monotonic()
    figures: Figures = {}
    try:
        figures = SCENARIOS[name].run(target, mock, pace)
        taken_s = time.monotonic() - began
        idle_s = mock.wait_until_idle()
        checked = books.check() if books is not None else {}
    except FAILURES as error:
        say(f"  {target.name} {name} failed: {error!r}")
        return figures | {f"{name}_failed": 1}
    say(f"  {target.name} {name} in {taken_s:.1f} s, upstream idle after another {idle_s:.1f} s")
    if off := {key: value for key, value in checked.items() if value}:
        say(f"  {target.name} after {name}: {off}")
    return figures | checked


def measure_target(name: str, chosen: list[str], pace: Pace) -> Figures:
    figures: Figures = {}
    for _, group in groupby(chosen, key=lambda scenario: SCENARIOS[scenario].start):
        with mock_upstream() as mock, running(name, PLANS[name], mock.port) as target:
            books = Books(target) if target.is_gateway else None
            if books is not None:
                target.key = AdminClient(target).open_account("bench")
                report.note_version("Redis", books.redis_version())
            for scenario in group:
                found = measure_scenario(scenario, target, mock, books, pace)
                for key, value in found.items():
                    is_sum = key.startswith("books_")
                    figures[key] = (figures.get(key) or 0) + (value or 0) if is_sum else value
    return figures


def scenarios_of(name: str, arguments: argparse.Namespace, index: int) -> list[str]:
    """Those that this target does in this round."""
    asked = ((scenario, SCENARIOS[scenario]) for scenario in arguments.scenarios)
    return [
        scenario
        for scenario, what in asked
        if (index == 0 or not what.is_once) and (name == "gateway" or not what.is_ours)
    ]


def measure_round(arguments: argparse.Namespace, index: int, results: report.Rounds) -> None:
    figures: dict[str, Figures] = {}
    for name in results:
        began, label = time.monotonic(), f"round {index + 1}/{arguments.rounds}: {name}"
        chosen = scenarios_of(name, arguments, index)
        try:
            figures[name] = measure_target(name, chosen, arguments.pace)
        except (TargetFailed, *FAILURES) as error:
            say(f"{label} did not start:\n{error}")
            continue
        say(f"{label} in {time.monotonic() - began:.0f} s")
    report.add_differences(figures)
    for name, own in figures.items():
        results[name].append(own)


def is_good(results: report.Rounds, rounds: int) -> bool:
    """Whether ours was measured throughout, and neither lost nor gave away money. Peers may fail: that is a result."""
    ours = [figures for name in ("direct", "gateway") for figures in results.get(name, [])]
    failed = [key for figures in ours for key, value in figures.items() if key.endswith("_failed") and value]
    lost = [key for figures in ours for key in STAYS_ZERO if figures.get(key)]
    started = all(len(results[name]) == rounds for name in ("direct", "gateway") if name in results)
    return started and not failed and not lost


def main() -> int:
    arguments = parse_arguments()
    raise_file_limit()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that targets are stopped, as on Ctrl-C
    began = time.monotonic()
    if len(CPUS) < 2:
        say("One core only: the load competes with the target, read CPU time and nothing else.")
    missing = {name: reason for name in arguments.targets if (reason := why_missing(name))}
    for name, reason in missing.items():
        say(f"{name} is skipped: {reason}.")
    results: report.Rounds = {name: [] for name in arguments.targets if name not in missing}
    for index in range(arguments.rounds):
        measure_round(arguments, index, results)
    report.note_peers([name for name in results if name in PEERS])
    about = report.describe(arguments.rounds, arguments.quick, time.monotonic() - began)
    print(report.render(results, about))
    report.write(results, about)
    return 0 if is_good(results, arguments.rounds) else 1


if __name__ == "__main__":
    sys.exit(main())
