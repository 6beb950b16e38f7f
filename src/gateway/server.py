"""uvicorn, with our own idea of how a process that serves streams stops.

The first SIGTERM or SIGINT begins the drain: new requests get a 503, running streams may finish within the grace, the
rest are ended with an error event and settled. The second one ends the process at once; the journal has the truth.
SIGHUP reads the configuration again.
"""

import asyncio
import gc
import os
import signal
import socket
from collections.abc import Callable
from types import FrameType

import structlog
import uvicorn
import uvloop

from gateway.app import Gateway
from gateway.http.server_protocol import GuardedProtocol
from gateway.http.socket_protocol import GuardedSocket

_log = structlog.get_logger()

# Longer than any drain: uvicorn only has to wait for what the drain left, and cancels what is left then.
_AFTER_DRAIN_S = 5
_GC_THRESHOLD = 20_000


class GatewayServer(uvicorn.Server):
    """Serves one ``Gateway``. ``on_ready`` is called with the port once requests are accepted."""

    def __init__(self, gateway: Gateway, on_ready: Callable[[int], None]) -> None:
        environment, server = gateway.environment, gateway.config.server
        super().__init__(
            uvicorn.Config(
                gateway.app,
                host=environment.host,
                port=environment.port,
                http=GuardedProtocol,
                ws=GuardedSocket,
                ws_ping_timeout=server.send_timeout_s,
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                backlog=4096,
                timeout_keep_alive=75,
                timeout_graceful_shutdown=_AFTER_DRAIN_S,
            )
        )
        self._gateway = gateway
        self._on_ready = on_ready
        self._drain: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            # What start-up made stays for good: keep it out of every later garbage collection, and have those seldom.
            gc.collect()
            gc.freeze()
            gc.set_threshold(_GC_THRESHOLD)
            self._on_ready(self.servers[0].sockets[0].getsockname()[1])

    @property
    def is_draining(self) -> bool:
        """Whether it was told to end."""
        return self._gateway.live.is_draining

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called by the signal handler, between two turns of the loop or within one."""
        if self.is_draining:
            os._exit(128 + sig)
        self._gateway.live.is_draining = True
        asyncio.get_running_loop().call_soon_threadsafe(self._begin_drain)

    def _begin_drain(self) -> None:
        _log.info(
            "draining",
            streams=len(self._gateway.live),
            grace_s=self._gateway.config.server.drain_s,
            advice="running streams may finish; another signal ends them now",
        )
        self._drain = asyncio.get_running_loop().create_task(self._drain_and_exit(), name="drain")

    async def _drain_and_exit(self) -> None:
        await self._gateway.live.drain(self._gateway.config.server.drain_s)
        self.should_exit = True


def serve(gateway: Gateway, on_ready: Callable[[int], None]) -> bool:
    """Run until a signal; returns whether it served. Raises what ``Gateway.running`` raises."""

    has_terminal = os.isatty(0)

    def hang_up() -> None:
        if has_terminal and not os.isatty(0):  # a closed window means the end, not another look at the file
            signal.raise_signal(signal.SIGTERM)
        else:
            gateway.reload_asked.set()

    async def run() -> bool:
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, hang_up)
        async with gateway.running():
            return await run_to_end(GatewayServer(gateway, on_ready))

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(run())


async def run_to_end(server: GatewayServer, sockets: list[socket.socket] | None = None) -> bool:
    """Serve until the drain is over, on ``sockets`` where they are given; returns whether it served."""
    await server.serve(sockets)
    # Requests that uvicorn cancelled at the last moment run their ends before anything is taken from them.
    if server.server_state.tasks:
        await asyncio.wait(server.server_state.tasks, timeout=_AFTER_DRAIN_S)
    return server.started
