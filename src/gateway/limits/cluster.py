"""A cluster: one ``RedisOwner`` per master, and the map from a key's hash slot to the master that has it.

The map is asked for when it is missing, when a server says MOVED or CLUSTERDOWN, and when a connection is lost; calls
for a slot that nobody is known to have wait for the next one. Every key of an account has one slot, so a script runs on
one server as it does without a cluster.
"""

import asyncio
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
from redis.exceptions import AskError, ClusterDownError, MovedError, ResponseError

from gateway.limits.redis import Call, LuaSource, RedisOwner, StoreUnavailable, ask
from gateway.limits.redis_url import Address, Servers
from gateway.tasks import TaskOwner

T = TypeVar("T")

# First slot, last slot, who has them.
_Map = list[tuple[int, int, Address]]

_REDIRECTS_MAX = 5
_ASKED_AT_ONCE_MAX = 8
_REFRESH_PAUSE_S = 0.1
_WAITING_MAX = 20_000
_ASKING = b"*1\r\n$6\r\nASKING\r\n"

# Any server answers these; every other command that the gateway sends has its key in second place or is named below.
_KEYLESS = frozenset({"ACL", "CLUSTER", "CONFIG", "ECHO", "INFO", "PING", "PUBLISH", "ROLE", "SCRIPT", "TIME"})
_KEY_IN_THIRD_PLACE = frozenset({"MEMORY", "OBJECT", "XGROUP", "XINFO"})


def key_of(args: tuple[Any, ...]) -> str | bytes | None:
    """The first key of a command, ``None`` where any server will do."""
    command = str(args[0]).upper()
    if command in _KEYLESS or len(args) < 2:
        return None
    if command in ("XREAD", "XREADGROUP"):
        words = [str(arg).upper() for arg in args]
        return _text(args[words.index("STREAMS") + 1])
    return _text(args[2 if command in _KEY_IN_THIRD_PLACE else 1])


def slot_of(key: str | bytes) -> int:
    """The hash slot of a key."""
    return key_slot(key.encode() if isinstance(key, str) else key)


def _text(key: Any) -> str | bytes:
    return key if isinstance(key, (str, bytes)) else str(key)


class _RoutedCall(Call):
    """A call that knows its slot, and how often it was sent on."""

    __slots__ = ("redirects", "slot")

    redirects: int
    slot: int | None


class _Node(RedisOwner):
    """One master."""

    def __init__(self, cluster: "RedisCluster", address: Address, url: str, **options: Any) -> None:
        super().__init__(url, **options)
        self.listens_at = address
        self._cluster = cluster

    def _refuse(self, call: Call, error: ResponseError) -> None:
        if isinstance(error, AskError) and isinstance(call, _RoutedCall):  # MovedError is one
            self._cluster.redirect(call, error, self.listens_at)
            return
        if isinstance(error, ClusterDownError):
            self._cluster.look_again()
        super()._refuse(call, error)

    def _drop_link(self, *, is_broken: bool) -> None:
        self._cluster.look_again()
        super()._drop_link(is_broken=is_broken)


class _AskingNode(_Node):
    """A master that is just being given a slot: each call says that it was sent here."""

    def _send(self, batch: Sequence[Call], *, with_source: bool) -> None:
        for call in batch:
            self._on_way += (None, call)
        self._write(b"".join([_ASKING + (call.packed_with_source() if with_source else call.packed) for call in batch]))


class RedisCluster:
    """``Redis`` over the masters of a cluster; ``servers`` are the first ones to ask for the map."""

    def __init__(self, servers: Servers, *, timeout_s: float = 0.5) -> None:
        self._servers = servers
        self._timeout_s = timeout_s
        self._nodes: dict[Address, _Node] = {}
        self._asking_nodes: dict[Address, _AskingNode] = {}
        self._slots: list[_Node | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        self._homeless: list[_RoutedCall] = []
        self._is_stale = asyncio.Event()
        self._is_closed = False
        self._tasks = TaskOwner()
        self.on_round_trip: Callable[[float], None] = lambda seconds: None

    def start(self) -> None:
        """Start to ask for the map; call from a running loop."""
        self.look_again()
        self._tasks.start(self._run(), "redis-cluster")

    def call(self, *args: Any) -> asyncio.Future[Any]:
        """Send one command to the master that has its first key, or to any where it has none."""
        return self._send(args, None, None, key_of(args))

    def script(
        self, source: LuaSource, keys: tuple[str, ...], args: tuple[Any, ...], parse: Callable[[Any], T]
    ) -> asyncio.Future[T]:
        """Run one script where its first key is."""
        return self._send((len(keys), *keys, *args), source, parse, keys[0] if keys else None)

    async def masters(self) -> Sequence[RedisOwner]:
        """Every master that has slots."""
        await self.call("PING")
        return tuple(self._nodes.values())

    def _send(
        self,
        args: tuple[Any, ...],
        source: LuaSource | None,
        parse: Callable[[Any], Any] | None,
        key: str | bytes | None,
    ) -> asyncio.Future[Any]:
        call = _RoutedCall(args, source, parse, asyncio.get_running_loop().create_future())
        call.redirects = 0
        call.slot = None if key is None else slot_of(key)
        self._route(call)
        return call.future

    def _route(self, call: _RoutedCall) -> None:
        node = self._any_node() if call.slot is None else self._slots[call.slot]
        if node is not None:
            node.enqueue(call)
        elif self._is_closed or len(self._homeless) >= _WAITING_MAX:
            call.refuse(StoreUnavailable("The gateway is stopping." if self._is_closed else "Too many calls wait."))
        else:
            self._homeless.append(call)
            self.look_again()

    def _any_node(self) -> _Node | None:
        """One that answered lately, where there is one."""
        nodes = [node for node in self._nodes.values() if node.is_connected] or list(self._nodes.values())
        return random.choice(nodes) if nodes else None

    def redirect(self, call: _RoutedCall, error: AskError, answered: Address) -> None:
        """Send a call on to where a server says it belongs: MOVED for good, ASK this time only."""
        call.redirects += 1
        if isinstance(error, MovedError):
            self.look_again()
        if self._is_closed or call.redirects > _REDIRECTS_MAX:
            call.refuse(StoreUnavailable("The servers of the cluster do not agree where a key belongs."))
            return
        address = _known(error.host, error.port, answered)
        if isinstance(error, MovedError):
            node = self._slots[error.slot_id] = self._node(address)
            node.enqueue(call)
        else:
            self._asking_node(address).enqueue(call)

    def _node(self, address: Address) -> _Node:
        node = self._nodes.get(address)
        if node is None:
            node = _Node(self, address, self._servers.url(address), timeout_s=self._timeout_s)
            self._nodes[address] = self._started(node)
        return node

    def _asking_node(self, address: Address) -> _AskingNode:
        node = self._asking_nodes.get(address)
        if node is None:
            url = self._servers.url(address)
            node = _AskingNode(self, address, url, timeout_s=self._timeout_s, batch_max=1)
            self._started(node)
            self._asking_nodes[address] = node
        return node

    def _started(self, node: _Node) -> _Node:
        node.on_round_trip = lambda seconds: self.on_round_trip(seconds)
        node.start()
        return node

    def look_again(self) -> None:
        """The map may be wrong: ask for it soon."""
        self._is_stale.set()

    async def _run(self) -> None:
        while True:
            await self._is_stale.wait()
            self._is_stale.clear()
            reason = await self._refresh()
            homeless, self._homeless = self._homeless, []
            for call in homeless:
                if self._has_home(call):
                    self._route(call)
                else:
                    call.refuse(StoreUnavailable(reason or "No server of the cluster has this key's slot."))
            await asyncio.sleep(_REFRESH_PAUSE_S)

    def _has_home(self, call: _RoutedCall) -> bool:
        return bool(self._nodes) if call.slot is None else self._slots[call.slot] is not None

    async def _refresh(self) -> str:
        """Ask for the map and follow it; returns why there is none, or nothing."""
        answer = await self._first_answer()
        if isinstance(answer, str):
            return answer
        slots: list[_Node | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        for start, end, address in answer:
            slots[start : end + 1] = [self._node(address)] * (end + 1 - start)
        self._slots = slots
        known = {address for _, _, address in answer}
        for nodes in (self._nodes, self._asking_nodes):
            for address in [address for address in nodes if address not in known]:
                await nodes.pop(address).aclose()
        return ""

    async def _first_answer(self) -> _Map | str:
        """The map as the first server that answers has it, or why none does."""
        known = random.sample(list(self._nodes), min(len(self._nodes), _ASKED_AT_ONCE_MAX))
        first = [address for address in self._servers.addresses if address not in self._nodes]
        asking, reason = TaskOwner(), ""
        try:
            waiting = {
                asking.start(self._ask(address), f"cluster {address}")
                for address in (*known, *first[:_ASKED_AT_ONCE_MAX])
            }
            while waiting:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    answer: _Map | str = task.result()
                    if not isinstance(answer, str):
                        return answer
                    reason = answer
        finally:
            await asking.aclose()
        return reason

    async def _ask(self, address: Address) -> _Map | str:
        try:
            reply = await ask(self._servers.url(address), "CLUSTER", "SLOTS", timeout_s=self._timeout_s)
            return list(_ranges(reply, address)) or "The cluster has no slots yet."
        except (StoreUnavailable, ResponseError, TypeError, ValueError) as error:
            return str(error)

    async def aclose(self) -> None:
        """Stop every owner; calls that still wait fail, and so do later ones."""
        self._is_closed = True
        await self._tasks.aclose()
        for node in (*self._nodes.values(), *self._asking_nodes.values()):
            await node.aclose()
        while self._homeless:
            self._homeless.pop().refuse(StoreUnavailable("The gateway is stopping."))


def _ranges(reply: Any, answered: Address) -> Iterator[tuple[int, int, Address]]:
    """CLUSTER SLOTS: [first slot, last slot, [host, port, …] of the master, replicas …] each."""
    for start, end, master, *_ in reply:
        yield start, end, _known((master[0] or b"").decode(), master[1], answered)


def _known(host: str, port: int, answered: Address) -> Address:
    """A server that does not know its own name says nothing or ?, which means: the host you have reached me at."""
    return Address(answered.host if host in ("", "?") else host, port)
