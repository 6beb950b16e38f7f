"""`python -m benchmarks.redis_scale`: how many streams one Redis carries, and what each of them leaves in it.

All streams start, all grow, all renew their lease, all end. Then the same from several processes at once, on a cluster
of three masters, and what gateways ask Redis besides. Figures are CPU time and bytes, never rates: the machine may be
busy. The streams per core follow from them.
"""

import argparse
import statistics
from collections.abc import Sequence

import uvloop

from benchmarks.redis_crowd import Crowd, crowd, homes, reaping, sharing, watching
from benchmarks.redis_streams import BINARY, CASES, LEASE_MS, PHASES, Measured, fresh, measure
from tests.harness import RedisServer
from tests.redis_cluster import Cluster

OPTIONS = ("--appendfsync", "everysec", "--auto-aof-rewrite-percentage", "0")
RENEWED_EVERY_S = LEASE_MS / 3000
SHARE_OF_CORE = 0.7
ANSWERS_S = (10, 60, 600)
MEMORY = ("open_bytes", "finished_bytes", "ledger_bytes")


def shown(values: Sequence[float]) -> str:
    middle = statistics.median(values)
    places = 1 if middle < 10 else 0
    return f"{middle:,.{places}f} ({min(values):,.{places}f}–{max(values):,.{places}f})"


def table(head: str, rows: Sequence[Sequence[str]]) -> None:
    columns = head.count("|") + 1
    print(f"\n| {head} |\n|{'---|' * columns}")
    for row in rows:
        print(f"| {' | '.join(row)} |")


def show_cases(rounds: dict[str, list[Measured]]) -> None:
    table(
        "Redis CPU µs per script | " + " | ".join(PHASES) + " | start + end, scripts/s at 100 % of a core",
        [
            (
                name,
                *(shown([it.phases[phase].cpu for it in measured]) for phase in PHASES),
                f"{2e6 / start_and_end(measured):,.0f}",
            )
            for name, measured in rounds.items()
        ],
    )
    table(
        f"streams per Redis core at {SHARE_OF_CORE:.0%}, renewed every {RENEWED_EVERY_S:g} s | "
        + " | ".join(f"answers of {seconds} s" for seconds in ANSWERS_S),
        [
            (name, *(f"{streams_per_core(measured, seconds):,.0f}" for seconds in ANSWERS_S))
            for name, measured in rounds.items()
        ],
    )
    table(
        "bytes | open stream | finished stream | its ledger row | append-only file: "
        + ", ".join(PHASES)
        + " | to Redis and back: "
        + ", ".join(PHASES),
        [
            (
                name,
                *(shown([getattr(it, field) for it in measured]) for field in MEMORY),
                ", ".join(f"{middle(measured, phase, 'aof'):,.0f}" for phase in PHASES),
                ", ".join(
                    f"{middle(measured, phase, 'received'):,.0f} + {middle(measured, phase, 'sent'):,.0f}"
                    for phase in PHASES
                ),
            )
            for name, measured in rounds.items()
        ],
    )
    table(
        "CPU µs of the caller | " + " | ".join(PHASES),
        [
            (name, *(shown([it.client_us[phase] for it in measured]) for phase in PHASES))
            for name, measured in rounds.items()
        ],
    )


def show_accounts(rounds: dict[str, list[Measured]]) -> None:
    many = [it.account_bytes for case in CASES for it in rounds[case.name] if case.accounts > 1]
    print(f"\nAn account with a balance and no stream yet takes {shown(many)} bytes.")


def middle(measured: Sequence[Measured], phase: str, field: str) -> float:
    return statistics.median([float(getattr(it.phases[phase], field)) for it in measured])


def start_and_end(measured: Sequence[Measured]) -> float:
    return middle(measured, "start", "cpu") + middle(measured, "end", "cpu")


def streams_per_core(measured: Sequence[Measured], seconds: int) -> float:
    """Each renewal counts as the dearer one, in which the hold grows."""
    per_second = start_and_end(measured) / seconds + middle(measured, "grow", "cpu") / RENEWED_EVERY_S
    return SHARE_OF_CORE * 1e6 / per_second


def show_crowds(streams: int, rounds: int) -> None:
    rows = []
    with RedisServer(BINARY, *OPTIONS) as server:
        for gateways, accounts in ((1, 1_000), (4, 1_000), (1, 1), (4, 1)):
            fresh(server)
            crowds = [crowd(server.url, [server], gateways, (streams, accounts)) for _ in range(rounds)]
            rows.append((f"{gateways}", f"{accounts:,}", *both(crowds)))
    with Cluster(BINARY, *OPTIONS) as cluster:
        for gateways, accounts in ((1, 1_000), (4, 1_000), (4, 1)):
            for node in cluster.nodes:
                fresh(node)
            crowds = [crowd(cluster.url, cluster.nodes, gateways, (streams, accounts)) for _ in range(rounds)]
            found, names = homes(cluster.nodes)
            split = " + ".join(f"{share:.0%}" for share in shares(crowds))
            rows.append((f"{gateways}, three masters", f"{accounts:,}", *both(crowds)))
            print(f"Three masters, {accounts:,} accounts: CPU {split}; keys {found}; accounts {names}; one slot each.")
    table("gateways | accounts | Redis CPU µs per stream (start, one extension, end) | CPU µs of a gateway", rows)


def both(crowds: Sequence[Crowd]) -> tuple[str, str]:
    return shown([sum(it.servers) for it in crowds]), shown([it.own for it in crowds])


def shares(crowds: Sequence[Crowd]) -> list[float]:
    columns = list(zip(*(it.servers for it in crowds), strict=True))
    total = sum(map(sum, columns))
    return [sum(column) / total for column in columns]


def show_besides(streams: int) -> None:
    with RedisServer(BINARY, *OPTIONS) as server:
        sizes = (1, 10, 100, 500, 1_000)
        watched = [(size, *uvloop.run(watching(server, size))) for size in sizes]
        reaped = [(size, *uvloop.run(reaping(server, size))) for size in (100, 1_000, 10_000)]
        shared = uvloop.run(sharing(server, streams))
    table(
        "gateways (workers) | Redis CPU µs per second, all together | bytes it sends them per second",
        [(f"{size:,}", f"{cpu:,.0f}", f"{sent:,.0f}") for size, cpu, sent in watched],
    )
    table(
        "active accounts | one gateway's look for abandoned streams (every 3 s): Redis CPU µs | of these the list "
        "| CPU µs of the gateway",
        [(f"{size:,}", *(f"{figure:,.0f}" for figure in figures)) for size, *figures in reaped],
    )
    table(
        "Redis CPU µs per script, for a capacity that all accounts share | " + " | ".join(shared),
        [("two buckets, one concurrency limit", *(f"{each:,.0f}" for each in shared.values()))],
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.redis_scale", description=__doc__)
    parser.add_argument("--streams", type=int, default=20_000, help="streams that are open at once")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="4,000 streams, one round")
    arguments = parser.parse_args()
    streams, rounds = (4_000, 1) if arguments.quick else (arguments.streams, arguments.rounds)
    figures: dict[str, list[Measured]] = {case.name: [] for case in CASES}
    with RedisServer(BINARY, *OPTIONS) as server:
        for _ in range(rounds):
            for case in CASES:
                figures[case.name].append(uvloop.run(measure(server, case, streams)))
    show_cases(figures)
    show_accounts(figures)
    show_crowds(streams // 2, rounds)
    show_besides(streams)


if __name__ == "__main__":
    main()
