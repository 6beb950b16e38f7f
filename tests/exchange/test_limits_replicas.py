"""Limits, credit and clean-up hold over three replicas at once, under bursts that no single process would see."""

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from gateway.limits import keys
from tests.exchange.fleet import CHAT, Fleet, Party, ask, code_of, fleet
from tests.upstream import Plan, Usage

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(240)]

BURST = 1_000
DAY_S = 86_400
# What an hour of waiting gives back is less than one of anything here, so that counts are exact.
TIERS = {
    "default": {"requests": {"limit": 1_000_000}, "concurrent_streams": 10_000},
    "requests": {"requests": {"limit": 100, "period_s": DAY_S}, "concurrent_streams": 10_000},
    "tokens": {
        "requests": {"limit": 1_000_000},
        "tokens": {"limit": 1_000, "period_s": DAY_S},
        "concurrent_streams": 10_000,
    },
    "streams": {"requests": {"limit": 1_000_000}, "concurrent_streams": 50},
    "shared": {
        "requests": {"limit": 1_000_000},
        "concurrent_streams": 10_000,
        "limits": [{"per": "tier", "requests": 100, "period_s": DAY_S}],
    },
    "quick": {"requests": {"limit": 60, "period_s": 60, "burst": 3}},
    "aborted": {
        "requests": {"limit": 1, "period_s": DAY_S, "burst": 10_000},
        "tokens": {"limit": 1, "period_s": DAY_S, "burst": 1_000_000},
        "concurrent_streams": 1_000,
        "limits": [{"per": "key", "streams": 1_000}, {"budget_usd": 90, "window": "24h"}],
    },
}
# In µ$: a token costs a cent, or a hundredth of one.
CENT, FINE = 10_000, 100
MODELS = {
    "cents": {"targets": ["up/cents"], "price": {"input": 0, "output": CENT}},
    "fine": {"targets": ["up/fine"], "price": {"input": 0, "output": FINE}},
}


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def three() -> AsyncIterator[Fleet]:
    """Three gateways."""
    async with fleet({"tiers": TIERS, "models": MODELS}, replicas=3) as running:
        yield running


@pytest.fixture
def replicas(three: Fleet) -> Fleet:
    """The same, with a provider that says what our count expects of it: 8 tokens in, 2 out."""
    three.upstream.plan = Plan(text=("one", " two"), usage=Usage(input=8, output=2))
    three.upstream.requests.clear()
    return three


async def burst(party: Party, count: int = BURST) -> Counter[str]:
    return Counter(map(code_of, await asyncio.gather(*(party.post() for _ in range(count)))))


@pytest.mark.parametrize("tier", ["requests", "tokens"])
async def test_a_rate_holds_exactly_under_a_burst_of_a_thousand(replicas: Fleet, tier: str) -> None:
    party = await replicas.party(tier)
    assert await burst(party) == {"": 100, "rate_limit_exceeded": 900}
    assert len(replicas.upstream.requests) == 100
    await party.settled(records=100)
    empty = party.traces()
    assert party.bucket(f"account.{tier}.{DAY_S * 1000}", DAY_S * 1000) == 0
    assert await burst(party, 60) == {"rate_limit_exceeded": 60}
    assert party.traces() == empty, "a refused request takes nothing"
    assert (await party.settled())["spent"] == 100 * (8 * 1 + 2 * 10)


async def test_shared_capacity_holds_exactly_for_all_accounts_of_a_tier(replicas: Fleet) -> None:
    parties = [await replicas.party("shared") for _ in range(5)]
    counts = await asyncio.gather(*(burst(party, BURST // 5) for party in parties))
    assert sum(counts, Counter()) == {"": 100, "rate_limit_exceeded": 900}
    assert len(replicas.upstream.requests) == 100


async def test_concurrency_holds_exactly_under_a_burst_of_a_thousand(replicas: Fleet) -> None:
    party = await replicas.party("streams", usd="100")
    replicas.upstream.plan = Plan(text=("one", " two"), fault="stall", fault_at=1)
    refused: list[str] = []

    async def one() -> str:
        code = code_of(await party.post(max_tokens=10))
        if code:
            refused.append(code)
        return code

    running = asyncio.gather(*(one() for _ in range(BURST)))
    await replicas.until(lambda: len(refused) == BURST - 50, timeout_s=60)
    await replicas.upstream.until(lambda upstream: upstream.stalled == 50, timeout_s=30)
    assert len(replicas.upstream.requests) == party.slots() == 50
    replicas.upstream.plan = Plan()
    replicas.upstream.release()
    assert Counter(await running) == {"": 50, "concurrency_limit_exceeded": BURST - 50}
    await party.settled()
    assert party.slots() == 0
    assert await burst(party, 50) == {"": 50}


async def test_a_request_right_after_retry_after_passes_on_any_replica(replicas: Fleet) -> None:
    party = await replicas.party("quick")
    assert await party.codes(3) == [""] * 3
    refused = await party.post()
    assert code_of(refused) == "rate_limit_exceeded"
    await asyncio.sleep(int(refused.headers["retry-after"]))
    assert (await party.post()).status_code == 200


async def tokens_received(party: Party, model: str) -> int:
    """Pieces of text one greedy stream delivered until it ended by itself; every end must be a regular one."""
    body = ask(model=model, stream=True, max_tokens=100_000 // MODELS[model]["price"]["output"])  # type: ignore[index]
    received, lines = 0, []
    url = party.fleet.url() + CHAT
    async with party.fleet.client.stream("POST", url, json=body, headers=party.headers()) as response:
        if response.status_code == 402:
            return 0
        assert response.status_code == 200, await response.aread()
        async for line in response.aiter_lines():
            lines.append(line)
            if line.startswith("data: {"):
                choices = json.loads(line[6:])["choices"]
                received += sum(1 for choice in choices if choice["delta"].get("content"))
    assert "data: [DONE]" in lines
    return received


@pytest.mark.parametrize("model", ["cents", "fine"])
async def test_a_hundred_streams_of_ten_cents_share_a_dollar_to_the_last_token(replicas: Fleet, model: str) -> None:
    replicas.upstream.plan = Plan(text=(" go", " on"), endless=True, obey_max_tokens=True, delay_s=0.01)
    party = await replicas.party(usd="1")
    counts = await asyncio.gather(*(tokens_received(party, model) for _ in range(100)))
    balance = await party.settled()
    price = MODELS[model]["price"]["output"]  # type: ignore[index]
    print(f"{model}: {sum(counts)} tokens to {sum(map(bool, counts))} streams; {balance}")
    assert balance["spent"] == sum(counts) * price, "what clients count is what the ledger has"
    assert balance["spent"] + balance["available"] == 1_000_000
    # The stream that ends last may have held one token more than its max_tokens let it use: nobody is left to take it.
    assert 0 <= balance["available"] <= price
    assert balance["absorbed"] == 0


async def leave(party: Party, rng: random.Random, gate: asyncio.Semaphore) -> None:
    """Read a stream for a while and hang up, at times before its head."""
    patience_s, chunks = rng.random() * 0.05, rng.randrange(30)
    async with gate:
        try:
            async with asyncio.timeout(patience_s if chunks < 5 else 30):
                async with party.streaming(max_tokens=1_000) as response:
                    async for line in response.aiter_lines():
                        chunks -= line.startswith("data: ")
                        if chunks <= 0:
                            return
        except TimeoutError:
            return


async def test_a_thousand_aborted_streams_leave_nothing_behind(replicas: Fleet) -> None:
    replicas.upstream.plan = Plan(text=(" still", " here"), endless=True, delay_s=0.005, usage="missing")
    party = await replicas.party("aborted", usd="100")
    seed = random.randrange(1_000_000)
    rng, gate = random.Random(seed), asyncio.Semaphore(150)
    await asyncio.gather(*(leave(party, rng, gate) for _ in range(BURST)))
    left_at = time.monotonic()
    await replicas.upstream.until(lambda upstream: upstream.open_streams == 0, timeout_s=20)
    hung_up_s = time.monotonic() - left_at
    balance = await party.settled()
    print(f"seed {seed}: upstreams closed after {hung_up_s:.2f} s, all settled {time.monotonic() - left_at:.2f} s")
    rows = await every_row(party)
    print(Counter((row["outcome"], row["record"].get("reason")) for row in rows))
    assert replicas.store.exists(keys.leases(party.account)) == 0 and party.slots() == 0
    assert balance["spent"] == sum(int(row["charged_usd"].replace(".", "")) for row in rows)
    assert balance["spent"] + balance["available"] == 100_000_000
    taken = sum(row["record"].get("input_tokens", 0) + row["record"].get("output_tokens", 0) for row in rows)
    period_ms = DAY_S * 1000
    assert party.bucket(f"account.tokens.{period_ms}", period_ms) == 1_000_000 - taken
    for gateway in replicas.gateways:
        assert await gateway.metric("gateway_streams_in_flight") == 0
        assert await gateway.metric("gateway_settlements_pending") == 0


async def every_row(party: Party) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    cursor: dict[str, str] = {}
    while True:
        query: dict[str, Any] = {"account": party.account, "count": 1000, **cursor}
        page = (await party.fleet.gateways[0].admin.get("/usage", params=query)).json()
        rows += page["data"]
        if page["next"] is None:
            return rows
        cursor = {"cursor": page["next"]}
