"""A target in operation: started fresh in a temporary folder, pinned to the first core, and asked until it answers.

What runs is said in plans.py. What a target needs to admit our requests (a path, headers, a model prefix, a key) is
told to the load generator; what the gateway lets us look into (its admin API, its Redis) is told to the scenarios.
"""

import os
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.measure import RUN_MARK, ProcessTree, marked_processes

START_TIMEOUT_S = 120
STOP_TIMEOUT_S = 6
KEY = "sk-bench-0123456789abcdef"
CPUS = sorted(os.sched_getaffinity(0))


class TargetFailed(Exception):
    """The target did not start; the message holds the end of its log."""


@dataclass
class Launch:
    """What to run, what to ask until it is ready, and how it is spoken to."""

    command: list[str]
    ready_path: str
    env: dict[str, str] = field(default_factory=dict)
    path: str = "/v1/chat/completions"
    headers: dict[str, str] = field(default_factory=dict)
    prefix: str = ""
    translated_prefix: str | None = None  # before models that the mock answers in Anthropic's format
    port_file: Path | None = None  # where it writes its port once it is ready, if it chooses one itself
    admin_key: str = ""  # the gateway's alone
    data_folder: Path | None = None


@dataclass
class Target:
    """A running target, as the scenarios see it."""

    name: str
    port: int
    tree: ProcessTree
    launch: Launch
    folder: Path
    key: str = KEY

    @property
    def is_gateway(self) -> bool:
        """Whether it is ours, with books to look into."""
        return self.launch.data_folder is not None

    @property
    def is_measurable(self) -> bool:
        """Whether it has processes of its own: `direct` has none."""
        return self.tree.root_pid is not None


@contextmanager
def on_core(index: int) -> Iterator[None]:
    """Processes started inside run on that core only; on a one-core machine nothing is pinned."""
    os.sched_setaffinity(0, {CPUS[index]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, {CPUS[-1]})


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def call(url: str, *, body: bytes | None = None, headers: dict[str, str] | None = None) -> bytes:
    """One HTTP request; OSError (of which HTTPError is one) when the answer is not 2xx."""
    request = urllib.request.Request(url, data=body, headers={"content-type": "application/json"} | (headers or {}))
    with urllib.request.urlopen(request, timeout=10) as response:
        return bytes(response.read())


@contextmanager
def running(name: str, plan: Callable[[Path, int, int], Launch] | None, upstream_port: int) -> Iterator[Target]:
    """The target, started and ready; stopped at the end with everything it started. Without a plan, the mock itself."""
    mark = uuid.uuid4().hex
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as folder_name:
        folder, port = Path(folder_name), free_port()
        if plan is None:
            yield Target(name, upstream_port, ProcessTree(None, mark), Launch([], ""), folder)
            return
        launch = plan(folder, port, upstream_port)
        with (folder / "output.log").open("wb") as log, on_core(0):
            env = {key: value for key, value in os.environ.items() if not key.startswith(("GATEWAY_", "REDIS_"))}
            env |= launch.env | {RUN_MARK: mark}
            process = subprocess.Popen(launch.command, cwd=folder, env=env, stdout=log, stderr=subprocess.STDOUT)
        try:
            port = wait_until_ready(process, port, launch, folder / "output.log")
            yield Target(name, port, ProcessTree(process.pid, mark), launch, folder)
        finally:
            stop(process, mark)


def wait_until_ready(process: subprocess.Popen[bytes], port: int, launch: Launch, log: Path) -> int:
    """The target's port, once it answers there."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(urllib.error.URLError, ConnectionError, TimeoutError, FileNotFoundError, ValueError):
            if launch.port_file is not None:
                return int(launch.port_file.read_text())
            call(f"http://127.0.0.1:{port}{launch.ready_path}")
            return port
        time.sleep(0.1)
    raise TargetFailed("\n".join(log.read_text(errors="replace").splitlines()[-20:]))


def stop(process: subprocess.Popen[bytes], mark: str) -> None:
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for pid in marked_processes(mark):  # whatever it left behind: a Redis, a worker
        with suppress(ProcessLookupError):
            os.kill(pid, 15)
