"""`python -m benchmarks.foundations`: what HTTP servers and JSON libraries cost by themselves, for decision 39.

Servers carry an application that only passes bytes on, under the load of the other benchmarks. Those that are not
installed are left out: `pip install granian hypercorn orjson`.
"""

import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from benchmarks.answers import script_of
from benchmarks.driving import Figures, mock_upstream
from benchmarks.pace import QUICK
from benchmarks.plans import ROOT
from benchmarks.scenarios import SCENARIOS
from benchmarks.targets import Launch, running
from gateway.protocols.openai_chat.shapes import PlainChunk

APP = "benchmarks.bare_app:app"
MEASURED = ("request", "stream64", "paced1k", "paced5k")
ROUNDS, REPEATS = 3, 2_000

_UVICORN = ("-m", "uvicorn", APP, "--log-level", "error", "--no-access-log", "--lifespan", "off", "--port", "PORT")
SERVERS: dict[str, tuple[str, ...]] = {
    "uvicorn, uvloop, httptools": (*_UVICORN, "--loop", "uvloop", "--http", "httptools"),
    "uvicorn, asyncio, httptools": (*_UVICORN, "--loop", "asyncio", "--http", "httptools"),
    "uvicorn, uvloop, h11": (*_UVICORN, "--loop", "uvloop", "--http", "h11"),
    "granian, uvloop": ("-m", "granian", "--interface", "asginl", "--loop", "uvloop", "--port", "PORT", APP),
    "hypercorn, uvloop": ("-m", "hypercorn", "--worker-class", "uvloop", "--bind", "127.0.0.1:PORT", APP),
}


def plan(arguments: tuple[str, ...], _folder: Path, port: int, upstream_port: int) -> Launch:
    """Starts the application on one server."""
    command = [argument.replace("PORT", str(port)) for argument in arguments]
    env = {"PYTHONPATH": f"{ROOT}:{ROOT / 'src'}", "BARE_UPSTREAM": str(upstream_port)}
    return Launch([sys.executable, *command], ready_path="/", env=env)


def measure_servers() -> None:
    found: dict[str, list[Figures]] = {}
    for _ in range(ROUNDS):
        for name, arguments in SERVERS.items():
            if importlib.util.find_spec(arguments[1]) is None:
                continue
            with mock_upstream() as mock, running(name, partial(plan, arguments), mock.port) as target:
                figures: Figures = {}
                for scenario in MEASURED:
                    figures |= SCENARIOS[scenario].run(target, mock, QUICK)
                    mock.wait_until_idle()
            found.setdefault(name, []).append(figures)
    print("| server | " + " | ".join(MEASURED) + " |\n|---|" + "---|" * len(MEASURED))
    for name, rounds in found.items():
        cells = [statistics.median(figures[f"{scenario}_cpu_us"] or 0 for figures in rounds) for scenario in MEASURED]
        print(f"| {name} | " + " | ".join(f"{cell:.0f}" for cell in cells) + " |", flush=True)


def chunk_and_request() -> tuple[bytes, bytes]:
    """One chunk of a stream, and a request with a conversation of 20 turns."""
    script = script_of("burst-16", True)
    events = b"".join((script.opening, *script.rest)).split(b"data: ")
    chunk = next(event.partition(b"\n\n")[0] for event in events if b'"content":"' in event and b'"role"' not in event)
    turns = [{"role": ("user", "assistant")[n % 2], "content": "Some words that were said. " * 8} for n in range(20)]
    return chunk, json.dumps({"model": "m", "stream": True, "messages": turns}).encode()


class Library(NamedTuple):
    """How a library reads a chunk for its text, reads a request, and writes one."""

    read_chunk: Callable[[Any], Any]
    read_request: Callable[[Any], Any]
    write: Callable[[Any], Any]


def libraries() -> dict[str, Library]:
    found = {
        "msgspec, typed": Library(msgspec.json.Decoder(PlainChunk).decode, msgspec.json.decode, msgspec.json.encode),
        "msgspec, untyped": Library(msgspec.json.decode, msgspec.json.decode, msgspec.json.encode),
        "json": Library(json.loads, json.loads, json.dumps),
    }
    if importlib.util.find_spec("orjson") is not None:
        orjson = importlib.import_module("orjson")
        found["orjson"] = Library(orjson.loads, orjson.loads, orjson.dumps)
    return found


def cpu_us(work: Callable[[Any], Any], given: Any) -> float:
    """CPU-µs per call, the least of several rounds."""
    samples = []
    for _ in range(7):
        begin = time.process_time()
        for _ in range(REPEATS):
            work(given)
        samples.append((time.process_time() - begin) / REPEATS * 1e6)
    return min(samples)


def measure_json() -> None:
    chunk, request = chunk_and_request()
    print("| JSON | read a chunk | read a request | write it |\n|---|---|---|---|")
    for name, it in libraries().items():
        cells = (cpu_us(it.read_chunk, chunk), cpu_us(it.read_request, request), cpu_us(it.write, json.loads(request)))
        print(f"| {name} | " + " | ".join(f"{cell:.2f}" for cell in cells) + " |", flush=True)


def main() -> None:
    """Print both tables, in CPU-µs."""
    measure_json()
    print()
    measure_servers()


if __name__ == "__main__":
    main()
