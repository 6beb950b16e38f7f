"""The mock and the load generator as processes: how a scenario starts them, waits for their lines and ends them.

No wait is without an end: a load generator that takes longer than its plan can take is killed, and the scenario fails
with `LoadFailed`.
"""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from benchmarks.measure import Split, cpu_s_of
from benchmarks.plans import ROOT
from benchmarks.targets import Target, call, on_core

Figures = dict[str, float | None]
SLACK_S = 25  # for starting, ending and the target's slowness, beyond what a plan's own times add up to
IDLE_TIMEOUT_S = 10


class LoadFailed(Exception):
    """The load generator ended without a result, or was ended."""


class Mock(NamedTuple):
    """The running mock upstream."""

    port: int
    pid: int

    def open_streams(self) -> int:
        return int(json.loads(call(f"http://127.0.0.1:{self.port}/stats"))["open_streams"])

    def wait_until_idle(self) -> float:
        """Streams that a target has not yet let go must not burden the next scenario; seconds waited."""
        began = time.monotonic()
        while self.open_streams() and time.monotonic() < began + IDLE_TIMEOUT_S:
            time.sleep(0.05)
        return time.monotonic() - began


@contextmanager
def mock_upstream() -> Iterator[Mock]:
    """The mock, while it runs."""
    with on_core(-1):
        process = subprocess.Popen([sys.executable, "-m", "benchmarks.upstream"], cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        yield Mock(int(json.loads(process.stdout.readline())["port"]), process.pid)
    finally:
        process.kill()
        process.communicate()


class Load:
    """One load generator process and the lines it prints."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None and process.stdout is not None
        self.pid, self.stdin, self.stdout = process.pid, process.stdin, process.stdout

    def read(self, key: str) -> Any:
        """What the next line says of `key`, which it must hold."""
        line = self.stdout.readline()
        if f'"{key}"' not in line:
            raise LoadFailed(f"the load generator said {line!r} where {key!r} was due")
        return json.loads(line)[key]

    def go_on(self) -> None:
        self.stdin.write("\n")
        self.stdin.flush()


@contextmanager
def load(target: Target, kind: str, model: str, *, translated: bool = False, **plan: Any) -> Iterator[Load]:
    """A load generator that speaks to the target; killed when it takes too long."""
    launch = target.launch
    prefix = launch.translated_prefix if translated else launch.prefix
    plan = {"path": launch.path, "headers": launch.headers, "key": target.key} | plan
    plan |= {"kind": kind, "port": target.port, "model": f"{prefix}{model}"}
    limit_s = SLACK_S + sum(plan.get(name, 0) for name in ("warmup_s", "window_s", "spread_s"))
    limit_s += plan.get("opening_s", 20) + plan.get("wait_s", 20)
    with on_core(-1):
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.load", json.dumps(plan)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
    watchdog = threading.Timer(limit_s, process.kill)
    watchdog.start()
    try:
        yield Load(process)
        process.wait(SLACK_S)
    except subprocess.TimeoutExpired:
        raise LoadFailed("the load generator did not end") from None
    finally:
        watchdog.cancel()
        process.kill()
        process.communicate()


class Window(NamedTuple):
    """What was used between the load's two marks, in CPU seconds, and what the load counted between them."""

    target: Split
    mock_s: float
    load_s: float
    seen: dict[str, Any]

    def figures(self, name: str, target: Target, units: float) -> Figures:
        """CPU microseconds per unit, and how much of a core mock and load used themselves."""
        seconds = self.seen["seconds"]
        shares = {f"{name}_mock_share": self.mock_s / seconds, f"{name}_load_share": self.load_s / seconds}
        if not target.is_measurable or not units:
            return {f"{name}_cpu_us": None, f"{name}_cpu_us_redis": None} | shares
        us = 1e6 / units
        return {f"{name}_cpu_us": self.target.both * us, f"{name}_cpu_us_redis": self.target.redis * us} | shares


def measure_window(target: Target, mock: Mock, run: Load) -> Window:
    """From the load's first mark to its second, and its result."""
    run.read("mark")
    before, mock_s, load_s = target.tree.cpu_s(), cpu_s_of(mock.pid), cpu_s_of(run.pid)
    run.read("mark")
    used = target.tree.cpu_s().minus(before)
    mock_s, load_s = cpu_s_of(mock.pid) - mock_s, cpu_s_of(run.pid) - load_s
    return Window(used, mock_s, load_s, run.read("result"))
