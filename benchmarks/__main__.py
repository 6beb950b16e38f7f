"""`python -m benchmarks`: measures the gateway beside its peers and prints a Markdown table.

Rounds are interleaved: in each, every target is started fresh, measured and stopped before the next one. The target has
the first core for itself; the mock upstream and the load share the last.
"""

import argparse
import importlib.util
import json
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from benchmarks import report, scenarios
from benchmarks.peers import litellm_python, litellm_version
from benchmarks.scenarios import FULL, QUICK, RUNNERS, Figures, Pace, run_hold
from benchmarks.targets import CPUS, NAMES, ROOT, TargetFailed, on_core, running

FILES_NEEDED = 8192
IDLE_TIMEOUT_S = 10
Runner = Callable[..., Figures]


def is_available(name: str) -> bool:
    match name:
        case "gateway":
            return importlib.util.find_spec("gateway") is not None or (ROOT / "src" / "gateway" / "cli.py").exists()
        case "litellm":
            return litellm_python() is not None
        case "nginx":
            return shutil.which("nginx") is not None
        case _:
            return True


def listed(names: tuple[str, ...]) -> Callable[[str], list[str]]:
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
    names = f"comma-separated, of {', '.join(NAMES)}; unless told, all that are installed"
    parser.add_argument("--targets", type=listed(NAMES), help=names)
    kinds = f"comma-separated, of {', '.join(RUNNERS)}; unless told, all"
    parser.add_argument("--scenarios", type=listed(tuple(RUNNERS)), default=list(RUNNERS), help=kinds)
    arguments = parser.parse_args()
    arguments.rounds = arguments.rounds or (1 if arguments.quick else 3)
    arguments.targets = arguments.targets or [name for name in NAMES if is_available(name)]
    return arguments


def raise_file_limit() -> None:
    """Children inherit it; 1,000 streams are 2,000 sockets in a gateway."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < FILES_NEEDED:
        wanted = FILES_NEEDED if hard == resource.RLIM_INFINITY else min(FILES_NEEDED, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


@contextmanager
def mock_upstream() -> Iterator[int]:
    """The mock's port, while it runs."""
    with on_core(-1):
        process = subprocess.Popen([sys.executable, "-m", "benchmarks.upstream"], cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        yield int(json.loads(process.stdout.readline())["port"])
    finally:
        process.kill()
        process.communicate()


def starts_of(names: list[str]) -> list[list[Runner]]:
    """The runners of each fresh start: memory and leaving have a process of their own."""
    runners = list(dict.fromkeys(RUNNERS[name] for name in names))
    hold, others = [run for run in runners if run is run_hold], [run for run in runners if run is not run_hold]
    return [group for group in (hold, others) if group]


def measure_target(name: str, names: list[str], pace: Pace) -> Figures:
    figures: Figures = {}
    for group in starts_of(names):
        with mock_upstream() as port, running(name, port) as target:
            for runner in group:
                figures |= runner(target, port, pace)
                wait_until_idle(port)
    return figures


def wait_until_idle(upstream_port: int) -> None:
    """Streams that a target has not yet let go must not burden the next scenario."""
    deadline = time.monotonic() + IDLE_TIMEOUT_S
    while scenarios.upstream_open(upstream_port) and time.monotonic() < deadline:
        time.sleep(0.05)


def measure_round(arguments: argparse.Namespace, pace: Pace, label: str) -> dict[str, Figures]:
    figures: dict[str, Figures] = {}
    for name in arguments.targets:
        began = time.monotonic()
        try:
            figures[name] = measure_target(name, arguments.scenarios, pace)
        except (TargetFailed, scenarios.LoadFailed) as error:
            print(f"{label}: {name} failed:\n{error}", file=sys.stderr, flush=True)
            continue
        print(f"{label}: {name} in {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    report.add_differences(figures)
    return figures


def nginx_version() -> str:
    return subprocess.run(["nginx", "-v"], capture_output=True, text=True, check=True).stderr.strip().partition("/")[2]


def main() -> int:
    arguments = parse_arguments()
    raise_file_limit()
    if len(CPUS) < 2:
        print("One core only: the load competes with the target, read CPU time and nothing else.", file=sys.stderr)
    results: report.Rounds = {name: [] for name in arguments.targets}
    for index in range(arguments.rounds):
        figures = measure_round(arguments, QUICK if arguments.quick else FULL, f"round {index + 1}/{arguments.rounds}")
        for name, own in figures.items():
            results[name].append(own)
    versions = {
        "LiteLLM": litellm_version() if "litellm" in results else None,
        "nginx": nginx_version() if "nginx" in results else None,
    }
    about = report.describe(arguments.rounds, arguments.quick, versions)
    print(report.render(results, about))
    report.write(results, about)
    return 0 if all(len(rounds) == arguments.rounds for rounds in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
