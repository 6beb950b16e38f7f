"""API keys: made, checked, cached, revoked; what an attacker sees is the same whatever he guesses."""

import signal
import time
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis import Redis

from gateway.canonical.errors import AuthenticationError, ErrorCode, ServiceUnavailable
from gateway.identity import keys as api_keys
from gateway.identity.authenticator import Authenticator, credential
from gateway.identity.keys import ApiKeys
from gateway.limits import keys
from gateway.limits.redis import RedisOwner, StoreUnavailable, retrying
from tests.harness import RedisServer


@pytest.fixture
async def owner(redis_server: RedisServer, store: Redis) -> AsyncIterator[RedisOwner]:
    running = RedisOwner(redis_server.url, timeout_s=5)
    running.start()
    yield running
    await running.aclose()


@pytest.fixture
def issuer(owner: RedisOwner) -> ApiKeys:
    return ApiKeys(owner)


class Clock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.skipped_s = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.skipped_s

    def time(self) -> float:
        return time.time() + self.skipped_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    fake = Clock()
    monkeypatch.setattr(api_keys, "time", fake)
    return fake


async def refused(issuer: ApiKeys, token: str) -> AuthenticationError:
    with pytest.raises(AuthenticationError) as caught:
        await issuer.verify(token)
    return caught.value


async def test_a_key_stands_for_its_account(issuer: ApiKeys) -> None:
    made = await issuer.create("acme", name="laptop", models=("fast", "slow"))
    caller = await issuer.verify(made.token)
    assert (caller.account, caller.subject, caller.method) == ("acme", f"key:{made.id}", "api_key")
    assert caller.may_use("fast") and not caller.may_use("other")
    free = await issuer.create("acme", name="all")
    assert (await issuer.verify(free.token)).models is None
    none = await issuer.create("acme", name="none", models=())
    assert not (await issuer.verify(none.token)).may_use("fast")


async def test_the_secret_is_stored_nowhere(issuer: ApiKeys, store: Redis) -> None:
    made = await issuer.create("acme", name="laptop")
    secret = made.token.removeprefix(f"gw-{made.id}-").encode()
    assert len(secret) >= 43
    assert all(secret not in (store.dump(key) or b"") for key in store.keys())
    assert secret not in b"".join(store.hvals(keys.api_key(made.id)))


async def test_no_two_keys_are_alike(issuer: ApiKeys) -> None:
    made = [await issuer.create("acme", name="n") for _ in range(50)]
    assert len({key.id for key in made}) == len({key.token for key in made}) == 50


async def test_an_unknown_id_and_a_wrong_secret_look_the_same(issuer: ApiKeys) -> None:
    made = await issuer.create("acme", name="laptop")
    wrong = [
        f"gw-{made.id}-wrong",
        f"gw-{made.id}-",
        f"gw-{'a' * 12}-{made.token[-43:]}",
        *(f"gw-{'a' * 12}-", "gw-", "gw--", "", made.token + "x", made.token[:-1], made.token + "x" * 200),
        *(f"gw-{'é' * 12}-x", f"gw-{'*' * 12}-x", f"gw-{made.id}-\ud800", made.token.upper()),
    ]
    seen = {(str(error), error.code) for error in [await refused(issuer, token) for token in wrong]}
    assert seen == {("The API key is not known here.", ErrorCode.INVALID_API_KEY)}
    assert (await issuer.verify(made.token)).account == "acme"


@given(st.text(max_size=150))
def test_no_text_is_anything_but_a_credential_or_a_refusal(text: str) -> None:
    try:
        token = credential([(b"authorization", text.encode("utf-8", "surrogatepass"))])
    except AuthenticationError:
        return
    assert token and token.isascii()


async def test_a_revoked_key_is_refused_here_at_once_and_elsewhere_within_seconds(
    issuer: ApiKeys, owner: RedisOwner, clock: Clock
) -> None:
    elsewhere = ApiKeys(owner)
    made = await issuer.create("acme", name="laptop")
    for one in (issuer, elsewhere):
        await one.verify(made.token)
    assert await issuer.revoke("acme", made.id)
    assert "revoked" in str(await refused(issuer, made.token))
    assert (await elsewhere.verify(made.token)).account == "acme"
    clock.skipped_s = 3.1
    assert "revoked" in str(await refused(elsewhere, made.token))


async def test_only_its_own_account_can_revoke_a_key(issuer: ApiKeys) -> None:
    made = await issuer.create("acme", name="laptop")
    assert not await issuer.revoke("umbrella", made.id)
    assert not await issuer.revoke("acme", "a" * 12)
    assert (await issuer.verify(made.token)).account == "acme"


async def test_a_key_expires(issuer: ApiKeys, clock: Clock) -> None:
    made = await issuer.create("acme", name="brief", expires_ms=int(time.time() * 1000) + 60_000)
    assert (await issuer.verify(made.token)).account == "acme"
    clock.skipped_s = 61
    assert (await refused(issuer, made.token)).code is ErrorCode.TOKEN_EXPIRED


async def test_keys_are_listed_for_their_account(issuer: ApiKeys) -> None:
    first = await issuer.create("acme", name="one", models=("m",))
    second = await issuer.create("acme", name="two", expires_ms=5)
    await issuer.create("umbrella", name="other")
    await issuer.revoke("acme", second.id)
    listed = {record.id: record for record in await issuer.list("acme")}
    assert set(listed) == {first.id, second.id}
    assert (listed[first.id].name, listed[first.id].models, listed[first.id].revoked_ms) == ("one", ("m",), 0)
    assert listed[second.id].expires_ms == 5 and listed[second.id].revoked_ms > 0


async def test_with_redis_away_a_key_seen_lately_is_believed_for_a_while(
    issuer: ApiKeys, owner: RedisOwner, redis_server: RedisServer, clock: Clock
) -> None:
    made, unseen = [await issuer.create("acme", name="n") for _ in range(2)]
    await issuer.verify(made.token)
    redis_server.signal(signal.SIGSTOP)
    try:
        clock.skipped_s = 30
        assert (await issuer.verify(made.token)).account == "acme"
        await refused(issuer, made.token + "x")
        with pytest.raises(ServiceUnavailable) as caught:
            await issuer.verify(unseen.token)
        assert caught.value.code is ErrorCode.IDENTITY_UNAVAILABLE
        clock.skipped_s = 61
        with pytest.raises(ServiceUnavailable):
            await issuer.verify(made.token)
        with pytest.raises(StoreUnavailable):
            await issuer.revoke("acme", made.id)
    finally:
        redis_server.signal(signal.SIGCONT)
    assert await retrying(lambda: owner.call("PING"), 10) == b"PONG"
    assert (await issuer.verify(unseen.token)).account == "acme"


async def test_guesses_do_not_pile_up(issuer: ApiKeys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_keys, "_CACHE_MAX", 10)
    for number in range(35):
        await refused(issuer, f"gw-{number:012d}-x")
    assert len(issuer._cache) <= 10


class TestCredential:
    @pytest.mark.parametrize("value", [b"Bearer t", b"bearer t", b"BEARER   t  "])
    def test_one_bearer_credential_is_taken(self, value: bytes) -> None:
        assert credential([(b"accept", b"*/*"), (b"authorization", value)]) == "t"

    @pytest.mark.parametrize("bearers", [[], [(b"authorization", b"Bearer t")]])
    def test_the_same_may_come_as_an_api_key(self, bearers: list[tuple[bytes, bytes]]) -> None:
        assert credential([*bearers, (b"x-api-key", b" t ")]) == "t"

    @pytest.mark.parametrize(
        "headers",
        [
            [],
            [(b"authorization", b"")],
            [(b"authorization", b"Bearer")],
            [(b"authorization", b"Bearer  ")],
            [(b"authorization", b"Basic dDp0")],
            [(b"authorization", b"Bearer \xe9")],
            [(b"authorization", b"Bearer a"), (b"authorization", b"Bearer a")],
            [(b"x-api-key", b"")],
            [(b"x-api-key", b"\xe9")],
            [(b"x-api-key", b"t"), (b"x-api-key", b"t")],
            [(b"authorization", b"Bearer a"), (b"x-api-key", b"b")],
            [(b"authorization", b"Basic dDp0"), (b"x-api-key", b"t")],
        ],
    )
    def test_anything_else_is_refused(self, headers: list[tuple[bytes, bytes]]) -> None:
        with pytest.raises(AuthenticationError):
            credential(headers)

    async def test_a_key_is_checked_and_a_stranger_refused(self, issuer: ApiKeys) -> None:
        made = await issuer.create("acme", name="n")
        door = Authenticator(issuer, None)
        assert (await door.authenticate([(b"authorization", b"Bearer " + made.token.encode())])).account == "acme"
        for token in (b"sk-123", b"a.b.c", b"gw"):
            with pytest.raises(AuthenticationError):
                await door.authenticate([(b"authorization", b"Bearer " + token)])
