"""What runs of the rows came to, kept for the table.

A test calls ``record``; this room also keeps which tests passed, so that a row may name any test as its evidence. At
the end of a session everything is written into ``build/``, beside what earlier sessions found.
"""

import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.embedded_redis import find_server

PATH = Path(__file__).parent.parent.parent / "build" / "reliability.json"


class Run(msgspec.Struct, kw_only=True):
    """Figures of one run of a row, in µ$; ``None`` where the run had nothing of the kind to count."""

    row: int
    test: str
    outcome: str
    charged: int | None = None
    delivered: int | None = None
    absorbed: int | None = None
    leaked: int | None = None
    in_flight: int = 0
    undercharged: int = 0
    clients: int = 1
    ends: dict[str, int] = {}
    rest_s: float = 0.0
    seed: int | None = None


class Tried(msgspec.Struct, kw_only=True):
    """One test: ``passed``, ``failed``, ``broken off`` or ``skipped`` with its reason, and how long it took."""

    result: str
    reason: str = ""
    seconds: float = 0.0
    at: float = 0.0


class Results(msgspec.Struct, kw_only=True):
    """All that is known. ``runs`` are by test, since a test that runs again replaces what it said before."""

    tests: dict[str, Tried] = {}
    runs: dict[str, list[Run]] = {}
    machine: str = ""
    redis: list[str] = []


_runs: dict[str, list[Run]] = {}


def record(row: int, *, outcome: str, **figures: Any) -> None:
    """Keep what the running test found for a row; see ``Run`` for the figures."""
    test = os.environ["PYTEST_CURRENT_TEST"].rpartition(" ")[0]
    _runs.setdefault(test, []).append(msgspec.convert({"row": row, "test": test, "outcome": outcome, **figures}, Run))


def load() -> Results:
    """What was found so far."""
    return msgspec.json.decode(PATH.read_bytes(), type=Results) if PATH.exists() else Results()


class Recorder:
    """The plugin: sees how every test of the session ends, and writes the file when all have."""

    def __init__(self) -> None:
        self._tests: dict[str, Tried] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note the worst of set-up, call and tear-down."""
        tried = self._tests.setdefault(report.nodeid, Tried(result="broken off", at=time.time()))
        tried.seconds += report.duration
        if report.failed:
            tried.result = "failed"
        elif report.passed and report.when == "call":
            tried.result = "passed"
        elif report.skipped:
            tried.result = "skipped"
            tried.reason = str(report.longrepr[2]) if isinstance(report.longrepr, tuple) else ""

    def pytest_sessionfinish(self) -> None:
        """Write what this session adds."""
        if not self._tests:
            return
        known = load()
        known.tests.update(self._tests)
        for test in self._tests:
            known.runs.pop(test, None)
        known.runs.update({test: runs for test, runs in _runs.items() if test in self._tests})
        known.machine, known.redis = machine(), redis_versions()
        PATH.parent.mkdir(exist_ok=True)
        draft = PATH.with_suffix(f".{os.getpid()}")
        draft.write_bytes(msgspec.json.format(msgspec.json.encode(known), indent=1))
        draft.replace(PATH)


def machine() -> str:
    """The kind of machine, without its name."""
    return f"{platform.system()} on {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"


def redis_versions() -> list[str]:
    """The versions of the servers that runs use: the one on PATH and the bundled one."""
    found = []
    for binary in dict.fromkeys(("redis-server", find_server())):
        told = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout
        found.append(told.partition("v=")[2].partition(" ")[0])
    return sorted(set(found))
