"""Every row of the security matrix that applies, once, over a raw socket against a running gateway.

Its one provider is the tests' own, whose key is a canary; so are the prompts. A case is named by its row. The others:

=== =============================================================================================================
 2  not applicable: upstreams come from the configuration only; no admin can add one
14  ``test_bad_inputs.py``, rows 23-27; here that what was smuggled is not answered
16  not applicable: there is no response cache, and no ``cache_salt`` of ours (a client's own goes to its provider)
21  ``test_bad_inputs.py``, rows 22 and 32, ``test_guard.py``; slow readers in ``exchange/test_endings.py``
22  ``test_bad_inputs.py``, rows 9-15 and 19; here that nothing compressed is asked of a provider
24  not applicable: which Redis runs, and who reaches it, is the operator's
30  not applicable: a matter of the build
=== =============================================================================================================
"""

import asyncio
import json
import stat
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import pytest_asyncio

from tests.harness import ADMIN_KEY, GatewayProcess
from tests.http.attacked_site import Site, Trap, token
from tests.http.conftest import CHAT, DATA_STREAM, Answer, assert_refused, body_of
from tests.http.raw import JSON, Wire, ask, post, request
from tests.identity.issuer import JwksServer
from tests.identity.tokens import ENTRIES, ISSUER, OTHER_RSA_PRIVATE, assemble, b64, build_claims
from tests.upstream import Plan, Upstream

pytestmark = pytest.mark.asyncio(loop_scope="module")

PROVIDER_KEY = "sk-canary-provider-4711"
PROMPT = "canary-prompt-4711 jane.doe@canary.example +49 170 4711"
OUTPUT = "canary-output-4711"
INTERNAL = "http://canary-host.internal:8000"
OUTPUT_PRICE = 10


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def site() -> AsyncIterator[Site]:
    trap, issuer = Trap(), JwksServer()
    trap_url = await trap.start()
    await issuer.start()
    issuer.publish(*ENTRIES)
    async with Upstream(api_key=PROVIDER_KEY) as upstream:
        provider = {"type": "openai", "base_url": upstream.openai_url, "api_key": PROVIDER_KEY}
        config = {
            "providers": {"up": provider | {"price": {"input": 0, "output": OUTPUT_PRICE}}},
            "jwt": {"issuer": ISSUER, "audience": ["gateway"], "jwks_url": issuer.url},
            "tiers": {
                "default": {"requests": {"limit": 1_000_000}, "concurrent_streams": 1000},
                "two": {"requests": {"limit": 2, "period_s": 86_400}},
            },
        }
        names = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")
        config["routing"] = {"retries": 0}  # each plan is for one request
        async with GatewayProcess(config, environment=dict.fromkeys(names, trap_url)) as gateway:
            running = Site(gateway, await gateway.account(), upstream, issuer, trap_url)
            yield running
            await running.client.aclose()
            log, metrics = running.log(), await running.metrics()
    await issuer.stop()
    await trap.stop()
    assert trap.calls == 0
    secrets = (PROVIDER_KEY, running.key, ADMIN_KEY, running.key.rsplit("-", 1)[1], "canary-")
    for text in (log, metrics):
        assert not [secret for secret in secrets if secret in text], text


Row = Callable[[Site], Awaitable[None]]
ROWS: dict[str, Row] = {}


def row(name: str) -> Callable[[Row], Row]:
    def add(run: Row) -> Row:
        ROWS[name] = run
        return run

    return add


@row("01-a-client-does-not-choose-the-upstream")
async def client_chooses_upstream(site: Site) -> None:
    before = len(site.upstream.requests)
    for field in ("api_base", "base_url", "api_key"):
        assert_refused(await site.chat(**{field: site.trap}), 400, code="unsupported_value")
    assert len(site.upstream.requests) == before
    headers = [f"{name}: {site.trap}" for name in ("X-Base-Url", "Helicone-Target-Url", "X-Forwarded-Host")]
    assert (await site.chat(*headers)).status == 200
    assert len(site.upstream.requests) == before + 1
    absolute = post(CHAT, site.key, body_of(CHAT, model="up/any")).replace(b"POST ", f"POST {site.trap}".encode(), 1)
    assert (await site.ask(absolute)).status == 200


async def no_token(site: Site, *tokens: str) -> None:
    before = len(site.upstream.requests)
    for wrong in tokens:
        assert_refused(await site.with_token(wrong), 401)
    assert len(site.upstream.requests) == before


@row("03-no-algorithm-and-confused-ones")
async def algorithms(site: Site) -> None:
    await site.gateway.account()
    good = token()
    head, claims, signature = good.split(".")
    none = [f"{b64({'alg': alg, 'kid': 'rsa'})}.{claims}." for alg in ("none", "None", "HS256")]
    await no_token(site, *none, *(f"{wrong}{signature}" for wrong in none), f"{head}.{claims}.")
    assert (await site.with_token(good)).status == 200


@row("04-encrypted-and-huge-tokens")
async def encrypted_tokens(site: Site) -> None:
    part = b64("x" * 30)
    huge = token(padding="x" * 9000)
    await no_token(site, ".".join([b64({"alg": "dir", "enc": "A256GCM", "zip": "DEF"}), "", part, part, part]), huge)


@row("05-a-flood-of-unknown-keys-asks-the-issuer-once")
async def kid_flood(site: Site) -> None:
    assert (await site.with_token(token())).status == 200
    before = site.issuer.fetches
    await no_token(site, *(token(kid=f"unknown-{number}") for number in range(50)))
    assert site.issuer.fetches <= before + 1


@row("06-keys-outlive-their-issuer")
async def issuer_down(site: Site) -> None:
    assert (await site.with_token(token())).status == 200
    site.issuer.is_down = True
    try:
        assert (await site.with_token(token(sub="another"))).status == 200
    finally:
        site.issuer.is_down = False


@row("07-a-token-brings-no-key-and-every-claim-counts")
async def claims(site: Site) -> None:
    now = int(time.time())
    header = {"alg": "RS256", "kid": "evil", "jku": f"{site.trap}/jwks", "x5u": site.trap}
    forged = assemble(header, build_claims(exp=now + 600), "RS256", OTHER_RSA_PRIVATE)
    wrong: list[dict[str, Any]] = [
        {"iss": "https://evil.example/"},
        {"aud": "other"},
        {"aud": ["other", "another"]},
        {"exp": now - 60},
        {"exp": None},
        {"nbf": now + 600},
        {"account": None},
    ]
    await no_token(site, forged, *(token(**changes) for changes in wrong))
    assert (await site.with_token(token(aud=["other", "gateway"], nbf=now + 20))).status == 200


@row("08-an-unknown-key-and-a-wrong-secret-look-the-same")
async def unknown_and_wrong(site: Site) -> None:
    wrong = site.key[:-1] + ("A" if site.key[-1] != "A" else "B")
    answers = [await site.chat(key=key) for key in (wrong, f"gw-{'a' * 12}-{'x' * 43}", f"gw-{'é' * 12}-x", "gw-")]
    assert len({json.dumps(assert_refused(answer, 401, code="invalid_api_key")) for answer in answers[:2]}) == 1
    assert {answer.status for answer in answers} == {401}


@row("09-a-key-in-the-address")
async def key_in_address(site: Site) -> None:
    for path in (CHAT, DATA_STREAM):
        for query in ("key=x", "api_key=x", "model=a&%61pi-key=x", "access_token=", f"anything={site.key}"):
            data = post(f"{path}?{query}", site.key, body_of(path))
            assert_refused(await site.ask(data), 400, path, code="invalid_request")
    for target in ("/v1/models", "/healthz", "/nowhere", "/admin/v1/accounts"):
        answer = await site.ask(request(f"GET {target}?token={site.key} HTTP/1.1"))
        assert_refused(answer, 400, code="invalid_request")
        assert site.key not in answer.body.decode()


@row("10-canaries-are-in-no-log-metric-or-error")
async def canaries(site: Site) -> None:
    said = [{"role": "user", "content": PROMPT}]
    site.upstream.queue(
        Plan(text=(OUTPUT,)), Plan(text=(OUTPUT,), fault="reset"), Plan(text=(OUTPUT,), fault="garbage", fault_at=1)
    )
    assert OUTPUT in (await site.chat(messages=said)).body.decode()
    errors = [await site.chat(messages=said), await site.chat(messages=said)]
    errors += [await site.chat(messages=said, temperature=PROMPT), await site.chat(messages=[{"role": PROMPT}])]
    errors += [await site.chat(messages=said, key=f"gw-canary-{PROMPT[:13]}"), await site.chat(model=PROMPT)]
    errors.append(await site.ask(request(f"GET /v1/{PROMPT[:18]} HTTP/1.1")))
    assert {answer.status for answer in errors} <= {400, 401, 404, 502}
    for answer in errors[:-1]:  # the last one is told which address there is not
        assert "canary" not in answer.body.decode()


@row("11-a-providers-error-is-not-passed-on")
async def provider_errors(site: Site) -> None:
    usual = site.upstream.plan
    for status in (401, 403, 429, 500, 502, 503):
        leak = f"Incorrect API key {PROVIDER_KEY} at {INTERNAL}"
        for body in (leak, {"error": {"message": leak, "code": PROVIDER_KEY, "param": INTERNAL, "type": leak}}):
            site.upstream.plan = Plan(status=status, error_body=body)
            answer = await site.chat()
            assert answer.status >= 429 and "canary" not in answer.body.decode()
    site.upstream.plan = usual
    # What speaks about the request is passed on, without what looks like a key.
    site.upstream.queue(Plan(status=400, error_body={"error": {"message": f"{PROVIDER_KEY} likes no cats"}}))
    answer = await site.chat()
    assert answer.status == 400 and PROVIDER_KEY not in answer.body.decode()


@row("12-the-clients-headers-stay-here")
async def client_headers(site: Site) -> None:
    odd = [f"{name}: evil" for name in ("Api-Key", "OpenAI-Organization", "OpenAI-Project", "Cookie", "Forwarded")]
    odd += [
        "X-Forwarded-For: 10.0.0.1",
        "Connection: Api-Key, keep-alive",
        "TE: trailers",
        "Proxy-Authorization: evil",
    ]
    assert (await site.chat(*odd)).status == 200
    received = site.upstream.requests[-1]
    assert received.key == PROVIDER_KEY
    allowed = {"host", "accept", "accept-encoding", "authorization", "content-type", "content-length", "user-agent"}
    assert received.headers.keys() <= allowed
    assert "evil" not in received.headers.values() and site.key not in str(received.headers)
    assert received.headers["host"] == site.upstream.base_url.removeprefix("http://")


@row("13-line-feeds-reach-no-header")
async def line_feeds(site: Site) -> None:
    injected = "a\r\nX-Injected: 1"
    for changes in ({"model": f"up/{injected}"}, {"user": injected}, {"metadata": {"k": injected}}):
        answer = await site.chat(**changes)
        assert "x-injected" not in answer.headers
        assert all("x-injected" not in received.headers for received in site.upstream.requests)
    for name in ("x-request-id: a\tb", "x-request-id: a%0d%0aX-Injected: 1"):
        answer = await site.chat(name)
        assert answer.headers["x-request-id"].isalnum() and "x-injected" not in answer.headers


@row("14-what-was-smuggled-is-not-answered")
async def smuggled(site: Site) -> None:
    inner = request("GET /healthz HTTP/1.1")
    both = ("Content-Length: 6", "Transfer-Encoding: chunked", f"Authorization: Bearer {site.key}", JSON)

    def send() -> bytes:
        with Wire(site.gateway.port) as wire:
            wire.send(request(f"POST {CHAT} HTTP/1.1", *both, body=b"0\r\n\r\n" + inner))
            return wire.rest()

    received = await asyncio.to_thread(send)
    assert received.startswith(b"HTTP/1.1 400 ") and b"HTTP/1.1 200 " not in received


@row("15-output-is-no-frame")
async def output_is_no_frame(site: Site) -> None:
    said = 'x\r\n\r\ndata: [DONE]\n\nevent: error\n3:"y"\n\u2028'
    for path in (CHAT, DATA_STREAM):
        site.upstream.queue(Plan(text=(said,)))
        more = {"stream": True} if path == CHAT else {}
        answer = await site.ask(post(path, site.key, body_of(path, model="up/any", max_tokens=9, maxTokens=9) | more))
        lines = [line for line in answer.body.decode().split("\n") if line]
        starts = ("data: {", "data: [DONE]") if path == CHAT else ("f:", "0:", "e:", "d:")
        assert all(line.startswith(starts) for line in lines)
        assert json.dumps(said, ensure_ascii=False).strip('"').replace("\\u2028", "\u2028") in answer.body.decode()


@row("17-a-cancelled-tenants-answer-reaches-nobody-else")
async def cancelled_tenant(site: Site) -> None:
    other = await site.gateway.account("tenant-b")
    before = await site.gateway.settled("tenant-b")

    def leave() -> None:
        with Wire(site.gateway.port) as wire:
            wire.send(post(CHAT, site.key, body_of(CHAT, model="demo/endless", stream=True, max_tokens=1000)))

    answers = []
    for _ in range(10):
        await asyncio.to_thread(leave)
        answers.append(await site.chat(key=other))
    assert {answer.json()["choices"][0]["message"]["content"] for answer in answers} == {"Hello, world!"}
    after = await site.gateway.settled("tenant-b", records=10)
    assert after["spent"] - before["spent"] == 10 * 4 * OUTPUT_PRICE
    assert {row["account"] for row in await site.gateway.usage("tenant-b")} == {"tenant-b"}
    await site.gateway.settled()


@row("18-an-endless-answer-costs-what-there-is")
async def endless_answer(site: Site) -> None:
    poor = await site.gateway.account("poor", usd="0.0002")
    site.upstream.queue(Plan(endless=True))
    answer = await site.chat(key=poor, stream=True, max_tokens=None, n=1)
    assert answer.status == 200 and b"credits_exhausted" in answer.body
    balance = await site.gateway.settled("poor", records=1)
    assert balance["spent"] <= balance["granted"] and balance["absorbed"] == 0
    assert_refused_for_money(await site.chat(key=poor, n=128, max_tokens=100_000))


def assert_refused_for_money(answer: Answer) -> None:
    assert (answer.status, answer.json()["error"]["code"]) == (402, "credits_exhausted")


@row("19-many-at-once-at-the-last-cent")
async def last_cent(site: Site) -> None:
    poor = await site.gateway.account("last-cent", usd="0.0004")
    answers = await asyncio.gather(*(site.chat(key=poor, max_tokens=4) for _ in range(40)))
    assert {answer.status for answer in answers} <= {200, 402}
    balance = await site.gateway.settled("last-cent")
    assert balance["spent"] <= balance["granted"] and balance["absorbed"] == 0


@row("20-another-key-is-not-another-allowance")
async def rotated_keys(site: Site) -> None:
    keys = [await site.gateway.account("rotates", tier="two") for _ in range(3)]
    assert [(await site.chat(key=key)).status for key in keys] == [200, 200, 429]


@row("22-nothing-compressed-is-asked-for")
async def compressed(site: Site) -> None:
    assert (await site.chat("Accept-Encoding: gzip, br")).status == 200
    assert site.upstream.requests[-1].headers["accept-encoding"] == "identity"


@row("23-a-long-run-of-one-character")
async def long_run(site: Site) -> None:
    asking = asyncio.gather(*(site.chat(messages=[{"role": "user", "content": c * 900_000}]) for c in "a \n"))
    assert (await site.ask(request("GET /healthz HTTP/1.1"))).status == 200
    assert {answer.status for answer in await asking} == {200}


@row("25-ids-that-would-be-redis-keys")
async def odd_ids(site: Site) -> None:
    for odd in ("a}b", "{a}", "a:b", "a\nb", "A", "é", "", "a" * 65):
        assert_refused(await site.admin("POST", "/accounts", {"id": odd}), 400, code="invalid_value")
    await no_token(site, *(token(account=odd) for odd in ("a}b", "{a}", "a:b", "A")))
    for odd in ("%7Ba%7D", "a%3Ab", "%2e%2e", "%00"):
        assert_refused(await site.admin("GET", f"/accounts/{odd}", {}), 404)


@row("26-ids-of-another-account-are-not-found")
async def other_account(site: Site) -> None:
    other = await site.gateway.account("tenant-c")
    key_id = site.key.split("-")[1]
    assert_refused(await site.admin("DELETE", f"/accounts/tenant-c/keys/{key_id}", {}), 404, code="not_found")
    own = (await site.chat()).headers["x-gateway-stream-id"]
    for key, odd, status in ((site.key, "", 200), (other, "", 404), (site.key, "0", 404), (site.key, "%2e%2e", 404)):
        target = request(f"GET /v1/streams/{odd or own} HTTP/1.1", f"Authorization: Bearer {key}")
        assert (await site.ask(target)).status == status
    for key in (site.key, other):  # an idempotency key is its account's own
        assert (await site.chat("Idempotency-Key: shared", key=key)).status == 200
    for key in (site.key, other):  # and an account's key is no admin's
        answer = await site.ask(request("GET /admin/v1/accounts HTTP/1.1", f"Authorization: Bearer {key}"))
        assert_refused(answer, 401)


@row("27-unknown-fields-of-admin-objects")
async def mass_assignment(site: Site) -> None:
    await site.gateway.account("tenant-d")
    before = await site.gateway.balance("tenant-d")
    for path, body in (
        ("/accounts", {"id": "tenant-e", "granted": "100"}),
        ("/accounts", {"id": "tenant-e", "balance": "100"}),
        ("/accounts/tenant-d/credits", {"amount_usd": "1", "spent": "0"}),
        ("/accounts/tenant-d/keys", {"account": "tenant-e"}),
        ("/accounts/tenant-d/keys", {"digest": "0" * 64}),
    ):
        assert_refused(await site.admin("POST", path, body), 400, code="invalid_value")
    assert_refused(await site.admin("GET", "/accounts/tenant-e", {}), 404)
    assert await site.gateway.balance("tenant-d") == before


@row("28-grants-are-made-once-and-never-below-zero")
async def grants(site: Site) -> None:
    await site.gateway.account("tenant-f", usd="1")
    for _ in range(3):
        assert (
            await site.admin("POST", "/accounts/tenant-f/credits", {"amount_usd": "2"}, "Idempotency-Key: g")
        ).status == 200
    assert_refused(await site.admin("POST", "/accounts/tenant-f/credits", {"amount_usd": "-4"}), 400)
    twice = await site.admin("POST", "/accounts/tenant-f/credits", {"amount_usd": "-1"}, "Idempotency-Key: g")
    assert_refused(twice, 409, code="conflict")
    assert (await site.gateway.balance("tenant-f"))["granted"] == 3_000_000


@row("29-user-text-does-not-make-series")
async def cardinality(site: Site) -> None:
    def flood() -> None:
        with Wire(site.gateway.port) as wire:
            for number in range(510):
                wire.send(post(CHAT, site.key, body_of(CHAT, model=f"up/flood-{number}", user=f"user-{number}")))
                assert wire.answer().status == 200
            for number in range(10):
                unknown = body_of(CHAT, model=f"nobody/flood-{number}")
                wire.send(post(CHAT, site.key, unknown, f"X-Request-Id: id-{number}"))
                assert wire.answer().status == 404

    await asyncio.to_thread(flood)
    await site.gateway.settled()
    text = await site.metrics()
    assert text.count("gateway_requests_total{") <= 520 and 'target="other"' in text
    assert "nobody" not in text and "user-1" not in text and "id-1" not in text


@row("31-proxies-of-the-environment-are-not-asked")
async def proxies(site: Site) -> None:
    before = len(site.upstream.requests)
    assert (await site.chat()).status == 200  # the trap counts its calls until the end
    assert len(site.upstream.requests) == before + 1


@row("32-the-journal-is-ours-alone-and-holds-ids-and-amounts")
async def journal(site: Site) -> None:
    site.upstream.queue(Plan(text=(OUTPUT,), fault="stall", fault_at=1))
    said = [{"role": "user", "content": PROMPT}]
    running = asyncio.gather(site.chat("X-Request-Id: in-the-journal", messages=said, stream=True, max_tokens=9))
    await site.upstream.until(lambda up: up.stalled == 1)
    files = list((site.gateway.data_dir / "journal").glob("*.journal"))
    assert files and stat.S_IMODE(files[0].parent.stat().st_mode) == 0o700
    for file in files:
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    written = b"".join(file.read_bytes() for file in files)
    site.upstream.release()
    await running
    assert b"acme" in written and b"in-the-journal" in written
    assert b"canary" not in written and site.key.encode() not in written


@pytest.mark.parametrize("run", [pytest.param(run, id=name) for name, run in sorted(ROWS.items())])
async def test_an_attack_comes_to_nothing(site: Site, run: Row) -> None:
    await run(site)
    assert site.gateway.process is not None and site.gateway.process.poll() is None


async def test_whoever_guesses_keys_is_told_to_wait() -> None:
    """Row 8. Known keys go on from the same address; another X-Forwarded-For makes no other address."""
    async with GatewayProcess() as gateway:
        key = await gateway.account()

        def guess(number: int) -> Answer:
            wrong = f"gw-{number:012d}-{'x' * 43}"
            return ask(gateway.port, post(CHAT, wrong, body_of(CHAT), f"X-Forwarded-For: 10.0.0.{number % 250}"))

        def guesses() -> Answer:
            assert ask(gateway.port, post(CHAT, key, body_of(CHAT))).status == 200
            assert [guess(number).status for number in range(60)] == [401] * 60
            refused = (guess(number) for number in range(60, 120))
            answer = next((each for each in refused if each.status == 429), None)
            assert answer is not None
            assert ask(gateway.port, post(CHAT, key, body_of(CHAT))).status == 200
            return answer

        answer = await asyncio.to_thread(guesses)
        assert answer.json()["error"]["code"] == "rate_limit_exceeded"
        assert int(answer.headers["retry-after"]) >= 1
