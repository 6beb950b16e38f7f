"""Random operations on a few accounts, repeated, reordered and stale, with gateways and Redis killed in between.

After every one of them the books must balance. A failure prints its seed; put it into ``SEED`` to see it again.
"""

import random
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import pytest
from redis import Redis

from gateway.limits import keys, scripts
from gateway.limits.redis import retrying
from gateway.limits.scripts import Allowances, Bucket, Slots
from tests.harness import RedisServer

if TYPE_CHECKING:
    from tests.limits.conftest import Teller
else:
    Teller = Any

OPERATIONS = 2_500
SEED: int | None = None
ACCOUNTS = ("acme", "umbrella", "initech")
ALLOWANCES = Allowances((Bucket("requests", 2000, 1000, 500),), (Slots(scripts.STREAMS, 12),))

# Sums over the records of one account, taken in one moment: held, charged, absorbed, what finished streams hold.
_SUMS = """
local open, sums = {}, {0, 0, 0, 0}
for _, key in ipairs(redis.call('KEYS', ARGV[1])) do
  local r = redis.call('HMGET', key, 'st', 'h', 'c', 'o')
  for i = 2, 4 do sums[i - 1] = sums[i - 1] + tonumber(r[i] or '0') end
  if r[1] == 'open' then open[#open + 1] = key else sums[4] = sums[4] + tonumber(r[2]) end
end
return {sums, open}
"""


class Books:
    """What the ledger of one account has said so far."""

    def __init__(self, account: str) -> None:
        self.account = account
        self.last = "-"
        self.granted = 0
        self.charged = 0
        self.absorbed = 0
        self.movements: Counter[tuple[bytes, bytes]] = Counter()

    def read_on(self, store: Redis) -> None:
        for row_id, fields in store.xrange(keys.ledger(self.account), min=self.last):
            self.last = f"({row_id.decode()}"
            if fields[b"op"] == b"grant":
                self.granted += int(fields[b"d"])
                continue
            self.charged += int(fields[b"d"])
            self.absorbed += int(fields[b"o"])
            self.movements[fields[b"sid"], fields[b"op"]] += 1

    def balance(self, store: Redis) -> None:
        """Every invariant that ties the wallet, the records, the leases and the ledger of an account together."""
        self.read_on(store)
        pattern = keys.record(self.account, "*")
        (held, charged, absorbed, held_by_finished), open_keys = store.eval(_SUMS, 0, pattern)
        names = (b"g", b"s", b"h", b"o")
        wallet = dict(zip(names, (int(n or 0) for n in store.hmget(keys.wallet(self.account), names)), strict=True))
        running = {key.rpartition(b":")[2] for key in open_keys}
        assert wallet[b"g"] - wallet[b"s"] - wallet[b"h"] >= 0, f"I1: overspent: {wallet}"
        assert wallet[b"s"] >= 0 <= wallet[b"h"], f"I1: {wallet}"
        assert (wallet[b"h"], held_by_finished) == (held, 0), "I2: the wallet holds what its open streams hold"
        assert wallet[b"s"] == charged == self.charged, "I3: spent is what records and ledger say was charged"
        assert wallet[b"g"] == self.granted, "I4: granted is what the ledger says"
        assert max(self.movements.values(), default=0) <= 1, "I5: no stream is posted, reaped or corrected twice"
        assert set(store.zrange(keys.leases(self.account), 0, -1)) == running, "I6: a lease for each open stream"
        assert set(store.zrange(keys.slots(self.account, scripts.STREAMS), 0, -1)) <= running, "no slot is left behind"
        assert wallet[b"o"] == absorbed == self.absorbed, "I12: every loss of the operator is on record"


class World:
    """A few accounts, the streams that somebody remembers, and what may happen to them."""

    def __init__(self, rnd: random.Random, teller: Teller) -> None:
        self.rnd = rnd
        self.tellers = [teller.at(account) for account in ACCOUNTS]
        for one in self.tellers:
            one.allowances = ALLOWANCES
        self.running: dict[str, list[str]] = {account: [] for account in ACCOUNTS}
        self.known: dict[str, list[str]] = {account: [] for account in ACCOUNTS}
        self.used: Counter[str] = Counter()
        self.grants = 0
        self.codes: Counter[tuple[str, int]] = Counter()

    async def step(self, number: int) -> str:
        """Something happens to one account, and perhaps once more; returns which account."""
        teller = self.rnd.choice(self.tellers)
        weights = {
            **{self.grant: 2, self.reserve: 16, self.extend: 24, self.settle: 10, self.repeat: 10},
            **{self.settle_unheard: 2, self.lapse: 8, self.kill_gateway: 1, self.reap: 8, self.suspend: 1},
        }
        happen = self.rnd.choices(list(weights), list(weights.values()))[0]
        await happen(teller, f"s{number}")
        return teller.account

    async def send(self, name: str, call: Callable[[], Awaitable[Any]]) -> Any:
        """One call; every third time its answer got lost, and it is sent again."""
        reply = await retrying(call, 5)
        if self.rnd.random() < 0.3:
            reply = await retrying(call, 5)
        code = reply.reaped if name == "reap" else reply.code
        self.codes[name.removesuffix(" again"), min(code, 4)] += 1
        return reply

    async def grant(self, teller: Teller, _: str) -> None:
        self.grants += self.rnd.random() < 0.8
        amount, grant_id = self.rnd.randint(-500, 3000), f"g{self.grants}"
        await self.send("grant", lambda: teller.grant(amount, grant_id))

    async def reserve(self, teller: Teller, sid: str) -> None:
        least = self.rnd.randint(0, 600)
        most = least + self.rnd.randint(0, 900)
        reply = await self.send("reserve", lambda: teller.reserve(sid, least, most))
        if reply.code in (1, 2):
            assert least <= reply.held <= most
            self.running[teller.account].append(sid)
            self.known[teller.account].append(sid)

    def pick(self, teller: Teller) -> str | None:
        return self.rnd.choice(self.running[teller.account] or [None])

    async def extend(self, teller: Teller, _: str) -> None:
        sid = self.pick(teller)
        if sid is None:
            return
        used = self.used[sid] = self.used[sid] + self.rnd.randint(-50, 300)
        need = max(0, used + self.rnd.randint(-300, 300))
        target = need + self.rnd.randint(0, 900)
        await self.send("extend", lambda: teller.extend(sid, used=max(used, 0), need=need, target=target))

    async def settle(self, teller: Teller, _: str) -> None:
        sid = self.pick(teller)
        if sid is None:
            return
        self.running[teller.account].remove(sid)
        actual, refund = max(0, self.used[sid] + self.rnd.randint(-200, 500)), self.rnd.random() < 0.2
        reply = await self.send("settle", lambda: teller.settle(sid, actual, refund=refund))
        assert reply.charged + reply.absorbed == actual, "I11: charged and absorbed are what was owed"

    async def repeat(self, teller: Teller, _: str) -> None:
        """Something old arrives late, and out of order."""
        if not self.known[teller.account]:
            return
        sid = self.rnd.choice(self.known[teller.account][-60:])
        match self.rnd.randrange(3):
            case 0:
                await self.send("reserve again", lambda: teller.reserve(sid, 10, 700))
            case 1:
                await self.send("extend again", lambda: teller.extend(sid, used=3, need=5, target=2000))
            case 2 if sid not in self.running[teller.account]:
                await self.send("settle again", lambda: teller.settle(sid, 700))

    async def settle_unheard(self, teller: Teller, sid: str) -> None:
        """The settlement overtakes the admission it belongs to."""
        actual = self.rnd.randint(0, 300)
        await self.send("settle", lambda: teller.settle(sid, actual, refund=True))
        self.known[teller.account].append(sid)

    async def lapse(self, teller: Teller, _: str) -> None:
        """A stream that is not heard of for a while; it may come back."""
        if sid := self.pick(teller):
            teller.lapse(sid)

    async def kill_gateway(self, teller: Teller, _: str) -> None:
        """Nobody will ever speak for these streams again."""
        for sid in self.running[teller.account]:
            teller.lapse(sid)
        self.running[teller.account].clear()

    async def reap(self, teller: Teller, _: str) -> None:
        sids = self.rnd.sample(self.known[teller.account], min(40, len(self.known[teller.account])))
        due = teller.store.zrange(keys.leases(teller.account), 0, 8)
        await self.send("reap", lambda: teller.reap(*dict.fromkeys([*sids, *(sid.decode() for sid in due)])))

    async def suspend(self, teller: Teller, _: str) -> None:
        wallet = keys.wallet(teller.account)
        if not teller.store.hdel(wallet, "x") and self.rnd.random() < 0.4 and teller.store.exists(wallet):
            teller.store.hset(wallet, "x", 1)


@pytest.mark.timeout(300)
async def test_the_books_balance_after_every_operation(teller: Teller, redis_server: RedisServer) -> None:
    seed = random.SystemRandom().randrange(10**9) if SEED is None else SEED
    world = World(random.Random(seed), teller)
    books = {account: Books(account) for account in ACCOUNTS}
    try:
        for number in range(OPERATIONS):
            if number % (OPERATIONS // 3) == OPERATIONS // 6:
                redis_server.kill()
                redis_server.start()
            account = await world.step(number)
            books[account].balance(teller.store)
    except BaseException as error:
        error.add_note(f"SEED = {seed}, at operation {number}")
        raise
    for code in (("reserve", 1), ("reserve", -2), ("extend", 1), ("settle", 1), ("settle", 3), ("settle", 4)):
        assert world.codes[code], f"the run of seed {seed} never saw {code}"


async def test_when_nobody_speaks_any_more_everything_that_was_held_comes_back(teller: Teller) -> None:
    rnd = random.Random(7)
    world = World(rnd, teller)
    for number in range(200):
        await world.step(number)
    for one in world.tellers:
        await world.kill_gateway(one, "")
        for sid in one.store.zrange(keys.leases(one.account), 0, -1):
            one.lapse(sid.decode())
        await one.reap(*(sid.decode() for sid in one.store.zrange(keys.leases(one.account), 0, -1)))
        Books(one.account).balance(one.store)
        assert one.wallet()["held"] == 0
        assert one.store.exists(keys.slots(one.account, scripts.STREAMS)) == 0
