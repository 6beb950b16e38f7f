"""Whether a Redis can be trusted with money; looked at once, at start-up."""

from typing import Any

import structlog

from gateway.limits.redis import RedisOwner

_log = structlog.get_logger()

_VERSION_MIN = (6, 2)


class UnfitRedis(Exception):
    """This Redis would lose or evict what the gateway keeps in it."""


async def check_redis(redis: RedisOwner) -> None:
    """Raises ``UnfitRedis``; warns about what costs safety but works."""
    info = _parse(await redis.call("INFO"))
    version = tuple(int(part) for part in info.get("redis_version", "0").split(".")[:2])
    if version < _VERSION_MIN:
        raise UnfitRedis(f"Redis {info.get('redis_version')} is too old; 6.2 is the oldest that works.")
    if info.get("role") == "slave":
        raise UnfitRedis("This Redis is a replica; the gateway has to write.")
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction" and info.get("maxmemory", "0") != "0":
        raise UnfitRedis(
            f"maxmemory-policy is {policy}: this Redis may evict balances. Set it to noeviction, or use another Redis."
        )
    if policy != "noeviction":
        _log.warning("redis_policy", policy=policy, advice="set maxmemory-policy noeviction before setting maxmemory")
    if info.get("aof_enabled") == "0":
        _log.warning("redis_not_persistent", advice="set appendonly yes, or balances are lost when Redis restarts")


def _parse(info: Any) -> dict[str, str]:
    lines = info.decode().splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line and not line.startswith("#"))
