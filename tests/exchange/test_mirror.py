"""Mirrors: another model is asked the same, the client's answer is what it was, and each account pays its own.

Each test has a name of its own that is mirrored to a model of its own, ``up/<name>``, for an account ``ops-<name>``.
"""

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio

from tests.exchange.fleet import INPUT_TOKENS, Fleet, Party, code_of, fleet
from tests.harness import GatewayProcess
from tests.upstream import Plan, Received, Usage

pytestmark = pytest.mark.asyncio(loop_scope="module")

HI = [{"role": "user", "content": "Hello"}]
BODIES: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", {"messages": HI, "stream": True}),
    "chat_whole": ("/v1/chat/completions", {"messages": HI}),
    "messages": ("/v1/messages", {"messages": HI, "max_tokens": 9, "stream": True}),
    "responses": ("/v1/responses", {"input": "Hello", "stream": True}),
}
SHARES = {
    **dict.fromkeys((*BODIES, "billed", "broken", "stalled", "left", "poor", "nobody", "refused", "keyed"), 1.0),
    **dict.fromkeys(("stored", "crowded", "drained"), 1.0),
    "seldom": 1e-12,
}
# Of one answer: the client's model says two words, the mirror's three, at 1 and 10 µ$ per token.
CLIENT_COST = INPUT_TOKENS + 2 * 10
MIRROR_COST = 9 + 3 * 10
# In answers: whatever is of one request's own.
OWN = re.compile(rb"(chatcmpl|resp|msg|rs)[-_][0-9a-zA-Z._-]+|\"(created|created_at|completed_at)\": ?[0-9.]+")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def running() -> AsyncIterator[Fleet]:
    """Two gateways; the second one is for the test that stops it."""
    models: dict[str, Any] = {
        name: {"targets": ["up/first"], "mirror": {"to": f"up/{name}", "share": share, "account": f"ops-{name}"}}
        for name, share in SHARES.items()
    }
    models["crowded"]["mirror"]["streams"] = 1
    models["plain"] = {"targets": ["up/first"]}
    tiers = {"default": {"requests": {"limit": 1_000_000}, "concurrent_streams": 1_000}}
    config = {"models": models, "tiers": tiers, "server": {"drain_s": 0.2}, "routing": {"retries": 0}}
    async with fleet(config, replicas=2) as started:
        started.upstream.for_model("first", Plan(text=("one", " two"), usage=Usage(input=INPUT_TOKENS, output=2)))
        plan = Plan(text=("un", " deux", " trois"), usage=Usage(input=9, output=3))
        for name in SHARES:
            started.upstream.for_model(name, plan)
            if name not in ("poor", "nobody"):
                await started.gateways[0].account(f"ops-{name}")
        await started.gateways[0].account("ops-poor", usd="0")
        yield started


@pytest_asyncio.fixture(loop_scope="module")
async def party(running: Fleet) -> Party:
    """A client with credit."""
    return await running.party()


async def ask(party: Party, model: str, path: str = "", **more: Any) -> httpx.Response:
    """One request for a name, to the first gateway."""
    body = {"model": model, **(more or BODIES["chat"][1])}
    url = party.fleet.url(0) + (path or BODIES["chat"][0])
    return await party.fleet.client.post(url, json=body, headers=party.headers(x_request_id=f"asked-{model}"))


def asked_of(running: Fleet, name: str) -> list[Received]:
    """What reached the provider for a model, which is a mirror's where it is not ``first``."""
    return [received for received in running.upstream.requests if received.body["model"] == name]


async def stalls(running: Fleet) -> None:
    """Wait until an answer has come to a halt at the provider."""
    await running.upstream.until(lambda upstream: upstream.stalled == 1, timeout_s=15)


async def spent(running: Fleet, account: str, records: int = 1) -> int:
    """What an operator's account has paid, once there are so many records; it is looked at after they are there."""
    await running.gateways[0].settled(account, records=records)
    return (await running.gateways[0].settled(account))["spent"]


async def results(gateway: GatewayProcess) -> dict[str, int]:
    """How mirrors of one gateway ended so far."""
    async with httpx.AsyncClient(trust_env=False) as client:
        text = (await client.get(f"{gateway.base_url}/metrics")).text
    return {
        result: int(float(count))
        for result, count in re.findall(r'^gateway_mirrored_total\{result="(\w+)"\} (\S+)$', text, re.MULTILINE)
    }


async def ended(gateway: GatewayProcess, result: str, before: dict[str, int], count: int = 1) -> None:
    """Wait until so many more mirrors ended in this way than had ``before``."""
    async with asyncio.timeout(15):
        while (await results(gateway)).get(result, 0) < before.get(result, 0) + count:
            await asyncio.sleep(0.02)


def anonymous(answer: httpx.Response, name: str) -> tuple[int, bytes, dict[str, str]]:
    """An answer without what is of one request's own."""
    own = ("date", "x-request-id", "request-id", "x-gateway-stream-id", "content-length", "transfer-encoding")
    headers = {key: value for key, value in answer.headers.items() if key not in own and "ratelimit" not in key}
    return answer.status_code, OWN.sub(b"#", answer.content).replace(b'"%s"' % name.encode(), b'"plain"'), headers


@pytest.mark.parametrize("name", BODIES)
async def test_the_client_is_answered_as_if_there_were_no_mirror(running: Fleet, party: Party, name: str) -> None:
    path, body = BODIES[name]
    without = await ask(party, "plain", path, **body)
    answer = await ask(party, name, path, **body)
    assert anonymous(answer, name) == anonymous(without, "plain")
    assert b"two" in answer.content and b"deux" not in answer.content
    await running.gateways[0].settled(f"ops-{name}", records=1)
    (received,), of_client = asked_of(running, name), asked_of(running, "first")[-1]
    assert {**received.body, "model": ""} == {**of_client.body, "model": ""}


async def test_each_account_is_billed_its_own_and_the_records_are_a_pair(running: Fleet, party: Party) -> None:
    before = await results(running.gateways[0])
    assert (await ask(party, "billed")).status_code == 200
    assert (await party.settled(records=1))["spent"] == CLIENT_COST
    assert await spent(running, "ops-billed") == MIRROR_COST
    (own,), (row,) = await party.usage(), await running.gateways[0].usage("ops-billed")
    assert "mirror_of" not in own["record"]
    assert (row["outcome"], row["record"]["mirror_of"]) == ("complete", own["record"]["request_id"])
    record = row["record"]
    said = (record["request_id"], record["subject"], record["model"], record["protocol"], record["stream"])
    assert said == ("asked-billed-mirror", "mirror", "up/billed", own["record"]["protocol"], True)
    await ended(running.gateways[0], "complete", before)


@pytest.mark.parametrize("fault", ["reset", "garbage", "error_event"])
async def test_a_mirror_that_breaks_is_the_operators_trouble_alone(running: Fleet, party: Party, fault: Any) -> None:
    gateway, before = running.gateways[0], (await running.gateways[0].balance("ops-broken"))["spent"]
    records = len(await gateway.usage("ops-broken"))
    running.upstream.for_model("broken", Plan(text=("un", " deux"), fault=fault, fault_at=1))
    answer = await ask(party, "broken")
    assert "two" in answer.text and "error" not in answer.text and answer.text.endswith("[DONE]\n\n")
    assert (await party.settled(records=1))["spent"] == CLIENT_COST
    after = await spent(running, "ops-broken", records + 1)
    row = (await gateway.usage("ops-broken"))[0]
    assert row["outcome"] in ("failed", "truncated")
    # A reset may take away what was not read yet.
    assert after - before == row["record"].get("cost", 0) in (0, INPUT_TOKENS + 10)


async def test_a_mirror_that_stalls_holds_up_nobody_and_outlives_its_client(running: Fleet, party: Party) -> None:
    plan = Plan(text=("un", " deux", " trois"), usage=Usage(input=9, output=3), fault="stall", fault_at=1)
    running.upstream.for_model("stalled", plan)
    assert (await ask(party, "stalled")).text.endswith("[DONE]\n\n")
    assert (await party.settled(records=1))["spent"] == CLIENT_COST
    await stalls(running)
    assert (await running.gateways[0].balance("ops-stalled"))["held"] > 0
    running.upstream.release()
    assert await spent(running, "ops-stalled") == MIRROR_COST


async def test_a_client_that_leaves_does_not_end_the_mirror(running: Fleet, party: Party) -> None:
    words = Plan(text=("one", " two"), delay_s=0.05, endless=True)
    first = Plan(text=("one", " two"), usage=Usage(input=INPUT_TOKENS, output=2))
    running.upstream.for_model("first", words)
    try:
        async with party.streaming(replica=0, model="left", max_tokens=1000) as answer:
            async for _ in answer.aiter_bytes():
                break
    finally:
        running.upstream.for_model("first", first)
    assert (await party.record())["outcome"] == "cancelled"
    assert await spent(running, "ops-left") == MIRROR_COST


@pytest.mark.parametrize("name", ["poor", "nobody"])
async def test_an_operator_who_cannot_pay_has_no_mirror_and_nobody_is_told(
    running: Fleet, party: Party, name: str
) -> None:
    gateway = running.gateways[0]
    before = await results(gateway)
    assert anonymous(await ask(party, name), name) == anonymous(await ask(party, "plain"), "plain")
    await ended(gateway, "refused", before)
    assert not asked_of(running, name)
    lines = [line for line in gateway.log.read_text().splitlines() if f"asked-{name}-mirror" in line]
    assert len(lines) == 1 and '"event":"refused"' in lines[0] and f'"account":"ops-{name}"' in lines[0]


async def test_a_refused_request_is_not_mirrored(running: Fleet) -> None:
    assert code_of(await ask(await running.party(usd="0"), "refused")) == "credits_exhausted"
    assert code_of(await ask(await running.party(), "refused")) == ""
    await running.gateways[0].settled("ops-refused", records=1)
    assert len(asked_of(running, "refused")) == 1


async def test_a_small_share_is_seldom_mirrored(running: Fleet, party: Party) -> None:
    answers = await asyncio.gather(*(ask(party, "seldom") for _ in range(20)))
    assert {answer.status_code for answer in answers} == {200}
    await party.settled(records=20)
    assert not asked_of(running, "seldom")


async def test_more_mirrors_than_may_run_at_once_are_left_out(running: Fleet, party: Party) -> None:
    gateway = running.gateways[0]
    running.upstream.for_model("crowded", Plan(fault="stall", fault_at=-1))
    before = await results(gateway)
    assert [(await ask(party, "crowded")).status_code for _ in range(3)] == [200] * 3
    await ended(gateway, "skipped", before, 2)
    await stalls(running)
    running.upstream.release()
    await gateway.settled("ops-crowded", records=1)
    await ask(party, "crowded")
    await stalls(running)
    running.upstream.release()
    await gateway.settled("ops-crowded", records=2)


async def test_an_idempotency_key_is_the_clients_alone(running: Fleet, party: Party) -> None:
    url, headers = running.url(0) + BODIES["chat"][0], party.headers(idempotency_key="once")
    body = {"model": "keyed", "messages": HI}
    answers = [await running.client.post(url, json=body, headers=headers) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 409]
    await running.gateways[0].settled("ops-keyed", records=1)
    assert len(asked_of(running, "keyed")) == 1


async def test_a_conversation_goes_on_from_what_the_client_was_told(running: Fleet, party: Party) -> None:
    first = (await ask(party, "stored", "/v1/responses", input="Hello")).json()
    await running.gateways[0].settled("ops-stored", records=1)
    more = {"input": "Go on", "previous_response_id": first["id"]}
    answer = await ask(party, "stored", "/v1/responses", **more)
    assert answer.status_code == 200, answer.text
    await running.gateways[0].settled("ops-stored", records=2)
    heard = asked_of(running, "stored")[-1].body["messages"]
    assert [(message["role"], message["content"]) for message in heard] == [
        ("user", "Hello"),
        ("assistant", "one two"),
        ("user", "Go on"),
    ]


async def test_a_stopping_gateway_ends_its_mirrors_and_settles_them(running: Fleet, party: Party) -> None:
    gateway, stopping = running.gateways
    running.upstream.for_model("drained", Plan(text=("un", " deux"), fault="stall", fault_at=1))
    url = stopping.base_url + BODIES["chat"][0]
    answer = await running.client.post(url, json={"model": "drained", "messages": HI}, headers=party.headers())
    assert answer.status_code == 200
    await stalls(running)
    stopping.terminate()
    assert await stopping.exited() == 0
    assert await spent(running, "ops-drained") == 0  # it did not stream, and no answer was made of it
    (row,) = await gateway.usage("ops-drained")
    assert (row["kind"], row["outcome"], row["record"]["reason"]) == ("post", "failed", "draining")
