"""The master that Sentinels name: asked for before every connection, so that a failover needs no restart.

All Sentinels are asked at once, and the answer of the newest election among most of them counts: one that was cut off
from the others still names the old master. A connection is dropped when it is lost or when the server says that it may
not write any more, and the next call asks again.
"""

import asyncio
import math

import msgspec
from redis.exceptions import NoPermissionError, ResponseError

from gateway.limits.redis import RedisOwner, StoreUnavailable, ask, connection_pool
from gateway.limits.redis_url import Address, SentinelServers
from gateway.tasks import TaskOwner


class _Answer(msgspec.Struct, frozen=True):
    epoch: int
    address: Address


class SentinelOwner(RedisOwner):
    """A ``RedisOwner`` that asks Sentinels where to connect to."""

    def __init__(self, servers: SentinelServers, *, timeout_s: float = 0.5) -> None:
        super().__init__(servers.masters.url(servers.masters.addresses[0], servers.database), timeout_s=timeout_s)
        self._servers = servers

    async def _connect(self) -> None:
        master = await self._resolve()
        self._pool = connection_pool(self._servers.masters.url(master, self._servers.database), self._timeout_s)
        await super()._connect()
        async with asyncio.timeout(self._timeout_s):
            await self._check_role()

    async def _check_role(self) -> None:
        """A Sentinel that is behind names a server that has been demoted: reads from it would be old."""
        assert self._connection is not None
        await self._connection.send_command("ROLE", check_health=False)
        try:
            role = await self._connection.read_response(disable_decoding=True, timeout=math.inf)
        except NoPermissionError:
            return  # READONLY tells the same with the first write
        if role[0] != b"master":
            raise StoreUnavailable(f"The server that the Sentinels call {self._servers.name} is no master.")

    async def _resolve(self) -> Address:
        addresses = self._servers.sentinels.addresses
        answers: list[_Answer] = []
        reasons: list[str] = []
        asking = TaskOwner()
        try:
            waiting = {asking.start(self._ask(address), f"sentinel {address}") for address in addresses}
            while waiting and len(answers) * 2 <= len(addresses):
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    answer = task.result()
                    answers.append(answer) if isinstance(answer, _Answer) else reasons.append(answer)
        finally:
            await asking.aclose()
        if not answers:
            raise StoreUnavailable(
                f"No Sentinel names a master {self._servers.name}: {'; '.join(sorted(set(reasons)))}"
            )
        return max(answers, key=lambda answer: answer.epoch).address

    async def _ask(self, sentinel: Address) -> _Answer | str:
        """The master as one Sentinel sees it, or why it names none."""
        url = self._servers.sentinels.url(sentinel)
        try:
            flat = await ask(url, "SENTINEL", "MASTER", self._servers.name, timeout_s=self._timeout_s)
        except (StoreUnavailable, ResponseError) as error:
            return str(error)
        fields = dict(zip(flat[::2], flat[1::2], strict=True))
        if {b"s_down", b"o_down"} & set(fields[b"flags"].split(b",")):
            return f"{sentinel} says that it is down"
        return _Answer(int(fields[b"config-epoch"]), Address(fields[b"ip"].decode(), int(fields[b"port"])))
