"""From figures of rounds to medians, to Markdown tables, and to results/latest.json."""

import json
import os
import platform
import shlex
import statistics
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.driving import Figures
from benchmarks.peers import PEERS
from benchmarks.rows import ADDED, BUDGET, CAPACITY, COMPARED, COST, DELIVERED, EVERY_TITLE, OWN, RATIO_BUDGET, RATIOS

RESULTS = Path(__file__).resolve().parent / "results" / "latest.json"

Rounds = dict[str, list[Figures]]
VERSIONS: dict[str, str] = {}
SWITCHED_ON = """\
On in `gateway`: authentication, limits, credit metering (a hold before the first token, in its own Redis), usage
records, metrics, an access log line for each request. Its CPU and memory figures include its Redis; the column after
it is that part. On in `litellm`: key check (master key) and its access log; no Redis, budgets or usage records.
`portkey`, `tensorzero`, `nginx`: no key check, no limits, no records. Every figure is the median of the rounds, with
the lowest and the highest in brackets; memory, aborts, accounts and overspending are of the first round only."""


def note_version(name: str, version: str) -> None:
    """Remembers what is printed below the tables."""
    VERSIONS[name] = version


def note_peers(names: list[str]) -> None:
    for name in names:
        note_version(PEERS[name].title, PEERS[name].version())


def add_differences(figures: dict[str, Figures]) -> None:
    """What a target adds to the same round's direct answer, and what a feature costs it beside the same without."""
    direct = figures.get("direct", {})
    for name, own in figures.items():
        for feature, plain in RATIOS.items():
            ours, base = own.get(f"{feature}_cpu_us"), own.get(f"{plain}_cpu_us")
            if ours is not None and base:
                own[f"{feature}_ratio"] = ours / base
        own["errors"] = sum(value or 0 for key, value in own.items() if key.endswith("_errors"))
        own["failed"] = sum(value or 0 for key, value in own.items() if key.endswith("_failed"))
        for kind in ADDED if name != "direct" else ():
            ours, base = own.get(kind), direct.get(kind)
            if ours is not None and base is not None:
                own[kind.replace("_p", "_added_p")] = ours - base


def values_of(rounds: list[Figures], key: str) -> list[float]:
    return [value for figures in rounds if (value := figures.get(key)) is not None]


def median_of(rounds: list[Figures], key: str) -> float | None:
    values = values_of(rounds, key)
    return statistics.median(values) if values else None


def short(value: float) -> str:
    if abs(value) >= 100 or value == int(value):
        return f"{value:,.0f}"
    if abs(value) >= 10:
        return f"{value:.1f}"
    return f"{value:.3f}" if 0.99 < value < 1 else f"{value:.2f}"


def cell(rounds: list[Figures], key: str) -> str:
    values = values_of(rounds, key)
    if not values:
        return "-"
    median, low, high = (short(value) for value in (statistics.median(values), min(values), max(values)))
    return median if low == high else f"{median} [{low} to {high}]"


def row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def table(results: Rounds, titles: dict[str, str], names: list[str]) -> str:
    """One line per figure that some target has; the gateway's Redis in a column of its own."""
    columns = [(name, "") for name in names]
    if "gateway" in names and any(values_of(results["gateway"], f"{key}_redis") for key in titles):
        columns.insert(names.index("gateway") + 1, ("gateway", "_redis"))
    shown = {key: title for key, title in titles.items() if any(values_of(results[name], key) for name in names)}
    if not shown:
        return ""
    heads = ["of which Redis" if part else name for name, part in columns]
    lines = [row(["", *heads]), row(["---"] * (len(columns) + 1))]
    for key, title in shown.items():
        lines.append(row([title, *(cell(results[name], key + part) for name, part in columns)]))
    return "\n".join(lines)


def budget_table(results: Rounds) -> str:
    ours = results.get("gateway", [])
    lines = [row(["budget of the gateway", "", "measured", "met"]), row(["---"] * 4)]
    for key, (text, bound) in BUDGET.items():
        median = median_of(ours, key)
        if median is not None:
            is_met = median >= -bound if bound < 0 else median < bound if "<" in text else median <= bound
            lines.append(row([EVERY_TITLE[key], text, cell(ours, key), "yes" if is_met else "**no**"]))
    for key, peer, least in RATIO_BUDGET:
        own, theirs = median_of(ours, key), median_of(results.get(peer, []), key)
        if own and theirs is not None:
            title = f"{EVERY_TITLE[key]}: {peer} ÷ gateway"
            lines.append(
                row([title, f"≥ {short(least)}", f"{theirs / own:.2f}", "yes" if theirs / own >= least else "**no**"])
            )
    return "\n".join(lines) if len(lines) > 2 else ""


def ratio_table(results: Rounds) -> str:
    """What a peer needs as a multiple of what the gateway needs: above 1, the gateway needs less."""
    ours = results.get("gateway", [])
    peers = [name for name in results if name not in ("gateway", "direct")]
    lines = [row(["times what the gateway needs", *peers]), row(["---"] * (len(peers) + 1))]
    for key in COMPARED:
        base = median_of(ours, key)
        theirs = [median_of(results[peer], key) for peer in peers]
        if base and base > 0 and any(value is not None for value in theirs):
            ratios = ("-" if value is None else f"{value / base:.2f}" for value in theirs)
            lines.append(row([EVERY_TITLE[key], *ratios]))
    return "\n".join(lines) if len(lines) > 2 and peers else ""


def render(results: Rounds, about: dict[str, object]) -> str:
    names = [name for name in results if name != "direct"]
    direct = ["direct"] if "direct" in results else []
    facts = "\n".join(f"- {key}: {value}" for key, value in about.items())
    parts = {
        "": SWITCHED_ON,
        "What it costs": table(results, COST, names),
        "What was delivered": table(results, DELIVERED, [*direct, *names]),
        "The gateway alone": table(results, OWN, ["gateway"]) if "gateway" in results else "",
        "Its budget": budget_table(results),
        "Beside the peers": ratio_table(results),
        "What mock and load can do (no gateway between them)": table(results, CAPACITY, direct) if direct else "",
        "Where and with what": facts,
    }
    return "\n\n".join((f"## {title}\n\n" if title else "") + text for title, text in parts.items() if text) + "\n"


def cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def describe(rounds: int, quick: bool, seconds: float) -> dict[str, object]:
    memory_gb = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    about: dict[str, object] = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "command": "python -m benchmarks " + shlex.join(sys.argv[1:]),
        "machine": f"{cpu_model()}, {os.cpu_count()} cores, {memory_gb:.0f} GB, Linux {platform.release()}",
        "load average at the end": " ".join(f"{value:.1f}" for value in os.getloadavg()),
        "rounds": f"{rounds}, quick" if quick else rounds,
        "took": f"{seconds / 60:.1f} min",
        "Python": platform.python_version(),
    }
    return about | VERSIONS


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
