"""Tokens that are billed and never sent: the whole answer is held before the call, and the provider told its bound.

The provider is the well-known row ``openai`` or ``anthropic`` at another address; its usage reports reasoning that it
never streamed.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.exchange.billing import COUNTED_INPUT, OUTPUT_PRICE, PRICE, Ruminating, Shop, pieces, selling
from tests.upstream import Upstream, Usage

O_SERIES = "openai/o3"
HIDDEN = 500_000


@contextlib.asynccontextmanager
async def reasoning(*, usd: str, **more: Any) -> AsyncIterator[Shop]:
    """A gateway with the row ``openai``, all of whose models cost the same here."""
    async with selling(usd=usd, providers={"openai": {}}, **more) as shop:
        yield shop


def thought(output: int, *, said: int = 3) -> Any:
    """An answer of a few words, before which the model thought as long as it was allowed to."""
    return pieces(said, usage=Usage(input=COUNTED_INPUT, output=output, reasoning=output - said))


def affordable(microusd: int) -> int:
    return (microusd - COUNTED_INPUT) // OUTPUT_PRICE


class TestReasoningThatIsNotSent:
    async def test_an_account_with_a_tenth_of_a_cent_does_not_cost_the_operator_five_dollars(self) -> None:
        async with reasoning(usd="0.001") as shop:
            shop.upstream.plan = thought(HIDDEN)
            answer = await shop.post(model=O_SERIES)
            assert answer.status_code == 402
            assert answer.json()["error"]["code"] == "credits_exhausted"
            assert shop.upstream.requests == []
            balance = await shop.gateway.balance()
            assert (balance["absorbed"], balance["spent"], balance["available"]) == (0, 0, 1000)

    @pytest.mark.parametrize("microusd", [2568, 3000, 12_345, 100_000, 320_007])
    async def test_nothing_is_absorbed_however_small_the_balance(self, microusd: int) -> None:
        async with reasoning(usd=f"{microusd / 1e6:.6f}") as shop:
            bound = affordable(microusd)
            shop.upstream.plan = thought(bound)
            await shop.read(model=O_SERIES)
            assert shop.sent_bound() == {"max_completion_tokens": bound}
            entry = await shop.entry()
            assert (entry.outcome, entry.absorbed, entry.is_estimated) == ("complete", 0, False)
            assert entry.charged == entry.cost == COUNTED_INPUT + bound * OUTPUT_PRICE <= entry.held == microusd
            assert (shop.received, entry.counted, entry.reported) == (3, 3, bound)
            assert entry.record["reasoning_tokens"] == bound - 3

    async def test_where_there_is_plenty_the_longest_answer_is_held_and_sent_as_the_bound(self) -> None:
        async with reasoning(usd="100") as shop:
            shop.upstream.plan = thought(32_000)
            await shop.read(model=O_SERIES)
            assert shop.sent_bound() == {"max_completion_tokens": 32_000}
            entry = await shop.entry()
            assert entry.charged == COUNTED_INPUT + 32_000 * OUTPUT_PRICE <= entry.held
            assert entry.absorbed == 0

    @pytest.mark.parametrize(
        ("asked", "sent"),
        [
            ({"max_completion_tokens": 600}, {"max_completion_tokens": 600}),
            ({"max_completion_tokens": 100_000}, {"max_completion_tokens": affordable(10_000)}),
            ({"max_tokens": None}, {"max_completion_tokens": affordable(10_000)}),
            ({"max_completion_tokens": 100}, {"max_completion_tokens": 100}),
        ],
    )
    async def test_the_clients_bound_is_kept_or_lowered(self, asked: dict[str, Any], sent: dict[str, int]) -> None:
        async with reasoning(usd="0.01") as shop:
            (bound,) = sent.values()
            shop.upstream.plan = thought(bound)
            await shop.read(model=O_SERIES, **asked)
            assert shop.sent_bound() == sent
            entry = await shop.entry()
            assert (entry.absorbed, entry.charged) == (0, COUNTED_INPUT + bound * OUTPUT_PRICE)

    async def test_a_short_answer_needs_no_more_than_itself_to_start(self) -> None:
        async with reasoning(usd="0.001") as shop:
            shop.upstream.plan = thought(50)
            await shop.read(model=O_SERIES, max_completion_tokens=99)
            assert (await shop.entry()).charged == COUNTED_INPUT + 50 * OUTPUT_PRICE

    async def test_what_one_request_holds_another_cannot_think_with(self) -> None:
        async with reasoning(usd="0.01") as shop:
            shop.upstream.queue(pieces(2, fault="stall", fault_at=-1))
            first = asyncio.get_running_loop().create_task(shop.read(model=O_SERIES))
            await shop.upstream.until(lambda upstream: upstream.stalled == 1)
            assert (await shop.gateway.balance())["available"] == 0
            assert (await shop.post(model=O_SERIES)).status_code == 402
            shop.upstream.release()
            await first
            assert (await shop.gateway.settled())["absorbed"] == 0

    @pytest.mark.parametrize("policy", ["drain", "cancel"])
    async def test_thinking_is_paid_for_by_a_client_that_leaves_since_the_answer_is_drained(self, policy: str) -> None:
        async with selling(usd="1", providers={"openai": {"on_disconnect": policy}}) as shop:
            shop.upstream.plan = pieces(30, delay_s=0.02, usage=Usage(input=COUNTED_INPUT, output=3000, reasoning=2970))
            await shop.leave_after(1, model=O_SERIES)
            entry = await shop.entry()
            assert entry.outcome == "cancelled"
            charged = COUNTED_INPUT + 3000 * OUTPUT_PRICE
            assert (entry.charged, entry.reported, entry.is_estimated) == (charged, 3000, False)

    async def test_many_that_think_at_once_cannot_bill_more_than_there_is(self) -> None:
        async with reasoning(usd="0.05", upstream=Ruminating()) as shop:
            answers = await asyncio.gather(*(shop.post(model=O_SERIES, max_completion_tokens=900) for _ in range(20)))
            statuses = [answer.status_code for answer in answers]
            assert set(statuses) == {200, 402}
            balance = await shop.gateway.settled(records=statuses.count(200))
            told = [shop.sent_bound(number)["max_completion_tokens"] for number in range(len(shop.upstream.requests))]
            assert balance["spent"] == sum(COUNTED_INPUT + bound * OUTPUT_PRICE for bound in told)
            assert balance["absorbed"] == 0
            assert 0 <= balance["available"] < COUNTED_INPUT + 256 * OUTPUT_PRICE

    async def test_a_model_of_the_same_provider_that_does_not_reason_is_held_in_slices(self) -> None:
        async with reasoning(usd="100") as shop:
            shop.upstream.plan = pieces(3)
            await shop.read(model="openai/gpt-4o")
            assert shop.sent_bound() == {}
            assert (await shop.entry()).held < 32_000 * OUTPUT_PRICE

    async def test_without_credits_nothing_is_held_and_no_bound_invented(self) -> None:
        async with reasoning(usd="0", credits="off") as shop:
            shop.upstream.plan = thought(HIDDEN)
            await shop.read(model=O_SERIES)
            assert shop.sent_bound() == {}
            entry = await shop.entry()
            assert (entry.charged, entry.absorbed, entry.output) == (0, 0, HIDDEN)


class TestAnthropicThinking:
    @contextlib.asynccontextmanager
    async def claude(self, *, usd: str) -> AsyncIterator[Shop]:
        async with Upstream() as upstream, selling(usd=usd, providers={"anthropic": {**at(upstream)}}) as shop:
            shop.upstream = upstream
            yield shop

    async def test_thinking_is_held_in_full_and_bounded(self) -> None:
        async with self.claude(usd="0.05") as shop:
            bound = affordable(50_000)
            shop.upstream.plan = thought(bound)
            await shop.read(model="anthropic/claude-x", reasoning_effort="low")
            body = shop.upstream.requests[0].body
            assert body["max_tokens"] == bound
            assert body["thinking"] == {"type": "enabled", "budget_tokens": 2048}
            entry = await shop.entry()
            assert (entry.absorbed, entry.charged) == (0, COUNTED_INPUT + bound * OUTPUT_PRICE)

    async def test_a_small_balance_lowers_the_budget_for_thinking_with_the_bound(self) -> None:
        async with self.claude(usd="0.02") as shop:
            shop.upstream.plan = thought(500)
            await shop.read(model="anthropic/claude-x", reasoning_effort="high")
            body = shop.upstream.requests[0].body
            assert body["max_tokens"] == affordable(20_000) == 1999
            assert body["thinking"]["budget_tokens"] == 1024
            assert (await shop.entry()).absorbed == 0

    async def test_plenty_is_bounded_below_the_least_limit_of_the_models_that_think(self) -> None:
        async with self.claude(usd="100") as shop:
            shop.upstream.plan = thought(500)
            await shop.read(model="anthropic/claude-x", reasoning_effort="high")
            assert shop.upstream.requests[0].body["max_tokens"] == 32_000
            assert (await shop.entry()).absorbed == 0

    async def test_too_small_a_balance_is_refused(self) -> None:
        async with self.claude(usd="0.0025") as shop:
            assert (await shop.post(model="anthropic/claude-x", reasoning_effort="low")).status_code == 402
            assert shop.upstream.requests == []

    async def test_who_does_not_ask_for_thinking_is_held_in_slices(self) -> None:
        async with self.claude(usd="100") as shop:
            shop.upstream.plan = pieces(3)
            await shop.read(model="anthropic/claude-x")
            assert "thinking" not in shop.upstream.requests[0].body
            assert (await shop.entry()).held < 32_000 * OUTPUT_PRICE


def at(upstream: Upstream) -> dict[str, Any]:
    return {"base_url": upstream.openai_url, "api_key": "sk-upstream", "price": PRICE}


class TestByConfiguration:
    @pytest.mark.parametrize(
        ("up", "models", "model"),
        [
            ({"hold": "full"}, {}, "up/any"),
            ({}, {"up/any": {"hold": "full"}}, "up/any"),
            ({}, {"mine": {"targets": ["up/any"], "hold": "full"}}, "mine"),
            ({}, {"mine": {"targets": ["up/any"]}, "up/any": {"hold": "full"}}, "mine"),
            ({"on_disconnect": "drain"}, {}, "up/any"),
        ],
    )
    async def test_any_model_may_be_held_in_full(self, up: dict[str, Any], models: dict[str, Any], model: str) -> None:
        async with selling(usd="0.01", up=up, models=models) as shop:
            bound = affordable(10_000)
            shop.upstream.plan = thought(bound)
            await shop.read(model=model)
            assert shop.sent_bound() == {"max_tokens": bound}
            entry = await shop.entry()
            assert (entry.absorbed, entry.held) == (0, 10_000)

    @pytest.mark.parametrize(
        ("providers", "models", "model"),
        [
            ({"openai": {"hold": "slice"}}, {}, O_SERIES),
            ({"openai": {}}, {O_SERIES: {"hold": "slice"}}, O_SERIES),
            ({"openai": {"on_disconnect": "drain", "hold": "slice"}}, {}, "openai/gpt-4o"),
        ],
    )
    async def test_the_operator_may_take_the_risk(
        self, providers: dict[str, Any], models: dict[str, Any], model: str
    ) -> None:
        async with selling(usd="0.1", providers=providers, models=models) as shop:
            shop.upstream.plan = thought(20_000)
            await shop.read(model=model)
            assert shop.sent_bound() == {}
            entry = await shop.entry()
            assert entry.absorbed == COUNTED_INPUT + 20_000 * OUTPUT_PRICE - 100_000

    async def test_the_most_a_model_can_say_bounds_what_is_held(self) -> None:
        async with selling(usd="100", up={"hold": "full"}, models={"up/any": {"output_tokens_max": 700}}) as shop:
            shop.upstream.plan = thought(700)
            await shop.read()
            assert shop.sent_bound() == {"max_tokens": 700}
            entry = await shop.entry()
            assert (entry.absorbed, entry.charged) == (0, COUNTED_INPUT + 700 * OUTPUT_PRICE)
            assert entry.held < 32_000 * OUTPUT_PRICE


class TestTheBoundOfAMeteredAnswer:
    """An account with 500 µ$, which pay 49 tokens after the prompt."""

    @pytest.mark.parametrize(
        ("asked", "sent"),
        [
            ({}, {"max_tokens": 49}),
            ({"max_tokens": 1000}, {"max_tokens": 49}),
            ({"max_completion_tokens": 1000}, {"max_completion_tokens": 49}),
            ({"max_tokens": 49}, {"max_tokens": 49}),
            ({"max_tokens": 20}, {"max_tokens": 20}),
            ({"n": 2}, {"max_tokens": 24}),
            ({"n": 2, "max_tokens": 20}, {"max_tokens": 20}),
        ],
    )
    async def test_it_is_what_can_be_paid(self, asked: dict[str, Any], sent: dict[str, int]) -> None:
        async with selling(usd="0.0005") as shop:
            shop.upstream.plan = pieces(60, obey_max_tokens=True, usage=Usage(input=COUNTED_INPUT))
            await shop.read(**asked)
            assert shop.sent_bound() == sent
            entry = await shop.entry()
            (bound,) = sent.values()
            is_lowered = asked in ({}, {"max_tokens": 1000}, {"max_completion_tokens": 1000})
            assert entry.outcome == ("cut" if is_lowered else "complete")
            assert (entry.output, entry.absorbed) == (bound * asked.get("n", 1), 0)
            assert shop.received == entry.counted == entry.output

    async def test_an_account_that_can_pay_more_than_any_model_says_is_not_bounded(self) -> None:
        async with selling(usd="1") as shop:
            await shop.read()
            assert shop.sent_bound() == {}

    async def test_each_target_is_told_its_own_bound(self) -> None:
        dear = {"type": "openai", "price": {"input": 1, "output": 100}}
        models = {"best": {"targets": ["up/first", "dear/second"]}}
        async with selling(usd="0.0005", providers={"dear": dear}, models=models) as shop:
            await shop.read(model="best")
            assert shop.sent_bound() == {"max_tokens": 49}
            assert (await shop.entry()).target == "up/first"
        async with selling(usd="0.0005", providers={"dear": dear}, models=models) as shop:
            shop.upstream.queue(pieces(2, status=500), pieces(2))
            await shop.read(model="best")
            assert shop.sent_bound(1) == {"max_tokens": 4}
            assert (await shop.entry()).target == "dear/second"

    async def test_the_tiers_tokens_of_a_request_bound_it_too(self) -> None:
        async with selling(tier={"tokens_per_request": 30}) as shop:
            shop.upstream.plan = pieces(60, obey_max_tokens=True)
            await shop.read()
            assert shop.sent_bound() == {"max_tokens": 30 - COUNTED_INPUT}

    async def test_a_provider_that_ignores_the_bound_is_cut(self) -> None:
        async with selling(usd="0.0005") as shop:
            shop.upstream.plan = pieces(60)
            await shop.read(max_tokens=1000)
            entry = await shop.entry()
            assert (entry.outcome, entry.reason) == ("cut", "credits_exhausted")
            assert entry.is_forwarded(shop.received)
            assert shop.received == 49
