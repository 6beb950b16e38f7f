"""The load's kinds in which streams are opened and then left, or run until their money is gone.

`hold` opens slow streams, waits for a line on stdin and leaves all at once; `aborts` leaves thousands, a hundred at a
time, each after its first word; `spend` opens all its streams at once and waits for every end. `open_streams` and
`run_window` also serve the kinds of load.py.
"""

import asyncio
import json
import sys
import time

from benchmarks.asking import Plan, Requests
from benchmarks.client import Connection, Tally, connect

OPENING_AT_ONCE = 50
OPEN_TIMEOUT_S = 15


def emit(**fields: object) -> None:
    """A line for the parent."""
    print(json.dumps(fields), flush=True)


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
    return tally.summary(time.perf_counter() - began)


async def open_streams(plan: Plan, tally: Tally) -> list[Connection]:
    """All streams that gave a first word within `opening_s`. Once one has waited too long, no more are opened."""
    requests = Requests(plan, plan.model, stream=True)
    gate = asyncio.Semaphore(OPENING_AT_ONCE)
    opened: list[Connection] = []
    last_at = time.perf_counter() + plan.opening_s
    is_full = False

    async def open_one() -> None:
        nonlocal is_full
        async with gate:
            left_s = min(OPEN_TIMEOUT_S, last_at - time.perf_counter())
            if is_full or left_s <= 0:
                return
            connection = await connect(plan.port, tally)
            try:
                if await asyncio.wait_for(connection.open(requests.take()), left_s):
                    opened.append(connection)
            except TimeoutError:
                is_full = True
                connection.leave()

    await asyncio.gather(*(open_one() for _ in range(plan.connections)))
    return opened


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
    return tally.summary(opened_s) | {"opened": len(streams), "alive": alive}


async def run_aborts(plan: Plan, tally: Tally) -> dict[str, object]:
    """Streams that are left after their first word; `repeats` of them, or what fits in `opening_s`."""
    requests = Requests(plan, plan.model, stream=True)
    last_at = time.perf_counter() + plan.opening_s
    left = 0

    async def abort_again() -> None:
        nonlocal left
        while left < plan.repeats and (left_s := last_at - time.perf_counter()) > 0:
            left += 1
            connection = await connect(plan.port, tally)
            try:
                await asyncio.wait_for(connection.open(requests.take()), left_s)
            except TimeoutError:
                left -= 1
            connection.leave()

    await asyncio.gather(*(abort_again() for _ in range(plan.connections)))
    return tally.summary(plan.opening_s) | {"left": left}


async def run_spend(plan: Plan, tally: Tally) -> dict[str, object]:
    """All streams at once, and their ends: how many words came, and how many streams were refused or cut."""
    tally.counts_words = True
    requests = Requests(plan, plan.model, stream=True)
    connections = [await connect(plan.port, tally) for _ in range(plan.connections)]
    began = time.perf_counter()
    asked = (asyncio.wait_for(connection.ask(requests.take()), plan.wait_s) for connection in connections)
    ends = await asyncio.gather(*asked, return_exceptions=True)
    served = len(tally.ttft_s)
    for connection in connections:
        connection.leave()
    hung = sum(isinstance(end, TimeoutError) for end in ends)
    return tally.summary(time.perf_counter() - began) | {"served": served, "hung": hung}
