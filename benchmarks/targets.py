"""How each target is started, and what is switched on in it.

A target is started fresh in a temporary folder, pinned to the first core, and asked until it answers. Its output goes
to a file in that folder. What a gateway needs to admit our requests (a model prefix, a key) is told to the load
generator.
"""

import json
import os
import pwd
import shutil
import socket
import subprocess
import sys
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
from benchmarks.peers import litellm_command

ROOT = Path(__file__).resolve().parent.parent
MODELS = ("burst-16", "burst-4x64", "first-16", "paced-20x2000", "slow-0.25x1000")
START_TIMEOUT_S = 120
STOP_TIMEOUT_S = 15
KEY = "sk-bench-0123456789abcdef"
CPUS = sorted(os.sched_getaffinity(0))


class TargetFailed(Exception):
    """The target did not start; the message holds the end of its log."""


@dataclass
class Target:
    """A running target, as the scenarios see it. `translated_prefix` is before models of the other format."""

    name: str
    port: int
    tree: ProcessTree
    key: str = KEY
    prefix: str = ""
    translated_prefix: str | None = None


@dataclass
class Launch:
    """What to run, and what to ask until it is ready."""

    command: list[str]
    ready_path: str
    env: dict[str, str] = field(default_factory=dict)
    prefix: str = ""
    translated_prefix: str | None = None
    prepare: Callable[[int], str] | None = None  # port → key to use


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


def plan_gateway(folder: Path, port: int, upstream_port: int) -> Launch:
    config = folder / "gateway.yaml"
    config.write_text(
        "providers:\n"
        "  mock:\n"
        "    type: openai\n"
        f"    base_url: http://127.0.0.1:{upstream_port}/v1\n"
        "    api_key: ${BENCH_KEY}\n"
        "    price: {input: 0.15, output: 0.60}\n"
        "  claude:\n"
        "    type: anthropic\n"
        f"    base_url: http://127.0.0.1:{upstream_port}/v1\n"
        "    api_key: ${BENCH_KEY}\n"
        "    price: {input: 0.15, output: 0.60}\n"
        "tiers:\n"
        "  default:\n"
        "    requests: {limit: 100000000, period_s: 60}\n"
        "    concurrent_streams: 100000\n"
        "log: {level: info}\n"
    )
    env = {
        "GATEWAY_CONFIG": str(config),
        "GATEWAY_DATA_DIR": str(folder / "state"),
        "GATEWAY_PORT": str(port),
        "GATEWAY_ADMIN_KEY": "admin-" + uuid.uuid4().hex,
        "BENCH_KEY": KEY,
        "PYTHONPATH": str(ROOT / "src"),
    }
    return Launch(
        command=[sys.executable, "-m", "gateway", "serve"],
        ready_path="/readyz",
        env=env,
        prefix="mock/",
        translated_prefix="claude/",
        prepare=lambda at: create_account(at, env["GATEWAY_ADMIN_KEY"]),
    )


def create_account(port: int, admin_key: str) -> str:
    """An account with enough credit for every run; its API key."""

    def post(path: str, body: dict[str, str]) -> bytes:
        headers = {"authorization": f"Bearer {admin_key}", "idempotency-key": uuid.uuid4().hex}
        return call(f"http://127.0.0.1:{port}/admin/v1/{path}", body=json.dumps(body).encode(), headers=headers)

    post("accounts", {"id": "bench", "name": "bench"})
    post("accounts/bench/credits", {"amount_usd": "1000000"})
    return str(json.loads(post("accounts/bench/keys", {"name": "bench"}))["key"])


def plan_litellm(folder: Path, port: int, upstream_port: int) -> Launch:
    base_url = f"http://127.0.0.1:{upstream_port}/v1"
    rows = [
        {"model_name": model, "litellm_params": {"model": f"openai/{model}", "api_base": base_url, "api_key": KEY}}
        for model in MODELS
    ]
    config = folder / "litellm.yaml"
    config.write_text(json.dumps({"model_list": rows, "general_settings": {"master_key": KEY}}))  # JSON is YAML
    command = [*litellm_command(), "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
    return Launch(
        command=[*command, "--num_workers", "1"],
        ready_path="/health/liveliness",
        env={"LITELLM_LOCAL_MODEL_COST_MAP": "True"},  # no look-up on the internet while it starts
    )


def plan_nginx(folder: Path, port: int, upstream_port: int) -> Launch:
    user = f"user {pwd.getpwuid(0).pw_name};" if os.geteuid() == 0 else ""
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    paths = "".join(f"{kind}_temp_path {folder}/{kind};" for kind in kinds)
    config = folder / "nginx.conf"
    config.write_text(f"""
        {user} worker_processes 1; daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log;
        worker_rlimit_nofile 8192; events {{ worker_connections 4096; }}
        http {{
          access_log off; keepalive_requests 1000000000; {paths}
          upstream mock {{ server 127.0.0.1:{upstream_port}; keepalive 64; keepalive_requests 1000000000; }}
          server {{
            listen 127.0.0.1:{port} backlog=4096;
            location = /ready {{ return 200; }}
            location / {{
              proxy_pass http://mock; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off;
            }}
          }}
        }}""")
    command = [shutil.which("nginx") or "nginx", "-c", str(config), "-e", f"{folder}/error.log"]
    return Launch(command=command, ready_path="/ready")


PLANS: dict[str, Callable[[Path, int, int], Launch]] = {
    "gateway": plan_gateway,
    "litellm": plan_litellm,
    "nginx": plan_nginx,
}
NAMES = ("direct", *PLANS)


@contextmanager
def running(name: str, upstream_port: int) -> Iterator[Target]:
    """The target, started and ready; stopped at the end with everything it started."""
    mark = uuid.uuid4().hex
    if name == "direct":
        yield Target(name, upstream_port, ProcessTree(None, mark))
        return
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as folder_name:
        folder, port = Path(folder_name), free_port()
        launch = PLANS[name](folder, port, upstream_port)
        with (folder / "output.log").open("wb") as log, on_core(0):
            env = {key: value for key, value in os.environ.items() if not key.startswith(("GATEWAY_", "REDIS_"))}
            env |= launch.env | {RUN_MARK: mark}
            process = subprocess.Popen(launch.command, cwd=folder, env=env, stdout=log, stderr=subprocess.STDOUT)
        try:
            key = wait_until_ready(process, port, launch, folder / "output.log")
            yield Target(name, port, ProcessTree(process.pid, mark), key, launch.prefix, launch.translated_prefix)
        finally:
            stop(process, mark)


def wait_until_ready(process: subprocess.Popen[bytes], port: int, launch: Launch, log: Path) -> str:
    """The key to use, once the target answers."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(urllib.error.URLError, ConnectionError, TimeoutError):
            call(f"http://127.0.0.1:{port}{launch.ready_path}")
            return launch.prepare(port) if launch.prepare else KEY
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
