"""Rules for running streams: a rate, loops, the same prompt again, and an account's token limit in debt."""

import random
import time
from collections.abc import AsyncIterator
from string import ascii_lowercase
from typing import Any

import pytest
import pytest_asyncio

from tests.exchange.fleet import Fleet, Party, code_of, fleet, notes, said
from tests.upstream import Plan, Usage

pytestmark = pytest.mark.asyncio(loop_scope="module")

WIDE = {"requests": {"limit": 1_000_000}, "concurrent_streams": 1_000}
ACTIONS = ["pace", "warn", "downgrade", "cut"]
RATE = 600
CHEAP = {"downgrade_to": "up/cheap", "downgrade_s": 60}


def tiers() -> dict[str, Any]:
    found: dict[str, Any] = {"default": WIDE}
    for action in ACTIONS:
        found[f"rate-{action}"] = {**WIDE, "flow": {"tokens_per_minute": RATE, "rate_action": action, **CHEAP}}
        found[f"loop-{action}"] = {**WIDE, "flow": {"loop_action": action, **CHEAP}}
        found[f"same-{action}"] = {**WIDE, "flow": {"identical_prompts": 2, "identical_action": action, **CHEAP}}
        tokens = {"limit": 1, "period_s": 86_400, "burst": 60}
        found[f"debt-{action}"] = {**WIDE, "tokens": tokens, "flow": {"rate_action": action, **CHEAP}}
    # In debt, it earns its way out while the test waits.
    found["debt-pace"]["tokens"] = {"limit": 20, "period_s": 1, "burst": 60}
    found["unruled"] = WIDE
    return found


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def running() -> AsyncIterator[Fleet]:
    """One gateway with a tier for every rule and action."""
    async with fleet({"tiers": tiers(), "holds": {"lease_s": 3}}) as started:
        yield started


@pytest.fixture
def stage(running: Fleet) -> Fleet:
    """The same, with a provider as if it were fresh."""
    running.upstream.plan = Plan(text=("one", " two"), usage=Usage(input=8, output=2))
    running.upstream.requests.clear()
    return running


def words(count: int) -> tuple[str, ...]:
    """So many pieces of one token each that do not go round in circles."""
    letters = random.Random(17)
    return tuple(f" {letters.choice(ascii_lowercase)}" for _ in range(count))


LOOP = Plan(text=(" round and round it goes",), endless=True, obey_max_tokens=True, delay_s=0.0005)


async def frames_of(party: Party, **more: Any) -> list[Any]:
    return await party.frames(headers={"x_gateway_events": "1"}, max_tokens=10_000, **more)


async def answered_by(party: Party) -> str:
    """The model that the provider was asked for next."""
    await party.post(messages=[{"role": "user", "content": "Another question"}])
    model: str = party.fleet.upstream.requests[-1].body["model"]
    return model


async def test_a_stream_above_its_rate_is_paced(stage: Fleet) -> None:
    party = await stage.party("rate-pace")
    stage.upstream.plan = Plan(text=words(40))
    started_at = time.monotonic()
    assert len(said(await frames_of(party))) == 40
    assert time.monotonic() - started_at < 5, "within its burst a stream is not slowed down"
    # 50 tokens may come at once; the rest of 75 at 10 a second.
    stage.upstream.plan = Plan(text=words(75), delay_s=0.002)
    started_at = time.monotonic()
    frames = await frames_of(party)
    assert len(said(frames)) == 75 and notes(frames) == []
    assert time.monotonic() - started_at > 2
    assert (await party.record(2))["outcome"] == "complete"


@pytest.mark.parametrize("action", ["warn", "downgrade", "cut"])
async def test_a_stream_above_its_rate_meets_its_action(stage: Fleet, action: str) -> None:
    party = await stage.party(f"rate-{action}")
    stage.upstream.plan = Plan(text=words(900), delay_s=0.0005)
    frames = await frames_of(party)
    record = await party.record()
    (note,) = notes(frames)
    assert (note["reason"], record["abuse"]) == ("rate_limit_exceeded", "token_rate")
    if action == "cut":
        assert (record["outcome"], record["reason"]) == ("cut", "rate_limit_exceeded")
        assert RATE <= len(said(frames)) < 900 and frames[-1] == "[DONE]"
        await stage.upstream.until(lambda upstream: upstream.open_streams == 0)
    else:
        assert note["event"] == {"warn": "warning"}.get(action, action)
        assert len(said(frames)) == 900 and record["outcome"] == "complete"
    assert await answered_by(party) == ("cheap" if action == "downgrade" else "any")


@pytest.mark.parametrize("action", ["warn", "downgrade", "cut"])
async def test_a_stream_that_repeats_itself_meets_its_action(stage: Fleet, action: str) -> None:
    party = await stage.party(f"loop-{action}")
    stage.upstream.plan = LOOP
    frames = await party.frames(headers={"x_gateway_events": "1"}, max_tokens=1_500)
    record = await party.record()
    (note,) = notes(frames)
    assert (note["reason"], record["abuse"]) == ("abuse_detected", "loop")
    assert "times in a row" in note["message"]
    if action == "cut":
        assert (record["outcome"], record["reason"]) == ("cut", "abuse_detected")
        assert len(said(frames)) < 1_500
    else:
        assert note["event"] == {"warn": "warning"}.get(action, action)
        assert len(said(frames)) == 1_500 and record["outcome"] == "complete"
    assert await answered_by(party) == ("cheap" if action == "downgrade" else "any")


async def test_a_stream_that_repeats_itself_is_paced(stage: Fleet) -> None:
    party = await stage.party("loop-pace")
    stage.upstream.plan = LOOP
    async with party.streaming(max_tokens=100_000) as response:
        lines = response.aiter_lines()
        await stage.upstream.until(lambda upstream: len(upstream.delivered[0]) > 150)
        received = 0
        # Slowed down to ten tokens a second, it never gets to the end.
        started_at = time.monotonic()
        async for line in lines:
            received += '"content":" round' in line
            if time.monotonic() - started_at > 3:
                break
    assert received < 3_000
    assert (await party.record())["abuse"] == "loop"


async def test_an_answer_that_does_not_repeat_itself_is_left_alone(stage: Fleet) -> None:
    party = await stage.party("loop-cut")
    stage.upstream.plan = Plan(text=words(1_500))
    assert len(said(await frames_of(party))) == 1_500
    assert "abuse" not in await party.record()


@pytest.mark.parametrize("action", ACTIONS)
async def test_a_prompt_that_is_sent_again_and_again_meets_its_action(stage: Fleet, action: str) -> None:
    party = await stage.party(f"same-{action}")
    assert await party.codes(2) == ["", ""]
    started_at = time.monotonic()
    assert await party.codes(1) == ["abuse_detected" if action == "cut" else ""]
    took_s = time.monotonic() - started_at
    if action == "cut":
        assert len(stage.upstream.requests) == 2
    else:
        assert (await party.record(3))["abuse"] == "identical_prompts"
    if action == "pace":
        assert took_s >= 1
    assert await answered_by(party) == ("cheap" if action == "downgrade" else "any")


async def test_prompts_are_told_apart_by_what_they_say(stage: Fleet) -> None:
    party = await stage.party("same-cut")
    for number in range(4):
        assert code_of(await party.post(messages=[{"role": "user", "content": f"Question {number}"}])) == ""


@pytest.mark.parametrize("action", ["warn", "downgrade", "cut"])
async def test_a_token_limit_that_goes_into_debt_meets_its_action(stage: Fleet, action: str) -> None:
    party = await stage.party(f"debt-{action}")
    # The admission takes 8 + 2; the provider goes on beyond what was asked for, and the hold is renewed meanwhile.
    stage.upstream.plan = Plan(text=words(1_000), delay_s=0.002)
    frames = await party.frames(headers={"x_gateway_events": "1"})
    record = await party.record()
    (note,) = notes(frames)
    assert (note["reason"], record["abuse"]) == ("rate_limit_exceeded", "token_rate")
    assert (record["outcome"] == "cut") == (action == "cut")
    if action == "cut":
        assert record["reason"] == "rate_limit_exceeded" and 50 < len(said(frames)) < 1_000
    else:
        assert len(said(frames)) == 1_000
    assert code_of(await party.post(messages=[{"role": "user", "content": "Another"}])) == "rate_limit_exceeded"


async def test_a_stream_in_debt_is_paced_and_gets_to_its_end(stage: Fleet) -> None:
    party = await stage.party("debt-pace")
    stage.upstream.plan = Plan(text=words(200), delay_s=0.002)
    started_at = time.monotonic()
    frames = await party.frames()
    print(f"200 tokens at 20 a second, 60 at once, took {time.monotonic() - started_at:.1f} s")
    assert len(said(frames)) == 200
    assert (await party.record())["outcome"] == "complete"


async def test_a_stream_with_little_held_follows_the_rules_too(stage: Fleet) -> None:
    party = await stage.party("loop-cut")
    # The hold of two tokens never covers what comes in one read.
    stage.upstream.plan = Plan(text=(" round and round it goes",) * 2_000)
    frames = await party.frames(max_tokens=2)
    assert len(said(frames)) < 2_000


async def test_without_rules_nothing_is_looked_at(stage: Fleet) -> None:
    party = await stage.party("unruled")
    stage.upstream.plan = LOOP
    frames = await party.frames(max_tokens=1_500)
    assert len(said(frames)) == 1_500 and notes(frames) == []
    assert "abuse" not in await party.record()
