"""What one gateway found failing, the others leave alone too: told and heard through a real Redis."""

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from gateway.limits import keys
from gateway.limits.redis import RedisOwner
from gateway.limits.sick import SickList
from tests.harness import RedisServer


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest_asyncio.fixture
async def redis(server: RedisServer) -> AsyncIterator[RedisOwner]:
    owner = RedisOwner(server.url)
    owner.start()
    await owner.call("DEL", keys.SICK)
    yield owner
    await owner.aclose()


class Gateway:
    """One gateway's own finding, and what it heard."""

    def __init__(self, redis: RedisOwner, **sick: float) -> None:
        self.sick = {f"p/{name}": left_s for name, left_s in sick.items()}
        self.heard: dict[str, float] = {}
        self.list = SickList(redis, lambda now: self.sick, self.heard.__setitem__)


async def test_what_one_finds_the_other_hears_and_not_itself(redis: RedisOwner) -> None:
    one, other = Gateway(redis, a=30), Gateway(redis, b=20)
    for gateway in (one, other, one):
        await gateway.list.exchange()
    assert other.heard == {"p/a": pytest.approx(30, abs=5)}
    assert one.heard == {"p/b": pytest.approx(20, abs=5)}


async def test_what_is_over_is_taken_off_the_list(redis: RedisOwner) -> None:
    await redis.call("HSET", keys.SICK, "p/old", "1000")
    gateway = Gateway(redis)
    await gateway.list.exchange()
    assert gateway.heard == {}
    assert await redis.call("HLEN", keys.SICK) == 0


async def test_the_list_goes_away_by_itself(redis: RedisOwner) -> None:
    await Gateway(redis, a=30).list.exchange()
    assert 0 < await redis.call("PTTL", keys.SICK) <= 600_000


async def test_what_is_over_in_a_moment_is_not_worth_telling(redis: RedisOwner) -> None:
    await Gateway(redis, a=0.2).list.exchange()
    assert await redis.call("HLEN", keys.SICK) == 0
