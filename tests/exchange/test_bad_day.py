"""A bad day at the providers: one of three deployments fails every other call, one is too slow, and two gateways cope.

Every answer is unique, so that a text told twice, or put together from two answers, cannot go unnoticed. The provider
counts what each deployment was asked, at once and in any minute, and keeps to no limit itself.
"""

import asyncio
import contextlib
import random
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from redis import Redis

from gateway.limits import keys
from tests.exchange.fleet import INPUT_TOKENS, Fleet, Json, Party, code_of, parsed, provider, said
from tests.harness import GatewayProcess, RedisServer
from tests.upstream import Plan, Received, Upstream
from tests.upstream.exchange import Vendor
from tests.upstream.http1 import Outbox

REPLICAS, CONCURRENT = 2, 16
DEPLOYMENTS = {
    "steady": {"requests_per_minute": 5000, "tokens_per_minute": 200_000, "streams": CONCURRENT},
    "flaky": {"requests_per_minute": 1000, "streams": 8},
    "slow": {"requests_per_minute": 100, "streams": 8},
}
# Each has one limit that is reached long before the others; whoever is turned away goes on to the next.
TIGHT = {
    "minute": {"requests_per_minute": 20},
    "words": {"tokens_per_minute": 800},
    "narrow": {"streams": 2},
}
BOUND = 50
SHARE, AT_ONCE = 0.2, 10
REST_S = 1.0
# A breaker doubles its rest five times; with what it takes to hear of it, and twice over for a slow machine.
RECOVERED_S = 2 * 32 * REST_S
FIRST_WORD_S = 5.0
# Over which a breaker counts calls.
WINDOW_S = 30.0
# The request after which a bad provider has to be known as one: enough for ten calls at each gateway.
KNOWN_AFTER = 200


class Load:
    """What one deployment was asked: when, how many at once, and how many tokens it read and wrote by then."""

    def __init__(self) -> None:
        self.began: list[tuple[float, int]] = []
        self.spoke: list[tuple[float, int]] = []
        self.in_flight = self.most_in_flight = 0

    def most(self) -> dict[str, int]:
        """The most it had to bear of each kind, under the names of the limits."""
        return {
            "requests_per_minute": most_in_a_minute(self.began),
            "tokens_per_minute": most_in_a_minute(self.spoke),
            "streams": self.most_in_flight,
        }


def most_in_a_minute(amounts: Sequence[tuple[float, int]]) -> int:
    """The largest sum within any minute."""
    most = total = first = 0
    for at, amount in amounts:
        total += amount
        while at - amounts[first][0] >= 60:
            total -= amounts[first][1]
            first += 1
        most = max(most, total)
    return most


class BadDay(Upstream):
    """Its ``flaky`` model fails half of its calls while ``is_bad``; ``slow`` thinks too long before its first word."""

    def __init__(self) -> None:
        super().__init__()
        self.is_bad = True
        self.loads: dict[str, Load] = defaultdict(Load)
        self._lot = random.Random(20261121)

    async def _answer(self, received: Received, outbox: Outbox) -> None:
        load = self.loads[received.body["model"]]
        load.began.append((time.monotonic(), 1))
        load.in_flight += 1
        load.most_in_flight = max(load.most_in_flight, load.in_flight)
        try:
            await super()._answer(received, outbox)
        finally:
            load.in_flight -= 1
            if received.delivered:
                load.spoke.append((time.monotonic(), INPUT_TOKENS + len(received.delivered)))

    def _accept(self, received: Received, vendor: Vendor) -> Plan:
        super()._accept(received, vendor)
        model = received.body["model"]
        if model == "flaky" and self.is_bad and self._lot.random() < 0.5:
            return Plan(status=500)
        if model == "slow":
            return Plan(text=(f"slow-{received.serial}",), delay_s=FIRST_WORD_S)
        return Plan(text=(f"{model}-", f"{received.serial}", " is", " my", " answer."))

    def calls(self, model: str, after: int = 0) -> int:
        """How many of the requests after so many were for a model."""
        return sum(request.body["model"] == model for request in self.requests[after:])


@contextlib.asynccontextmanager
async def bad_day() -> AsyncIterator[tuple[BadDay, Fleet]]:
    async with contextlib.AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(BadDay())
        redis = stack.enter_context(RedisServer())
        store = stack.enter_context(Redis.from_url(redis.url))
        timeouts = {"connect_s": 5, "first_event_s": FIRST_WORD_S / 5, "idle_s": 30}
        config: dict[str, Any] = {
            "providers": {"up": provider(upstream, timeouts=timeouts)},
            "models": {
                "day": {"strategy": "weighted", "targets": limited(DEPLOYMENTS)},
                "tight": {"targets": [*limited(TIGHT), "up/spare"]},
            },
            "routing": {"retry_share": SHARE, "rest_s": REST_S},
            "tiers": {"default": {"requests": {"limit": 1_000_000}, "concurrent_streams": 1000}},
        }
        gateways = [GatewayProcess(config, redis_url=redis.url) for _ in range(REPLICAS)]
        for gateway in gateways:
            stack.push_async_callback(gateway.stop)
        await asyncio.gather(*(gateway.start() for gateway in gateways))
        fleet = Fleet(upstream, store, gateways)
        stack.push_async_callback(fleet.client.aclose)
        yield upstream, fleet


def limited(deployments: dict[str, dict[str, int]]) -> list[Json]:
    """Targets with what they may be asked."""
    return [{"model": f"up/{name}", "capacity": capacity} for name, capacity in deployments.items()]


def excesses(upstream: BadDay, deployments: dict[str, dict[str, int]]) -> dict[str, int]:
    """By how much each limit was exceeded, by the provider's own count; one request at each gateway is let pass."""
    slack = {"tokens_per_minute": REPLICAS * (INPUT_TOKENS + BOUND)}
    return {
        f"{name}.{kind}": over
        for name, capacity in deployments.items()
        for kind, limit in capacity.items()
        if (over := upstream.loads[name].most()[kind] - limit) > slack.get(kind, REPLICAS)
    }


async def crowd(party: Party, requests: int, model: str = "day") -> list[str]:
    """What so many clients were told, ``CONCURRENT`` at a time; an error code in place of a text."""
    turn = asyncio.Semaphore(CONCURRENT)

    async def one(number: int) -> str:
        async with turn:
            answer = await party.post(model=model, max_tokens=BOUND, stream=number % 2 == 0)
        if code := code_of(answer):
            return f"error {code}"
        if number % 2:
            text: str = answer.json()["choices"][0]["message"]["content"]
            return text
        frames = parsed(answer.text)
        assert frames[-1] == "[DONE]"
        return "".join(said(frames))

    return list(await asyncio.gather(*map(one, range(requests))))


def is_left_alone(fleet: Fleet, name: str) -> bool:
    """Whether a gateway told the others to leave it alone for a while."""
    return bool(fleet.store.hexists(keys.SICK, name))


async def records(fleet: Fleet, party: Party) -> list[Json]:
    """Every usage record of the account."""
    found: list[Json] = []
    cursor: dict[str, Any] = {}
    while True:
        query = {"account": party.account, "count": 1000, **cursor}
        page = (await fleet.gateways[0].admin.get("/usage", params=query)).json()
        found += [row["record"] for row in page["data"]]
        if not page["next"]:
            return found
        cursor = {"cursor": page["next"]}


def asked_again(record: Json) -> int:
    """How many of a request's calls went to a deployment that had failed it before."""
    asked = [attempt["target"] for attempt in record.get("failed", ())]
    if record["outcome"] == "complete":
        asked.append(record["target"])
    return len(asked) - len(set(asked))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("requests", [400, pytest.param(2000, marks=pytest.mark.slow)])
async def test_a_bad_day_is_noticed_by_nobody(request: pytest.FixtureRequest, requests: int) -> None:
    if request.node.get_closest_marker("slow") and not request.config.option.markexpr:
        pytest.skip("takes a minute; -m slow runs it")
    async with bad_day() as (upstream, fleet):
        party = await fleet.party(usd="100")
        loop = asyncio.get_running_loop()
        opened = [
            loop.create_task(fleet.until(lambda name=name: is_left_alone(fleet, name), WINDOW_S))  # type: ignore[misc]
            for name in ("up/flaky", "up/slow")
        ]
        answers = await crowd(party, KNOWN_AFTER)
        await asyncio.gather(*opened)
        answers += await crowd(party, requests - KNOWN_AFTER)

        good = [answer for answer in answers if not answer.startswith("error")]
        assert len(good) >= 0.999 * requests, [answer for answer in answers if answer.startswith("error")]
        spoken = {"".join(request.delivered) for request in upstream.requests if request.is_complete}
        assert len(set(good)) == len(good) and set(good) <= spoken, "each is what one provider said, told once"

        await party.settled()
        kept = await records(fleet, party)
        calls = sum(record.get("attempts", 1) for record in kept)
        assert (len(kept), calls) == (requests, len(upstream.requests)), "one bill each, and each call is in one"
        failures = sum(request.status == 500 for request in upstream.requests) + upstream.calls("slow")
        assert calls - requests <= failures, "nobody is asked again who answered"
        again = sum(map(asked_again, kept))
        assert again <= REPLICAS * len(DEPLOYMENTS) * AT_ONCE + SHARE * calls
        # Without a breaker it would be a third of all.
        assert upstream.calls("flaky", KNOWN_AFTER) < 0.2 * requests and upstream.calls("slow", KNOWN_AFTER) < 50

        upstream.is_bad = False
        before = len(upstream.requests)
        async with asyncio.timeout(RECOVERED_S):
            while upstream.calls("flaky", before) < 30:
                await crowd(party, 20)
        # One gateway may be at its longest rest while the other has found it well again.
        await fleet.until(lambda: not is_left_alone(fleet, "up/flaky"), RECOVERED_S)

        assert not any(answer.startswith("error") for answer in await crowd(party, 150, "tight"))
        assert (excesses(upstream, DEPLOYMENTS), excesses(upstream, TIGHT)) == ({}, {})
        reached = {name: upstream.loads[name].most() for name in TIGHT}
        assert reached["minute"]["requests_per_minute"] >= 20 and reached["narrow"]["streams"] >= 2
        assert reached["words"]["tokens_per_minute"] > 400, "a limit that nobody comes near shows nothing"

        balance = await party.settled()
        assert balance["granted"] == balance["available"] + balance["spent"] and balance["absorbed"] == 0
