"""The parent of several workers: it keeps the port and the embedded Redis, and as many processes as were asked for.

The parent serves nothing itself. The first worker makes what a first start makes, alone; the others follow. A worker
that ends unasked is replaced, after a pause that grows while they end soon. Workers are told to end by a message, so
that they may drain, and are killed by a second signal.
"""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge

from gateway.config import ConfigError, Environment
from gateway.embedded_redis import EmbeddedRedis
from gateway.metric_sums import Family, counting, families_of, summed
from gateway.tasks import TaskOwner
from gateway.worker import PortTaken, port_sockets
from gateway.worker_channel import Channel, Counts, CountsWanted, Drain, Message, Ready, Reload

_log = structlog.get_logger()

_GATHER_S = 1.0
_PAUSE_S = 0.2
_PAUSE_MAX_S = 30.0
_LASTING_S = 10.0
_END_S = 10.0
_FAILURES_MAX = 5


class _Worker:
    """A worker's process as its parent knows it."""

    def __init__(self, number: int, process: Process, channel: Channel) -> None:
        self.number = number
        self.process = process
        self.channel = channel
        self.is_ready = False
        self.counts: tuple[Family, ...] = ()
        self.told = asyncio.Event()
        self.told.set()

    async def ask_counts(self) -> None:
        """Have it say what it counted; whoever asks meanwhile gets the same answer."""
        if self.told.is_set():
            self.told.clear()
            self.channel.send(CountsWanted())
        await self.told.wait()

    def hear_counts(self, families: tuple[Family, ...]) -> None:
        """It said so."""
        self.counts = families
        self.told.set()


class Supervisor:
    """Runs workers on one port."""

    def __init__(self, environment: Environment, workers: int) -> None:
        self._environment = environment
        self._count = workers
        self._port = 0
        self._workers: dict[int, _Worker] = {}
        self._departed: tuple[Family, ...] = ()
        self._tasks = TaskOwner()
        self._changed = asyncio.Condition()
        self._has_started = False
        self._has_failed = False
        self._stopping = asyncio.Event()
        self._second_signal = 0
        registry = self._registry = CollectorRegistry()
        self._alive = Gauge("gateway_workers", "Workers that serve.", registry=registry)
        self._alive.set_function(self._ready)
        self._replaced = Counter("gateway_workers_replaced", "Workers that ended unasked.", registry=registry)

    async def run(self, on_ready: Callable[[int], None]) -> int:
        """Run until a signal; returns the exit code. Raises ``PortTaken``, ``ConfigError`` and ``NoRedis``."""
        with contextlib.ExitStack() as held:
            try:
                self._port = _reserve(self._environment, held)
            except OSError as error:
                raise PortTaken from error
            async with self._redis():
                self._listen_to_signals()
                keepers = [self._tasks.start(self._keep(0), "worker-0")]
                if await self._until_ready(1):
                    rest = range(1, self._count)
                    keepers += [self._tasks.start(self._keep(number), f"worker-{number}") for number in rest]
                    if await self._until_ready(self._count):
                        self._has_started = True
                        on_ready(self._port)
                await asyncio.gather(*keepers)
                await self._tasks.aclose()
        return 128 + self._second_signal if self._second_signal else int(self._has_failed)

    @contextlib.asynccontextmanager
    async def _redis(self) -> AsyncIterator[None]:
        """The embedded Redis, where it is in use."""
        data_dir = self._environment.data_dir
        try:
            data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise ConfigError(f"GATEWAY_DATA_DIR: {data_dir} cannot be used: {error.strerror}") from None
        async with contextlib.AsyncExitStack() as stack:
            if not self._environment.redis_url:
                embedded = EmbeddedRedis(data_dir / "redis", fsync=self._environment.redis_fsync)
                await embedded.start()
                stack.push_async_callback(embedded.stop)
                owner = TaskOwner()
                owner.start(embedded.supervise(), "embedded-redis")
                stack.push_async_callback(owner.aclose)
            yield

    def _listen_to_signals(self) -> None:
        loop, has_terminal = asyncio.get_running_loop(), os.isatty(0)

        def hang_up() -> None:
            if has_terminal and not os.isatty(0):  # a closed window means the end, not another look at the file
                self._on_signal(signal.SIGTERM)
            else:
                self._tell(Reload())

        loop.add_signal_handler(signal.SIGHUP, hang_up)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)

    def _on_signal(self, number: signal.Signals) -> None:
        if self._stopping.is_set():
            self._second_signal = number
            for worker in self._workers.values():
                _kill(worker.process)
        self._stop()

    def _stop(self) -> None:
        self._stopping.set()
        self._tell(Drain())
        self._tasks.start(self._notify(), "stopping")

    def _tell(self, message: Message, *, but: _Worker | None = None) -> None:
        for worker in self._workers.values():
            if worker is not but:
                worker.channel.send(message)

    def _ready(self) -> int:
        return sum(worker.is_ready for worker in self._workers.values())

    async def _until_ready(self, count: int) -> bool:
        """Whether so many came to serve before the end."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._stopping.is_set() or self._ready() >= count)
        return not self._stopping.is_set()

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _keep(self, number: int) -> None:
        """Keep one worker running until the end; a task root."""
        failures = 0
        while not self._stopping.is_set():
            since = asyncio.get_running_loop().time()
            was_ready, code = await self._run_one(number)
            if self._stopping.is_set():
                return
            if not was_ready and self._is_hopeless(failures):
                self._has_failed = True
                self._stop()
                return
            failures = 0 if asyncio.get_running_loop().time() - since > _LASTING_S else failures + 1
            pause_s = min(_PAUSE_MAX_S, _PAUSE_S * 2 ** (failures - 1)) if failures > 1 else 0.0
            _log.warning("worker_ended", worker=number, exit_code=code, again_in_s=pause_s)
            self._replaced.inc()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._stopping.wait()

    def _is_hopeless(self, failures: int) -> bool:
        """Whether a worker that did not come to serve ends them all: at the start, or when no other serves either."""
        return not self._has_started or (failures >= _FAILURES_MAX and not self._ready())

    async def _run_one(self, number: int) -> tuple[bool, int]:
        """One process from its start to its end; whether it came to serve, and its exit code."""
        try:
            worker = self._workers[number] = await self._spawn(number)
        except OSError as error:
            _log.warning("worker_not_started", worker=number, reason=str(error))
            return False, os.EX_OSERR
        if self._stopping.is_set():
            worker.channel.send(Drain())
        while (message := await worker.channel.receive()) is not None:
            await self._hear(worker, message)
        del self._workers[number]
        self._departed = counting(summed((self._departed, worker.counts)))
        worker.told.set()
        await worker.channel.aclose()
        return worker.is_ready, await _ended(worker.process)

    async def _spawn(self, number: int) -> _Worker:
        ours, theirs = socket.socketpair()
        with theirs:
            command = (sys.executable, "-P", "-m", "gateway", "worker", str(number))
            process = await asyncio.create_subprocess_exec(
                *(*command, "--channel", str(theirs.fileno()), "--port", str(self._port)),
                stdin=DEVNULL,
                pass_fds=(theirs.fileno(),),
            )
        return _Worker(number, process, await Channel.open(ours))

    async def _hear(self, worker: _Worker, message: Message) -> None:
        match message:
            case Ready():
                worker.is_ready = True
                await self._notify()
            case Reload():
                self._tell(message, but=worker)
            case Counts(families):
                worker.hear_counts(families)
            case CountsWanted():
                self._tasks.start(self._answer(worker), "counts")

    async def _answer(self, asking: _Worker) -> None:
        """Gather what all have counted; of one that does not answer, what it told last."""
        asked: list[Coroutine[Any, Any, None]] = [w.ask_counts() for w in self._workers.values() if w.is_ready]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_GATHER_S):
                await asyncio.gather(*asked)
        told = [worker.counts for worker in self._workers.values()]
        asking.channel.send(Counts(summed((families_of(self._registry), self._departed, *told))))


def _reserve(environment: Environment, held: contextlib.ExitStack) -> int:
    """Keep the port until the end; returns it. Raises ``OSError`` where another serves there."""
    if environment.port:
        for family, kind, protocol, _, address in socket.getaddrinfo(
            environment.host, environment.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            with socket.socket(family, kind, protocol) as probe:  # the port of other workers could be shared
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
    sockets = [held.enter_context(kept) for kept in port_sockets(environment.host, environment.port)]
    port: int = sockets[0].getsockname()[1]
    return port


def _kill(process: Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()


async def _ended(process: Process) -> int:
    """The exit code of a worker that speaks no more."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_END_S):
            return await process.wait()
    _kill(process)
    return await process.wait()


def supervise(environment: Environment, workers: int, on_ready: Callable[[int], None]) -> int:
    """Run workers until a signal; returns the exit code. Raises what ``Supervisor.run`` raises."""

    async def run() -> int:
        return await Supervisor(environment, workers).run(on_ready)

    return asyncio.run(run())
