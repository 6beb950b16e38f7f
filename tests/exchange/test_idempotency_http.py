"""One Idempotency-Key, one run: over replicas, while it runs, after it ended, and after it failed."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator

import openai as sdk
import pytest
import pytest_asyncio
from openai import AsyncOpenAI

from tests.exchange.fleet import Fleet, ask, code_of, fleet
from tests.upstream import Plan, Usage

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def running() -> AsyncIterator[Fleet]:
    """Two gateways."""
    tiers = {"default": {"requests": {"limit": 1, "period_s": 86_400, "burst": 100}}}
    async with fleet({"tiers": tiers}, replicas=2) as started:
        yield started


@pytest.fixture
def stage(running: Fleet) -> Fleet:
    """The same, with a provider that says what our count expects of it."""
    running.upstream.plan = Plan(text=("one", " two"), usage=Usage(input=8, output=2))
    running.upstream.requests.clear()
    return running


KEY = {"idempotency_key": "order-17"}


async def test_while_it_runs_a_second_one_is_told_so(stage: Fleet) -> None:
    party = await stage.party()
    stage.upstream.plan = Plan(text=("one", " two"), fault="stall", fault_at=1)
    first = asyncio.ensure_future(party.post(replica=0, headers=KEY))  # noqa: TID251 - awaited below
    await stage.upstream.until(lambda upstream: upstream.stalled == 1)
    second = await party.post(replica=1, headers=KEY)
    assert (second.status_code, code_of(second)) == (409, "idempotency_in_progress")
    assert second.json()["error"]["param"] == "idempotency-key"
    stage.upstream.release()
    assert (await first).status_code == 200
    assert len(stage.upstream.requests) == 1


async def test_after_it_ended_the_answer_says_what_it_cost(stage: Fleet) -> None:
    party = await stage.party()
    assert (await party.post(replica=0, headers=KEY)).status_code == 200
    await party.settled(records=1)
    for replica in (0, 1):
        again = await party.post(replica=replica, headers=KEY)
        assert (again.status_code, code_of(again)) == (409, "conflict")
        assert "was charged $0.000028" in again.json()["error"]["message"]
    assert (await party.settled())["spent"] == 28
    assert party.bucket("account.requests.86400000", 86_400_000) == 99
    assert len(stage.upstream.requests) == 1


async def test_what_has_run_is_not_to_be_tried_again(stage: Fleet) -> None:
    party = await stage.party()
    assert (await party.post(headers=KEY)).status_code == 200
    await party.settled(records=1)
    assert (await party.post(headers=KEY)).headers["x-should-retry"] == "false"


async def test_another_request_under_the_same_key_is_a_mistake(stage: Fleet) -> None:
    party = await stage.party()
    assert (await party.post(replica=0, headers=KEY)).status_code == 200
    await party.settled(records=1)
    other = await party.post(replica=1, headers=KEY, temperature=1)
    assert (other.status_code, code_of(other)) == (422, "idempotency_mismatch")
    # The same words as a stream are another request too.
    assert code_of(await party.post(headers=KEY, stream=True)) == "idempotency_mismatch"


async def test_what_failed_at_no_cost_may_run_again(stage: Fleet) -> None:
    party = await stage.party()
    stage.upstream.queue(Plan(status=500), Plan(status=500))
    assert code_of(await party.post(replica=0, headers=KEY)) == "provider_unavailable"
    await party.settled(records=1)
    assert (await party.post(replica=1, headers=KEY)).status_code == 200
    await party.settled(records=2)
    assert code_of(await party.post(headers=KEY)) == "conflict"
    assert (await party.settled())["spent"] == 28


async def test_what_was_refused_leaves_its_key_free(stage: Fleet) -> None:
    party = await stage.party(usd="0")
    assert code_of(await party.post(headers=KEY)) == "credits_exhausted"
    await stage.gateways[0].admin.post(f"/accounts/{party.account}/credits", json={"amount_usd": "1"})
    assert code_of(await party.post(headers=KEY)) == ""


async def test_a_key_belongs_to_its_account(stage: Fleet) -> None:
    party, other = await stage.party(), await stage.party()
    colleague = await stage.another_key(party)
    assert code_of(await party.post(headers=KEY)) == ""
    await party.settled(records=1)
    assert code_of(await colleague.post(headers=KEY)) == "conflict"
    assert code_of(await other.post(headers=KEY)) == ""


async def test_of_twins_over_two_replicas_one_runs(stage: Fleet) -> None:
    party = await stage.party()
    for number in range(5):
        key = {"idempotency_key": f"twin-{number}"}
        answers = await asyncio.gather(*(party.post(replica=turn % 2, headers=key) for turn in range(10)))
        codes = Counter(map(code_of, answers))
        assert codes.pop("") == 1
        assert set(codes) <= {"idempotency_in_progress", "conflict"}
    assert len(stage.upstream.requests) == 5
    assert (await party.settled(records=5))["spent"] == 5 * 28


@pytest.mark.parametrize("key", ["", "x" * 256, "a b"])
async def test_a_key_that_is_none_is_refused(stage: Fleet, key: str) -> None:
    party = await stage.party()
    refused = await party.post(headers={"idempotency_key": key})
    assert refused.status_code == 400
    assert stage.upstream.requests == []


async def test_openais_client_is_told_of_a_conflict(stage: Fleet) -> None:
    party = await stage.party()
    headers = {"Idempotency-Key": "order-18"}
    async with AsyncOpenAI(base_url=stage.url() + "/v1", api_key=party.key, max_retries=0) as client:
        assert (await client.chat.completions.create(**ask(), extra_headers=headers)).choices
        await party.settled(records=1)
        with pytest.raises(sdk.ConflictError) as caught:
            await client.chat.completions.create(**ask(), extra_headers=headers)
    assert caught.value.code == "conflict"
