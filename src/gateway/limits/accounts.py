"""Accounts, their wallets, and which of them a reaper has to look at."""

import time
from typing import Any

import msgspec

from gateway.limits import keys
from gateway.limits.redis import retrying
from gateway.limits.revocations import STANDING_PREFIX, revoke
from gateway.limits.scripts import GrantReply, Scripts

_STANDING_TTL_S = 5.0
_SUSPEND_S = 5.0
_STANDINGS_MAX = 10_000


class Wallet(msgspec.Struct, frozen=True, kw_only=True):
    """Amounts in µ$. ``absorbed`` is what the operator lost because the account could not cover it."""

    granted: int
    spent: int
    held: int
    absorbed: int
    is_suspended: bool = False

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


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """What applies to an account: its own tier, and the model that answers it until ``downgraded_until`` (Unix s)."""

    tier: str | None
    downgraded_to: str | None = None
    downgraded_until: float = 0.0


class Accounts:
    """Reads and writes accounts. Every method may raise ``StoreUnavailable``."""

    def __init__(self, scripts: Scripts) -> None:
        self._scripts = scripts
        self._redis = scripts.redis
        self._standings: dict[str, tuple[float, Standing]] = {}

    async def create(self, account: str, *, name: str, tier: str | None) -> bool:
        """Create an account with an empty wallet; ``False`` where the id is taken."""
        created_ms = int(time.time() * 1000)
        fresh = await self._redis.call("HSETNX", keys.account(account), "created", created_ms)
        if fresh:
            await self._redis.call("HSET", keys.account(account), "name", name, *(("tier", tier) if tier else ()))
        # Also for one that exists: whoever began to make it may have been killed half-way.
        await self._redis.call("HSETNX", keys.wallet(account), "g", 0)
        await self._redis.call("ZADD", keys.ACCOUNTS, "NX", created_ms, account)
        return bool(fresh)

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
        fields = await self._redis.call("HMGET", keys.wallet(account), "g", "s", "h", "o", "x")
        granted, spent, held, absorbed = (int(field or 0) for field in fields[:4])
        return Wallet(granted=granted, spent=spent, held=held, absorbed=absorbed, is_suspended=fields[4] is not None)

    async def grant(self, account: str, *, grant_id: str, amount: int) -> GrantReply:
        """Add credit once per ``grant_id``."""
        return await self._scripts.grant(account, grant_id=grant_id, amount=amount)

    async def change_tier(self, account: str, tier: str | None) -> None:
        """Put an account into a tier; its next request counts."""
        if tier is None:
            await self._redis.call("HDEL", keys.account(account), "tier")
        else:
            await self._redis.call("HSET", keys.account(account), "tier", tier)
        await self._tell_all(account)

    async def suspend(self, account: str) -> None:
        """Refuse new requests and end those that run, here and on every other gateway within a second."""
        await retrying(lambda: self._redis.call("HSET", keys.wallet(account), "x", 1), _SUSPEND_S)
        await revoke(self._redis, account)

    async def resume(self, account: str) -> None:
        """Take a suspension back."""
        await self._redis.call("ZREM", keys.REVOKED, account)
        await self._redis.call("HDEL", keys.wallet(account), "x")

    async def downgrade(self, account: str, model: str, until: float) -> None:
        """Answer with another model until then (Unix seconds)."""
        await self._redis.call("HSET", keys.account(account), "down", model, "down_until", int(until * 1000))
        await self._tell_all(account)

    async def _tell_all(self, account: str) -> None:
        """Have every gateway read the account's standing anew, within half a second."""
        self._standings.pop(account, None)
        await revoke(self._redis, f"{STANDING_PREFIX}{account}")

    def forget(self, name: str) -> None:
        """Read the standing of ``standing:<account>`` anew: it was changed somewhere."""
        self._standings.pop(name.removeprefix(STANDING_PREFIX), None)

    async def standing(self, account: str) -> Standing:
        """Which tier and model apply to the account, a few seconds old at most."""
        now = time.monotonic()
        cached = self._standings.get(account)
        if cached is not None and now < cached[0]:
            return cached[1]
        fields = await self._redis.call("HMGET", keys.account(account), "tier", "down", "down_until")
        tier, model, until = (_text(field) for field in fields)
        standing = Standing(tier=tier, downgraded_to=model, downgraded_until=int(until or 0) / 1000)
        if len(self._standings) >= _STANDINGS_MAX:
            self._standings.clear()
        self._standings[account] = (now + _STANDING_TTL_S, standing)
        return standing


def _text(field: Any) -> str | None:
    return None if field is None else field.decode()
