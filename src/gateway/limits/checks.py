"""Whether a Redis can be trusted with money; looked at once, at start-up.

What would lose or evict balances is refused; what costs safety but works is warned of. What this user may not ask is
said and not held against the server.
"""

from typing import Any, Literal

import structlog
from redis.exceptions import ResponseError

from gateway.limits.cluster import RedisCluster
from gateway.limits.redis import Redis, RedisOwner

_log = structlog.get_logger()

_VERSION_MIN = (6, 2)

Durability = Literal["aof", "none"]


class UnfitRedis(Exception):
    """This Redis would lose or evict what the gateway keeps in it."""


async def check_redis(redis: Redis, *, durability: Durability = "aof", is_own: bool = False) -> None:
    """Look at every master. Raises ``UnfitRedis``, and ``StoreUnavailable`` where one does not answer.

    ``durability="none"`` accepts a Redis that keeps no append-only file, or a service that does not show one. One that
    ``is_own`` was started by the gateway as it was told to.
    """
    for master in await redis.masters():
        await _check_master(master, durability, is_cluster=isinstance(redis, RedisCluster), is_own=is_own)


async def _check_master(redis: RedisOwner, durability: Durability, *, is_cluster: bool, is_own: bool) -> None:
    try:
        info = _parse(await redis.call("INFO"))
    except ResponseError as error:
        _log.warning("redis_unchecked", command="INFO", reason=str(error), advice="allow +info to have it checked")
        return
    _check_server(info, is_cluster=is_cluster)
    _check_memory(info)
    _check_durability(info, durability)
    if info.get("aof_enabled") == "1" and not is_own:
        await _check_fsync(redis)
    _check_replicas(info)
    if redis.is_exposed:
        _log.warning("redis_not_encrypted", address=redis.address, advice="use rediss://, or a private network")


def _check_server(info: dict[str, str], *, is_cluster: bool) -> None:
    version = tuple(int(part) for part in info.get("redis_version", "0").split(".")[:2])
    if version < _VERSION_MIN:
        raise UnfitRedis(f"Redis {info.get('redis_version')} is too old; 6.2 is the oldest that works.")
    if info.get("role") == "slave":
        raise UnfitRedis("This Redis is a replica; the gateway has to write. Give it the master, or the Sentinels.")
    if info.get("cluster_enabled") == "1" and not is_cluster:
        raise UnfitRedis("This Redis is part of a cluster: write redis+cluster:// or rediss+cluster:// in its URL.")


def _check_memory(info: dict[str, str]) -> None:
    policy, limit = info.get("maxmemory_policy", "noeviction"), int(info.get("maxmemory", "0"))
    if policy != "noeviction" and limit:
        raise UnfitRedis(
            f"maxmemory-policy is {policy}: this Redis may evict balances. Set it to noeviction, or use another Redis."
        )
    if policy != "noeviction":
        _log.warning("redis_policy", policy=policy, advice="set maxmemory-policy noeviction before setting maxmemory")
    used = int(info.get("used_memory", "0"))
    if 0 < limit < 2 * used:
        _log.warning(
            "redis_memory", maxmemory=limit, used=used, advice="give it twice what it uses; full, it admits nobody"
        )


def _check_durability(info: dict[str, str], durability: Durability) -> None:
    if info.get("aof_enabled") != "0":
        return
    if durability == "aof":
        raise UnfitRedis(
            "This Redis keeps no append-only file (appendonly no): balances would be lost when it restarts. Set "
            "appendonly yes in it. If it is a service that keeps its data in another way, or losing balances is "
            "acceptable here, set `redis: {durability: none}` in the gateway's configuration."
        )
    _log.warning("redis_not_persistent", advice="set appendonly yes, or balances are lost when Redis restarts")


async def _check_fsync(redis: RedisOwner) -> None:
    try:
        reply = await redis.call("CONFIG", "GET", "appendfsync")
    except ResponseError as error:  # services have no CONFIG, and an ACL may keep it for others
        _log.warning(
            "redis_unchecked", command="CONFIG GET appendfsync", reason=str(error), advice="see that it is always"
        )
        return
    policy = reply[1].decode() if len(reply) > 1 else "always"
    if policy != "always":
        _log.warning(
            "redis_fsync",
            policy=policy,
            advice="set appendfsync always, or what was charged last is lost with the machine",
        )


def _check_replicas(info: dict[str, str]) -> None:
    # INFO names the good replicas only where min-replicas-to-write asks for some.
    if int(info.get("connected_slaves", "0")) and "min_slaves_good_slaves" not in info:
        _log.warning(
            "redis_replicas",
            connected=int(info["connected_slaves"]),
            advice="set min-replicas-to-write 1, or a master that was cut off takes charges that a failover loses",
        )


def _parse(info: Any) -> dict[str, str]:
    lines = info.decode().splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line and not line.startswith("#"))
