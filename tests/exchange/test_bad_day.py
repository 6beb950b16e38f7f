"""A bad day at the providers: one of three deployments fails every other call, one is too slow, and two gateways cope.

Every answer is unique, so that a text told twice, or put together from two answers, cannot go unnoticed. What the
providers can take at most is no part of this day.
"""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis import Redis

from gateway.limits import keys
from tests.exchange.fleet import Fleet, Json, Party, code_of, parsed, provider, said
from tests.harness import GatewayProcess, RedisServer
from tests.upstream import Plan, Received, Upstream
from tests.upstream.exchange import Vendor

REPLICAS, CONCURRENT = 2, 16
DEPLOYMENTS = ("up/steady", "up/flaky", "up/slow")
SHARE, AT_ONCE = 0.2, 10
REST_S = 1.0
FIRST_WORD_S = 5.0
# Over which a breaker counts calls.
WINDOW_S = 30.0
# The request after which a bad provider has to be known as one: enough for ten calls at each gateway.
KNOWN_AFTER = 200


class BadDay(Upstream):
    """Its ``flaky`` model fails half of its calls while ``is_bad``; ``slow`` thinks too long before its first word."""

    def __init__(self) -> None:
        super().__init__()
        self.is_bad = True
        self._lot = random.Random(20261121)

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
            "models": {"day": {"strategy": "weighted", "targets": list(DEPLOYMENTS)}},
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


async def crowd(party: Party, requests: int) -> list[str]:
    """What so many clients were told, ``CONCURRENT`` at a time; an error code in place of a text."""
    turn = asyncio.Semaphore(CONCURRENT)

    async def one(number: int) -> str:
        async with turn:
            answer = await party.post(model="day", max_tokens=50, stream=number % 2 == 0)
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
@pytest.mark.parametrize("requests", [600, pytest.param(2000, marks=pytest.mark.slow)])
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
        async with asyncio.timeout(60):
            while upstream.calls("flaky", before) < 50:
                await crowd(party, 20)
        await fleet.until(lambda: not is_left_alone(fleet, "up/flaky"))

        balance = await party.settled()
        assert balance["granted"] == balance["available"] + balance["spent"] and balance["absorbed"] == 0
