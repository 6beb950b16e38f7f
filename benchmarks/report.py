"""From figures of rounds to medians, to a Markdown table, and to results/latest.json."""

import json
import os
import platform
import statistics
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.scenarios import Figures

RESULTS = Path(__file__).resolve().parent / "results" / "latest.json"

Rounds = dict[str, list[Figures]]
COST = {
    "request_cpu_us": "CPU µs / request",
    "stream64_cpu_us": "CPU µs / 64-chunk stream",
    "translated64_cpu_us": "the same translated",
    "translated64_ratio": "of the untouched",
    "paced1k_cpu_us": "µs / chunk at 1,000/s",
    "translated1k_cpu_us": "the same translated",
    "translated1k_ratio": "of the untouched",
    "paced5k_cpu_us": "µs / chunk at 5,000/s",
    "translated5k_cpu_us": "the same translated",
    "translated5k_ratio": "of the untouched",
    "ttft_added_p50_ms": "TTFT added p50 ms",
    "ttft_added_p99_ms": "TTFT added p99 ms",
    "stream_added_p50_ms": "stream added p50 ms",
    "request_added_p50_ms": "request added p50 ms",
    "rss_mb": "RSS MB",
    "stream_kb": "KB / open stream",
    "left_open": "upstream streams open 1 s after 1,000 left",
}
DELIVERED = {
    "request_per_s": "requests/s",
    "stream64_per_s": "64-chunk streams/s",
    "paced1k_per_s": "chunks/s of 1,000",
    "paced1k_delay_p99_ms": "delay p99 ms",
    "paced5k_per_s": "chunks/s of 5,000",
    "paced5k_delay_p99_ms": "delay p99 ms (5,000/s)",
    "ttft_p50_ms": "TTFT p50 ms",
    "ttft_p99_ms": "TTFT p99 ms",
    "hold_alive": "slow streams alive of 1,000",
    "errors": "errors",
}
BUDGET = {
    "request_cpu_us": "≤ 350",
    "paced1k_cpu_us": "≤ 62",
    "paced5k_cpu_us": "≤ 40",
    "translated64_ratio": "≤ 2",
    "translated1k_ratio": "≤ 2",
    "translated5k_ratio": "≤ 2",
    "ttft_added_p50_ms": "< 1",
    "ttft_added_p99_ms": "< 5",
    "stream_kb": "≤ 60",
    "left_open": "0",
}
SWITCHED_ON = """\
On in `gateway`: authentication, limits, credit metering (a hold before the first token, in its own Redis), usage
records, metrics, an access log line for each request. Its CPU figures include its Redis; the row below is that part.
On in `litellm`: key check (master key) and its access log; no Redis, budgets or usage records. `nginx`: a plain proxy,
no key check, no access log. Every figure is the median of the rounds, with the lowest and the highest in brackets."""


TRANSLATED = {"translated64": "stream64", "translated1k": "paced1k", "translated5k": "paced5k"}


def add_differences(figures: dict[str, Figures]) -> None:
    """What a target adds to the same round's direct answer, and what translating costs it beside passing on."""
    direct = figures.get("direct")
    for name, own in figures.items():
        for translated, untouched in TRANSLATED.items():
            ours, base = own.get(f"{translated}_cpu_us"), own.get(f"{untouched}_cpu_us")
            if ours is not None and base:
                own[f"{translated}_ratio"] = ours / base
        own["errors"] = sum(value or 0 for key, value in own.items() if key.endswith("_errors"))
        if direct is None or name == "direct":
            continue
        for kind in ("ttft_p50_ms", "ttft_p99_ms", "stream_p50_ms", "request_p50_ms"):
            ours, base = own.get(kind), direct.get(kind)
            if ours is not None and base is not None:
                own[kind.replace("_p", "_added_p")] = ours - base


def values_of(rounds: list[Figures], key: str) -> list[float]:
    return [value for figures in rounds if (value := figures.get(key)) is not None]


def short(value: float) -> str:
    if abs(value) >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def cell(rounds: list[Figures], key: str) -> str:
    values = values_of(rounds, key)
    if not values:
        return "-"
    median = short(statistics.median(values))
    low, high = short(min(values)), short(max(values))
    return median if low == high else f"{median} [{low} to {high}]"


def row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def table(results: Rounds, columns: dict[str, str], budget: dict[str, str]) -> str:
    shown = {key: title for key, title in columns.items() if any(values_of(rounds, key) for rounds in results.values())}
    lines = [row(["target", *shown.values()]), row(["---"] * (len(shown) + 1))]
    for name, rounds in results.items():
        lines.append(row([name, *(cell(rounds, key) for key in shown)]))
        if any(any(values_of(rounds, f"{key}_redis")) for key in shown):
            lines.append(row(["… of which Redis", *(cell(rounds, f"{key}_redis") for key in shown)]))
        if name == "gateway" and budget.keys() & shown.keys():
            lines.append(row(["… its budget", *(budget.get(key, "") for key in shown)]))
    return "\n".join(lines)


def render(results: Rounds, about: dict[str, object]) -> str:
    facts = ", ".join(f"{key} {value}" for key, value in about.items())
    parts = (SWITCHED_ON, table(results, COST, BUDGET), "What was delivered:", table(results, DELIVERED, {}), facts)
    return "\n\n".join(parts) + "\n"


def cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def describe(rounds: int, quick: bool, versions: dict[str, str | None]) -> dict[str, object]:
    about: dict[str, object] = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "CPU": f"{cpu_model()}, {os.cpu_count()} cores",
        "Python": platform.python_version(),
        "rounds": rounds,
        "quick": quick,
    }
    return about | {name: version for name, version in versions.items() if version}


def summarize(results: Rounds) -> dict[str, dict[str, dict[str, object]]]:
    summary: dict[str, dict[str, dict[str, object]]] = {}
    for name, rounds in results.items():
        keys = sorted({key for figures in rounds for key in figures})
        summary[name] = {
            key: {"median": round(statistics.median(values), 3), "rounds": [round(value, 3) for value in values]}
            for key in keys
            if (values := values_of(rounds, key))
        }
    return summary


def write(results: Rounds, about: dict[str, object]) -> None:
    RESULTS.parent.mkdir(exist_ok=True)
    body = {"about": about, "results": summarize(results)}
    RESULTS.write_text(json.dumps(body, indent=2, ensure_ascii=False) + "\n")
