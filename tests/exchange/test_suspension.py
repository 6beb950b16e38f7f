"""A suspended account, or a revoked key, is refused everywhere at once, and what runs for it ends within a second."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from jose import jwt

from tests.exchange.fleet import AI_SDK, Fleet, Party, code_of, fleet, notes, parsed, said
from tests.upstream import Plan

pytestmark = pytest.mark.asyncio(loop_scope="module")

SECRET = "a secret of the tests that is long enough"
ENDLESS = Plan(text=(" still", " here"), endless=True, delay_s=0.02)
REVOKED = "The account was suspended or the key revoked; the answer ends here."


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def running() -> AsyncIterator[Fleet]:
    """Three gateways."""
    token = {"issuer": "https://issuer.example/", "audience": ["gateway"], "secret": SECRET, "algorithms": ["HS256"]}
    async with fleet({"jwt": token}, replicas=3) as started:
        yield started


@pytest.fixture
def stage(running: Fleet) -> Fleet:
    """The same, with a provider that never ends by itself."""
    running.upstream.plan = ENDLESS
    running.upstream.requests.clear()
    return running


async def chat(party: Party, replica: int) -> str:
    async with party.streaming(replica=replica, max_tokens=100_000) as response:
        return (await response.aread()).decode()


async def data_stream(party: Party, replica: int) -> str:
    body = {"model": "up/any", "messages": [{"role": "user", "content": "Hello"}]}
    url = party.fleet.url(replica) + AI_SDK
    return (await party.fleet.client.post(url, json=body, headers=party.headers())).text


async def all_running(stage: Fleet, count: int) -> None:
    """Until each of so many streams has said a few words."""
    await stage.upstream.until(
        lambda upstream: upstream.open_streams == count and min(map(len, upstream.delivered)) > 3, timeout_s=15
    )


@pytest.mark.parametrize("cause", ["suspended", "revoked"])
async def test_what_runs_on_any_replica_ends_cleanly_and_is_charged(stage: Fleet, cause: str) -> None:
    party, bystander = await stage.party(), await stage.party()
    streams = asyncio.gather(*(chat(party, number) for number in range(3)), data_stream(party, 0))
    other = asyncio.gather(chat(bystander, 1))
    await all_running(stage, 5)
    admin = stage.gateways[0].admin
    if cause == "suspended":
        await party.change(suspended=True)
    else:
        key_id = (await admin.get(f"/accounts/{party.account}/keys")).json()[0]["id"]
        assert (await admin.delete(f"/accounts/{party.account}/keys/{key_id}")).status_code == 204
    done_at = time.monotonic()
    *chats, data = await streams
    print(f"{cause}: the last of 4 streams on 3 replicas ended after {time.monotonic() - done_at:.2f} s")
    words = 0
    for text in chats:
        frames = parsed(text)
        assert frames[-1] == "[DONE]"
        assert notes(frames) == [{"outcome": "cut", "reason": "access_revoked", "message": REVOKED}]
        assert frames[-2]["choices"][0]["finish_reason"] == "length"
        words += len(said(frames))
    assert data.splitlines()[-1] == f'3:"{REVOKED}"'
    words += sum(line.startswith("0:") for line in data.splitlines())
    balance = await party.settled(records=4)
    assert balance["spent"] == 4 * 8 + words * 10
    assert {(row["outcome"], row["record"]["reason"]) for row in await party.usage()} == {("cut", "access_revoked")}
    await stage.upstream.until(lambda upstream: upstream.open_streams == 1)
    await bystander.change(suspended=True)
    await other


async def test_a_suspended_account_is_refused_everywhere_until_it_is_resumed(stage: Fleet) -> None:
    stage.upstream.plan = Plan()
    party = await stage.party()
    assert await party.codes(3) == [""] * 3
    await party.change(suspended=True)
    for replica in range(3):
        refused = await party.post(replica=replica)
        assert (refused.status_code, code_of(refused)) == (403, "account_suspended")
    await party.change(suspended=False, replica=1)
    assert await party.codes(3) == [""] * 3


async def test_an_account_may_be_suspended_again_after_it_was_resumed(stage: Fleet) -> None:
    party = await stage.party()
    for _ in range(2):
        stream = asyncio.gather(chat(party, 1))
        await all_running(stage, 1)
        await party.change(suspended=True)
        (text,) = await stream
        assert notes(parsed(text))[0]["reason"] == "access_revoked"
        await party.change(suspended=False)
        await stage.upstream.until(lambda upstream: upstream.open_streams == 0)
        stage.upstream.requests.clear()


async def test_a_revoked_key_leaves_the_other_keys_of_its_account_alone(stage: Fleet) -> None:
    party = await stage.party()
    admin = stage.gateways[0].admin
    first = (await admin.get(f"/accounts/{party.account}/keys")).json()[0]["id"]
    other = await stage.another_key(party)
    stream = asyncio.gather(chat(other, 1))
    await all_running(stage, 1)
    await admin.delete(f"/accounts/{party.account}/keys/{first}")
    for replica in range(3):
        async with asyncio.timeout(10):
            while code_of(await party.post(replica=replica, stream=True, model="nothing")) != "invalid_api_key":
                await asyncio.sleep(0.05)
    assert stage.upstream.open_streams == 1
    await party.change(suspended=True)
    assert notes(parsed((await stream)[0]))[0]["reason"] == "access_revoked"


async def test_a_suspension_does_not_reach_a_subject_of_the_same_name(stage: Fleet) -> None:
    party, victim = await stage.party(), await stage.party()
    claims = {"iss": "https://issuer.example/", "aud": "gateway", "exp": 4_000_000_000}
    token = jwt.encode({**claims, "sub": party.account, "account": victim.account}, SECRET, algorithm="HS256")
    bystander = Party(stage, victim.account, token)
    stream, own = asyncio.gather(chat(bystander, 1)), asyncio.gather(chat(party, 1))
    await all_running(stage, 2)
    await party.change(suspended=True)
    await own
    said_by_then = sum(map(len, stage.upstream.delivered))
    await stage.upstream.until(
        lambda upstream: not upstream.open_streams or sum(map(len, upstream.delivered)) > said_by_then + 75
    )
    survived = stage.upstream.open_streams == 1
    await victim.change(suspended=True)
    await stream
    assert survived
