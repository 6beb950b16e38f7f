"""What is done to a target, and which figures come out of it: a runner gives {figure: value}, None where there is none.

Each runner starts one load generator and reads the target's CPU time when that says so. Figures that end in `_redis`
are the part of the figure before them that the target's own Redis used. SCENARIOS says which scenarios share one fresh
start of the target, in which order, and which are run in the first round only.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from benchmarks.books import spread_keys
from benchmarks.driving import Figures, Mock, load, measure_window
from benchmarks.holding import Memory, run_aborts, run_overspend, run_soak
from benchmarks.pace import Pace
from benchmarks.targets import Target

Runner = Callable[[Target, Mock, Pace], Figures]
RATE_PER_S = 20  # chunks, of each paced stream


@dataclass(frozen=True)
class Closed:
    """Four connections that ask again at once; CPU time per answer, or per chunk where clients leave."""

    name: str
    model: str
    stream: bool = True
    translated: bool = False
    plan: tuple[tuple[str, Any], ...] = ()
    unit: str = "done"

    def __call__(self, target: Target, mock: Mock, pace: Pace) -> Figures:
        plan: dict[str, Any] = {"connections": 4, "stream": self.stream} | pace.window() | dict(self.plan)
        with load(target, "closed", self.model, translated=self.translated, **plan) as run:
            window = measure_window(target, mock, run)
        seen = window.seen
        return window.figures(self.name, target, seen[self.unit]) | {
            f"{self.name}_per_s": seen[self.unit] / seen["seconds"],
            f"{self.name}_errors": seen["errors"],
        }


@dataclass(frozen=True)
class Paced:
    """Streams of 20 chunks a second; CPU time per chunk that arrived, what share arrived, and how late."""

    name: str
    streams: int
    translated: bool = False
    plan: tuple[tuple[str, Any], ...] = ()

    def __call__(self, target: Target, mock: Mock, pace: Pace) -> Figures:
        plan: dict[str, Any] = (
            {"connections": self.streams, "opening_s": pace.opening_s} | pace.window() | dict(self.plan)
        )
        with load(target, "paced", "paced-20x2000", translated=self.translated, **plan) as run:
            window = measure_window(target, mock, run)
        seen = window.seen
        due = self.streams * RATE_PER_S * seen["seconds"]
        return window.figures(self.name, target, seen["events"]) | {
            f"{self.name}_delivered": min(1.0, seen["events"] / due),
            f"{self.name}_dropped": self.streams - seen["alive"],
            f"{self.name}_delay_p99_ms": seen["delay_p99_ms"],
            f"{self.name}_errors": seen["errors"],
        }


def run_latency(target: Target, mock: Mock, pace: Pace) -> Figures:
    plan: dict[str, Any] = {"repeats": pace.repeats, "request_model": f"{target.launch.prefix}burst-16"}
    with load(target, "latency", "first-16", **plan) as run:
        result = run.read("result")
    stream, request = result["stream"], result["request"]
    return {
        "ttft_p50_ms": stream["ttft_p50_ms"],
        "ttft_p99_ms": stream["ttft_p99_ms"],
        "stream_p50_ms": stream["total_p50_ms"],
        "request_p50_ms": request["total_p50_ms"],
        "request_p99_ms": request["total_p99_ms"],
        "latency_errors": result["errors"],
    }


def run_accounts(target: Target, mock: Mock, pace: Pace) -> Figures:
    """The same streams twice: all on one account's balance, then each on another account's."""
    hot = Closed("hot64", "burst-4x64")(target, mock, pace)
    keys = spread_keys(target, pace.accounts)
    return hot | Closed("spread64", "burst-4x64", plan=(("keys_file", str(keys)),))(target, mock, pace)


class Scenario(NamedTuple):
    """A runner, the start of the target that it shares with others, and when it is left out."""

    run: Runner
    start: str = "main"
    is_once: bool = False
    is_ours: bool = False  # for the gateway alone


CHAT = (("is_chat", True), ("path", "/api/chat"))
RESUMABLE = (*CHAT, ("headers", {"x-gateway-resumable": "true"}))
LEAVING = (("connections", 100), ("spread_s", 1.0), ("leave_every", 10), ("wait_s", 0.5))
KB = 1024

SCENARIOS: dict[str, Scenario] = {
    "memory1k": Scenario(Memory("memory1k"), "memory1k", is_once=True),  # growth is only seen in a fresh process
    "memory5k": Scenario(Memory("memory5k"), "memory5k", is_once=True),
    "aborts": Scenario(run_aborts, "aborts", is_once=True),
    "overspend": Scenario(run_overspend, "aborts", is_once=True, is_ours=True),
    "accounts": Scenario(run_accounts, "aborts", is_once=True, is_ours=True),
    "latency": Scenario(run_latency),  # before the paced ones: an overloaded target takes minutes to recover
    "request": Scenario(Closed("request", "burst-16", stream=False)),
    "prompt64k": Scenario(Closed("prompt64k", "burst-16", stream=False, plan=(("prompt_bytes", 64 * KB),))),
    "prompt1m": Scenario(Closed("prompt1m", "burst-16", stream=False, plan=(("prompt_bytes", KB * KB),))),
    "stream64": Scenario(Closed("stream64", "burst-4x64")),
    "translated64": Scenario(Closed("translated64", "burst-4x64", translated=True), is_ours=True),
    "chat64": Scenario(Closed("chat64", "burst-4x64", plan=CHAT), is_ours=True),
    "resumable64": Scenario(Closed("resumable64", "burst-4x64", plan=RESUMABLE), is_ours=True),
    "leaving": Scenario(Closed("leaving", "paced-20x20", plan=LEAVING, unit="events")),
    "paced1k": Scenario(Paced("paced1k", 50)),
    "translated1k": Scenario(Paced("translated1k", 50, translated=True), is_ours=True),
    "chat1k": Scenario(Paced("chat1k", 50, plan=CHAT), is_ours=True),
    "resumable1k": Scenario(Paced("resumable1k", 50, plan=RESUMABLE), is_ours=True),
    "paced5k": Scenario(Paced("paced5k", 250)),
    "translated5k": Scenario(Paced("translated5k", 250, translated=True), is_ours=True),
    "paced10k": Scenario(Paced("paced10k", 500)),
    "paced20k": Scenario(Paced("paced20k", 1000)),
    "soak": Scenario(run_soak, "soak", is_once=True),
}
BY_DEFAULT = [name for name in SCENARIOS if name != "soak"]
