"""The pool of connections over real sockets: what is used again, what is not, and what is left when callers leave."""

import asyncio
import contextlib
import inspect
import os
import socket
import ssl
import struct
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, cast

import pytest
import uvloop

from gateway.providers import transport
from gateway.providers.address import address_of
from gateway.providers.transport import Answer, ConnectTimeout, Post, Transport, TransportError
from tests.limits.test_redis_tls import Certificates

WHOLE = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-type: Text/Plain; charset=utf-8\r\n\r\nok"
STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n"
TAIL = b"0\r\n\r\n"


class Server(asyncio.Protocol):
    """Answers each request with ``answer``; every connection of its is one of these."""

    def __init__(self, site: "Site") -> None:
        self.site = site
        self.received = bytearray()
        self.whole = 0

    def connection_made(self, wire: asyncio.BaseTransport) -> None:
        self.wire = cast(asyncio.Transport, wire)
        self.site.connections.append(self)
        self.site.opened += 1

    def connection_lost(self, exc: Exception | None) -> None:
        self.site.connections.remove(self)

    def data_received(self, data: bytes) -> None:
        self.received += data
        if not self.whole:
            head, found, _ = self.received.partition(b"\r\n\r\n")
            self.whole = len(head) + 4 + int(head.rpartition(b"content-length: ")[2]) if found else 0
        if self.whole and len(self.received) >= self.whole:
            self.site.requests.append(bytes(self.received))
            self.received.clear()
            self.whole = 0
            self.wire.write(self.site.answer)

    def reset(self) -> None:
        sock = self.wire.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.wire.abort()


class Site:
    """A provider that does as it is told."""

    def __init__(self) -> None:
        self.answer = WHOLE
        self.requests: list[bytes] = []
        self.connections: list[Server] = []
        self.opened = 0
        self.port = 0

    def post(self, path: str = "/v1", body: bytes = b"{}", **more: Any) -> Post:
        return post_to(f"http://127.0.0.1:{self.port}{path}", body, **more)

    async def until(self, count: int) -> None:
        await wait_until(lambda: len(self.connections) == count)


def post_to(url: str, body: bytes = b"{}", connect_s: float = 5.0, headers: Mapping[str, str] = {}) -> Post:
    address = address_of(url)
    return Post(address.origin, address.head(headers), body, connect_s)


@contextlib.asynccontextmanager
async def running(tls: ssl.SSLContext | None = None) -> AsyncIterator[Site]:
    site = Site()
    server = await asyncio.get_running_loop().create_server(lambda: Server(site), "127.0.0.1", 0, ssl=tls)
    site.port = server.sockets[0].getsockname()[1]
    try:
        yield site
    finally:
        server.close()
        for connection in tuple(site.connections):
            connection.wire.abort()
        await site.until(0)


@contextlib.asynccontextmanager
async def staged() -> AsyncIterator[tuple[Transport, Site]]:
    async with running() as site:
        pool = Transport()
        try:
            yield pool, site
        finally:
            await pool.aclose()


def on_both_loops(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test of ``pool`` and ``site`` on asyncio's loop, and on uvloop, which serves."""
    parameters = inspect.signature(test).parameters
    others = [parameter for name, parameter in parameters.items() if name not in ("pool", "site")]

    async def play(**fixtures: Any) -> None:
        async with staged() as (pool, site):
            await test(pool=pool, site=site, **fixtures)

    def run(new_loop: Callable[[], asyncio.AbstractEventLoop], **fixtures: Any) -> None:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(play(**fixtures))

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    first = inspect.Parameter("new_loop", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    run.__signature__ = inspect.Signature([first, *others])  # type: ignore[attr-defined]
    loops = pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uv"])
    return cast(Callable[..., None], loops(run))


async def wait_until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


async def ask(pool: Transport, post: Post) -> bytes:
    answer = await pool.post(post)
    try:
        return await answer.read_all()
    finally:
        answer.close()


@on_both_loops
async def test_what_is_sent_and_what_is_told_of_the_answer(pool: Transport, site: Site) -> None:
    answer = await pool.post(site.post("/v1/x?y=ü z", b'{"a": 1}', headers={"x-key": "sk-1", "accept": "*/*"}))
    assert (answer.status, answer.content_type, answer.headers["content-length"]) == (200, "text/plain", "2")
    assert await answer.read_all() == b"ok"
    answer.close()
    host = f"127.0.0.1:{site.port}".encode()
    assert site.requests == [
        b"POST /v1/x?y=%C3%BC%20z HTTP/1.1\r\nhost: " + host + b"\r\n"
        b"x-key: sk-1\r\naccept: */*\r\ncontent-length: 8\r\n\r\n" + b'{"a": 1}'
    ]


@on_both_loops
async def test_one_connection_serves_calls_that_follow_each_other(pool: Transport, site: Site) -> None:
    for _ in range(3):
        assert await ask(pool, site.post()) == b"ok"
    assert (site.opened, len(site.requests)) == (1, 3)
    await asyncio.gather(*(ask(pool, site.post()) for _ in range(5)))
    assert site.opened <= 5


@on_both_loops
async def test_ten_megabytes_go_out_whole(pool: Transport, site: Site) -> None:
    body = b"x" * 10_000_000
    assert await ask(pool, site.post(body=body)) == b"ok"
    assert site.requests[0].endswith(b"content-length: 10000000\r\n\r\n" + body)


@on_both_loops
async def test_what_the_provider_closes_while_it_is_idle_is_dropped(pool: Transport, site: Site) -> None:
    for hang_up in (Server.reset, lambda connection: connection.wire.close()):
        await ask(pool, site.post())
        hang_up(site.connections[0])
        await wait_until(lambda: not pool._idle and not pool._open)
        assert await ask(pool, site.post()) == b"ok"
    assert site.opened == 3


@pytest.mark.parametrize("is_old", [True, False], ids=["idle-long", "idle-short"])
@on_both_loops
async def test_a_connection_closed_behind_the_loops_back_is_not_used(
    pool: Transport, site: Site, is_old: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The provider's end waits in the kernel: a long idle connection is looked at, a young one fails as it is."""
    monkeypatch.setattr(transport, "_PROBED_AFTER_S", -1.0 if is_old else 9.0)
    await ask(pool, site.post())
    with socket.socket(fileno=os.dup(site.connections[0].wire.get_extra_info("socket").fileno())) as sock:
        sock.shutdown(socket.SHUT_RDWR)
    if is_old:
        assert await ask(pool, site.post()) == b"ok"
    else:
        with pytest.raises(TransportError):
            await ask(pool, site.post())


@on_both_loops
async def test_a_request_is_not_sent_again_once_it_may_have_been_read(pool: Transport, site: Site) -> None:
    await ask(pool, site.post())
    site.answer = b""
    for hang_up in (Server.reset, lambda connection: connection.wire.close()):
        asked = asyncio.ensure_future(ask(pool, site.post()))  # noqa: TID251
        count = len(site.requests) + 1
        await wait_until(lambda count=count: len(site.requests) == count)  # type: ignore[misc]
        hang_up(site.connections[0])
        with pytest.raises(TransportError, match=r"reset|closed"):
            await asked
    assert len(site.requests) == 3


@on_both_loops
async def test_a_long_request_that_cannot_go_out_is_sent_once_more(pool: Transport, site: Site) -> None:
    await ask(pool, site.post())
    first = site.connections[0]
    first.wire.pause_reading()
    asked = asyncio.ensure_future(ask(pool, site.post(body=b"x" * 30_000_000)))  # noqa: TID251
    connection = next(iter(pool._open))
    await wait_until(lambda: connection._is_sending)
    first.wire.abort()
    await asked
    assert (site.opened, len(site.requests)) == (2, 2)


@pytest.mark.parametrize("extra", [b"HTTP/1.1 200 OK\r\n\r\n", b"x"])
@on_both_loops
async def test_bytes_after_an_answer_end_its_connection(pool: Transport, site: Site, extra: bytes) -> None:
    await ask(pool, site.post())
    site.connections[0].wire.write(extra)
    await site.until(0)
    assert await ask(pool, site.post()) == b"ok" and site.opened == 2


@on_both_loops
async def test_after_hundreds_of_callers_left_no_connection_is_open(pool: Transport, site: Site) -> None:
    site.answer = STREAM

    async def leave(number: int) -> None:
        answer = await pool.post(site.post())
        try:
            if number % 2:
                assert await answer.read(bytes) == b"ok"
            async with asyncio.timeout(None if number % 3 == 0 else 0.001 * (number % 7)):
                if number % 3:
                    await answer.read(bytes)
        except TimeoutError:
            return
        finally:
            answer.close()

    for _ in range(2):
        await asyncio.gather(*(leave(number) for number in range(150)))
    await site.until(0)
    assert not pool._open and not pool._idle


@on_both_loops
async def test_a_cancelled_call_hangs_up_and_leaves_nothing(pool: Transport, site: Site) -> None:
    site.answer = b"HTTP/1.1 200 OK\r\n"
    for turns in (*range(12), 1_000):
        asked = asyncio.ensure_future(pool.post(site.post()))  # noqa: TID251
        for _ in range(turns):
            await asyncio.sleep(0)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        await site.until(0)
        assert not pool._open and not pool._dialling


@on_both_loops
async def test_the_end_of_a_streams_encoding_is_waited_for_so_that_its_connection_serves_again(
    pool: Transport, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.answer = STREAM
    monkeypatch.setattr(transport, "_TAIL_S", 5.0)

    async def finished(tail: bytes) -> None:
        answer = await pool.post(site.post())
        assert await answer.read(bytes) == b"ok"
        asyncio.get_running_loop().call_later(0.01, site.connections[0].wire.write, tail)
        await answer.finish()
        answer.close()
        answer.close()

    await finished(TAIL)
    await finished(TAIL)
    assert site.opened == 1
    monkeypatch.setattr(transport, "_TAIL_S", 0.01)
    await finished(b"1\r\n")
    await site.until(0)


@on_both_loops
async def test_a_reader_that_is_slow_makes_the_provider_wait(pool: Transport, site: Site) -> None:
    site.answer = STREAM + b"%x\r\n%b\r\n" % (40_000_000, b"x" * 40_000_000) + TAIL
    answer = await pool.post(site.post())
    await wait_until(lambda: answer._connection._is_paused)
    assert site.connections[0].wire.get_write_buffer_size() > 1_000_000
    assert len(await answer.read_all(50_000_000)) == 40_000_002
    answer.close()
    assert len(pool._idle) == 1


@on_both_loops
async def test_beyond_its_bound_the_pool_makes_callers_wait(
    pool: Transport, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "_POOL_MAX", 2)
    async with running() as other:
        answers = [await pool.post(site.post()), await pool.post(other.post())]
        waiting = [asyncio.ensure_future(ask(pool, site.post())) for _ in range(4)]  # noqa: TID251
        await wait_until(lambda: len(pool._waiting) == 4)
        waiting[0].cancel()
        await answers[1].read_all()
        answers[1].close()  # its connection makes room for one to the other site
        assert await asyncio.gather(*waiting[1:]) == [b"ok"] * 3
        await other.until(0)
        assert len(pool._open) <= 2 and site.opened == 2
        answers[0].close()


@on_both_loops
async def test_an_idle_connection_is_closed_in_time(
    pool: Transport, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "_KEEP_ALIVE_S", 0.05)
    monkeypatch.setattr(transport, "_SWEEP_S", 0.01)
    await asyncio.gather(*(ask(pool, site.post()) for _ in range(3)))
    await site.until(0)
    await wait_until(lambda: not pool._idle and pool._sweep is None)


@on_both_loops
async def test_a_closed_pool_has_no_connections(pool: Transport, site: Site) -> None:
    await ask(pool, site.post())
    site.answer = STREAM
    answers = [await pool.post(site.post()) for _ in range(2)]
    await pool.aclose()
    await site.until(0)
    for answer in answers:
        with pytest.raises(TransportError):
            while await answer.read(bytes):
                pass
        answer.close()


@on_both_loops
async def test_a_port_where_nobody_listens_is_refused(pool: Transport, site: Site) -> None:
    with pytest.raises(TransportError, match=r"^refused$"):
        await pool.post(post_to("http://127.0.0.1:1/"))


def resolve(monkeypatch: pytest.MonkeyPatch, look_up: Callable[[int], Any]) -> list[str]:
    """Answer for the resolver of asyncio's own loop; the names it is asked for."""
    asked: list[str] = []

    def getaddrinfo(host: str, port: int, *_: Any, **__: Any) -> Any:
        asked.append(host)
        return look_up(port)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


async def test_a_name_is_looked_up_once_a_minute_and_its_addresses_are_all_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tcp = (socket.SOCK_STREAM, 6, "")
    async with staged() as (pool, site):
        site.answer = STREAM
        asked = resolve(
            monkeypatch,
            lambda port: [
                (socket.AF_INET6, *tcp, ("::1", port, 0, 0)),  # nobody listens there
                (socket.AF_INET, *tcp, ("127.0.0.1", port)),
            ],
        )
        post = post_to(f"http://provider.example:{site.port}/")
        for count in (1, 2):
            answers = [await pool.post(post) for _ in range(4)]  # each on a connection of its own
            assert asked == ["provider.example"] * count and site.opened == 4 * count
            monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: time.monotonic() + 61)
            for answer in answers:
                answer.close()
        assert b"host: provider.example:" in site.requests[0]


async def test_a_name_that_is_not_found_is_told_and_asked_for_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(port: int) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    async with staged() as (pool, _):
        asked = resolve(monkeypatch, fail)
        for count in (1, 2):
            with pytest.raises(TransportError, match=r"^dns: Name or service not known$"):
                await pool.post(post_to("http://provider.example/"))
            assert len(asked) == count


@on_both_loops
async def test_what_cannot_be_a_name_is_told(pool: Transport, site: Site) -> None:
    with pytest.raises(TransportError, match=r"^dns: "):
        await pool.post(post_to(f"http://{'x' * 70}.example/"))


@on_both_loops
async def test_a_connection_that_is_not_made_in_time_is_given_up(pool: Transport, site: Site) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(1)
        url = f"https://127.0.0.1:{silent.getsockname()[1]}/"  # it takes the connection and never says hello
        with pytest.raises(ConnectTimeout):
            await pool.post(post_to(url, connect_s=0.05))
        peer, _ = silent.accept()
        with peer:
            peer.setblocking(False)
            loop = asyncio.get_running_loop()
            async with asyncio.timeout(5):
                while await loop.sock_recv(peer, 4096):
                    pass
    assert not pool._open and not pool._dialling


@on_both_loops
async def test_certificates_are_checked(pool: Transport, site: Site, tmp_path: Path) -> None:
    made = Certificates(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made.certificate, made.key)
    trusting = Transport(ssl.create_default_context(cafile=str(made.certificate)))
    async with running(context) as secret:
        url = f"https://127.0.0.1:{secret.port}/"
        with pytest.raises(TransportError, match=r"^tls: self-signed certificate"):
            await pool.post(post_to(url))
        for _ in range(2):
            assert await ask(trusting, post_to(url)) == b"ok"
        with pytest.raises(TransportError, match=r"^tls: .*not valid for 'localhost'"):
            await ask(trusting, post_to(url.replace("127.0.0.1", "localhost")))
        with pytest.raises(TransportError, match=r"^tls: "):
            await pool.post(post_to(f"https://127.0.0.1:{secret.port}/"))
        assert len(secret.requests) == 2
        secret.answer = STREAM
        answer: Answer = await trusting.post(post_to(url))
        assert await answer.read(bytes) == b"ok"
        answer.close()
        await trusting.aclose()
        await secret.until(0)


@on_both_loops
async def test_a_long_request_over_tls_is_known_to_have_gone_out(pool: Transport, site: Site, tmp_path: Path) -> None:
    made = Certificates(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made.certificate, made.key)
    trusting = Transport(ssl.create_default_context(cafile=str(made.certificate)))
    async with running(context) as secret:
        long = post_to(f"https://127.0.0.1:{secret.port}/", b"x" * 200_000)
        for _ in range(3):
            assert await ask(trusting, long) == b"ok"
        assert secret.opened == 1
        secret.answer = b""
        asked = asyncio.ensure_future(ask(trusting, long))  # noqa: TID251
        await wait_until(lambda: len(secret.requests) == 4)
        secret.connections[0].wire.close()
        with pytest.raises(TransportError, match=r"^closed"):
            await asked
        assert (secret.opened, len(secret.requests)) == (1, 4), "it was read, and is not sent again"
        await trusting.aclose()
        await secret.until(0)
