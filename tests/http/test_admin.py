"""The admin API from end to end: what an operator can do, what it refuses, and who is let in at all."""

import asyncio
import stat
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
import pytest_asyncio

from tests.harness import ADMIN_KEY, GatewayProcess
from tests.http.conftest import CHAT, Stage, assert_refused, body_of

pytestmark = pytest.mark.asyncio(loop_scope="module")

CANARY = "canary-4711"


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def admin(stage: Stage) -> AsyncIterator[httpx.AsyncClient]:
    yield stage.gateway.admin


@pytest.fixture
def account(request: pytest.FixtureRequest) -> str:
    """An account name of the test's own."""
    return f"a{abs(hash(request.node.nodeid)):x}"[:32]


async def make(admin: httpx.AsyncClient, account: str, usd: str | None = None) -> dict[str, Any]:
    made = await admin.post("/accounts", json={"id": account})
    assert made.status_code == 201, made.text
    if usd is not None:
        made = await credit(admin, account, usd)
        assert made.status_code == 200, made.text
    fields: dict[str, Any] = made.json()
    return fields


async def credit(admin: httpx.AsyncClient, account: str, usd: Any, key: str | None = None) -> httpx.Response:
    headers = {"idempotency-key": key} if key is not None else {}
    return await admin.post(f"/accounts/{account}/credits", json={"amount_usd": usd}, headers=headers)


# Who is let in.

WRONG_KEYS = [
    "",
    "Bearer",
    "Bearer x",
    f"Bearer {ADMIN_KEY}x",
    f"Bearer {ADMIN_KEY[:-1]}",
    f"Basic {ADMIN_KEY}",
    "Bearer é",
]
CALLS = [
    ("GET", "/admin/v1/accounts"),
    ("POST", "/admin/v1/accounts"),
    ("GET", "/admin/v1/accounts/acme"),
    ("POST", "/admin/v1/accounts/acme/credits"),
    ("POST", "/admin/v1/accounts/acme/keys"),
    ("GET", "/admin/v1/accounts/acme/keys"),
    ("DELETE", "/admin/v1/accounts/acme/keys/x"),
    ("GET", "/admin/v1/usage"),
]


@pytest.mark.parametrize(("method", "target"), CALLS)
async def test_without_the_admin_key_nothing_is_done(stage: Stage, method: str, target: str) -> None:
    async with httpx.AsyncClient(base_url=stage.gateway.base_url, trust_env=False) as client:
        assert_refused(await client.request(method, target), 401, code="invalid_api_key")
        for wrong in (*WRONG_KEYS, f"Bearer {stage.key}"):
            answer = await client.request(method, target, content=b"{", headers={"authorization": wrong.encode()})
            assert_refused(answer, 401, code="invalid_api_key")


async def test_without_the_admin_key_no_body_is_read(stage: Stage) -> None:
    head = "POST /admin/v1/accounts HTTP/1.1\nContent-Type: application/json\nContent-Length: 1000000"
    assert_refused(await stage.raw(head), 401)  # the key of an account is sent, and no body at all


async def test_the_admin_key_opens_no_model(stage: Stage) -> None:
    answer = await stage.post(CHAT, body_of(CHAT), {"authorization": f"Bearer {ADMIN_KEY}"})
    assert_refused(answer, 401)


async def test_an_admin_key_is_made_on_the_first_start_and_kept() -> None:
    async with GatewayProcess(environment={"GATEWAY_ADMIN_KEY": ""}) as gateway:
        path = gateway.data_dir / "admin-key"
        key = path.read_text().strip()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(gateway.data_dir.stat().st_mode) & 0o077 == 0
        assert len(key) > 40
        gateway.admin.headers["authorization"] = f"Bearer {key}"
        assert (await gateway.admin.get("/accounts")).status_code == 200
        gateway.terminate()
        await gateway.exited()
        await gateway.start()
        assert path.read_text().strip() == key
        assert (await gateway.admin.get("/accounts")).status_code == 200
        assert key not in gateway.log.read_text()


# Accounts.


async def test_an_account_is_made_once(admin: httpx.AsyncClient, account: str) -> None:
    made = await admin.post("/accounts", json={"id": account, "name": "Acme", "tier": "default"})
    assert made.status_code == 201
    fields = made.json()
    assert (fields["id"], fields["name"], fields["tier"]) == (account, "Acme", "default")
    assert {fields[name] for name in ("granted", "spent", "held", "available", "absorbed")} == {"0.000000"}
    assert (await admin.get(f"/accounts/{account}")).json() == fields
    again = await admin.post("/accounts", json={"id": account, "name": "Other"})
    assert_refused(again, 409, code="conflict")
    assert (await admin.get(f"/accounts/{account}")).json() == fields


ODD_IDS = [
    "",
    "A",
    "-a",
    "_a",
    "a b",
    "a:b",
    "a{b}",
    "a/b",
    "a\n",
    "\na",
    "a\0",
    "ä",
    "a" * 65,
    "..",
    "a*",
    "\u202e",
    "\u0661",
]


@pytest.mark.parametrize("odd", ODD_IDS)
async def test_an_account_id_with_odd_characters_is_refused(admin: httpx.AsyncClient, odd: str) -> None:
    assert assert_refused(await admin.post("/accounts", json={"id": odd}), 400, code="invalid_value")["param"] == "id"


@pytest.mark.parametrize("odd", ["A", "a:b", "{b}", "a%0A", "%00", "%FF", "a%2Fb", "%2e%2e", "a" * 200, "*", "nobody"])
async def test_an_account_that_cannot_be_is_not_found(admin: httpx.AsyncClient, odd: str) -> None:
    for target in (f"/accounts/{odd}", f"/accounts/{odd}/keys"):
        assert_refused(await admin.get(target), 404)
    assert_refused(await credit(admin, odd, "1"), 404)
    assert_refused(await admin.post(f"/accounts/{odd}/keys", json={}), 404)


WRONG_ACCOUNTS = [
    ({}, "id"),
    ({"id": 5}, "id"),
    ({"id": None}, "id"),
    ({"id": "ok", "name": 5}, "name"),
    ({"id": "ok", "name": "x" * 257}, "name"),
    ({"id": "ok", "tier": "gold"}, "tier"),
    ({"id": "ok", "balance": "1000000"}, "balance"),
    ({"id": "ok", "granted": 5}, "granted"),
    ({"id": "ok", CANARY * 1000: 5}, None),
]


@pytest.mark.parametrize(("body", "param"), WRONG_ACCOUNTS, ids=lambda value: str(value)[:40])
async def test_a_wrong_field_is_named(admin: httpx.AsyncClient, body: dict[str, Any], param: str | None) -> None:
    error = assert_refused(await admin.post("/accounts", json=body), 400, code="invalid_value")
    assert param is None or error["param"] == param
    assert_refused(await admin.get("/accounts/ok"), 404)


BAD_BODIES = {
    "nothing": b"",
    "null": b"null",
    "a list": b"[]",
    "half an object": b'{"id": "' + CANARY.encode(),
    "invalid UTF-8": b'{"id": "\xff"}',
    "a lone surrogate": b'{"id": "ok", "name": "\\ud800"}',
    "5,000 digits": b'{"id": ' + b"9" * 5000 + b"}",
    "NaN": b'{"id": NaN}',
    "depth 100,000": b'{"id": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
}


@pytest.mark.parametrize("body", BAD_BODIES.values(), ids=BAD_BODIES.keys())
async def test_a_bad_body_is_refused(admin: httpx.AsyncClient, body: bytes) -> None:
    answer = await admin.post("/accounts", content=body, headers={"content-type": "application/json"})
    assert_refused(answer, 400)
    assert CANARY not in answer.text


async def test_a_body_that_is_too_large_is_refused(stage: Stage, admin: httpx.AsyncClient) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(50):
            yield b" " * (1 << 20)

    before = stage.rss_bytes()
    headers = {"content-type": "application/json"}
    for target in ("/accounts", "/accounts/acme/credits", "/accounts/acme/keys"):
        assert_refused(await admin.post(target, content=pieces(), headers=headers), 413, code="request_too_large")
    assert stage.rss_bytes() - before < (32 << 20)


async def test_accounts_are_listed_newest_first(admin: httpx.AsyncClient, account: str) -> None:
    names = [f"{account}-{number}" for number in range(5)]
    for name in names:
        await make(admin, name)
    listed = [item["id"] for item in (await admin.get("/accounts", params={"count": 100})).json()]
    assert set(names) <= set(listed)
    pages = [(await admin.get("/accounts", params={"start": i, "count": 1})).json()[0]["id"] for i in range(3)]
    assert pages == listed[:3]
    assert (await admin.get("/accounts", params={"start": 10_000})).json() == []


@pytest.mark.parametrize("query", ["start=-1", "start=x", f"start={10**30}", "count=0", "count=101", "count=1.5"])
async def test_a_wrong_page_of_accounts_is_refused(admin: httpx.AsyncClient, query: str) -> None:
    error = assert_refused(await admin.get(f"/accounts?{query}"), 400, code="invalid_value")
    assert error["param"] == query.split("=")[0]


# Credit.


@pytest.mark.parametrize("amount", ["1.5", 1.5, "0.000001", 2, "1000000", "1e2", " 5 "])
async def test_credit_is_added(admin: httpx.AsyncClient, account: str, amount: Any) -> None:
    fields = await make(admin, account, amount)
    assert fields["granted"] == fields["available"] == f"{float(amount):.6f}"


async def test_credit_is_added_once_per_key(admin: httpx.AsyncClient, account: str) -> None:
    await make(admin, account)
    answers = await asyncio.gather(*(credit(admin, account, "2.50", "payment-1") for _ in range(10)))
    assert {answer.status_code for answer in answers} == {200}
    assert (await admin.get(f"/accounts/{account}")).json()["granted"] == "2.500000"
    assert (await credit(admin, account, 2.5, "payment-1")).status_code == 200
    other = await credit(admin, account, "3", "payment-1")
    assert assert_refused(other, 409, code="conflict")["param"] == "idempotency-key"
    assert (await credit(admin, account, "3", "payment-2")).json()["granted"] == "5.500000"
    assert (await credit(admin, account, "1")).json()["granted"] == "6.500000"


async def test_one_accounts_key_is_not_anothers(admin: httpx.AsyncClient, account: str) -> None:
    await make(admin, account)
    await make(admin, f"{account}-2")
    assert (await credit(admin, account, "1", "same")).json()["granted"] == "1.000000"
    assert (await credit(admin, f"{account}-2", "2", "same")).json()["granted"] == "2.000000"


async def test_credit_is_taken_back_but_never_more_than_there_is(admin: httpx.AsyncClient, account: str) -> None:
    await make(admin, account, "3")
    assert (await credit(admin, account, "-1", "back-1")).json()["available"] == "2.000000"
    assert_refused(await credit(admin, account, "-2.000001"), 400, code="invalid_value")
    assert (await credit(admin, account, "-2")).json()["available"] == "0.000000"


WRONG_AMOUNTS = ["0.0000001", 1e-7, "1.2345678", "1e30", 1e300, "9" * 20, "-" + "9" * 20, "NaN", "Infinity", "", "x"]
WRONG_AMOUNTS += ["1,5", "$5", "0x10", True, None, [], {}, "1e999999999", "1e-999999999"]


@pytest.mark.parametrize("amount", WRONG_AMOUNTS, ids=repr)
async def test_an_amount_that_cannot_be_is_refused(admin: httpx.AsyncClient, account: str, amount: Any) -> None:
    await make(admin, account, "1")
    error = assert_refused(await credit(admin, account, amount), 400, code="invalid_value")
    assert error["param"] == "amount_usd"
    assert (await admin.get(f"/accounts/{account}")).json()["granted"] == "1.000000"


@pytest.mark.parametrize("key", [b"", b"a b", b"a" * 256, b"a" * 5000, b"\xc3\xa4", b"a\tb"])
async def test_an_idempotency_key_that_is_none_is_refused(admin: httpx.AsyncClient, account: str, key: bytes) -> None:
    await make(admin, account)
    headers = [(b"idempotency-key", key)]
    answer = await admin.post(f"/accounts/{account}/credits", json={"amount_usd": "1"}, headers=headers)
    assert assert_refused(answer, 400, code="invalid_value")["param"] == "idempotency-key"
    assert (await admin.get(f"/accounts/{account}")).json()["granted"] == "0.000000"


# Keys.


async def make_key(admin: httpx.AsyncClient, account: str, **fields: Any) -> dict[str, str]:
    answer = await admin.post(f"/accounts/{account}/keys", json=fields)
    assert answer.status_code == 201, answer.text
    made: dict[str, str] = answer.json()
    return made


async def ask(stage: Stage, key: str, **changes: Any) -> httpx.Response:
    return await stage.post(CHAT, body_of(CHAT, **changes), {"authorization": f"Bearer {key}"})


async def test_a_key_works_until_it_is_revoked(stage: Stage, admin: httpx.AsyncClient, account: str) -> None:
    await make(admin, account, "1")
    kept, key = await make_key(admin, account), await make_key(admin, account, name="ci")
    assert (await ask(stage, key["key"])).status_code == 200
    listed = {item["id"]: item for item in (await admin.get(f"/accounts/{account}/keys")).json()}
    assert listed.keys() == {kept["id"], key["id"]}
    assert listed[key["id"]] == {"id": key["id"], "name": "ci", "models": None, "expires_at": None, "revoked_at": None}
    assert (await admin.delete(f"/accounts/{account}/keys/{key['id']}")).status_code == 204
    async with asyncio.timeout(10):  # where another process revoked it, a key lives as long as the cache
        while (answer := await ask(stage, key["key"])).status_code == 200:
            pass
    assert_refused(answer, 401, code="invalid_api_key")
    assert (await ask(stage, kept["key"])).status_code == 200
    after = {item["id"]: item["revoked_at"] for item in (await admin.get(f"/accounts/{account}/keys")).json()}
    assert after[kept["id"]] is None and after[key["id"]] is not None


async def test_a_secret_is_shown_once_only(stage: Stage, admin: httpx.AsyncClient, account: str) -> None:
    await make(admin, account)
    key = (await make_key(admin, account))["key"]
    secret = key.split("-", 2)[2]
    assert len(secret) >= 43
    for target in (f"/accounts/{account}/keys", f"/accounts/{account}", "/accounts", "/usage"):
        assert secret not in (await admin.get(target)).text
    assert secret not in stage.log()


async def test_a_wrong_secret_and_an_unknown_key_look_the_same(
    stage: Stage, admin: httpx.AsyncClient, account: str
) -> None:
    await make(admin, account)
    key = (await make_key(admin, account))["key"]
    wrong = await ask(stage, key[:-1] + ("A" if key[-1] != "A" else "B"))
    unknown = await ask(stage, f"gw-{'a' * 12}-{'x' * 43}")
    assert assert_refused(wrong, 401) == assert_refused(unknown, 401)


async def test_a_key_of_another_account_is_not_found(admin: httpx.AsyncClient, account: str) -> None:
    await make(admin, account)
    await make(admin, f"{account}-2")
    key = await make_key(admin, account)
    assert_refused(await admin.delete(f"/accounts/{account}-2/keys/{key['id']}"), 404)
    assert (await admin.get(f"/accounts/{account}-2/keys")).json() == []
    for odd in ("x", "%00", "*", "a" * 1000, "%2e%2e"):
        assert_refused(await admin.delete(f"/accounts/{account}/keys/{odd}"), 404)


async def test_a_key_may_use_the_models_it_names_only(stage: Stage, admin: httpx.AsyncClient, account: str) -> None:
    await make(admin, account, "1")
    key = (await make_key(admin, account, models=["demo/fast"]))["key"]
    assert (await ask(stage, key)).status_code == 200
    refused = await ask(stage, key, model="demo/slow")
    assert_refused(refused, 403, code="model_not_allowed")
    headers = {"authorization": f"Bearer {key}"}
    listed = (await stage.client.get("/v1/models", headers=headers)).json()["data"]
    assert [model["id"] for model in listed] == ["demo/fast"]
    assert_refused(await stage.client.get("/v1/models/demo/slow", headers=headers), 404)
    none = (await make_key(admin, account, models=[]))["key"]
    assert_refused(await ask(stage, none), 403, code="model_not_allowed")


async def test_a_key_expires(stage: Stage, admin: httpx.AsyncClient, account: str) -> None:
    await make(admin, account, "1")
    lasting = await make_key(admin, account, expires_at="2999-01-01T00:00:00+02:00")
    assert (await ask(stage, lasting["key"])).status_code == 200
    assert (await admin.get(f"/accounts/{account}/keys")).json()[0]["expires_at"] == "2998-12-31T22:00:00.000Z"
    soon = time_in(seconds=1)
    short = await make_key(admin, account, expires_at=soon)
    async with asyncio.timeout(10):
        while (answer := await ask(stage, short["key"])).status_code == 200:
            await asyncio.sleep(0.05)
    assert_refused(answer, 401, code="token_expired")


def time_in(*, seconds: float) -> str:
    return (datetime.now(tz=UTC) + timedelta(seconds=seconds)).isoformat()


WRONG_TIMES = [
    "1970-01-01T00:00:00Z",
    "2020-01-01T00:00:00Z",
    "2999-01-01T00:00:00",
    "9999-12-31T23:59:59-12:00",
    "soon",
]
WRONG_TIMES += ["0001-01-01T00:00:00+14:00", "", "1e400"]


@pytest.mark.parametrize("expires_at", [*WRONG_TIMES, 0, -1, 10**30, True, []], ids=repr)
async def test_a_time_at_which_no_key_expires_is_refused(
    admin: httpx.AsyncClient, account: str, expires_at: Any
) -> None:
    await make(admin, account)
    answer = await admin.post(f"/accounts/{account}/keys", json={"expires_at": expires_at})
    assert assert_refused(answer, 400, code="invalid_value")["param"] == "expires_at"
    assert (await admin.get(f"/accounts/{account}/keys")).json() == []


@pytest.mark.parametrize(
    "fields", [{"models": "demo/fast"}, {"models": [5]}, {"name": "x" * 257}, {"digest": "x"}], ids=str
)
async def test_a_wrong_field_of_a_key_is_refused(
    admin: httpx.AsyncClient, account: str, fields: dict[str, Any]
) -> None:
    await make(admin, account)
    assert_refused(await admin.post(f"/accounts/{account}/keys", json=fields), 400, code="invalid_value")


# Usage.


async def test_usage_is_paged_newest_first(stage: Stage, admin: httpx.AsyncClient, account: str) -> None:
    await make(admin, account, "1")
    key = (await make_key(admin, account))["key"]
    for number in range(5):
        answer = await stage.post(CHAT, body_of(CHAT), {"authorization": f"Bearer {key}", "x-request-id": f"r{number}"})
        assert answer.status_code == 200
        await stage.gateway.settled(account, records=number + 1)
    whole = (await admin.get("/usage", params={"account": account})).json()
    assert [row["record"]["request_id"] for row in whole["data"]] == ["r4", "r3", "r2", "r1", "r0"]
    assert whole["next"] is None
    paged, cursor = [], None
    while True:
        params = {"account": account, "count": 2} | ({"cursor": cursor} if cursor else {})
        page = (await admin.get("/usage", params=params)).json()
        assert len(page["data"]) <= 2
        paged += page["data"]
        if (cursor := page["next"]) is None:
            break
    assert paged == whole["data"]
    spent = sum(int(row["charged_usd"].replace(".", "")) for row in whole["data"])
    assert spent == (await stage.gateway.balance(account))["spent"] > 0
    await usage_between(admin, account, whole["data"])


async def usage_between(admin: httpx.AsyncClient, account: str, rows: list[dict[str, Any]]) -> None:
    """``from`` and ``to`` include what happened at exactly these times."""
    newest, oldest = rows[0]["time"], rows[-1]["time"]

    async def ids(**times: str) -> list[str]:
        answer = await admin.get("/usage", params={"account": account, **times})
        assert answer.status_code == 200, answer.text
        return [row["id"] for row in answer.json()["data"]]

    everything = [row["id"] for row in rows]
    assert await ids(**{"from": oldest, "to": newest}) == everything
    assert await ids(**{"from": newest}) == [row["id"] for row in rows if row["time"] == newest]
    assert await ids(to=oldest) == [row["id"] for row in rows if row["time"] == oldest]
    assert await ids(**{"from": time_in(seconds=3600)}) == []
    assert await ids(to="2020-01-01T00:00:00Z") == []
    assert await ids(**{"from": newest, "to": "2020-01-01T00:00:00Z"}) == []


async def test_usage_of_all_accounts_is_merged(stage: Stage, admin: httpx.AsyncClient, account: str) -> None:
    for name in (f"{account}-1", f"{account}-2"):
        await make(admin, name, "1")
        assert (await ask(stage, (await make_key(admin, name))["key"])).status_code == 200
        await stage.gateway.settled(name, records=1)
    page = (await admin.get("/usage", params={"count": 1000})).json()
    assert {f"{account}-1", f"{account}-2"} <= {row["account"] for row in page["data"]}
    times = [row["time"] for row in page["data"]]
    assert times == sorted(times, reverse=True)


WRONG_QUERIES = [
    "cursor=x",
    "cursor=1",
    "cursor=1-",
    "cursor=99999999999999999999-1-a",
    "cursor=\u0661-\u0661-a",
    "cursor=1-1-a%0A",
    "cursor=1-1-A",
    "cursor=1-1%0A",
]
WRONG_QUERIES += ["count=0", "count=1001", "from=yesterday", "from=2020-01-01", "to=0001-01-01T00:00:00Z"]
WRONG_QUERIES += ["from=9999-12-31T23:59:59-12:00", "to=1969-12-31T23:59:59Z", "from="]


@pytest.mark.parametrize("query", WRONG_QUERIES)
async def test_a_wrong_page_of_usage_is_refused(admin: httpx.AsyncClient, query: str) -> None:
    error = assert_refused(await admin.get(f"/usage?{query}"), 400, code="invalid_value")
    assert error["param"] == query.split("=")[0]


@pytest.mark.parametrize("account", ["nobody", "a:b", "%7Bx%7D", ""])
async def test_usage_of_an_account_that_is_not_there_is_not_found(admin: httpx.AsyncClient, account: str) -> None:
    assert_refused(await admin.get(f"/usage?account={account}"), 404, code="not_found")


async def test_the_largest_cursor_is_an_empty_page_or_all(admin: httpx.AsyncClient) -> None:
    await make(admin, "any-account", "1")
    largest = "9999999999999999999-9999999999999999999"
    for position in ("1-0", "1-1", largest):
        for account in ("a", "any-account", "z", "nobody"):
            answer = await admin.get("/usage", params={"cursor": f"{position}-{account}"})
            assert answer.status_code == 200, answer.text
