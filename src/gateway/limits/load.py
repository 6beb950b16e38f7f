"""How busy the gateways are together: one number that the limits of a tier may follow.

Every second each gateway publishes its gauges in one hash and reads everybody's, so that all come to about the same
factor. Ages are told by Redis' clock; where Redis is away, a gateway goes by its own gauges. ``LoopLag`` and
``Latency`` measure what a gateway publishes of itself. Nothing here knows an account or a limit.
"""

import asyncio
import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping

import msgspec

from gateway.limits import keys
from gateway.limits.redis import LuaSource, Redis, StoreUnavailable

BEAT_S = 1.0
LOAD_MIN = 0.1

_FRESH_S = 5.0
_SWEEP_MS = 60_000
# Load is followed down quickly and up slowly, and a step is taken only when it is one: limits that flap cost clients
# more than limits that are a little low.
_DOWN, _UP = 0.5, 0.1
_SETTLED = 0.01
_STEP = 0.05

# A script, since in a cluster it runs where its key is: the same clock for every gateway.
_CLOCK = LuaSource("return redis.call('TIME')")


class Local(msgspec.Struct, frozen=True, kw_only=True):
    """What one gateway knows of itself; ``capacity`` 0 means any number of streams.

    ``upstream_ratio`` is the median of what providers take against what they usually take.
    """

    streams: int
    capacity: int
    lag_ms: float = 0.0
    upstream_ms: float = 0.0
    upstream_ratio: float = 1.0


class _Entry(msgspec.Struct, frozen=True):
    at_ms: int
    local: Local


class _Peer(msgspec.Struct, frozen=True):
    local: Local
    heard: float


class Shared(msgspec.Struct, frozen=True, kw_only=True):
    """The load of all gateways and what follows from it; ``raw`` is the least of the three factors, not smoothed."""

    streams: int
    capacity: int
    lag_ms: float
    upstream_ms: float
    upstream_ratio: float
    streams_factor: float
    lag_factor: float
    upstream_factor: float

    @property
    def raw(self) -> float:
        """The factor that this moment asks for."""
        return min(self.streams_factor, self.lag_factor, self.upstream_factor)


def streams_factor(streams: int, capacity: int) -> float:
    """1 below 70 % of capacity, falling to 0.1 at 100 %."""
    return _falling(streams / capacity, 0.7, 1.0, LOAD_MIN) if capacity > 0 else 1.0


def lag_factor(lag_ms: float) -> float:
    """1 up to 50 ms of event-loop lag, falling to 0.1 at 500 ms."""
    return _falling(lag_ms, 50.0, 500.0, LOAD_MIN)


def upstream_factor(ratio: float) -> float:
    """1 while providers take up to twice as long as usual, falling to 0.25 at eight times."""
    return _falling(ratio, 2.0, 8.0, 0.25)


def _falling(value: float, good: float, bad: float, least: float) -> float:
    share = min(1.0, max(0.0, (value - good) / (bad - good)))
    return 1.0 - share * (1.0 - least)


def shared(locals_: list[Local]) -> Shared:
    """The gauges of all gateways as one. Streams are added up; lag and upstream count as the mean of the gateways'
    factors, so that one stalled gateway of four costs a quarter of what four cost."""
    bounded = [local for local in locals_ if local.capacity > 0]
    streams = sum(local.streams for local in bounded)
    capacity = sum(local.capacity for local in bounded)
    return Shared(
        streams=sum(local.streams for local in locals_),
        capacity=capacity,
        lag_ms=statistics.fmean(local.lag_ms for local in locals_),
        upstream_ms=statistics.fmean(local.upstream_ms for local in locals_),
        upstream_ratio=statistics.fmean(local.upstream_ratio for local in locals_),
        streams_factor=streams_factor(streams, capacity),
        lag_factor=statistics.fmean(lag_factor(local.lag_ms) for local in locals_),
        upstream_factor=statistics.fmean(upstream_factor(local.upstream_ratio) for local in locals_),
    )


class Damped:
    """A factor that goes down fast and up slowly, and stays where it is until it has a step to take."""

    def __init__(self) -> None:
        self.smoothed = 1.0
        self.value = 1.0

    def follow(self, raw: float) -> float:
        """One beat towards ``raw``."""
        self.smoothed += (raw - self.smoothed) * (_DOWN if raw < self.smoothed else _UP)
        is_settled = abs(raw - self.smoothed) < _SETTLED
        if is_settled:
            self.smoothed = raw
        # At the ends there is nothing to flap to, so they are reached in full.
        is_at_end = self.smoothed >= 1.0 or self.smoothed <= LOAD_MIN
        if is_at_end or abs(self.smoothed - self.value) >= _STEP:
            self.value = self.smoothed
        return self.value


class Gauges:
    """This gateway's load, everybody's, and ``factor``: 1 with room to spare, 0.1 at the end of it.

    ``read`` is asked for this gateway's own gauges once a second. A gateway not heard of for ``fresh_s`` drops out.
    """

    def __init__(
        self,
        redis: Redis,
        gateway_id: str,
        read: Callable[[], Local],
        *,
        fresh_s: float = _FRESH_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._redis = redis
        self._id = gateway_id
        self._read = read
        self._fresh_s = fresh_s
        self._clock = clock
        self._damped = Damped()
        self._peers: dict[str, _Peer] = {}
        self._shared: Shared | None = None
        self._is_alone = True
        # How many gateways there were when Redis was last heard.
        self.replicas = 1

    @property
    def factor(self) -> float:
        """What limits that follow the load are multiplied by, 0.1 to 1."""
        return self._damped.value

    async def run(self) -> None:
        """The beat; a task root. Whatever ends it leaves no limit lowered."""
        try:
            while True:
                await self.beat()
                await asyncio.sleep(BEAT_S)
        finally:
            self._damped = Damped()

    async def beat(self) -> None:
        """Publish, read, and take a step towards what the load asks for."""
        local = self._read()
        try:
            await self._exchange(local)
            self._is_alone = False
        except StoreUnavailable:
            # One answer that is late forgets nobody; without any for a while, the others are old and drop out.
            self._is_alone = True
        now = self._clock()
        others = {id_: peer for id_, peer in self._peers.items() if now - peer.heard <= self._fresh_s}
        self._peers = {**others, self._id: _Peer(local, now)}
        self._shared = shared([peer.local for peer in self._peers.values()])
        self._damped.follow(self._shared.raw)

    async def _exchange(self, local: Local) -> None:
        now_ms = await self._redis.script(_CLOCK, (keys.GAUGES,), (), _unix_ms)
        now = self._clock()
        _, _, fields = await asyncio.gather(
            self._redis.call("HSET", keys.GAUGES, self._id, msgspec.json.encode(_Entry(now_ms, local))),
            self._redis.call("PEXPIRE", keys.GAUGES, _SWEEP_MS),
            self._redis.call("HGETALL", keys.GAUGES),
        )
        peers: dict[str, _Peer] = {}
        dead: list[bytes] = []
        for id_, value in zip(fields[::2], fields[1::2], strict=True):
            entry = _decode(value)
            age_ms = math.inf if entry is None else now_ms - entry.at_ms
            # An entry from the future was written before Redis' clock went back; its gateway writes another soon.
            if entry is not None and abs(age_ms) <= self._fresh_s * 1000:
                peers[id_.decode(errors="replace")] = _Peer(entry.local, now - max(0, age_ms) / 1000)
            elif abs(age_ms) > _SWEEP_MS:
                dead.append(id_)
        self._peers = peers
        self.replicas = len({*peers, self._id})
        if dead:
            await self._redis.call("HDEL", keys.GAUGES, *dead)

    def explain(self) -> dict[str, object]:
        """The factor and every input of it, as the admin API shows them."""
        now = self._clock()
        peers = {
            id_: {**msgspec.structs.asdict(peer.local), "age_s": now - peer.heard} for id_, peer in self._peers.items()
        }
        return {
            "factor": round(self.factor, 3),
            "smoothed": round(self._damped.smoothed, 3),
            "raw": 1.0 if self._shared is None else round(self._shared.raw, 3),
            "store": "away" if self._is_alone else "shared",
            "inputs": {} if self._shared is None else _rounded(msgspec.structs.asdict(self._shared)),
            "gateways": {id_: _rounded(fields) for id_, fields in sorted(peers.items())},
        }


def _unix_ms(reply: list[bytes]) -> int:
    seconds, micros = reply
    return int(seconds) * 1000 + int(micros) // 1000


def _decode(value: bytes) -> _Entry | None:
    try:
        return msgspec.json.decode(value, type=_Entry)
    except msgspec.MsgspecError:  # another version's, or not ours
        return None


def _rounded(fields: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in fields.items()}


class LoopLag:
    """How late the event loop runs what is due, over the last ten seconds."""

    _NAP_S = 0.1
    _WINDOW_S = 10.0

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._late: deque[tuple[float, float]] = deque(maxlen=int(self._WINDOW_S / self._NAP_S))

    async def run(self) -> None:
        """Sleep and look how late it got; a task root."""
        while True:
            due = self._clock() + self._NAP_S
            await asyncio.sleep(self._NAP_S)
            self.observe(self._clock() - due)

    def observe(self, late_s: float) -> None:
        """A nap was so late."""
        self._late.append((self._clock(), max(0.0, late_s)))

    @property
    def p99_ms(self) -> float:
        """The second worst of a hundred naps: a single pause is no load."""
        since = self._clock() - self._WINDOW_S
        late = sorted(late_s for at, late_s in self._late if at >= since)
        return late[int(0.99 * (len(late) - 1))] * 1000 if late else 0.0


class _Usual:
    """What one target usually takes: a geometric mean that forgets over an hour, near the median of its times."""

    __slots__ = ("at", "count", "log_mean")

    LEARN = 20
    _MEMORY_S = 3600.0
    _GAP_S = 10.0  # so that one answer after a quiet night does not become what is usual

    def __init__(self) -> None:
        self.at = 0.0
        self.count = 0
        self.log_mean = 0.0

    def learn(self, seconds: float, now: float) -> float:
        """How many times what is usual this was; 1 while that is not known."""
        log = math.log(max(seconds, 1e-4))
        is_known = self.count >= self.LEARN
        ratio = math.exp(log - self.log_mean) if is_known else 1.0
        self.count += 1
        passed_s = min(now - self.at, self._GAP_S)
        weight = 1.0 - math.exp(-passed_s / self._MEMORY_S) if is_known else 1.0 / self.count
        self.log_mean += (log - self.log_mean) * weight
        self.at = now
        return ratio


class Latency:
    """How long providers take to begin an answer, over the last minute, and beside what each target usually takes."""

    _WINDOW_S = 60.0
    _LEAST = 5
    _TARGETS_MAX = 500

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: deque[tuple[float, float, float]] = deque(maxlen=512)
        self._usual: dict[str, _Usual] = {}

    def observe(self, seconds: float, target: str = "") -> None:
        """``target`` took so long; each is compared with itself, since a slow model is not a slow provider."""
        now = self._clock()
        usual = self._usual.get(target)
        if usual is None:
            if len(self._usual) >= self._TARGETS_MAX:
                del self._usual[next(iter(self._usual))]
            usual = self._usual[target] = _Usual()
        self._seen.append((now, seconds, usual.learn(seconds, now)))

    @property
    def p50_ms(self) -> float:
        """The median, or 0 where there was nothing."""
        return statistics.median([seconds for _, seconds, _ in self._recent()] or [0.0]) * 1000

    @property
    def ratio(self) -> float:
        """The median of times against what is usual for their target; 1 where too few say anything."""
        ratios = [ratio for _, _, ratio in self._recent()]
        return statistics.median(ratios) if len(ratios) >= self._LEAST else 1.0

    def _recent(self) -> list[tuple[float, float, float]]:
        since = self._clock() - self._WINDOW_S
        return [seen for seen in self._seen if seen[0] >= since]
