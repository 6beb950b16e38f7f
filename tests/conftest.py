"""What holds for every test, and the Redis that several of them share.

No verdict depends on how fast the machine is: hypothesis has no deadline here.
"""

from collections.abc import Iterator

import pytest
from hypothesis import settings
from redis import Redis

from tests.harness import RedisServer

settings.register_profile("gateway", deadline=None)
settings.load_profile("gateway")


@pytest.fixture(scope="module")
def redis_server() -> Iterator[RedisServer]:
    """A redis-server of the module's own."""
    with RedisServer() as running:
        yield running


@pytest.fixture
def store(redis_server: RedisServer) -> Iterator[Redis]:
    """The same server seen from outside of our code, empty."""
    with Redis.from_url(redis_server.url) as client:
        client.flushall()
        yield client
