"""What `benchmarks.instructions` counts: a gateway in this process, handed requests as bytes, one after the other.

The gateway, its Redis, the server's protocol and the connection to the provider are the real ones; both sockets beyond
them are made up, so that nothing depends on what arrives when. What is counted stands between two calls of a C function
that nothing else calls and for which callgrind looks; without callgrind they do nothing. Clocks and garbage collection
are off while it counts.
"""

import asyncio
import contextlib
import gc
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from functools import partial
from typing import Any
from unittest.mock import patch

import httptools
import msgspec
import uvloop
from hiredis import pack_command

from benchmarks.answers import script_of
from gateway.app import Gateway
from gateway.config import Config, Environment
from gateway.http.server_protocol import GuardedProtocol
from gateway.identity.keys import ApiKeys
from gateway.limits.accounts import Accounts
from gateway.limits.connect import open_redis
from gateway.limits.redis import Redis
from gateway.limits.scripts import Scripts, SettleReply
from gateway.limits.settlements import Settlement, Settlements
from gateway.providers.connection import Connection
from gateway.providers.dialing import Origin
from gateway.server import GatewayServer
from gateway.telemetry import configure_logs

# The function that `mark` calls, by its name in the C library.
MARKER = "getpriority"
# Set where callgrind waits to be switched on.
COUNTS = "COUNTED_BY_CALLGRIND"
CALIBRATION = "calibration"
SHORT, LONG = 16, 80
WARM_UP, REPEATS = 10, 5
CALIBRATION_TURNS, C_SHARE = 40, 4

_PRICE = {"input": 0.15, "output": 0.60}
_PROVIDER = {"base_url": "http://127.0.0.1:1/v1", "api_key": "sk-counted", "price": _PRICE}
_CONFIG = {
    "providers": {"openai": {"type": "openai"} | _PROVIDER, "claude": {"type": "anthropic"} | _PROVIDER},
    "tiers": {"default": {"requests": {"limit": 100_000_000, "period_s": 60}, "concurrent_streams": 100_000}},
}
_PROMPT = "Explain in a few sentences how a sailing boat can move against the wind. " * 4
_ANSWER_LIMIT_S = 60.0
# The only tasks that a request needs; all others are a clock's, which depends on how fast the machine is.
_NEEDED_TASKS = {"redis-owner", "settlements"}


def mark() -> None:
    """Let callgrind write down what it has counted since the last time."""
    os.getpriority(os.PRIO_PROCESS, 0)


class Counting:
    """Remembers what was counted, in order."""

    def __init__(self) -> None:
        self.names: list[str] = []

    @contextlib.contextmanager
    def of(self, name: str) -> Iterator[None]:
        self.names.append(name)
        mark()
        yield
        mark()


class MadeUpSocket(asyncio.Transport):
    """Takes everything at once."""

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 1) if name in ("peername", "sockname") else default

    def is_closing(self) -> bool:
        return False

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def abort(self) -> None:
        pass

    def close(self) -> None:
        pass


class ProviderSocket(MadeUpSocket):
    """Answers whatever it is sent with the dialer's pieces, one for each turn of the loop, as a paced stream comes."""

    def __init__(self, dialer: "MadeUpDialer", connection: Connection) -> None:
        super().__init__()
        self._dialer = dialer
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._left: Iterator[bytes] = iter(())

    def write(self, data: Any) -> None:
        self._left = iter(self._dialer.pieces)
        self._loop.call_soon(self._send_one)

    def abort(self) -> None:
        self._loop.call_soon(self._connection.connection_lost, None)

    def _send_one(self) -> None:
        piece = next(self._left, None)
        if piece is not None:
            self._connection.data_received(piece)
            self._loop.call_soon(self._send_one)


class MadeUpDialer:
    """Stands for the one that makes connections to providers."""

    def __init__(self) -> None:
        self.pieces: Sequence[bytes] = ()
        # A connection asks the kernel whether it is still there; these are, and silent.
        self._pair = socket.socketpair()

    async def dial(self, origin: Origin, limit_s: float, on_lost: Callable[[Connection], None]) -> Connection:
        connection = Connection(self._pair[0], on_lost)
        connection.connection_made(ProviderSocket(self, connection))
        return connection

    async def aclose(self) -> None:
        for end in self._pair:
            end.close()


class ClientSocket(MadeUpSocket):
    """Keeps what the gateway sends."""

    def __init__(self) -> None:
        super().__init__()
        self.received: list[bytes] = []

    def write(self, data: Any) -> None:
        self.received.append(data)


def pieces_of(chunks: int, *, is_anthropic: bool) -> list[bytes]:
    """A provider's answer as it is read: the head with the first word, then word by word."""
    script = script_of(f"burst-1x{chunks}", True, is_anthropic)
    return [script.opening, *script.rest]


def request_of(key: str, model: str, *, stream: bool) -> bytes:
    """What an SDK sends."""
    messages = [{"role": "system", "content": "You answer briefly."}, {"role": "user", "content": _PROMPT}]
    body = json.dumps({"model": model, "messages": messages, "stream": stream, "temperature": 0.7}).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: gateway.example\r\naccept: application/json\r\n"
        f"authorization: Bearer {key}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        "accept-encoding: gzip, deflate\r\nuser-agent: OpenAI/Python 2.8.0\r\nx-stainless-lang: python\r\n"
        "x-stainless-retry-count: 0\r\nconnection: keep-alive\r\n\r\n"
    )
    return head.encode() + body


class Bench:
    """A running gateway with one client."""

    def __init__(self, gateway: Gateway, dialer: MadeUpDialer, settlements: Settlements) -> None:
        self._dialer = dialer
        self._server = GatewayServer(gateway, lambda port: None)
        self._client = ClientSocket()
        self._protocol: GuardedProtocol | None = None
        self._on_posted, settlements.on_posted = settlements.on_posted, self._posted
        self._settled = asyncio.get_running_loop().create_future()

    def _posted(self, settlement: Settlement, reply: SettleReply) -> None:
        self._on_posted(settlement, reply)
        self._settled.set_result(None)

    async def ask(self, request: bytes, pieces: Sequence[bytes]) -> None:
        """Hand over a request, and wait until it is answered and paid for."""
        if self._protocol is None:  # within the loop's turn in which it gets its first request
            self._protocol = GuardedProtocol(self._server.config, self._server.server_state, {})
            self._protocol.connection_made(self._client)
        self._settled = asyncio.get_running_loop().create_future()
        self._dialer.pieces = pieces
        self._client.received.clear()
        self._protocol.data_received(request)
        await self._settled
        while self._server.server_state.tasks:
            await asyncio.sleep(0)

    async def repeat(self, counting: Counting, name: str, request: bytes, pieces: Sequence[bytes]) -> None:
        """Ask several times, the first of them uncounted: holds and caches find their size."""
        async with asyncio.timeout(_ANSWER_LIMIT_S):
            for _ in range(WARM_UP):
                await self.ask(request, pieces)
            answer = b"".join(self._client.received)
            is_whole = re.search(rb"content-length: [1-9]", answer) or answer.endswith(b"0\r\n\r\n")
            if not answer.startswith(b"HTTP/1.1 200") or not is_whole or b"error" in answer:
                raise RuntimeError(f"{name}: {answer!r}")
            for _ in range(REPEATS):
                with counting.of(name):
                    await self.ask(request, pieces)


@contextlib.asynccontextmanager
async def bench() -> AsyncIterator[tuple[Bench, str]]:
    """A started gateway, and a key of an account with money; the clocks are stopped."""
    dialer = MadeUpDialer()
    made: list[Settlements] = []
    clients: list[Redis] = []

    def settlements(*parts: Any) -> Settlements:
        made.append(Settlements(*parts))
        return made[-1]

    def redis(url: str, **options: Any) -> Redis:
        clients.append(open_redis(url, timeout_s=30.0))
        return clients[-1]

    with (
        patch("gateway.app.Settlements", settlements),
        patch("gateway.app.open_redis", redis),
        patch("gateway.providers.transport.Dialer", lambda tls: dialer),
    ):
        gateway = Gateway(Config.model_validate(_CONFIG), Environment())
        async with gateway.running():
            accounts, api_keys = Accounts(Scripts(clients[0], "counted")), ApiKeys(clients[0])
            await accounts.create("counted", name="Counted", tier=None)
            await accounts.grant("counted", grant_id="first", amount=10_000_000)
            key = await api_keys.create("counted", name="counted")
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                if task.get_name() not in _NEEDED_TASKS:
                    task.cancel()
            await asyncio.sleep(0)
            yield Bench(gateway, dialer, made[0]), key.token


class _Choice(msgspec.Struct):
    index: int
    delta: dict[str, str]
    finish_reason: str | None = None


class _Chunk(msgspec.Struct):
    id: str
    model: str
    choices: list[_Choice]
    usage: dict[str, int] | None = None


class _Slotted:
    __slots__ = ("count", "sink")

    def __init__(self) -> None:
        self.count = 0
        self.sink: dict[str, bytes] = {}

    def take(self, name: str, payload: bytes) -> int:
        self.count += 1
        self.sink[name] = payload
        return len(payload)


class _Heard:
    """What a parser calls."""

    def __init__(self) -> None:
        self.headers: list[tuple[bytes, bytes]] = []
        self.pieces: list[bytes] = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_body(self, body: bytes) -> None:
        self.pieces.append(body)


async def calibrate() -> int:
    """A fixed mix of what the gateway's way is made of; none of it is the gateway's own.

    The share of C is chosen such that builds of Python with and without PGO give nearly the same ratios.
    """
    loop = asyncio.get_running_loop()
    encoder, decoder, slotted = msgspec.json.Encoder(), msgspec.json.Decoder(_Chunk), _Slotted()
    answer = b"HTTP/1.1 200 OK\r\n" + b"x-some-header: its value\r\n" * 8 + b"content-length: 5\r\n\r\nhello"
    names = [f"name-{number}" for number in range(4)]
    total = 0
    for turn in range(CALIBRATION_TURNS):
        for name in names:
            head, _, tail = name.partition("-")
            payload = b"%x\r\n%b\r\n" % (turn, name.encode())
            total += slotted.take(head + tail, payload) + slotted.count
            total += len(b"".join([payload, b"data: ", payload])) + len({"name": name, **slotted.sink})
        chunk = _Chunk(names[turn % 4], "a-model", [_Choice(0, {"role": "assistant", "content": "some word"})])
        for _ in range(C_SHARE):
            total += len(decoder.decode(encoder.encode(chunk)).choices)
            command: tuple[Any, ...] = ("EVALSHA", "0" * 40, 4, *names, total, turn, b"{}")
            total += len(pack_command(command))
        heard = _Heard()
        httptools.HttpResponseParser(heard).feed_data(answer)
        waiter = loop.create_future()
        loop.call_soon(waiter.set_result, len(heard.headers))
        total += await waiter
    return total


def switch_on() -> None:
    """Have callgrind begin to count, where this runs under it; starting takes five times as long counted.

    It hears of this between two steps of this program, so the program has to be busy meanwhile.
    """
    command = ["vgdb", f"--pid={os.getpid()}", "--cmd-time-out=30", "instrumentation", "on"]
    switch = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while switch.poll() is None:
        pass
    if switch.returncode:
        raise RuntimeError("vgdb, a part of valgrind, could not reach callgrind")


async def count() -> list[str]:
    """Run everything; returns what was counted, in order."""
    counting = Counting()
    async with bench() as (running, key):
        gc.collect()
        gc.freeze()
        gc.disable()
        if os.environ.get(COUNTS):
            switch_on()
        await calibrate()
        for _ in range(REPEATS):
            with counting.of(CALIBRATION):
                await calibrate()
        for model, is_anthropic in (("openai", False), ("claude", True)):
            ask = partial(request_of, key, f"{model}/gpt-counted")
            short, long = (pieces_of(chunks, is_anthropic=is_anthropic) for chunks in (SHORT, LONG))
            await running.repeat(counting, f"{model} long", ask(stream=True), long)
            await running.repeat(counting, f"{model} short", ask(stream=True), short)
            await running.repeat(counting, f"{model} whole", ask(stream=False), short)
    return counting.names


def main() -> None:
    """Print the names as JSON."""
    configure_logs("info", sys.stderr)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(json.dumps(runner.run(count())))


if __name__ == "__main__":
    main()
