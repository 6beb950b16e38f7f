"""What is done to a target, and which figures come out of it: a runner gives {figure: value}, None where there is none.

Each runner starts one load generator and reads the target's CPU time or memory when that says so. Figures that end in
`_redis` are the part of the figure before them that the target's own Redis used.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from benchmarks.measure import Split
from benchmarks.targets import ROOT, Target, call, on_core

Figures = dict[str, float | None]
HOLD_STREAMS = 1000
LEAVE_GRACE_S = 1.0


class LoadFailed(Exception):
    """The load generator ended without a result."""


@dataclass(frozen=True)
class Pace:
    """How long things take, in seconds; `repeats` of the one-client requests."""

    warmup_s: float
    window_s: float
    settle_s: float
    repeats: int


QUICK = Pace(warmup_s=1.0, window_s=3.0, settle_s=1.0, repeats=150)
FULL = Pace(warmup_s=2.0, window_s=10.0, settle_s=3.0, repeats=500)


class Load:
    """One load generator process and the lines it prints."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None and process.stdout is not None
        self.stdin, self.stdout = process.stdin, process.stdout

    def read(self, key: str) -> dict[str, object]:
        """The next line, which must hold `key`."""
        line = self.stdout.readline()
        if f'"{key}"' not in line:
            raise LoadFailed(f"the load generator said {line!r} where {key!r} was due")
        return dict(json.loads(line))

    def go_on(self) -> None:
        self.stdin.write("\n")
        self.stdin.flush()


@contextmanager
def load(target: Target, kind: str, model: str, *, translated: bool = False, **plan: object) -> Iterator[Load]:
    prefix = target.translated_prefix if translated else target.prefix
    plan |= {"kind": kind, "port": target.port, "key": target.key, "model": f"{prefix}{model}"}
    command = [sys.executable, "-m", "benchmarks.load", json.dumps(plan)]
    with on_core(-1):
        process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield Load(process)
        process.wait(30)
    finally:
        process.kill()
        process.communicate()


def measure_window(target: Target, run: Load) -> tuple[Split, dict[str, float]]:
    """CPU seconds between the load's two marks, and what the load counted between them."""
    run.read("mark")
    before = target.tree.cpu_s()
    run.read("mark")
    used = target.tree.cpu_s().minus(before)
    return used, run.read("result")["result"]  # type: ignore[return-value]


def cpu_figures(name: str, target: Target, used: Split, units: float) -> Figures:
    if target.tree.root_pid is None or not units:
        return {f"{name}_cpu_us": None, f"{name}_cpu_us_redis": None}
    return {f"{name}_cpu_us": used.both / units * 1e6, f"{name}_cpu_us_redis": used.redis / units * 1e6}


def run_closed(
    name: str, model: str, *, stream: bool, translated: bool = False
) -> Callable[[Target, int, Pace], Figures]:
    def runner(target: Target, upstream_port: int, pace: Pace) -> Figures:
        if translated and target.translated_prefix is None:
            return {}
        plan = {"connections": 4, "stream": stream, "warmup_s": pace.warmup_s, "window_s": pace.window_s}
        with load(target, "closed", model, translated=translated, **plan) as run:
            used, seen = measure_window(target, run)
        return cpu_figures(name, target, used, seen["done"]) | {
            f"{name}_per_s": seen["done"] / seen["seconds"],
            f"{name}_errors": seen["errors"],
        }

    return runner


def run_paced(name: str, streams: int, *, translated: bool = False) -> Callable[[Target, int, Pace], Figures]:
    def runner(target: Target, upstream_port: int, pace: Pace) -> Figures:
        if translated and target.translated_prefix is None:
            return {}
        plan = {"connections": streams, "warmup_s": pace.warmup_s, "window_s": pace.window_s}
        with load(target, "paced", "paced-20x2000", translated=translated, **plan) as run:
            used, seen = measure_window(target, run)
        return cpu_figures(name, target, used, seen["events"]) | {
            f"{name}_per_s": seen["events"] / seen["seconds"],
            f"{name}_delay_p99_ms": seen["delay_p99_ms"],
            f"{name}_errors": seen["errors"],
        }

    return runner


def run_latency(target: Target, upstream_port: int, pace: Pace) -> Figures:
    plan = {"repeats": pace.repeats, "request_model": f"{target.prefix}burst-16"}
    with load(target, "latency", "first-16", **plan) as run:
        result: dict = run.read("result")["result"]  # type: ignore[assignment,type-arg]
    stream, request = result["stream"], result["request"]
    return {
        "ttft_p50_ms": stream["ttft_p50_ms"],
        "ttft_p99_ms": stream["ttft_p99_ms"],
        "stream_p50_ms": stream["total_p50_ms"],
        "request_p50_ms": request["total_p50_ms"],
        "latency_errors": result["errors"],
    }


def upstream_open(port: int) -> int:
    return int(json.loads(call(f"http://127.0.0.1:{port}/stats"))["open_streams"])


def run_hold(target: Target, upstream_port: int, pace: Pace) -> Figures:
    """Warm up, read memory, open 1,000 slow streams, read memory, leave, count what is still open upstream."""
    plan = {"connections": 8, "warmup_s": 0.1, "window_s": pace.warmup_s}
    with load(target, "closed", "burst-4x64", **plan) as run:
        measure_window(target, run)
    time.sleep(pace.settle_s)
    before, open_before = target.tree.rss_bytes(), upstream_open(upstream_port)
    with load(target, "hold", "slow-0.25x1000", connections=HOLD_STREAMS) as run:
        opened = run.read("mark")["streams"]
        time.sleep(pace.settle_s)
        after = target.tree.rss_bytes()
        run.go_on()
        run.read("mark")
        time.sleep(LEAVE_GRACE_S)
        still_open = upstream_open(upstream_port) - open_before
        result: dict = run.read("result")["result"]  # type: ignore[assignment,type-arg]
    figures: Figures = {"hold_alive": result["alive"], "hold_errors": result["errors"], "left_open": still_open}
    if target.tree.root_pid is None or not opened:
        return figures
    grown = after.minus(before)
    return figures | {
        "rss_mb": before.both / 2**20,
        "rss_mb_redis": before.redis / 2**20,
        "stream_kb": grown.both / int(str(opened)) / 1024,
        "stream_kb_redis": grown.redis / int(str(opened)) / 1024,
    }


RUNNERS: dict[str, Callable[[Target, int, Pace], Figures]] = {
    "memory1k": run_hold,  # first: growth is only seen in a fresh process
    "leave": run_hold,  # the same run, its end
    "latency": run_latency,  # before the paced ones: an overloaded target takes minutes to recover
    "request": run_closed("request", "burst-16", stream=False),
    "stream64": run_closed("stream64", "burst-4x64", stream=True),
    "translated64": run_closed("translated64", "burst-4x64", stream=True, translated=True),
    "paced1k": run_paced("paced1k", streams=50),
    "translated1k": run_paced("translated1k", streams=50, translated=True),
    "paced5k": run_paced("paced5k", streams=250),
    "translated5k": run_paced("translated5k", streams=250, translated=True),
}
