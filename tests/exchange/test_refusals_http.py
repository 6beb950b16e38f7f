"""What a refused client sees: status, code, headers and how long to wait; and what OpenAI's client makes of it."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import openai as sdk
import pytest
import pytest_asyncio
from openai import AsyncOpenAI

from tests.exchange.fleet import AI_SDK, Fleet, Party, ask, code_of, fleet
from tests.upstream import Plan, Usage

pytestmark = pytest.mark.asyncio(loop_scope="module")

DAY_S = 86_400
WIDE = {"requests": {"limit": 1_000_000}, "concurrent_streams": 1_000}
TIERS: dict[str, Any] = {
    "default": WIDE,
    "both": {**WIDE, "requests": {"limit": 60, "burst": 3}, "tokens": {"limit": 600, "burst": 100}},
    "hourly": {**WIDE, "requests": {"limit": 2, "period_s": 3600}},
    "quick": {**WIDE, "requests": {"limit": 60, "burst": 1}},
    "small": {**WIDE, "tokens": {"limit": 50, "period_s": 60}},
    "one": {**WIDE, "concurrent_streams": 1},
    "poor": {**WIDE, "limits": [{"budget_usd": 0.00003, "window": "month"}]},
    "tiny": {**WIDE, "limits": [{"budget_usd": 0.00001, "window": "24h"}]},
    "short": {**WIDE, "tokens_per_request": 20},
    "same": {**WIDE, "flow": {"identical_prompts": 1}},
}
RATES = [
    f"x-ratelimit-{what}-{counts}" for counts in ("requests", "tokens") for what in ("limit", "remaining", "reset")
]
LENGTHY = {"messages": [{"role": "user", "content": "one two three " * 20}]}
DURATION = re.compile(r"(\d+h)?(\d+m(?!s))?(\d+(\.\d+)?s)?|\d+ms")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def running() -> AsyncIterator[Fleet]:
    """Two gateways."""
    async with fleet({"tiers": TIERS}, replicas=2) as started:
        yield started


@pytest.fixture
def stage(running: Fleet) -> Fleet:
    """The same, with a provider that says what our count expects of it."""
    running.upstream.plan = Plan(text=("one", " two"), usage=Usage(input=8, output=2))
    running.upstream.requests.clear()
    return running


async def test_an_answer_says_how_the_rates_stand(stage: Fleet) -> None:
    party = await stage.party("both")
    answer = await party.post()
    assert [answer.headers[name] for name in RATES if "reset" not in name] == ["60", "2", "600", "90"]
    assert answer.headers["x-ratelimit-reset-requests"] == "1s"
    assert answer.headers["x-ratelimit-reset-tokens"] == "1s"
    async with party.streaming() as response:
        assert response.headers["x-ratelimit-remaining-requests"] == "1"
        assert all(DURATION.fullmatch(response.headers[name]) for name in RATES if "reset" in name)


async def test_ai_sdk_4_is_told_the_same(stage: Fleet) -> None:
    party = await stage.party("hourly")
    body = {"model": "up/any", "messages": [{"role": "user", "content": "Hello"}]}
    url = stage.url() + AI_SDK
    answers = [await stage.client.post(url, json=body, headers=party.headers()) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers] == ["1", "0", "0"]
    refused = answers[2]
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert 1790 <= int(refused.headers["retry-after"]) <= 1800
    assert refused.headers["x-should-retry"] == "false"


async def test_a_refusal_for_a_moment_says_when_and_is_worth_trying_again(stage: Fleet) -> None:
    party = await stage.party("quick")
    assert await party.codes(1) == [""]
    refused = await party.post()
    error = refused.json()["error"]
    assert (refused.status_code, error["code"], error["type"]) == (429, "rate_limit_exceeded", "rate_limit_error")
    assert error["message"] == "This account may use 60 requests in 60 s, 1 at once."
    assert refused.headers["retry-after"] == "1" and "x-should-retry" not in refused.headers
    assert refused.headers["x-ratelimit-limit-requests"] == "60"
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert re.fullmatch(r"\d+ms|1s", refused.headers["x-ratelimit-reset-requests"])
    await asyncio.sleep(1)
    assert await party.codes(1) == [""]


async def test_tokens_are_refused_with_their_own_headers(stage: Fleet) -> None:
    party = await stage.party("small")
    assert await party.codes(5) == [""] * 5
    refused = await party.post(max_tokens=20)
    assert code_of(refused) == "rate_limit_exceeded"
    assert refused.headers["x-ratelimit-limit-tokens"] == "50"
    # 28 tokens at 50 in 60 s
    assert 25 <= int(refused.headers["retry-after"]) <= 34
    assert refused.headers["x-ratelimit-reset-tokens"].endswith("s")


async def test_a_long_wait_is_told_and_not_slept_by_sdks(stage: Fleet) -> None:
    party = await stage.party("hourly")
    assert await party.codes(2) == ["", ""]
    refused = await party.post()
    assert 1790 <= int(refused.headers["retry-after"]) <= 1800
    assert refused.headers["x-should-retry"] == "false"
    assert re.fullmatch(r"(59m5\d|1h0m0)s", refused.headers["x-ratelimit-reset-requests"])


@pytest.mark.parametrize(
    ("tier", "change", "status", "code"),
    [
        ("small", {"max_tokens": 300}, 429, "rate_limit_exceeded"),
        ("tiny", {}, 429, "budget_exceeded"),
        ("short", LENGTHY, 400, "tokens_per_request_exceeded"),
    ],
)
async def test_what_never_fits_is_not_to_be_tried_again(
    stage: Fleet, tier: str, change: dict[str, Any], status: int, code: str
) -> None:
    party = await stage.party(tier)
    refused = await party.post(**change)
    assert (refused.status_code, code_of(refused)) == (status, code)
    assert "retry-after" not in refused.headers
    if status == 429:
        assert refused.headers["x-should-retry"] == "false"
        assert "This request alone needs more than that." in refused.json()["error"]["message"]
    assert stage.upstream.requests == []


async def test_a_budget_that_is_used_up_says_when_it_is_there_again(stage: Fleet) -> None:
    party = await stage.party("poor")
    assert await party.codes(1) == [""]
    refused = await party.post()
    assert (refused.status_code, code_of(refused)) == (429, "budget_exceeded")
    assert " in a calendar month; it is used up" in refused.json()["error"]["message"]
    assert 1 <= int(refused.headers["retry-after"]) <= 31 * DAY_S
    assert int(refused.headers["retry-after"]) < 60 or refused.headers["x-should-retry"] == "false"


async def test_no_slot_is_worth_trying_again_in_a_second(stage: Fleet) -> None:
    party = await stage.party("one")
    stage.upstream.plan = Plan(text=("one", " two"), fault="stall", fault_at=1)
    async with party.streaming():
        refused = await party.post()
        assert (refused.status_code, code_of(refused)) == (429, "concurrency_limit_exceeded")
        assert refused.headers["retry-after"] == "1" and "x-should-retry" not in refused.headers
        stage.upstream.release()


async def test_no_credit_is_not_to_be_tried_again(stage: Fleet) -> None:
    party = await stage.party(usd="0")
    refused = await party.post()
    assert (refused.status_code, code_of(refused)) == (402, "credits_exhausted")
    assert refused.headers["x-should-retry"] == "false" and "retry-after" not in refused.headers


async def test_the_same_prompt_once_too_often_is_abuse(stage: Fleet) -> None:
    party = await stage.party("same")
    answer = await party.post()
    assert answer.headers["x-ratelimit-limit-requests"] == "1000000", "that of prompts is no rate of the account's"
    assert await party.codes(1, temperature=0) == ["abuse_detected"]
    party = await stage.party("same")
    assert await party.codes(2) == ["", "abuse_detected"]
    assert await party.codes(1, messages=[{"role": "user", "content": "Something else"}]) == [""]
    refused = await party.post()
    assert refused.status_code == 429
    assert 590 <= int(refused.headers["retry-after"]) <= 600 and refused.headers["x-should-retry"] == "false"


# OpenAI's own client.


@asynccontextmanager
async def official(party: Party) -> AsyncIterator[tuple[AsyncOpenAI, list[Any]]]:
    """The client with its usual retries, and the requests it makes."""
    requests: list[Any] = []

    async def note(request: Any) -> None:
        requests.append(request)

    http = sdk.DefaultAsyncHttpxClient(event_hooks={"request": [note]})
    url = party.fleet.url() + "/v1"
    async with AsyncOpenAI(base_url=url, api_key=party.key, max_retries=2, http_client=http) as client:
        yield client, requests


async def test_openais_client_waits_and_gets_its_answer(stage: Fleet) -> None:
    party = await stage.party("quick")
    async with official(party) as (client, requests):
        for _ in range(2):
            assert (await client.chat.completions.create(**ask())).choices[0].message.content == "one two"
    assert len(requests) == 3


@pytest.mark.parametrize(("tier", "more"), [("hourly", {}), ("small", {"max_tokens": 300}), ("poor", {}), ("tiny", {})])
async def test_openais_client_does_not_try_again_where_waiting_is_no_use(
    stage: Fleet, tier: str, more: dict[str, Any]
) -> None:
    party = await stage.party(tier)
    if not more and tier != "tiny":
        await party.codes(2 if tier == "hourly" else 1)
    async with official(party) as (client, requests):
        with pytest.raises(sdk.RateLimitError) as caught:
            await client.chat.completions.create(**ask(**more))
    assert caught.value.code in ("rate_limit_exceeded", "budget_exceeded")
    assert len(requests) == 1


async def test_openais_client_reads_the_headers(stage: Fleet) -> None:
    party = await stage.party("both")
    async with official(party) as (client, _):
        raw = await client.chat.completions.with_raw_response.create(**ask())
    assert raw.headers["x-ratelimit-remaining-requests"] == "2"
    assert raw.parse().choices
