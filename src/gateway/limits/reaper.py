"""Finishing what nobody finishes: streams of which the lease ran out since their gateway died.

Every replica looks, and any may be the one that finds them: a stream is posted once whoever reaps it, and a gateway
that was only frozen corrects the figure when it settles.
"""

import asyncio
import time
from functools import partial
from typing import Any

import msgspec
import structlog
from redis.exceptions import RedisError

from gateway.limits import keys
from gateway.limits.allowances import Allowances
from gateway.limits.redis import LuaSource, StoreUnavailable
from gateway.limits.scripts import Retention, Scripts, Stream

_REAP_MAX = 64
_ACCOUNTS_MAX = 10_000

# Takes an account off the list unless it was announced anew meanwhile.
_FORGET = LuaSource(
    "if redis.call('ZSCORE', KEYS[1], ARGV[1]) == ARGV[2] then return redis.call('ZREM', KEYS[1], ARGV[1]) end return 0"
)

_log = structlog.get_logger()


class Reaper:
    """Reaps through the scripts of one gateway."""

    def __init__(self, scripts: Scripts, retention: Retention, *, grace_s: float, charge_held: bool = False) -> None:
        """A stream is reaped ``grace_s`` after its lease; ``charge_held`` charges its hold instead of its use."""
        self._scripts = scripts
        self._redis = scripts.redis
        self._retention = retention
        self._grace_ms = int(grace_s * 1000)
        self._charge_held = charge_held
        self._announced: dict[str, float] = {}

    def announce(self, account: str, lease_s: float) -> None:
        """Tell all reapers to look at an account: sent before a stream's own call, once per account and lease."""
        now = time.monotonic()
        if now < self._announced.get(account, 0):
            return
        if len(self._announced) > _ACCOUNTS_MAX:
            self._announced = {name: until for name, until in self._announced.items() if until > now}
        self._announced[account] = now + lease_s
        until_ms = int((time.time() + 2 * lease_s) * 1000)
        sent = self._redis.call("ZADD", keys.ACTIVE, "GT", until_ms, account)
        sent.add_done_callback(partial(self._announcement_sent, account))

    def _announcement_sent(self, account: str, done: asyncio.Future[Any]) -> None:
        if done.cancelled() or done.exception() is not None:
            self.forget_announcements(account)

    def forget_announcements(self, account: str) -> None:
        """Announce the account again with its next stream: Redis has lost something."""
        self._announced.pop(account, None)

    async def reap(self, account: str, *, has_grace: bool = True) -> int:
        """Finish the account's abandoned streams; returns how many. Safe to run anywhere, any number of times."""
        grace_ms = self._grace_ms if has_grace else 0
        return await self._reap(account, await self._due(account, await self._server_time_ms() - grace_ms), grace_ms)

    def _due(self, account: str, until_ms: int) -> asyncio.Future[list[bytes]]:
        return self._redis.call("ZRANGEBYSCORE", keys.leases(account), "-inf", until_ms, "LIMIT", 0, _REAP_MAX)

    async def _reap(self, account: str, due: list[bytes], grace_ms: int) -> int:
        replies = await asyncio.gather(*(self._reap_one(account, sid.decode(), grace_ms) for sid in due))
        return sum(replies)

    async def _reap_one(self, account: str, sid: str, grace_ms: int) -> int:
        stored = await self._redis.call("HGET", keys.record(account, sid), "lim")
        allowances = _allowances(account, sid, stored)
        stream = Stream(sid=sid, account=account, created_ms=0, nonce="", allowances=allowances)
        reply = await self._scripts.reap(
            stream, grace_ms=grace_ms, retention=self._retention, charge_held=self._charge_held
        )
        return int(reply.code == 1)

    async def run(self, pause_s: float) -> None:
        """Look for ever; a task root. What Redis refuses for good is told, and looked at again later."""
        while True:
            await asyncio.sleep(pause_s)
            try:
                reaped = await self.reap_all()
            except StoreUnavailable:
                continue
            except RedisError:
                _log.exception("reaping_failed")
                continue
            if reaped:
                _log.warning("streams_reaped", count=reaped)

    async def reap_all(self) -> int:
        """Look at every account that may have streams; the body of the reaper's loop. Returns how many it finished."""
        now_ms = await self._server_time_ms()
        flat = await self._redis.call(
            "ZRANGEBYSCORE", keys.ACTIVE, "-inf", "+inf", "WITHSCORES", "LIMIT", 0, _ACCOUNTS_MAX
        )
        announced = {name.decode(): until for name, until in zip(flat[::2], flat[1::2], strict=True)}
        answers = await asyncio.gather(*(self._due(name, now_ms - self._grace_ms) for name in announced))
        reaped = 0
        for name, due in zip(announced, answers, strict=True):
            if due:
                reaped += await self._reap(name, due, self._grace_ms)
            elif float(announced[name]) < now_ms and not await self._redis.call("ZCARD", keys.leases(name)):
                await self._redis.script(_FORGET, (keys.ACTIVE,), (name, announced[name]), int)
        return reaped

    async def _server_time_ms(self) -> int:
        seconds, micros = await self._redis.call("TIME")
        return int(seconds) * 1000 + int(micros) // 1000


def _allowances(account: str, sid: str, stored: bytes | None) -> Allowances:
    """What a stream had taken; nothing where its record says it in words that only another version knows."""
    owner = keys.limits_of(account)
    try:
        return Allowances.load(owner, stored) if stored else Allowances(owner)
    except msgspec.DecodeError:
        _log.warning("limits_unreadable", account=account, sid=sid)
        return Allowances(owner)
