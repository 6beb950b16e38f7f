"""The master that Sentinels name: asked for before every connection, so that a failover needs no restart.

All Sentinels are asked at once, and the answer of the newest election among most of them counts: one that was cut off
from the others still names the old master. A connection is dropped when it is lost, when the server says that it may
not write any more, and as soon as the Sentinels name another: the old master takes writes for some ten seconds after a
failover, and all of them are lost.
"""

import asyncio
import math

import msgspec
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import NoPermissionError, ResponseError

from gateway.limits.redis import RedisOwner, StoreUnavailable, connection_pool, hang_up
from gateway.limits.redis_url import Address, SentinelServers
from gateway.tasks import TaskOwner

_WATCH_S = 0.5


class _Answer(msgspec.Struct, frozen=True):
    epoch: int
    address: Address


class SentinelOwner(RedisOwner):
    """A ``RedisOwner`` that asks Sentinels where to connect to."""

    def __init__(self, servers: SentinelServers, *, timeout_s: float = 0.5) -> None:
        super().__init__(servers.masters.url(servers.masters.addresses[0], servers.database), timeout_s=timeout_s)
        self._servers = servers
        self._sentinels = [
            RedisOwner(servers.sentinels.url(address), timeout_s=timeout_s) for address in servers.sentinels.addresses
        ]
        self._master: Address | None = None
        self._watch = TaskOwner()

    def start(self) -> None:
        """Start the owner task, and to watch for failovers; call from a running loop."""
        for sentinel in self._sentinels:
            sentinel.start()
        self._watch.start(self._watch_for_ever(), "redis-sentinel")
        super().start()

    async def aclose(self) -> None:
        """Stop the owner and the watch; calls that still wait fail, and so do later ones."""
        await self._watch.aclose()
        await super().aclose()
        for sentinel in self._sentinels:
            await sentinel.aclose()

    async def _watch_for_ever(self) -> None:
        while True:
            await asyncio.sleep(_WATCH_S)
            try:
                master = await self._resolve()
            except StoreUnavailable:
                continue
            if self.is_connected and master != self._master:
                self._fail(StoreUnavailable("The master has changed."))  # its callers repeat what was on its way

    async def _connect(self) -> AbstractConnection:
        master = self._master = await self._resolve()
        self._pool = connection_pool(self._servers.masters.url(master, self._servers.database), self._timeout_s)
        connection = await super()._connect()
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._check_role(connection)
        except BaseException:
            await hang_up(connection)
            raise
        return connection

    async def _check_role(self, connection: AbstractConnection) -> None:
        """A Sentinel that is behind names a server that has been demoted: reads from it would be old."""
        await connection.send_command("ROLE", check_health=False)
        try:
            role = await connection.read_response(disable_decoding=True, timeout=math.inf)
        except NoPermissionError:
            return  # READONLY tells the same with the first write
        if role[0] != b"master":
            raise StoreUnavailable(f"The server that the Sentinels call {self._servers.name} is no master.")

    async def _resolve(self) -> Address:
        answers: list[_Answer] = []
        reasons: list[str] = []
        asking = TaskOwner()
        try:
            waiting = {asking.start(self._ask(sentinel), "ask-sentinel") for sentinel in self._sentinels}
            while waiting and len(answers) * 2 <= len(self._sentinels):
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

    async def _ask(self, sentinel: RedisOwner) -> _Answer | str:
        """The master as one Sentinel sees it, or why it names none."""
        try:
            flat = await sentinel.call("SENTINEL", "MASTER", self._servers.name)
        except (StoreUnavailable, ResponseError) as error:
            return str(error)
        fields = dict(zip(flat[::2], flat[1::2], strict=True))
        if {b"s_down", b"o_down"} & set(fields[b"flags"].split(b",")):
            return f"{sentinel.address} says that it is down"
        return _Answer(int(fields[b"config-epoch"]), Address(fields[b"ip"].decode(), int(fields[b"port"])))
