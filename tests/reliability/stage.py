"""The stage of a run: one Redis, some gateways that share it, failing and good providers, a crowd, and the judge.

``play`` lets the crowd come, disturbs the system while it is being served, and asks the judge afterwards. Everything
random comes from one seed, which is printed and kept with the result; RELIABILITY_SEED sets it.
"""

import asyncio
import contextlib
import os
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec

from tests.harness import GatewayProcess, RedisServer
from tests.reliability.crowd import Client, Crowd, Habit, doors_of, mixed, speak
from tests.reliability.judge import PRICE, Judge, Verdict, open_store
from tests.reliability.results import record
from tests.upstream import Upstream

ACCOUNT = "acme"
CLIENTS = 200
LEASE_S = 3.0
WAIT_S = 60.0


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """How a run is set up. Each client is told ``pieces`` words, one every ``delay_s``."""

    clients: int = CLIENTS
    gateways: int = 3
    usd: str = "10"
    pieces: int = 40
    delay_s: float = 0.1
    lease_s: float = LEASE_S
    binary: str | None = None
    redis_options: tuple[str, ...] = ()
    config: dict[str, Any] = {}


class Stage:
    """What a disturbance can reach."""

    def __init__(self, setting: Setting, seed: int, upstream: Upstream, redis: RedisServer | None) -> None:
        self.setting = setting
        self.seed = seed
        self.chance = random.Random(seed)
        self.upstream = upstream
        self._redis = redis
        self.gateways: list[GatewayProcess] = []
        self.crowd = mixed(self.chance, setting.clients, pieces=setting.pieces)
        self.key = ""
        self.judge: Judge

    @property
    def redis(self) -> RedisServer:
        """The one server, where there is one."""
        assert self._redis is not None
        return self._redis

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for something that the run brings about."""
        try:
            async with asyncio.timeout(WAIT_S):
                while not condition():
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(f"this did not come about: {what}") from None

    async def until_served(self, count: int) -> None:
        """Wait until that many clients have received something, or all have their end."""

        await self.until(lambda: self.crowd.served >= count or self.crowd.is_over, f"{count} clients are served")

    async def canaries(self) -> None:
        """Every gateway serves a whole answer again."""
        for number, gateway in enumerate(self.gateways):
            client = Client(10_000 + number, Habit(model="up/short"))
            await client.ask(doors_of([gateway], self.key))
            assert client.visits[-1].end == "done", client.visits


def seed_of_run() -> int:
    """The seed: the one asked for, or a new one."""
    return int(os.environ.get("RELIABILITY_SEED") or random.SystemRandom().randrange(10**9))


def config_of(setting: Setting, upstream: Upstream) -> dict[str, Any]:
    """The gateways' configuration: one provider, priced per output token, and limits that nobody reaches."""
    return {
        "providers": {
            "up": {
                "type": "openai",
                "base_url": upstream.openai_url,
                "api_key": "sk-upstream",
                "price": {"input": 0, "output": PRICE},
                "timeouts": {"idle_s": 120},
            }
        },
        "tiers": {"default": {"requests": {"limit": 1_000_000}, "concurrent_streams": 5_000}},
        "holds": {"lease_s": setting.lease_s, "slice_s": 2},
        "server": {"drain_s": 1},
        "alerts": {"absorbed_usd": None},
        **setting.config,
    }


@contextlib.asynccontextmanager
async def staged(
    setting: Setting,
    folder: Path,
    *,
    redis_url: str | None = None,
    environments: dict[int, dict[str, str]] | None = None,
) -> AsyncIterator[Stage]:
    """Everything started, and an account with credit. ``environments`` are variables of single gateways."""
    seed = seed_of_run()
    print(f"seed {seed}: RELIABILITY_SEED={seed} repeats this run")
    async with contextlib.AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(Upstream())
        speak(upstream, pieces=setting.pieces, delay_s=setting.delay_s)
        redis = None
        if redis_url is None:
            redis = stack.enter_context(RedisServer(setting.binary, *setting.redis_options))
            redis_url = redis.url
        stage = Stage(setting, seed, upstream, redis)
        config = config_of(setting, upstream)
        stage.gateways = [
            GatewayProcess(
                config,
                redis_url=redis_url,
                data_dir=folder / f"gateway{number}",
                environment=(environments or {}).get(number),
            )
            for number in range(setting.gateways)
        ]
        for gateway in stage.gateways:
            stack.push_async_callback(gateway.stop)
        await asyncio.gather(*(gateway.start() for gateway in stage.gateways))
        stage.key = await stage.gateways[0].account(ACCOUNT, usd=setting.usd)
        stage.judge = Judge(open_store(redis_url), ACCOUNT, upstream)
        stack.push_async_callback(stage.judge.aclose)
        yield stage


Disturbance = Callable[[Stage], Awaitable[None]]


async def undisturbed(stage: Stage) -> None:
    """No fault."""


async def play(stage: Stage, disturb: Disturbance = undisturbed, *, served: float = 0.5) -> Verdict:
    """Serve the crowd, disturb the system once ``served`` of it is being served, and judge when all is over."""
    began = time.monotonic()
    async with stage.judge.watching():
        async with asyncio.TaskGroup() as group:
            group.create_task(stage.crowd.run(doors_of(stage.gateways, stage.key)))
            await stage.until_served(int(served * len(stage.crowd.clients)))
            await disturb(stage)
        verdict = await stage.judge.verdict(stage.crowd.visits, stage.gateways)
    print(f"{time.monotonic() - began:.1f} s, {dict(stage.crowd.ends())}")
    print(verdict)
    return verdict


def note(stage: Stage, verdict: Verdict, *rows: int, outcome: str) -> None:
    """Keep the figures as the result of these rows, and fail where something was wrong."""
    ends = stage.crowd.ends()
    for row in rows:
        record(
            row,
            outcome=outcome,
            charged=verdict.charged,
            delivered=verdict.delivered,
            absorbed=verdict.absorbed,
            leaked=verdict.leaked,
            in_flight=verdict.in_flight,
            undercharged=verdict.undercharged,
            clients=len(stage.crowd.clients),
            ends={name: ends[name] for name in sorted(ends)},
            rest_s=verdict.rest_s,
            seed=stage.seed,
        )
    assert not verdict.wrongs, "\n".join([f"seed {stage.seed}", *verdict.wrongs[:20], str(dict(ends))])


def crowd_of(stage: Stage, habits: list[Habit]) -> Crowd:
    """Replace the crowd by clients with these habits."""
    stage.crowd = Crowd([Client(number, habit) for number, habit in enumerate(habits)], stage.chance)
    return stage.crowd
