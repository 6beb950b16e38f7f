"""What the scripts should do, in plain Python: one account's books, told the time, answering as the scripts answer.

Written from what the scripts promise, not from how they keep it: windows are sums over parts, nothing is dropped late,
nothing expires. ``test_model`` compares replies and state after every operation.
"""

import math
from collections import Counter
from dataclasses import dataclass, field

from gateway.limits.allowances import Allowances, Bucket, Slots, Unit, Window

BARRIER_MS = 1500
AMOUNT_MAX = 2**52


@dataclass
class Record:
    """One stream."""

    request: str
    nonce: str
    state: str = "open"
    held: int = 0
    used: int = 0
    charged: int = 0
    absorbed: int = 0
    tokens: int = 0
    outcome: str = ""


@dataclass
class Posted:
    """A window: what is held, and what was posted in each part."""

    held: int = 0
    parts: Counter[int] = field(default_factory=Counter)

    def sum(self, window: Window, now: int) -> int:
        """What counts now."""
        newest, oldest = parts(window, now)
        return sum(amount for part, amount in self.parts.items() if oldest <= part <= newest)


def parts(window: Window, now: int) -> tuple[int, int]:
    """The part of a window that is now, and the oldest that counts."""
    first, second, third = window.bounds
    if third == 0:
        return now // first, now // first - second
    part = max((bound for bound in window.bounds if bound <= now), default=first)
    return part, part


@dataclass
class Growing:
    """Arguments of an extension."""

    used: int
    need: int
    target: int
    believed: int
    tokens: int
    revive: bool


@dataclass
class Asked:
    """Arguments of a reservation."""

    least: int
    most: int
    fair: bool
    tokens: int


@dataclass
class Ended:
    """Arguments of a settlement."""

    actual: int
    outcome: str
    tokens: int
    refund: bool
    created: int


@dataclass
class Who:
    """Which run of which stream calls, through which gateway, and what that has seen."""

    sid: str
    nonce: str
    request: str
    limits: Allowances
    gateway: str
    seen: int


class Account:
    """One account's books."""

    def __init__(self, lease_ms: int, retention_ms: int) -> None:
        self.lease_ms, self.retention_ms = lease_ms, retention_ms
        self.exists = self.suspended = False
        self.granted = self.spent = self.held = self.absorbed = self.recovering = 0
        self.grants: dict[str, int] = {}
        self.records: dict[str, Record] = {}
        self.leases: dict[str, int] = {}
        self.revisions: Counter[str] = Counter()
        self.windows: dict[str, Posted] = {}
        self.buckets: dict[str, tuple[int, int]] = {}
        self.slots: dict[str, dict[str, int]] = {}
        self.ledger: list[tuple[str, str, int, int, str]] = []
        self.runs: Counter[str] = Counter()
        # What was posted of each run beyond what it held: by so much a window may be passed.
        self.beyond: Counter[str] = Counter()

    @property
    def available(self) -> int:
        return self.granted - self.spent - self.held

    def window(self, window: Window) -> Posted:
        return self.windows.setdefault(window.name, Posted())

    def dead(self, now: int) -> bool:
        return any(end <= now for end in self.leases.values())

    # The fence.

    def fence(self, who: Who, now: int) -> int:
        """Until when lost writes are told again."""
        known = self.revisions[who.gateway]
        if who.seen > known:
            self.recovering = now + BARRIER_MS
            self.revisions[who.gateway] = who.seen
            self.ledger.append(("rollback", "", 0, 0, str(who.seen - known)))
        return self.recovering

    def advance(self, who: Who) -> int:
        self.revisions[who.gateway] = max(self.revisions[who.gateway], who.seen) + 1
        return self.revisions[who.gateway]

    # Buckets.

    def level(self, bucket: Bucket, now: int) -> int:
        full = bucket.burst * bucket.period_ms
        level, last = self.buckets.get(bucket.name, (full, now))
        return min(full, level + (now - last) * bucket.limit)

    def take(self, bucket: Bucket, amount: int, now: int, *, deep: bool = False) -> int:
        full = bucket.burst * bucket.period_ms
        level = min(full, self.level(bucket, now) - amount * bucket.period_ms)
        if not deep:
            level = max(level, -full)
        self.buckets[bucket.name] = (level, now)
        return level

    # The scripts.

    def grant(self, grant_id: str, amount: int) -> tuple[int, int]:
        if grant_id in self.grants:
            return (2 if self.grants[grant_id] == amount else 5), self.granted
        if self.granted + amount > AMOUNT_MAX:
            return -12, self.granted
        if self.available + amount < 0:
            return -2, self.granted
        self.exists = True
        self.grants[grant_id] = amount
        self.granted += amount
        self.ledger.append(("grant", grant_id, amount, 0, ""))
        return 1, self.granted

    def reserve(self, who: Who, ask: Asked, now: int) -> tuple[object, ...]:
        known = self.revisions[who.gateway]

        def answer(code: int, index: int = 0, retry_ms: int = 0, held: int = 0) -> tuple[object, ...]:
            empty = [bucket for bucket in who.limits.buckets if code == -4 and who.limits.at(index) is bucket]
            left = [self.level(bucket, now) // bucket.period_ms for bucket in empty]
            return code, index, retry_ms, held, self.available, known, 0, 0, [], left

        record = self.records.get(who.sid)
        if record is not None:
            code = self.known(record, who)
            if code:
                return answer(code, held={2: record.held, 4: record.charged}.get(code, 0))
        if not self.exists:
            return answer(-1)
        recovering = self.fence(who, now)
        if now < recovering:
            return answer(-20, 0, recovering - now)
        if self.suspended:
            return answer(-6)
        code, index, retry_ms, shadowed = self.refusal(who.limits, ask, now)
        if code:
            return answer(-8 if code in (-2, -3) and self.dead(now) else code, index, retry_ms)
        share, share_index = self.share(who.limits, now)
        hold = self.hold(who.limits, ask, now)
        self.open(who, Record(who.request, who.nonce, held=hold, tokens=ask.tokens), now)
        left = self.take_all(who.limits, ask, hold, now)
        revision = self.advance(who)
        return 1, 0, 0, hold, self.available, revision, math.floor(share * 1000), share_index, shadowed, left

    def hold(self, limits: Allowances, ask: Asked, now: int) -> int:
        room = min([self.available, *(self.left(window, now) for window in money(limits))])
        hold = min(ask.most, room)
        return min(hold, max(ask.least, room // (2 * (len(self.leases) + 1)))) if ask.fair else hold

    def take_all(self, limits: Allowances, ask: Asked, hold: int, now: int) -> list[int]:
        """Returns what each bucket has left."""
        for window in limits.windows:
            self.window(window).held += (1, ask.tokens, hold)[window.unit]
        left = []
        for bucket in limits.buckets:
            cost = ask.tokens if bucket.unit is Unit.TOKENS else 1
            level = self.level(bucket, now)
            if cost:
                level = self.take(bucket, cost, now)
            left.append(level // bucket.period_ms)
        return left

    def known(self, record: Record, who: Who) -> int:
        """What a reservation of an id that was seen before is told; 0 where it may run again."""
        if record.request != who.request:
            return 5
        if record.state == "open":
            return 2 if record.nonce == who.nonce else 3
        has_run = record.state == "reaped" or record.outcome == "complete" or record.charged + record.absorbed > 0
        return 4 if has_run or record.nonce == who.nonce else 0

    def left(self, window: Window, now: int) -> int:
        posted = self.window(window)
        return window.limit - posted.sum(window, now) - posted.held

    def share(self, limits: Allowances, now: int) -> tuple[float, int]:
        """How much is used of whatever is used most: the balance, or the window of that number."""
        share, index = (self.granted - self.available) / self.granted if self.granted else 0.0, 0
        for number, window in enumerate(limits.windows, start=1):
            if window.unit is Unit.MONEY and not window.is_shadow:
                used = window.limit - self.left(window, now)
                if used / window.limit > share:
                    share, index = used / window.limit, number
        return share, index

    def refusal(self, limits: Allowances, ask: Asked, now: int) -> tuple[int, int, int, list[int]]:
        """(code, index, retry_ms, shadowed); code 0 where everything passes."""
        if ask.least > self.available:
            return -2, 0, 0, []
        shadowed: list[int] = []
        limited: tuple[Window | Bucket | Slots, ...] = (*limits.windows, *limits.buckets, *limits.slots)
        for index, limit in enumerate(limited, start=1):
            match limit:
                case Window():
                    amount = (1, ask.tokens, ask.least)[limit.unit]
                    excess, most = amount - self.left(limit, now), limit.limit
                case Bucket():
                    amount = ask.tokens if limit.unit is Unit.TOKENS else 1
                    excess, most = amount * limit.period_ms - self.level(limit, now), limit.burst
                case Slots():
                    running = sum(end > now for end in self.slots.get(limit.name, {}).values())
                    excess, amount, most = running + 1 - limit.max, 1, 1
            if excess <= 0:
                continue
            if limit.is_shadow:
                shadowed.append(index)
            elif amount > most:
                return -7, index, 0, []
            else:
                return self.later(limit, excess, index, now)
        return 0, 0, 0, shadowed

    def later(
        self, limit: Window | Bucket | Slots, excess: int, index: int, now: int
    ) -> tuple[int, int, int, list[int]]:
        match limit:
            case Slots():
                return -5, index, 0, []
            case Bucket():
                return -4, index, -(-excess // limit.limit), []
            case Window():
                return -3, index, self.reopens(limit, excess, now) - now, []

    def reopens(self, window: Window, excess: int, now: int) -> int:
        """When so much will have left the window; a second from now where it is held."""
        part, oldest = parts(window, now)
        first, second, third = window.bounds
        if third:
            return {first: second, second: third, third: 2 * third - second}[part]
        for number in range(oldest, part + 1):
            excess -= self.window(window).parts[number]
            if excess <= 0:
                return (number + second + 1) * first
        return now + 1000

    def open(self, who: Who, record: Record, now: int) -> None:
        self.runs[who.sid] += 1
        self.records[who.sid] = record
        self.held += record.held
        self.lease(who, now)

    def lease(self, who: Who, now: int) -> None:
        self.leases[who.sid] = now + self.lease_ms
        for slots in who.limits.slots:
            self.slots.setdefault(slots.name, {})[who.sid] = now + self.lease_ms

    def extend(self, who: Who, growing: Growing, now: int) -> tuple[int, ...]:
        if not self.exists:
            return -1, 0, 0, 0, 0, 0, 0
        known = self.revisions[who.gateway]
        record = self.records.get(who.sid)
        if record is None and not growing.revive:
            return -11, 0, self.available, known, 0, 0, 0
        if record is not None and (record.state != "open" or record.nonce != who.nonce):
            return -10, record.held, self.available, known, 0, 0, 0
        is_recovering = now < self.fence(who, now)
        share, index = self.share(who.limits, now)
        held = record.held if record is not None else 0
        grow = self.growth(who.limits, growing, held, is_recovering, now)
        if record is None:
            record = Record(who.request, who.nonce)
            self.open(who, record, now)
            for window in who.limits.windows:
                self.window(window).held += window.unit is Unit.REQUESTS
        self.held += grow
        record.held += grow
        record.used = max(record.used, growing.used)
        more = max(growing.tokens - record.tokens, 0)
        record.tokens += more
        self.lease(who, now)
        debt_ms = self.take_more(who.limits, more, grow, now)
        code = 20 if is_recovering else -6 if self.suspended else 1
        if code == 1 and record.held < growing.need and self.dead(now):
            code = -8
        return code, record.held, self.available, self.advance(who), math.floor(share * 1000), index, debt_ms

    def take_more(self, limits: Allowances, more: int, grow: int, now: int) -> int:
        """Returns how long the token limits need until they are out of debt, in ms."""
        debt_ms = 0
        for window in limits.windows:
            self.window(window).held += (0, more, grow)[window.unit]
        for bucket in limits.buckets:
            if more and bucket.unit is Unit.TOKENS:
                level = self.take(bucket, more, now, deep=True)
                if not bucket.is_shadow:
                    debt_ms = max(debt_ms, -(level // bucket.limit))
        return debt_ms

    def growth(self, limits: Allowances, growing: Growing, held: int, is_recovering: bool, now: int) -> int:
        room = max(self.available, 0)
        for window in money(limits):
            room = min(room, max(self.left(window, now), 0))
        goal = min(growing.target, growing.believed) if is_recovering else growing.target
        if self.suspended or goal <= held:
            return 0
        if is_recovering:
            return min(goal - held, room)
        if growing.need - held > room:
            return 0
        fair = room // (2 * max(1, len(self.leases)))
        return min(goal - held, max(growing.need - held, fair), room)

    def settle(self, who: Who, ended: Ended, now: int) -> tuple[int, ...]:
        if not self.exists:
            return -1, 0, 0, 0
        known, record = self.revisions[who.gateway], self.records.get(who.sid)
        if record is not None and record.state == "done":
            return 2, record.charged, record.absorbed, known
        if record is not None and record.nonce != who.nonce:
            return 2, 0, 0, known
        if record is None and now - ended.created > self.retention_ms:
            return -9, 0, 0, known
        self.fence(who, now)
        code = 4 if record is None else 1 if record.state == "open" else 3
        if record is None:
            record = self.records[who.sid] = Record(who.request, who.nonce)
            self.runs[who.sid] += 1
        held, posted = record.held, record.charged
        absorbed = max(ended.actual - held - posted - max(self.available, 0), 0)
        charged = ended.actual - absorbed
        self.held -= held
        self.spent += charged - posted
        self.absorbed += absorbed
        after = (0 if ended.refund else 1, ended.tokens, charged)
        self.post(who.limits, (1, record.tokens, held), (1, record.tokens, posted), after, code, now)
        self.beyond[who.sid] += max(charged - posted - held, 0)
        record.state, record.held, record.charged, record.absorbed = "done", 0, charged, absorbed
        record.outcome = ended.outcome
        self.leases.pop(who.sid, None)
        for slots in who.limits.slots:
            self.slots.get(slots.name, {}).pop(who.sid, None)
        if not (code == 4 and ended.actual == 0 and ended.outcome == "failed"):
            op = "trueup" if code == 3 else "post"
            self.ledger.append((op, who.sid, charged - posted, absorbed, ended.outcome))
        return code, charged, absorbed, self.advance(who)

    def post(
        self,
        limits: Allowances,
        held: tuple[int, int, int],
        posted: tuple[int, int, int],
        after: tuple[int, int, int],
        code: int,
        now: int,
    ) -> None:
        """By unit: requests, tokens, money."""
        for window in limits.windows:
            it = self.window(window)
            it.held -= held[window.unit] if code == 1 else 0
            it.parts[parts(window, now)[0]] += after[window.unit] - (posted[window.unit] if code == 3 else 0)
        for bucket in limits.buckets:
            change = after[bucket.unit] - held[bucket.unit]
            if code != 4 and change:
                self.take(bucket, change, now)

    def reap(self, who: Who, grace_ms: int, charge_held: bool, now: int) -> tuple[int, int]:
        if not self.exists:
            return -1, 0
        if now < self.recovering:
            return -20, 0
        if self.leases.get(who.sid, now) + grace_ms > now or who.sid not in self.leases:
            return 0, 0
        record = self.records[who.sid]
        charged = record.held if charge_held else min(record.used, record.held)
        self.held -= record.held
        self.spent += charged
        held = (1, record.tokens, record.held)
        for window in who.limits.windows:
            it = self.window(window)
            it.held -= held[window.unit]
            it.parts[parts(window, now)[0]] += (1, record.tokens, charged)[window.unit]
        record.state, record.held, record.charged = "reaped", 0, charged
        del self.leases[who.sid]
        for slots in who.limits.slots:
            self.slots.get(slots.name, {}).pop(who.sid, None)
        self.ledger.append(("reap", who.sid, charged, 0, "failed"))
        return 1, charged


def money(limits: Allowances) -> list[Window]:
    """The windows that bound a hold."""
    return [window for window in limits.windows if window.unit is Unit.MONEY and not window.is_shadow]
