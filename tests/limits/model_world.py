"""The world of the model test: a server that is told the time, three gateways, what they remember, and what happens.

Every call goes to the scripts through their own stubs and to ``reference``; replies have to be equal, and so has the
state of the account afterwards.
"""

import copy
import os
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
from redis import Redis as Store

from gateway.limits import keys
from gateway.limits.allowances import Allowances, Bucket, Slots, Unit, Window
from gateway.limits.redis import LuaSource
from gateway.limits.scripts import Growth, HoldRange, Posting, Retention, Scripts, Stream
from tests.limits import reference
from tests.limits.model_state import AUDIT, State, compare, invariants

T = TypeVar("T")

# Of the first world.
SEED = int(os.environ.get("GATEWAY_MODEL_SEED") or random.SystemRandom().randrange(10**9))
GATEWAYS = ("a", "b", "c")
ACCOUNTS = ("acme", "hooli")
LEASE_MS = 2000
GRACE_MS = 300
# The ledger is never trimmed here, so that it can be added up.
RETENTION = Retention(stream_ms=3_600_000, ledger_ms=10**12)
START_MS = 1_900_000_000_000
PERIOD_MS = 20_000

_CLOCK = """local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
"""
# A bucket expires by the server's own clock, which stands still beside ours.
_EXPIRY = ("/ b[1]) + 1000", "/ b[1]) + 3600000")


class Direct:
    """Redis for ``Scripts``: calls are made at once, at the time ``now``, and the account is read in the same trip."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.now = START_MS
        self.account = ""
        self.last_row: dict[str, str] = {}
        self.state = State()
        self._known: dict[str, str] = {}
        self._audit = store.script_load(AUDIT)

    def script(self, source: LuaSource, keys: tuple[str, ...], args: tuple[Any, ...], parse: Callable[[Any], T]) -> T:
        pipeline = self.store.pipeline(transaction=False)
        pipeline.set("clock", self.now)
        pipeline.execute_command("EVALSHA", self._sha(source), len(keys), *keys, *args)
        self._add_audit(pipeline)
        _, reply, state = pipeline.execute()
        self.state.read(state)
        return parse(reply)

    def read(self) -> None:
        """Read the account without a call."""
        pipeline = self.store.pipeline(transaction=False)
        self._add_audit(pipeline)
        self.state.read(pipeline.execute()[0])

    def _add_audit(self, pipeline: Any) -> None:
        prefix = f"cr:{{{self.account}}}:"
        pipeline.execute_command("EVALSHA", self._audit, 0, prefix, self.last_row.get(self.account, "-"))

    def _sha(self, source: LuaSource) -> str:
        if source.sha not in self._known:
            assert _CLOCK in source.text and _EXPIRY[0] in source.text
            text = source.text.replace(_CLOCK, "local now = tonumber(redis.call('GET', 'clock'))\n").replace(*_EXPIRY)
            self._known[source.sha] = self.store.script_load(text)
        return self._known[source.sha]


@dataclass
class Run:
    """One run of one stream, as its gateway remembers it."""

    stream: Stream
    gateway: str
    used: int = 0
    tokens: int = 0
    believed: int = 0
    posting: Posting | None = None
    is_too_old: bool = False


class World:
    """``step`` lets something happen; ``end`` lets the faults stop and everybody finish."""

    def __init__(self, rnd: random.Random, store: Store) -> None:
        self.rnd = rnd
        self.direct = Direct(store)
        self.scripts = {name: Scripts(self.direct, name) for name in GATEWAYS}  # type: ignore[arg-type]
        for name, one in self.scripts.items():
            one.on_rollback = lambda account, name=name: self.to_tell.add((name, account))  # type: ignore[misc]
        self.to_tell: set[tuple[str, str]] = set()
        self.books = {name: reference.Account(LEASE_MS, RETENTION.stream_ms) for name in ACCOUNTS}
        self.runs: dict[str, list[Run]] = {name: [] for name in ACCOUNTS}
        self.granted: dict[str, dict[str, int]] = {name: {} for name in ACCOUNTS}
        self.snapshot: tuple[str, Any] | None = None
        self.operations = 0
        self.codes: Counter[tuple[str, int]] = Counter()

    # One call, on both sides.

    def check(self, op: str, account: str, reply: Any, expected: tuple[Any, ...]) -> Any:
        self.operations += 1
        got = msgspec.structs.astuple(reply)
        assert got == expected, f"{op} answered {got}, expected {expected}"
        self.codes[op, reply.code] += 1
        self.look(account)
        return reply

    def look(self, account: str) -> None:
        """The account as the server has it: equal to the books, and sound in itself."""
        compare(self.direct.state, self.books[account], self.direct.now)
        invariants(self.direct.state, self.books[account])
        if self.direct.state.last_row:
            self.direct.last_row[account] = f"({self.direct.state.last_row}"

    def who(self, run: Run) -> reference.Who:
        self.direct.account = run.stream.account
        run.stream = msgspec.structs.replace(run.stream, allowances=self.current(run.stream.allowances))
        stream = run.stream
        seen = self.scripts[run.gateway].seen(stream.account)
        return reference.Who(stream.sid, stream.nonce, stream.request, stream.allowances, run.gateway, seen)

    def grant(self, account: str, grant_id: str, amount: int) -> None:
        self.direct.account = account
        reply = self.scripts["a"].grant(account, grant_id=grant_id, amount=amount)
        self.check("grant", account, reply, self.books[account].grant(grant_id, amount))
        if reply.code == 1:  # type: ignore[attr-defined]
            self.granted[account][grant_id] = amount

    def reserve(self, run: Run, ask: reference.Asked) -> Any:
        who, stream = self.who(run), run.stream
        hold = HoldRange(ask.least, ask.most, not ask.fair)
        reply = self.scripts[run.gateway].reserve(stream, hold=hold, lease_ms=LEASE_MS, tokens=ask.tokens, facts=b"{}")
        expected = self.books[stream.account].reserve(who, ask, self.direct.now)
        return self.check("reserve", stream.account, reply, expected)

    def extend(self, run: Run, growing: reference.Growing) -> Any:
        who, stream = self.who(run), run.stream
        growth = Growth(
            used=growing.used,
            need=growing.need,
            target=growing.target,
            believed=growing.believed,
            tokens=growing.tokens,
        )
        reply = self.scripts[run.gateway].extend(stream, growth, lease_ms=LEASE_MS, revive=growing.revive)
        expected = self.books[stream.account].extend(who, growing, self.direct.now)
        return self.check("extend", stream.account, reply, expected)

    def settle(self, run: Run, posting: Posting) -> Any:
        who, stream = self.who(run), run.stream
        reply = self.scripts[run.gateway].settle(stream, posting, RETENTION)
        ended = reference.Ended(posting.actual, posting.outcome, posting.tokens, posting.refund, stream.created_ms)
        expected = self.books[stream.account].settle(who, ended, self.direct.now)
        self.check("settle", stream.account, reply, expected)
        run.is_too_old = run.is_too_old or reply.code == -9  # type: ignore[attr-defined]
        if reply.code in (1, 3, 4):  # type: ignore[attr-defined]
            assert reply.charged + reply.absorbed == posting.actual, "I11"  # type: ignore[attr-defined]
        return reply

    def reap(self, run: Run, grace_ms: int, *, charge_held: bool = False) -> Any:
        who, stream = self.who(run), run.stream
        stored = self.direct.store.hget(keys.record(stream.account, stream.sid), "lim")
        owner = keys.limits_of(stream.account)
        who.limits = self.current(Allowances.load(owner, stored)) if stored else Allowances(owner)
        stream = msgspec.structs.replace(stream, allowances=who.limits)
        reply = self.scripts[run.gateway].reap(stream, grace_ms=grace_ms, retention=RETENTION, charge_held=charge_held)
        expected = self.books[stream.account].reap(who, grace_ms, charge_held, self.direct.now)
        return self.check("reap", stream.account, reply, expected)

    # What may happen.

    def step(self) -> None:
        """Time passes, and something happens to one account; then whoever heard of a loss speaks."""
        self.direct.now += self.rnd.choice((0, 0, 1, 5, 20, 50, 200))
        account = self.rnd.choice(ACCOUNTS)
        weights: dict[Callable[[str], None], float] = {
            **{self.do_grant: 3, self.do_reserve: 20, self.do_extend: 26, self.do_settle: 9, self.do_repeat: 8},
            **{self.do_stale: 6, self.do_withdraw: 2, self.do_reap: 7, self.do_suspend: 1, self.pass_time: 3},
            **{self.do_snapshot: 1.5, self.do_rollback: 1, self.do_old: 0.5},
        }
        self.rnd.choices(list(weights), list(weights.values()))[0](account)
        self.tell()

    def tell(self) -> None:
        """Say again what the server has lost, once for each loss that was heard of."""
        for gateway, account in sorted(self.to_tell):
            self.say_again(gateway, account)
        self.to_tell.clear()

    def say_again(self, gateway: str, account: str) -> None:
        for run in self.runs[account]:
            if run.gateway == gateway and run.posting is not None:
                self.settle(run, run.posting)
            elif run.gateway == gateway:
                self.grow(run, run.used, run.believed)

    def limits(self, account: str) -> Allowances:
        """Some of the account's limits; the caller's calendar may be off by a period."""
        start = (self.direct.now // PERIOD_MS + self.rnd.choice((-1, 0, 0, 0, 1))) * PERIOD_MS
        calendar = (start - PERIOD_MS, start, start + PERIOD_MS)
        windows = [
            Window("rolling", 6000, (1000, 10, 0), Unit.MONEY),
            Window("period", 5000, calendar, Unit.MONEY),
            Window("tokens", 3000, (5000, 6, 0), Unit.TOKENS),
            Window("requests", 5, (1000, 5, 0), Unit.REQUESTS),
            Window("watched", 900, calendar, Unit.MONEY, True),
        ]
        buckets = [
            Bucket("rpm", 3, 5000, 3),
            Bucket("tpm", 2000, 1000, 3000, Unit.TOKENS),
            Bucket("watched", 3, 1000, 2, Unit.REQUESTS, True),
        ]
        slots = [Slots("streams", 3), Slots("wide", 20), Slots("watched", 2, True)]
        picked = [[it for it in pool if self.rnd.random() < 0.6] for pool in (windows, buckets, slots)]
        return Allowances(keys.limits_of(account), windows=picked[0], buckets=picked[1], slots=picked[2])  # type: ignore[arg-type]

    def current(self, limits: Allowances) -> Allowances:
        """The same, of a calendar that is off by a period at most: what is further off is not promised to be exact."""
        windows = list(limits.windows)
        for number, window in enumerate(windows):
            if window.bounds[2] and window.bounds[2] + PERIOD_MS <= self.direct.now:
                start = self.direct.now // PERIOD_MS * PERIOD_MS
                windows[number] = msgspec.structs.replace(window, bounds=(start - PERIOD_MS, start, start + PERIOD_MS))
        if windows == list(limits.windows):
            return limits
        owner = keys.limits_of(self.direct.account)
        return Allowances(owner, windows=windows, buckets=limits.buckets, slots=limits.slots)

    def begin(self, account: str, sid: str, request: str = "") -> Run:
        stream = Stream(
            sid=sid,
            account=account,
            created_ms=self.direct.now,
            nonce=f"{self.rnd.getrandbits(64):016x}",
            allowances=self.limits(account),
            request=request,
        )
        return Run(stream, self.rnd.choice(GATEWAYS))

    def do_grant(self, account: str) -> None:
        number = len(self.granted[account]) + self.rnd.randint(-2, 1)
        self.grant(account, f"g{number}", self.rnd.randint(-300, 3000))

    def do_reserve(self, account: str) -> None:
        known = self.runs[account]
        if known and self.rnd.random() < 0.15:  # an idempotency key that comes again
            old = self.rnd.choice(known).stream
            request = old.request if self.rnd.random() < 0.8 else "other"
            run = self.begin(account, old.sid, request)
        else:
            run = self.begin(account, f"s{self.operations}", self.rnd.choice(("", "r")))
        least = self.rnd.randint(0, 500)
        ask = reference.Asked(
            least, least + self.rnd.randint(0, 900), self.rnd.random() < 0.8, self.rnd.randint(0, 400)
        )
        reply = self.reserve(run, ask)
        if self.rnd.random() < 0.2:
            again = self.reserve(run, ask)
            assert reply.code != 1 or (again.code, again.held) == (2, reply.held), "I10"
        if reply.code == 1:
            run.believed, run.tokens = reply.held, ask.tokens
            known.append(run)

    def live(self, account: str) -> Run | None:
        runs = [run for run in self.runs[account] if run.posting is None]
        return self.rnd.choice(runs) if runs else None

    def do_extend(self, account: str) -> None:
        if (run := self.live(account)) is None:
            return
        run.used += self.rnd.randint(0, 300)
        run.tokens += self.rnd.randint(0, 150)
        need = max(0, run.used + self.rnd.randint(-300, 300))
        reply = self.grow(run, need, need + self.rnd.randint(0, 900))
        if self.rnd.random() < 0.3 and reply.held >= need:
            before = copy.deepcopy(self.books[account])
            again = self.grow(run, reply.held, reply.held)
            assert (again.held, self.books[account].held) == (reply.held, before.held), "I10"

    def grow(self, run: Run, need: int, target: int) -> Any:
        growing = reference.Growing(run.used, need, target, run.believed, run.tokens, False)
        reply = self.extend(run, growing)
        if reply.code == -11:
            growing.revive = True
            reply = self.extend(run, growing)
        if reply.code in (1, 20, -6, -8):
            run.believed = reply.held
        return reply

    def do_settle(self, account: str) -> None:
        if (run := self.live(account)) is None:
            return
        is_nothing = self.rnd.random() < 0.2
        actual = 0 if is_nothing else max(0, run.used + self.rnd.randint(-200, 500))
        outcome = self.rnd.choice(("complete", "cancelled", "failed"))
        tokens = 0 if is_nothing else run.tokens + self.rnd.randint(-50, 100)
        run.posting = Posting(actual=actual, outcome=outcome, tokens=max(tokens, 0), refund=is_nothing, usage=b"{}")
        reply = self.settle(run, run.posting)
        if self.rnd.random() < 0.3:
            again = self.settle(run, run.posting)
            assert reply.code not in (1, 3, 4) or (again.code, again.charged) == (2, reply.charged), "I10"

    def do_repeat(self, account: str) -> None:
        """Something that was said before arrives late."""
        if not self.runs[account]:
            return
        run = self.rnd.choice(self.runs[account])
        match self.rnd.randrange(3):
            case 0:
                self.reserve(run, reference.Asked(10, 700, True, 20))
            case 1:
                self.extend(run, reference.Growing(3, 5, 2000, run.believed, 7, self.rnd.random() < 0.1))
            case 2 if run.posting is not None:
                self.settle(run, run.posting)

    def do_stale(self, account: str) -> None:
        """Of a finished stream, something else is said."""
        records = self.books[account].records
        done = [run for run in self.runs[account] if getattr(records.get(run.stream.sid), "state", "") == "done"]
        if done:
            other = Posting(actual=self.rnd.randint(0, 900), outcome="complete", tokens=9, refund=False, usage=b"{}")
            self.settle(self.rnd.choice(done), other)

    def do_withdraw(self, account: str) -> None:
        """Nobody knows whether the admission arrived: it is settled with nothing, before it or instead of it."""
        run = self.begin(account, f"s{self.operations}")
        run.posting = Posting(actual=0, outcome="failed", tokens=0, refund=True, usage=b"{}")
        if self.books[account].exists:
            self.settle(run, run.posting)
            self.reserve(run, reference.Asked(10, 50, True, 5))
            self.runs[account].append(run)

    def do_old(self, account: str) -> None:
        """A journal that was found too late."""
        run = self.begin(account, f"s{self.operations}")
        age_ms = RETENTION.stream_ms + self.rnd.choice((0, 1))
        run.stream = msgspec.structs.replace(run.stream, created_ms=self.direct.now - age_ms)
        self.settle(run, Posting(actual=50, outcome="failed", tokens=0, refund=False, usage=b"{}"))

    def do_reap(self, account: str) -> None:
        runs = {run.stream.sid: run for run in self.runs[account]}
        for sid in [*self.books[account].leases][:5]:
            if sid in runs:
                self.reap(runs[sid], self.rnd.choice((0, GRACE_MS)), charge_held=self.rnd.random() < 0.2)

    def do_suspend(self, account: str) -> None:
        books = self.books[account]
        if not books.exists:
            return
        books.suspended = not books.suspended and self.rnd.random() < 0.5
        self.direct.store.execute_command(
            *(("HSET", keys.wallet(account), "x", 1) if books.suspended else ("HDEL", keys.wallet(account), "x"))
        )

    def pass_time(self, account: str) -> None:
        """Leases run out, parts leave their windows, a period begins."""
        self.direct.now += self.rnd.choice((LEASE_MS, LEASE_MS + GRACE_MS, 7000, 30_000, 86_400_000))

    def do_snapshot(self, account: str) -> None:
        """What a lagging replica has."""
        names = [key for key in self.direct.store.scan_iter(match=f"cr:{{{account}}}:*", count=1000)]
        dumps = {key: self.direct.store.dump(key) for key in names}
        kept = (dumps, copy.deepcopy(self.books[account]), self.direct.last_row.get(account, "-"))
        self.snapshot = (account, kept)

    def do_rollback(self, _: str) -> None:
        """It is promoted. What was granted since comes again from where grants are kept."""
        if self.snapshot is None:
            return
        account, (dumps, books, last_row) = self.snapshot
        self.snapshot = None
        for key in self.direct.store.scan_iter(match=f"cr:{{{account}}}:*", count=1000):
            self.direct.store.delete(key)
        for key, value in dumps.items():
            self.direct.store.restore(key, 0, value)
        self.books[account], self.direct.last_row[account] = books, last_row
        for grant_id, amount in list(self.granted[account].items()):
            self.grant(account, grant_id, amount)
        self.codes["rollback", 0] += 1

    def end(self) -> None:
        """Everybody learns of what was lost, finishes, and what nobody finished is reaped: nothing stays held."""
        for account in ACCOUNTS:
            self.grant(account, "last", 1)
            for gateway in GATEWAYS:
                probe = self.begin(account, f"probe-{gateway}")
                probe.gateway = gateway
                self.reserve(probe, reference.Asked(0, 0, True, 0))
            self.tell()
            self.direct.now += reference.BARRIER_MS
            for run in self.runs[account]:
                if run.posting is None and self.rnd.random() < 0.5:
                    run.posting = Posting(actual=run.used, outcome="complete", tokens=9, refund=False, usage=b"{}")
                    self.settle(run, run.posting)
            self.tell()
            self.direct.now += reference.BARRIER_MS + LEASE_MS + GRACE_MS
            for sid in [*self.books[account].leases]:
                self.reap(Run(self.begin(account, sid).stream, "a"), GRACE_MS)
            self.owed(account)

    def owed(self, account: str) -> None:
        """I11: whatever was lost in between, each stream is charged what its gateway says it owes."""
        books = self.books[account]
        assert (books.held, books.leases) == (0, {}), "something is still held"
        assert all(window.held == 0 for window in books.windows.values()), "something of a window is still held"
        runs = Counter(run.stream.sid for run in self.runs[account])
        for run in self.runs[account]:
            record = books.records.get(run.stream.sid)
            # Of an id that ran more than once there is one record: a server that forgot which run it was of cannot say.
            if run.posting and record and not run.is_too_old and runs[run.stream.sid] == 1:
                assert record.charged + record.absorbed == run.posting.actual, f"I11: {run}"
