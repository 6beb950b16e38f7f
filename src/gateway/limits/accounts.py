"""Accounts, their wallets, and which of them a reaper has to look at."""

import time
from typing import Any

import msgspec

from gateway.limits import keys, scripts
from gateway.limits.redis import RedisOwner

_TIER_TTL_S = 5.0
_TIERS_CACHED_MAX = 10_000


class Wallet(msgspec.Struct, frozen=True, kw_only=True):
    """Amounts in µ$. ``absorbed`` is what the operator lost because the account could not cover it."""

    granted: int
    spent: int
    held: int
    absorbed: int

    @property
    def available(self) -> int:
        """What the account can still commit."""
        return self.granted - self.spent - self.held


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """An account as the admin API shows it; ``created_ms`` is Unix time."""

    id: str
    name: str
    tier: str | None
    created_ms: int


class Accounts:
    """Reads and writes accounts. Every method may raise ``StoreUnavailable``."""

    def __init__(self, redis: RedisOwner) -> None:
        self._redis = redis
        self._tiers: dict[str, tuple[float, str | None]] = {}

    async def create(self, account: str, *, name: str, tier: str | None) -> bool:
        """Create an account with an empty wallet; ``False`` where the id is taken."""
        created_ms = int(time.time() * 1000)
        fresh = await self._redis.call("HSETNX", keys.account(account), "created", created_ms)
        if not fresh:
            return False
        await self._redis.call("HSET", keys.account(account), "name", name, *(("tier", tier) if tier else ()))
        await self._redis.call("HSETNX", keys.wallet(account), "g", 0)
        await self._redis.call("ZADD", keys.ACCOUNTS, created_ms, account)
        return True

    async def get(self, account: str) -> Account | None:
        """One account, or ``None``."""
        fields = await self._redis.call("HMGET", keys.account(account), "created", "name", "tier")
        created, name, tier = (_text(field) for field in fields)
        if created is None:
            return None
        return Account(id=account, name=name or "", tier=tier, created_ms=int(created))

    async def ids(self, *, start: int, count: int) -> list[str]:
        """Account ids, newest first."""
        members = await self._redis.call("ZREVRANGE", keys.ACCOUNTS, start, start + count - 1)
        return [member.decode() for member in members]

    async def wallet(self, account: str) -> Wallet:
        """The account's balance; all zero where there is none."""
        fields = await self._redis.call("HMGET", keys.wallet(account), "g", "s", "h", "o")
        granted, spent, held, absorbed = (int(field or 0) for field in fields)
        return Wallet(granted=granted, spent=spent, held=held, absorbed=absorbed)

    async def grant(self, account: str, *, grant_id: str, amount: int) -> scripts.GrantReply:
        """Add credit once per ``grant_id``."""
        return await scripts.grant(self._redis, account, grant_id=grant_id, amount=amount)

    async def tier_of(self, account: str) -> str | None:
        """The account's tier, a few seconds old at most; ``None`` where it has none of its own."""
        now = time.monotonic()
        cached = self._tiers.get(account)
        if cached is not None and now < cached[0]:
            return cached[1]
        tier = _text(await self._redis.call("HGET", keys.account(account), "tier"))
        if len(self._tiers) >= _TIERS_CACHED_MAX:
            self._tiers.clear()
        self._tiers[account] = (now + _TIER_TTL_S, tier)
        return tier


def _text(field: Any) -> str | None:
    return None if field is None else field.decode()
