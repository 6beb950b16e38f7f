"""Who pays what in every ending, over real sockets: the client's count, the ledger, the record and the provider's view.

``docs/billing.md`` links its rows to these tests. What a crash costs is in ``test_endings`` and ``test_faults``.
"""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.metering.tokens import counter
from tests.exchange.billing import (
    COUNTED_INPUT,
    INPUT_PRICE,
    OUTPUT_PRICE,
    PIECE,
    REPORTED_INPUT,
    UNENDING,
    Entry,
    Shop,
    pieces,
    selling,
)
from tests.harness import GatewayProcess, RedisServer
from tests.upstream import Plan, Upstream, Usage

DRAINED = {"on_disconnect": "drain"}
DELIVERED = {**DRAINED, "disconnect_charge": "delivered"}


class TestTheAnswerIsWhole:
    async def test_the_provider_reported_and_is_believed(self) -> None:
        async with selling() as shop:
            shop.upstream.plan = pieces(20, usage=Usage(input=12, output=33))
            await shop.read()
            entry = await shop.entry()
            assert (entry.outcome, entry.input, entry.output) == ("complete", 12, 33)
            assert (shop.received, entry.counted, entry.reported) == (20, 20, 33)
            assert entry.charged == entry.cost == 12 * INPUT_PRICE + 33 * OUTPUT_PRICE
            assert not entry.is_estimated
            assert entry.held >= 20 * OUTPUT_PRICE
            assert shop.was_read_to_its_end

    @pytest.mark.parametrize(
        "usage",
        [
            "missing",
            Usage(input=-5, output=3),
            Usage(input=10, output=-1),
            Usage(input=10, output=5_000_001),
            Usage(input=20_000_001, output=3),
            Usage(input=10, output=3, reasoning=4),
            Usage(input=10, output=3, cache_read=11),
            Usage(input=0, output=0),
        ],
        ids=str,
    )
    async def test_the_provider_reported_nothing_or_something_that_cannot_be(self, usage: Any) -> None:
        async with selling() as shop:
            shop.upstream.plan = pieces(20, usage=usage)
            await shop.read()
            entry = await shop.entry()
            assert entry.outcome == "complete"
            assert entry.is_forwarded(shop.received)
            assert (entry.input, entry.output, entry.reported) == (COUNTED_INPUT, 20, 0)

    async def test_each_kind_of_token_is_charged_at_its_price(self) -> None:
        price = {"input": 1, "output": 10, "cache_read": 0.1, "cache_write": 1.25, "reasoning": 20, "request": 0.001}
        async with selling(up={"price": price}) as shop:
            usage = Usage(input=1000, output=20, cache_read=500, cache_write=100, reasoning=5)
            shop.upstream.plan = pieces(20, usage=usage)
            await shop.read()
            entry = await shop.entry()
            assert entry.charged == 400 + 50 + 125 + 15 * 10 + 5 * 20 + 1000
            assert (entry.record["cache_read_tokens"], entry.record["cache_write_tokens"]) == (500, 100)
            assert entry.record["reasoning_tokens"] == 5

    async def test_a_picture_costs_what_a_picture_costs(self) -> None:
        async with selling(up={"price": {"input": 1, "output": 10, "image": 0.01}}) as shop:
            shop.upstream.plan = pieces(2)
            image = {"type": "image_url", "image_url": {"url": "https://x/y.png"}}
            answer = await shop.post(messages=[{"role": "user", "content": [image, image]}])
            assert answer.status_code == 200
            assert (await shop.entry()).charged == REPORTED_INPUT + 2 * OUTPUT_PRICE + 2 * 10_000

    async def test_more_than_was_held_comes_from_the_balance_and_then_from_the_operator(self) -> None:
        async with selling(usd="0.001") as shop:
            shop.upstream.plan = pieces(5, usage=Usage(output=200))
            await shop.read()
            entry = await shop.entry()
            assert entry.cost == REPORTED_INPUT + 200 * OUTPUT_PRICE
            assert (entry.charged, entry.absorbed) == (1000, entry.cost - 1000)


class TestTheClientLeaves:
    async def test_a_provider_that_stops_billing_is_hung_up_on_and_what_was_forwarded_is_charged(self) -> None:
        async with selling() as shop:
            shop.upstream.plan = UNENDING
            await shop.leave_after(10)
            entry = await shop.entry()
            assert (entry.outcome, entry.reason) == ("cancelled", "client_left")
            assert entry.is_forwarded(shop.received)
            assert (entry.input, entry.reported) == (COUNTED_INPUT, 0)
            assert entry.counted <= len(shop.upstream.delivered[0])
            assert shop.was_hung_up_on

    async def test_before_the_first_token_the_prompt_is_charged(self) -> None:
        async with selling() as shop:
            shop.upstream.plan = Plan(fault="stall", fault_at=-1)
            await shop.leave_unanswered()
            entry = await shop.entry()
            assert (entry.outcome, entry.charged, entry.output) == ("cancelled", COUNTED_INPUT * INPUT_PRICE, 0)
            assert shop.was_hung_up_on

    async def test_without_streaming_what_the_provider_had_said_is_charged(self) -> None:
        async with selling() as shop:
            shop.upstream.plan = UNENDING
            task = asyncio.get_running_loop().create_task(shop.post())
            await shop.upstream.until(lambda upstream: bool(upstream.requests) and len(upstream.delivered[0]) >= 10)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            entry = await shop.entry()
            assert entry.outcome == "cancelled"
            assert entry.is_forwarded(0)
            assert entry.counted > 0
            assert shop.was_hung_up_on

    async def test_a_provider_that_bills_anyway_is_read_to_its_end_and_its_figure_is_charged(self) -> None:
        async with selling(up=DRAINED) as shop:
            shop.upstream.plan = pieces(40, delay_s=0.01)
            await shop.leave_after(5)
            entry = await shop.entry()
            assert (entry.outcome, entry.reason) == ("cancelled", "client_left")
            assert entry.charged == entry.cost == REPORTED_INPUT + 40 * OUTPUT_PRICE
            assert (entry.counted, entry.reported, entry.is_estimated) == (40, 40, False)
            assert 5 <= shop.received < 40
            assert entry.held >= entry.cost
            assert shop.was_read_to_its_end

    async def test_a_provider_that_bills_anyway_may_be_the_operators_loss(self) -> None:
        async with selling(up=DELIVERED) as shop:
            shop.upstream.plan = pieces(40, delay_s=0.01)
            await shop.leave_after(5)
            entry = await shop.entry()
            assert entry.charged == entry.cost == entry.input * INPUT_PRICE + entry.output * OUTPUT_PRICE
            assert shop.received <= entry.output < 40
            assert (entry.counted, entry.reported, entry.is_estimated) == (40, 40, True)
            assert shop.was_read_to_its_end

    @pytest.mark.parametrize(
        ("up", "charged"), [(DRAINED, REPORTED_INPUT + 4 * OUTPUT_PRICE), (DELIVERED, COUNTED_INPUT)]
    )
    async def test_a_drain_may_begin_before_the_first_token(self, up: dict[str, str], charged: int) -> None:
        async with selling(up=up) as shop:
            shop.upstream.plan = pieces(4, fault="stall", fault_at=-1)
            await shop.leave_unanswered()
            await shop.gateway_noticed()
            shop.upstream.release()
            assert (await shop.entry()).charged == charged
            assert shop.was_read_to_its_end

    async def test_a_drain_has_its_time_and_then_what_was_read_is_charged(self) -> None:
        async with selling(up={**DRAINED, "drain_s": 0.5}) as shop:
            shop.upstream.plan = UNENDING
            await shop.leave_after(3)
            entry = await shop.entry()
            assert (entry.outcome, entry.reason) == ("cancelled", "client_left")
            assert entry.is_forwarded(shop.received)
            assert shop.was_hung_up_on

    async def test_a_drain_that_breaks_off_charges_what_was_read(self) -> None:
        async with selling(up=DRAINED) as shop:
            shop.upstream.plan = pieces(40, delay_s=0.01, fault="truncate", fault_at=30)
            await shop.leave_after(3)
            entry = await shop.entry()
            assert (entry.outcome, entry.reason) == ("cancelled", "client_left")
            assert entry.is_forwarded(shop.received)
            assert entry.counted == 30

    async def test_a_drain_without_a_full_hold_ends_with_the_credit(self) -> None:
        async with selling(usd="0.0005", up={**DRAINED, "hold": "slice"}) as shop:
            shop.upstream.plan = UNENDING
            await shop.leave_after(3)
            entry = await shop.entry()
            assert entry.outcome == "cancelled"
            assert entry.is_forwarded(shop.received)
            assert entry.charged > 500 - 2 * OUTPUT_PRICE
            assert shop.was_hung_up_on

    async def test_leaving_is_free_where_the_provider_bills_nothing(self) -> None:
        async with selling(up={"on_disconnect": "free"}) as shop:
            shop.upstream.plan = UNENDING
            await shop.leave_after(10)
            entry = await shop.entry()
            assert (entry.outcome, entry.reason) == ("cancelled", "client_left")
            assert entry.is_nothing()
            assert entry.counted >= shop.received
            assert shop.was_hung_up_on


class TestTheGatewayCuts:
    async def test_the_credit_ends_and_what_was_held_is_charged(self) -> None:
        async with selling(usd="0.0005") as shop:
            shop.upstream.plan = UNENDING
            chunks = await shop.read()
            entry = await shop.entry()
            assert (entry.outcome, entry.reason) == ("cut", "credits_exhausted")
            assert entry.is_forwarded(shop.received)
            assert entry.counted == shop.received == 49  # 8 + 49 × 10 of 500
            assert chunks[-1]["x_gateway"]["reason"] == "credits_exhausted"
            assert shop.was_hung_up_on

    async def test_a_rule_of_the_tier_ends_the_answer_and_what_was_forwarded_is_charged(self) -> None:
        async with selling(tier={"tokens_per_request": 30}) as shop:
            shop.upstream.plan = UNENDING
            await shop.read()
            entry = await shop.entry()
            assert (entry.outcome, entry.reason) == ("cut", "tokens_per_request_exceeded")
            assert entry.is_forwarded(shop.received)
            assert COUNTED_INPUT + entry.counted >= 30
            assert entry.counted == shop.received
            assert shop.was_hung_up_on

    @pytest.mark.parametrize("what", ["key", "account"])
    async def test_a_revoked_key_or_a_suspended_account_pays_what_was_forwarded(self, what: str) -> None:
        async with selling() as shop:
            shop.upstream.plan = UNENDING
            async with shop.streaming() as chunks:
                await anext(chunks)
                if what == "key":
                    listed = (await shop.gateway.admin.get("/accounts/acme/keys")).json()
                    key = (listed["data"] if isinstance(listed, dict) else listed)[0]["id"]
                    assert (await shop.gateway.admin.delete(f"/accounts/acme/keys/{key}")).status_code == 204
                else:
                    assert (await shop.gateway.admin.patch("/accounts/acme", json={"suspended": True})).is_success
                last = [chunk async for chunk in chunks][-1]
            entry = await shop.entry()
            assert entry.outcome == "cut"
            assert entry.reason == last["x_gateway"]["reason"] in ("access_revoked", "account_suspended")
            assert entry.is_forwarded(shop.received)
            assert shop.was_hung_up_on

    async def test_a_gateway_that_stops_charges_what_was_forwarded(self) -> None:
        async with selling(server={"drain_s": 0.3}) as shop:
            shop.upstream.plan = UNENDING
            async with shop.streaming() as chunks:
                await anext(chunks)
                shop.gateway.terminate()
                assert [chunk async for chunk in chunks][-1]["error"]["code"] == "draining"
            assert await shop.gateway.exited() == 0
            await shop.gateway.start()
            entry = await shop.entry()
            assert (entry.outcome, entry.reason) == ("failed", "draining")
            assert entry.is_forwarded(shop.received)
            assert shop.was_hung_up_on


class TestTheProviderFails:
    @pytest.mark.parametrize("status", [400, 429, 500, 503])
    async def test_before_it_began_nothing_is_charged(self, status: int) -> None:
        async with selling() as shop:
            shop.upstream.plan = Plan(status=status)
            assert (await shop.post()).status_code >= 400
            entry = await shop.entry()
            assert entry.outcome == "failed"
            assert entry.is_nothing()

    async def test_before_it_began_the_request_is_given_back_to_the_rate(self) -> None:
        async with selling(tier={"requests": {"limit": 1, "period_s": 3600}}) as shop:
            shop.upstream.queue(Plan(status=503), Plan(status=503))
            assert (await shop.post()).status_code == 503
            await shop.entry()
            shop.upstream.plan = pieces(1)
            assert (await shop.post()).status_code == 200
            assert (await shop.post()).status_code == 429

    async def test_before_the_first_token_of_a_stream_nothing_is_charged(self) -> None:
        async with selling() as shop:
            shop.upstream.plan = pieces(5, fault="truncate", fault_at=0)
            answer = await shop.client.post("/v1/chat/completions", json=shop.body())
            assert answer.status_code >= 400 or "error" in answer.text
            entry = await shop.entry()
            assert entry.outcome in ("failed", "truncated")
            assert entry.is_nothing()

    @pytest.mark.parametrize(("fault", "outcome"), [("error_event", "failed"), ("truncate", "truncated")])
    async def test_within_a_stream_what_was_forwarded_is_charged(self, fault: Any, outcome: str) -> None:
        async with selling() as shop:
            shop.upstream.plan = pieces(20, fault=fault, fault_at=7)
            assert "error" in (await shop.read())[-1]
            entry = await shop.entry()
            assert entry.outcome == outcome
            assert entry.is_forwarded(shop.received)
            assert (entry.counted, shop.received, entry.input) == (7, 7, COUNTED_INPUT)

    @pytest.mark.parametrize("fault", ["error_event", "truncate"])
    async def test_without_streaming_nothing_was_shown_and_nothing_is_charged(self, fault: Any) -> None:
        async with selling() as shop:
            shop.upstream.plan = pieces(20, fault=fault, fault_at=7)
            assert (await shop.post()).status_code >= 500
            entry = await shop.entry()
            assert entry.is_nothing()
            assert entry.counted == 7

    async def test_an_attempt_that_was_given_up_is_not_charged(self) -> None:
        dear = {"type": "openai", "price": {"input": 100, "output": 1000}}
        models = {"best": {"targets": ["dear/first", "up/second"]}}
        async with selling(providers={"dear": dear}, models=models) as shop:
            shop.upstream.for_model("first", Plan(status=503))
            shop.upstream.for_model("second", pieces(6))
            await shop.read(model="best")
            entry = await shop.entry()
            assert (entry.outcome, entry.target, entry.record["attempts"]) == ("complete", "up/second", 2)
            assert entry.charged == REPORTED_INPUT + 6 * OUTPUT_PRICE
            assert entry.held >= entry.cost

    async def test_the_target_that_answered_sets_the_price(self) -> None:
        dear = {"type": "openai", "price": {"input": 2, "output": 100}}
        models = {"best": {"targets": ["up/first", "dear/second"]}}
        async with selling(providers={"dear": dear}, models=models) as shop:
            shop.upstream.for_model("first", Plan(status=503))
            shop.upstream.for_model("second", UNENDING)
            await shop.leave_after(5, model="best")
            entry = await shop.entry()
            assert entry.target == "dear/second"
            assert entry.charged == entry.cost == COUNTED_INPUT * 2 + entry.counted * 100 <= entry.held


class TestNothingRan:
    async def test_without_credit_a_request_is_refused_and_leaves_no_entry(self) -> None:
        async with selling(usd="0.000017") as shop:  # the input costs 8, the first token 10
            assert (await shop.post()).status_code == 402
            await nothing_happened(shop, granted=17)

    async def test_above_its_rate_a_request_is_refused_and_leaves_no_entry(self) -> None:
        async with selling(tier={"tokens": {"limit": 5, "period_s": 3600}}) as shop:
            assert (await shop.post()).status_code == 429
            await nothing_happened(shop, granted=1_000_000)


async def nothing_happened(shop: Shop, *, granted: int) -> None:
    assert shop.upstream.requests == []
    assert await shop.gateway.usage() == []
    assert await shop.gateway.balance() == {
        "granted": granted,
        "available": granted,
        "spent": 0,
        "held": 0,
        "absorbed": 0,
    }


async def test_without_credits_usage_is_recorded_and_nothing_is_charged() -> None:
    async with selling(usd="0", credits="off") as shop:
        shop.upstream.plan = pieces(20)
        await shop.read()
        entry = await shop.entry()
        assert (entry.charged, entry.cost, entry.held) == (0, 0, 0)
        assert (entry.outcome, entry.input, entry.output) == ("complete", REPORTED_INPUT, 20)
        assert shop.sent_bound() == {}


@pytest.mark.parametrize("reap_charge", ["used", "held"])
async def test_a_lost_gateway_costs_what_redis_knew_or_its_hold_until_its_journal_turns_up(
    reap_charge: str, tmp_path: Path
) -> None:
    """The other replica ends the stream once its lease has run out."""
    async with Upstream() as upstream:
        upstream.plan = UNENDING
        config = {
            "providers": {
                "up": {
                    "type": "openai",
                    "base_url": upstream.openai_url,
                    "api_key": "k",
                    "price": {"input": 0, "output": OUTPUT_PRICE},
                }
            },
            "holds": {"lease_s": 3, "reap_charge": reap_charge},
        }
        with RedisServer() as redis:
            lost = GatewayProcess(config, redis_url=redis.url, data_dir=tmp_path / "a")
            async with GatewayProcess(config, redis_url=redis.url, data_dir=tmp_path / "b") as heir, lost:
                key = await heir.account(usd="1")
                shop = Shop(upstream, lost, key)
                async with shop.streaming() as chunks:
                    while shop.received < 20:
                        await anext(chunks)
                    lost.kill()
                    with pytest.raises(httpx.TransportError):
                        async for _ in chunks:
                            pass
                await shop.client.aclose()
                held = (await heir.balance())["held"]
                await heir.settled(records=1)
                entry = Entry((await heir.usage())[0])
                assert (entry.kind, entry.outcome, entry.absorbed) == ("reap", "failed", 0)
                assert held >= shop.received * OUTPUT_PRICE
                if reap_charge == "held":
                    assert entry.charged == held
                else:
                    assert entry.charged <= held
                # The journal was not lost after all: it says what was forwarded, and the entry is set right both ways.
                await lost.start()
                balance = await heir.settled(records=2)
                assert shop.received * OUTPUT_PRICE <= balance["spent"] <= held
                assert balance["spent"] == sum(Entry(row).charged for row in await heir.usage())
                assert balance["spent"] % OUTPUT_PRICE == 0


def test_a_piece_is_a_token_and_the_prompt_is_eight() -> None:
    assert counter()(PIECE) == 1
    assert counter()("Hello") + 4 + 3 == COUNTED_INPUT
