"""CPU time and memory of a target: of all its processes, with Redis told apart.

CPU time is read from each process's own CPU clock (nanoseconds, exited threads included), not from the 10 ms ticks of
/proc/PID/stat; only processes that have exited are added from there. A Redis that made itself a daemon is no child any
more; it is found by the RUN_MARK variable that every process of a target inherits.
"""

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

RUN_MARK = "BENCH_RUN"
PROC = Path("/proc")
TICKS = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Stat(NamedTuple):
    """The few fields of /proc/PID/stat that we need."""

    name: str
    parent: int
    exited_children_s: float
    rss_bytes: int


class Split(NamedTuple):
    """One figure, for the target without its Redis and for that Redis."""

    own: float
    redis: float

    @property
    def both(self) -> float:
        return self.own + self.redis

    def minus(self, other: "Split") -> "Split":
        return Split(self.own - other.own, self.redis - other.redis)


def read_stat(pid: int) -> Stat | None:
    """None when the process is gone."""
    try:
        text = (PROC / str(pid) / "stat").read_text()
    except OSError:
        return None
    name = text[text.index("(") + 1 : text.rindex(")")]
    fields = text[text.rindex(")") + 2 :].split()
    exited_ticks = int(fields[13]) + int(fields[14])
    return Stat(name, int(fields[1]), exited_ticks / TICKS, int(fields[21]) * PAGE_BYTES)


def all_processes() -> dict[int, Stat]:
    pids = [int(entry.name) for entry in PROC.iterdir() if entry.name.isdigit()]
    stats = ((pid, read_stat(pid)) for pid in pids)
    return {pid: stat for pid, stat in stats if stat is not None}


def is_marked(pid: int, mark: str) -> bool:
    try:
        return f"{RUN_MARK}={mark}".encode() in (PROC / str(pid) / "environ").read_bytes().split(b"\0")
    except OSError:
        return False


def is_redis(stat: Stat) -> bool:
    return stat.name.startswith(("redis-server", "valkey-server"))


def cpu_s_of(pid: int) -> float:
    """User and system CPU seconds of one living process; 0 when it is gone."""
    with suppress(OSError):
        return time.clock_gettime((~pid << 3) | 2)  # clock_getcpuclockid(3) as Linux encodes it
    return 0.0


class ProcessTree:
    """The processes of one target: its root, all below it, and its Redis wherever that is."""

    def __init__(self, root_pid: int | None, mark: str) -> None:
        self.root_pid = root_pid
        self.mark = mark

    def members(self) -> dict[int, Stat]:
        if self.root_pid is None:
            return {}
        found = all_processes()
        chosen = {self.root_pid} & found.keys()
        while grown := {pid for pid, stat in found.items() if stat.parent in chosen} - chosen:
            chosen |= grown
        chosen |= {pid for pid, stat in found.items() if is_redis(stat) and is_marked(pid, self.mark)}
        return {pid: found[pid] for pid in chosen}

    def cpu_s(self) -> Split:
        members = self.members()
        return self._split({pid: cpu_s_of(pid) + stat.exited_children_s for pid, stat in members.items()}, members)

    def rss_bytes(self) -> Split:
        members = self.members()
        return self._split({pid: stat.rss_bytes for pid, stat in members.items()}, members)

    @staticmethod
    def _split(figures: dict[int, float] | dict[int, int], members: dict[int, Stat]) -> Split:
        redis = sum(figure for pid, figure in figures.items() if is_redis(members[pid]))
        return Split(sum(figures.values()) - redis, redis)


def marked_processes(mark: str) -> list[int]:
    """Every living process that inherited this run's mark."""
    return [pid for pid in all_processes() if is_marked(pid, mark)]
