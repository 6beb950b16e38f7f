"""The load generator, in its own process: `python -m benchmarks.load '<plan as JSON>'`.

It prints one JSON object a line. `{"mark": …}` lines tell the parent when to read the target's CPU time or memory; the
last line is `{"result": …}`. Four kinds: `closed` (connections that ask again at once), `paced` (long streams, a steady
window), `hold` (open slow streams, wait for a line on stdin, leave all at once), `latency` (one client).
"""

import asyncio
import json
import sys
import time

import msgspec
import uvloop

from benchmarks.client import Connection, Tally, connect, encode_request

OPENING_AT_ONCE = 50
OPEN_TIMEOUT_S = 15


class Plan(msgspec.Struct):
    kind: str
    port: int
    key: str
    model: str
    stream: bool = True
    connections: int = 1
    warmup_s: float = 1.0
    window_s: float = 5.0
    repeats: int = 200
    request_model: str = ""  # what `latency` asks without streaming


def emit(**fields: object) -> None:
    print(json.dumps(fields), flush=True)


def quantile(values: list[float] | list[int], share: float) -> float | None:
    """The value below which `share` of all lie; None of nothing."""
    if not values:
        return None
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def milliseconds(values: list[float], share: float) -> float | None:
    value = quantile(values, share)
    return None if value is None else round(value * 1000, 3)


def summary(tally: Tally, seconds: float) -> dict[str, object]:
    delay_us = quantile(tally.delay_us, 0.99)
    return {
        "done": tally.done,
        "events": tally.events,
        "errors": tally.errors,
        "seconds": round(seconds, 3),
        "ttft_p50_ms": milliseconds(tally.ttft_s, 0.5),
        "ttft_p99_ms": milliseconds(tally.ttft_s, 0.99),
        "total_p50_ms": milliseconds(tally.total_s, 0.5),
        "total_p99_ms": milliseconds(tally.total_s, 0.99),
        "delay_p99_ms": None if delay_us is None else round(delay_us / 1000, 2),
    }


async def run_window(plan: Plan, tally: Tally) -> dict[str, object]:
    """Warm up, then one window between two marks; the counts are of the window only."""
    await asyncio.sleep(plan.warmup_s)
    errors = tally.errors
    tally.clear()
    tally.errors = errors  # an error of the warm-up is an error
    began = time.perf_counter()
    emit(mark="begin")
    await asyncio.sleep(plan.window_s)
    emit(mark="end")
    return summary(tally, time.perf_counter() - began)


async def run_closed(plan: Plan, tally: Tally) -> dict[str, object]:
    request = encode_request(plan.model, plan.key, stream=plan.stream)
    stopping = False

    async def ask_again() -> None:
        connection = await connect(plan.port, tally)
        while not stopping:
            if not await connection.ask(request):
                connection.leave()
                await asyncio.sleep(0.05)
                connection = await connect(plan.port, tally)
        connection.leave()

    async with asyncio.TaskGroup() as group:
        for _ in range(plan.connections):
            group.create_task(ask_again())
        result = await run_window(plan, tally)
        stopping = True
    return result


async def open_streams(plan: Plan, tally: Tally) -> list[Connection]:
    """All streams that gave a first word. Once one has waited too long, the target is full: no more are opened."""
    request = encode_request(plan.model, plan.key, stream=True)
    gate = asyncio.Semaphore(OPENING_AT_ONCE)
    opened: list[Connection] = []
    is_full = False

    async def open_one() -> None:
        nonlocal is_full
        async with gate:
            if is_full:
                return
            connection = await connect(plan.port, tally)
            try:
                if await asyncio.wait_for(connection.open(request), OPEN_TIMEOUT_S):
                    opened.append(connection)
            except TimeoutError:
                is_full = True
                connection.leave()

    await asyncio.gather(*(open_one() for _ in range(plan.connections)))
    return opened


async def run_paced(plan: Plan, tally: Tally) -> dict[str, object]:
    streams = await open_streams(plan, tally)
    result = await run_window(plan, tally)
    for connection in streams:
        connection.leave()
    return result


async def run_hold(plan: Plan, tally: Tally) -> dict[str, object]:
    began = time.perf_counter()
    streams = await open_streams(plan, tally)
    opened_s = time.perf_counter() - began
    emit(mark="open", streams=len(streams))
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    alive = sum(connection.busy for connection in streams)
    for connection in streams:
        connection.leave()
    await asyncio.sleep(0)
    emit(mark="left")
    return summary(tally, opened_s) | {"opened": len(streams), "alive": alive}


async def ask_repeatedly(connection: Connection, request: bytes, count: int) -> None:
    for _ in range(count):
        if not await connection.ask(request):
            return


async def run_latency(plan: Plan, tally: Tally) -> dict[str, object]:
    """One client, one connection: first streams, then non-streaming requests."""
    connection = await connect(plan.port, tally)
    results: dict[str, object] = {}
    for name, model in (("stream", plan.model), ("request", plan.request_model)):
        request = encode_request(model, plan.key, stream=name == "stream")
        await ask_repeatedly(connection, request, max(50, plan.repeats // 10))
        errors = tally.errors
        tally.clear()
        began = time.perf_counter()
        await ask_repeatedly(connection, request, plan.repeats)
        tally.errors += errors
        results[name] = summary(tally, time.perf_counter() - began)
    connection.leave()
    return results | {"errors": tally.errors}


KINDS = {"closed": run_closed, "paced": run_paced, "hold": run_hold, "latency": run_latency}


async def run(plan: Plan) -> None:
    emit(result=await KINDS[plan.kind](plan, Tally()))


if __name__ == "__main__":
    uvloop.run(run(msgspec.json.decode(sys.argv[1], type=Plan)))
