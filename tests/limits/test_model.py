"""Random operations on a few accounts by a few gateways: repeated, stale, out of order, and forgotten by the server.

After every operation the account that it touched is compared with ``reference`` field by field, and the invariants of
its books are checked on what the server says. The scripts are told the time, so that a month may pass in a second.
A failure names its seed: ``GATEWAY_MODEL_SEED`` runs that world again, ``GATEWAY_MODEL_WORLDS`` runs more of them.
"""

import os
import random
from collections import Counter
from collections.abc import Iterator

import pytest
from redis import Redis as Store

from tests.harness import RedisServer
from tests.limits.conftest import BINARIES
from tests.limits.model_world import SEED, World

STEPS = 300
IS_GIVEN = "GATEWAY_MODEL_SEED" in os.environ
WORLDS = int(os.environ.get("GATEWAY_MODEL_WORLDS", "80"))
OPERATIONS_MIN = 20_000
OLDEST, NEWEST = min(BINARIES), max(BINARIES)

EXPECTED = [
    *(("grant", code) for code in (1, 2, 5, -2)),
    *(("reserve", code) for code in (1, 2, 3, 4, 5, -1, -2, -3, -4, -5, -6, -8, -20)),
    *(("extend", code) for code in (1, 20, -6, -8, -10, -11)),
    *(("settle", code) for code in (1, 2, 3, 4, -9)),
    *(("reap", code) for code in (0, 1, -20)),
    ("rollback", 0),
]


@pytest.fixture
def bare(version: str) -> Iterator[Store]:
    """A server that writes nothing to disk."""
    with RedisServer(BINARIES[version], "--appendonly", "no") as server, Store.from_url(server.url) as client:
        yield client


def play(store: Store, seed: int) -> World:
    """One world from beginning to end."""
    store.flushdb()
    world = World(random.Random(seed), store)
    try:
        for _ in range(STEPS):
            world.step()
        world.end()
    except BaseException as error:
        error.add_note(f"GATEWAY_MODEL_SEED={seed}, after {world.operations} operations")
        raise
    return world


@pytest.mark.timeout(300)
@pytest.mark.parametrize("version", [NEWEST, pytest.param(OLDEST, id=f"{OLDEST}-shorter")])
def test_server_and_books_say_the_same_after_every_operation(bare: Store, version: str) -> None:
    worlds = 1 if IS_GIVEN else WORLDS if version == NEWEST else WORLDS // 8
    codes: Counter[tuple[str, int]] = Counter()
    operations = 0
    for seed in range(SEED, SEED + worlds):
        world = play(bare, seed)
        codes += world.codes
        operations += world.operations
    if worlds >= 80:
        assert operations >= OPERATIONS_MIN
        assert [code for code in EXPECTED if not codes[code]] == [], f"never seen in {worlds} worlds from seed {SEED}"
