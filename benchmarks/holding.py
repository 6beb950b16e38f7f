"""Scenarios about what stays: memory of open streams, what is left when clients leave, a soak, and money.

For the gateway they look into its books too, see books.py; figures of other targets end where those would begin.
"""

import select
import time
from typing import Any

from benchmarks.books import POOR_MICROUSD, POOR_USD, AdminClient, Books, in_flight, price_of
from benchmarks.driving import Figures, Mock, load, measure_window
from benchmarks.measure import Split
from benchmarks.pace import Pace
from benchmarks.targets import Target

MEMORY_SMALL = 1000
LEAVE_GRACE_S = 1.0
SAMPLE_S = 30.0
POOR_MODEL = "paced-50x600"  # 50 streams of it cost nearly two cents, 200 of them seven
MB, KB = 2**20, 1024


def warm_up(target: Target, mock: Mock, pace: Pace) -> None:
    """Some streams, so that what is allocated once is there before memory is read."""
    with load(target, "closed", "burst-4x64", connections=8, warmup_s=0.1, window_s=pace.warmup_s) as run:
        measure_window(target, mock, run)
    time.sleep(pace.settle_s)


class Memory:
    """Slow streams: the memory they take, and what is still open one second after all their clients left."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, target: Target, mock: Mock, pace: Pace) -> Figures:
        is_small = self.name == "memory1k"
        streams = MEMORY_SMALL if is_small else pace.memory_large
        warm_up(target, mock, pace)
        before, open_before = target.tree.rss_bytes(), mock.open_streams()
        with load(target, "hold", "slow-0.25x1000", connections=streams, opening_s=2 * pace.opening_s) as run:
            run.read("mark")
            time.sleep(pace.settle_s)
            after = target.tree.rss_bytes()
            run.go_on()
            run.read("mark")
            figures = self.left(target, mock, open_before) if is_small else {}
            result = run.read("result")
        figures |= {f"{self.name}_alive": result["alive"], f"{self.name}_errors": result["errors"]}
        return figures | self.grown(before, after, result["opened"])

    def grown(self, before: Split, after: Split, opened: int) -> Figures:
        if not before.both or not opened:
            return {}
        grown = after.minus(before)
        figures: Figures = {
            f"{self.name}_stream_kb": grown.both / opened / KB,
            f"{self.name}_stream_kb_redis": grown.redis / opened / KB,
            f"{self.name}_rss_mb": after.both / MB,
            f"{self.name}_rss_mb_redis": after.redis / MB,
        }
        return figures | {"rss_mb": before.both / MB, "rss_mb_redis": before.redis / MB}

    @staticmethod
    def left(target: Target, mock: Mock, open_before: int) -> Figures:
        """What is open one second after the clients left."""
        time.sleep(LEAVE_GRACE_S)
        figures: Figures = {"left_open": mock.open_streams() - open_before}
        if not target.is_gateway:
            return figures
        held_microusd, leases, slots = Books(target).held()
        figures |= {"left_held_microusd": held_microusd, "left_leases": leases, "left_slots": slots}
        return figures | {"left_in_flight": in_flight(target)}


def run_aborts(target: Target, mock: Mock, pace: Pace) -> Figures:
    """Thousands of streams that are left after their first word: the memory before and after them."""
    warm_up(target, mock, pace)
    before = target.tree.rss_bytes()
    plan: dict[str, Any] = {"connections": 100, "repeats": pace.aborts, "opening_s": 2 * pace.opening_s}
    with load(target, "aborts", "paced-20x200", **plan) as run:
        result = run.read("result")
    mock.wait_until_idle()
    time.sleep(pace.settle_s)
    figures: Figures = {"aborts_left": result["left"], "aborts_errors": result["errors"]}
    if not before.both:
        return figures
    after = target.tree.rss_bytes()
    figures |= {"aborts_before_mb": before.both / MB, "aborts_after_mb": after.both / MB}
    return figures | {"aborts_before_mb_redis": before.redis / MB, "aborts_after_mb_redis": after.redis / MB}


def run_overspend(target: Target, mock: Mock, pace: Pace) -> Figures:
    """Many streams at once on one cent: what clients were given beyond what was charged and what there was."""
    admin = AdminClient(target)
    key = admin.open_account("poor", POOR_USD)
    plan: dict[str, Any] = {"connections": pace.poor_streams, "key": key, "wait_s": 40.0}
    with load(target, "spend", POOR_MODEL, **plan) as run:
        result = run.read("result")
    Books(target).wait_until_settled()
    balance = admin.ask("GET", "accounts/poor")
    charged, absorbed = (round(float(balance[name]) * 1e6) for name in ("spent", "absorbed"))
    rows = admin.ask("GET", "usage?account=poor&count=1000")["data"]
    records = [row["record"] for row in rows if row["kind"] != "grant"]
    delivered = price_of(sum(record.get("input_tokens", 0) for record in records), result["words"])
    listed = sum(round(float(row["charged_usd"]) * 1e6) for row in rows if row["kind"] != "grant")
    return {
        "overspend_microusd": max(0, delivered - charged) + absorbed + max(0, charged - POOR_MICROUSD),
        "overspend_delivered_microusd": delivered,
        "overspend_charged_microusd": charged,
        "overspend_unlisted_microusd": abs(charged - listed),
        "overspend_served": result["served"],
        "overspend_hung": result["hung"],
    }


def run_soak(target: Target, mock: Mock, pace: Pace) -> Figures:
    """Streams of 30 s that end and begin anew for half an hour; memory every 30 s."""
    ramp_s = min(SAMPLE_S, pace.soak_s / 4)
    sample_s = min(SAMPLE_S, pace.soak_s / 10)
    plan: dict[str, Any] = {
        "connections": pace.soak_streams,
        "spread_s": ramp_s,
        "warmup_s": ramp_s + 1,
        "window_s": pace.soak_s,
    }
    samples: list[Split] = []
    with load(target, "closed", "paced-20x600", **plan) as run:
        run.read("mark")
        used = target.tree.cpu_s()
        while not select.select([run.stdout], [], [], sample_s)[0]:
            samples.append(target.tree.rss_bytes())
            print(f"  {samples[-1].own / MB:.1f} MB, Redis {samples[-1].redis / MB:.1f} MB", flush=True)
        run.read("mark")
        used = target.tree.cpu_s().minus(used)
        seen = run.read("result")
    figures: Figures = {"soak_delay_p99_ms": seen["delay_p99_ms"], "soak_errors": seen["errors"]}
    figures["soak_per_s"] = seen["events"] / seen["seconds"]
    if not target.is_measurable or not samples:
        return figures
    steady = samples[len(samples) // 10 :]  # the first tenth is still filling caches
    figures |= {"soak_cpu_us": used.both / seen["events"] * 1e6, "soak_cpu_us_redis": used.redis / seen["events"] * 1e6}
    for name, sample in (("first", steady[0]), ("last", steady[-1])):
        figures |= {f"soak_{name}_mb": sample.both / MB, f"soak_{name}_mb_redis": sample.redis / MB}
    figures["soak_growth_mb"] = (steady[-1].own - steady[0].own) / MB
    return figures
