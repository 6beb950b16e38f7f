"""The load generator, in its own process: `python -m benchmarks.load '<plan as JSON>'`.

It prints one JSON object a line. `{"mark": …}` lines tell the parent when to read the target's CPU time or memory; the
last line is `{"result": …}`. Kinds with a steady window are here: `closed` (connections that ask again at once),
`paced` (long streams) and `latency` (one client); those about leaving are in leaving.py.
"""

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable

import msgspec
import uvloop

from benchmarks.asking import Plan, Requests
from benchmarks.client import Connection, Tally, connect
from benchmarks.leaving import open_streams, run_aborts, run_hold, run_spend, run_window

FINISH_TIMEOUT_S = 3
LATENCY_S = 10
RETRY_S = 0.05
WARMUP_ASKS = 50


async def run_closed(plan: Plan, tally: Tally) -> dict[str, object]:
    """Connections that ask again at once; with `leave_every`, each such stream is left after its first word."""
    requests = Requests(plan, plan.model, stream=plan.stream)
    stopping = False

    async def ask_again(after_s: float) -> None:
        await asyncio.sleep(after_s)
        connection = await connect(plan.port, tally)
        while not stopping:
            leaves = plan.leave_every and requests.sent % plan.leave_every == 0
            request = requests.take()
            is_good = await (connection.open(request) if leaves else connection.ask(request))
            if leaves and is_good:
                await asyncio.sleep(plan.wait_s)
            if leaves or not is_good:
                connection.leave()
                await asyncio.sleep(0 if is_good else RETRY_S)
                connection = await connect(plan.port, tally)
        connection.leave()

    async with asyncio.TaskGroup() as group:
        starts = (plan.spread_s * index / plan.connections for index in range(plan.connections))
        tasks = [group.create_task(ask_again(after_s)) for after_s in starts]
        result = await run_window(plan, tally)
        stopping = True
        _, late = await asyncio.wait(tasks, timeout=FINISH_TIMEOUT_S)
        for task in late:
            task.cancel()
    return result


async def run_paced(plan: Plan, tally: Tally) -> dict[str, object]:
    streams = await open_streams(plan, tally)
    result = await run_window(plan, tally)
    alive = sum(connection.busy for connection in streams)
    for connection in streams:
        connection.leave()
    return result | {"opened": len(streams), "alive": alive}


async def ask_repeatedly(connection: Connection, requests: Requests, count: int) -> None:
    """As many as fit into some seconds; a target that is slow has fewer samples."""
    last_at = time.perf_counter() + LATENCY_S
    for _ in range(count):
        if time.perf_counter() > last_at or not await connection.ask(requests.take()):
            return


async def run_latency(plan: Plan, tally: Tally) -> dict[str, object]:
    """One client, one connection: first streams, then non-streaming requests."""
    connection = await connect(plan.port, tally)
    results: dict[str, object] = {}
    for name, model in (("stream", plan.model), ("request", plan.request_model)):
        requests = Requests(plan, model, stream=name == "stream")
        await ask_repeatedly(connection, requests, WARMUP_ASKS)
        errors = tally.errors
        tally.clear()
        began = time.perf_counter()
        await ask_repeatedly(connection, requests, plan.repeats)
        tally.errors += errors
        results[name] = tally.summary(time.perf_counter() - began)
    connection.leave()
    return results | {"errors": tally.errors}


KINDS: dict[str, Callable[[Plan, Tally], Awaitable[dict[str, object]]]] = {
    "closed": run_closed,
    "paced": run_paced,
    "hold": run_hold,
    "latency": run_latency,
    "aborts": run_aborts,
    "spend": run_spend,
}


async def run(plan: Plan) -> None:
    result = await KINDS[plan.kind](plan, Tally())
    print(json.dumps({"result": result}), flush=True)


if __name__ == "__main__":
    uvloop.run(run(msgspec.json.decode(sys.argv[1], type=Plan)))
