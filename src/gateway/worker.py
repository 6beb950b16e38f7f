"""One worker of several: a whole gateway, like a replica, that serves on a port which it shares with its siblings.

It takes its orders from its parent (``workers.py``) and ends with it, at once: as with any gateway that is killed, the
journal has what was sent. Its own SIGTERM begins the same drain, and a second one changes nothing.
"""

import asyncio
import os
import signal
import socket
from collections.abc import Callable
from types import FrameType

import uvloop

from gateway.app import Gateway
from gateway.config import Config, Environment
from gateway.embedded_redis import GuestRedis, die_with_parent
from gateway.http.front import App, Front, Receive, Scope, Send
from gateway.metric_sums import exposition, families_of
from gateway.server import GatewayServer, run_to_end
from gateway.tasks import TaskOwner
from gateway.worker_channel import Channel, Counts, CountsWanted, Drain, Ready, Reload

RELOAD_PATH = "/admin/v1/config/reload"
_COUNTS_S = 5.0
_ALONE_S = 0.25


class PortTaken(Exception):
    """The gateway cannot listen where it was told to."""


def port_sockets(host: str, port: int) -> list[socket.socket]:
    """Sockets for every address of ``host`` that share the port with other processes of this user; none listens yet.

    With port 0 all get the same free one. Raises ``OSError``.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    sockets: list[socket.socket] = []
    for family, kind, protocol, _, address in dict.fromkeys(found):
        made = socket.socket(family, kind, protocol)
        sockets.append(made)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        port = port or sockets[0].getsockname()[1]
        made.bind((address[0], port, *address[2:]))
    return sockets


class WorkerGateway(Gateway):
    """A gateway whose parent looks after the embedded Redis; ``on_reloaded`` hears of a reload over HTTP."""

    def __init__(self, config: Config, environment: Environment, on_reloaded: Callable[[], None]) -> None:
        super().__init__(config, environment)
        if self._embedded is not None:
            self._embedded = GuestRedis(self.data_dir / "redis")
        self.app = Front(_ReloadSeen(self._fastapi, on_reloaded), cors_origins=config.server.cors_origins)


class _ReloadSeen:
    """Passes everything on, and tells of a reload that succeeded."""

    def __init__(self, app: App, on_reloaded: Callable[[], None]) -> None:
        self._app = app
        self._on_reloaded = on_reloaded

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_reload = scope["type"] == "http" and scope["path"] == RELOAD_PATH and scope["method"] == "POST"

        async def send_and_tell(message: Scope) -> None:
            if message["type"] == "http.response.start" and message["status"] == 200:
                self._on_reloaded()
            await send(message)

        await self._app(scope, receive, send_and_tell if is_reload else send)


class _WorkerServer(GatewayServer):
    """One that was told to end alone leaves the port to its siblings; where all end, clients are told why."""

    _ends_with_all = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if not self.is_draining:
            super().handle_exit(sig, frame)
            asyncio.get_running_loop().call_soon_threadsafe(self._look_who_ends)

    def drain_with_all(self) -> None:
        """The parent has all of them end."""
        self._ends_with_all = True
        self.handle_exit(signal.SIGTERM, None)

    def _look_who_ends(self) -> None:
        """A signal to the whole group may come before the parent's word."""
        asyncio.get_running_loop().call_later(_ALONE_S, self._leave_port)

    def _leave_port(self) -> None:
        if self.started and not self._ends_with_all:
            for listening in self.servers:
                listening.close()


class _Leash:
    """What the parent asks for, and what it is asked."""

    def __init__(self, channel: Channel) -> None:
        self.server: _WorkerServer | None = None
        self._channel = channel
        self._waiting: list[asyncio.Future[bytes]] = []

    async def run(self, gateway: Gateway) -> None:
        """Do as the parent says; without it, end at once; a task root."""
        while (message := await self._channel.receive()) is not None:
            match message:
                case Drain():
                    self._drain()
                case Reload():
                    gateway.reload_asked.set()
                case CountsWanted():
                    self.tell_counts(gateway)
                case Counts(families):
                    waiting, self._waiting = self._waiting, []
                    exposed = exposition(families)
                    for answer in waiting:
                        if not answer.done():
                            answer.set_result(exposed)
        os._exit(128 + signal.SIGKILL)

    def _drain(self) -> None:
        if self.server is None:
            os._exit(128 + signal.SIGTERM)  # nothing runs yet
        self.server.drain_with_all()

    def tell_counts(self, gateway: Gateway) -> None:
        """Say what was counted here."""
        self._channel.send(Counts(families_of(gateway.telemetry.registry)))

    async def counts_of_all(self) -> bytes:
        """What all workers have counted; raises ``TimeoutError`` where the parent does not answer."""
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting.append(answer)
        self._channel.send(CountsWanted())
        async with asyncio.timeout(_COUNTS_S):
            return await answer


def run_worker(config: Config, environment: Environment, *, channel_fd: int, port: int) -> bool:
    """Run until told to end; returns whether it served. Raises what ``Gateway.running`` raises, and ``PortTaken``."""
    die_with_parent(signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal, which signals all; the parent says what follows
    os.set_inheritable(channel_fd, False)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_run(config, environment, socket.socket(fileno=channel_fd), port))


async def _run(config: Config, environment: Environment, end: socket.socket, port: int) -> bool:
    channel = await Channel.open(end)
    leash = _Leash(channel)
    gateway = WorkerGateway(config, environment, lambda: channel.send(Reload()))
    gateway.telemetry.of_all_workers = leash.counts_of_all
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, gateway.reload_asked.set)
    owner = TaskOwner()
    owner.start(leash.run(gateway), "leash")
    try:
        sockets = port_sockets(environment.host, port)
    except OSError as error:
        raise PortTaken from error
    async with gateway.running():
        leash.server = _WorkerServer(gateway, lambda _: channel.send(Ready()))
        served = await run_to_end(leash.server, sockets)
    leash.tell_counts(gateway)
    await owner.aclose()
    await channel.aclose()
    return served
