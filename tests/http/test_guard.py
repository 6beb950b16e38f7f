"""Connections that are slow, oversized or malformed, as raw bytes: an answer and an end, soon, whatever is sent.

The deadlines are tested on the guard alone, with shorter ones, in front of an application that echoes; the bounds and
the refusals also on a running gateway, of which the log is searched for tracebacks when it stops.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
import uvicorn

from gateway.http.server_protocol import GuardedProtocol
from tests.http.conftest import CHAT, Answer, Stage, assert_refused, read_answer

pytestmark = pytest.mark.asyncio(loop_scope="module")

_PATIENCE_S = 5.0


class ImpatientGuard(GuardedProtocol):
    header_s = 0.2
    body_quiet_s = 0.2
    body_s = 0.6


class PatientGuard(GuardedProtocol):
    """For requests that are to be answered, also on a machine that stands still for a second."""

    header_s = 2.0
    body_quiet_s = 2.0
    body_s = 2.0


class Connection:
    """A client that sends what it is told to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        """Send as much as the server takes; it may have hung up."""
        with contextlib.suppress(ConnectionError):
            self.writer.write(data)
            await self.writer.drain()

    async def answer(self) -> Answer:
        return await read_answer(self.reader)

    async def rest(self) -> bytes:
        """Everything until the server closes; a reset is an end like any other."""
        received = b""
        async with asyncio.timeout(_PATIENCE_S):
            with contextlib.suppress(ConnectionError):
                while data := await self.reader.read(65536):
                    received += data
        return received

    async def is_refused(self, status: int) -> None:
        """The server answers with a status in an envelope and hangs up."""
        assert_refused(await self.answer(), status)
        assert await self.rest() == b""


@contextlib.asynccontextmanager
async def connected(port: int) -> AsyncIterator[Connection]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield Connection(reader, writer)
    finally:
        writer.close()


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the number of the body's bytes; below /slow in two parts, of which the second is asked for."""
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        size += len(message["body"])
        more = message["more_body"]
    body = b"%d %d" % (size, len(scope["headers"]))
    headers = [(b"content-length", b"%d" % len(body))]
    if scope["path"] == "/slow":
        await asyncio.sleep(1.2 * PatientGuard.body_s)  # longer than the deadline of whatever waits behind it
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@contextlib.asynccontextmanager
async def serving_with(guard: type[GuardedProtocol]) -> AsyncIterator[int]:
    config = uvicorn.Config(echo, port=0, http=guard, lifespan="off", log_config=None, access_log=False)
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    serving = asyncio.create_task(server._serve())  # noqa: TID251 - awaited below
    async with asyncio.timeout(_PATIENCE_S):
        while not server.started:
            await asyncio.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    await serving


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def guarded() -> AsyncIterator[int]:
    """The port of a server with the impatient guard."""
    async with serving_with(ImpatientGuard) as port:
        yield port


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def patient() -> AsyncIterator[int]:
    """The port of a server with the patient guard."""
    async with serving_with(PatientGuard) as port:
        yield port


def request(line: str = "GET / HTTP/1.1", *headers: str, body: bytes = b"") -> bytes:
    return "\r\n".join([line, "Host: x", *headers, "", ""]).encode("latin-1") + body


POST = "POST / HTTP/1.1"


# Deadlines.


async def test_a_silent_connection_is_told_that_time_is_up(guarded: int) -> None:
    async with connected(guarded) as connection:
        await connection.is_refused(408)


@pytest.mark.parametrize("head", [b"G", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: aaa"])
async def test_a_header_that_stops_is_told_that_time_is_up(guarded: int, head: bytes) -> None:
    async with connected(guarded) as connection:
        await connection.send(head)
        await connection.is_refused(408)


async def trickle(connection: Connection, data: bytes) -> None:
    while not connection.reader.at_eof():
        await connection.send(data)
        await asyncio.sleep(ImpatientGuard.body_quiet_s / 4)


@pytest.mark.parametrize(
    ("start", "piece"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n", b"X: y\r\n"),
        (request(POST, "Content-Length: 1000000"), b"x"),
        (request(POST, "Transfer-Encoding: chunked"), b"1\r\nx\r\n"),
        (request(POST, "Transfer-Encoding: chunked") + b"1;x=", b"x"),
        (b"", b"\r\n"),
    ],
    ids=["header lines", "body bytes", "chunks", "a chunk extension", "blank lines"],
)
async def test_what_trickles_is_told_that_time_is_up(guarded: int, start: bytes, piece: bytes) -> None:
    async with connected(guarded) as connection:
        await connection.send(start)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(trickle(connection, piece))
            await connection.is_refused(408)


@pytest.mark.parametrize("encoding", ["Content-Length: 10", "Transfer-Encoding: chunked"])
async def test_a_body_that_never_comes_is_told_that_time_is_up(guarded: int, encoding: str) -> None:
    async with connected(guarded) as connection:
        await connection.send(request(POST, encoding))
        await connection.is_refused(408)


async def test_a_second_request_has_a_deadline_of_its_own(guarded: int) -> None:
    async with connected(guarded) as connection:
        await connection.send(request())
        assert (await connection.answer()).body == b"0 1"
        await connection.send(b"GET / HT")
        await connection.is_refused(408)


async def test_blank_lines_do_not_keep_an_idle_connection_open(guarded: int) -> None:
    async with connected(guarded) as connection:
        await connection.send(request())
        await connection.answer()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(trickle(connection, b"\r\n"))
            await connection.is_refused(408)


async def test_an_answer_that_takes_long_is_not_cut_by_the_requests_deadlines(patient: int) -> None:
    async with connected(patient) as connection:
        await connection.send(request("POST /slow HTTP/1.1", "Content-Length: 3", body=b"abc"))
        assert (await connection.answer()).body == b"3 2"


# Pipelines.


async def test_pipelined_requests_are_answered_in_order(patient: int) -> None:
    async with connected(patient) as connection:
        bodies = (b"", b"a", b"bb")
        await connection.send(b"".join(request(POST, f"Content-Length: {len(b)}", body=b) for b in bodies))
        assert [(await connection.answer()).body for _ in bodies] == [b"0 2", b"1 2", b"2 2"]


async def test_a_pipelined_body_does_not_run_out_of_time_behind_a_slow_answer(patient: int) -> None:
    async with connected(patient) as connection:
        await connection.send(request("GET /slow HTTP/1.1") + request(POST, "Content-Length: 200000"))
        await connection.send(b"x" * 100_000)
        assert (await connection.answer()).body == b"0 1"
        await connection.send(b"x" * 100_000)
        assert (await connection.answer()).body == b"200000 2"


async def test_rubbish_behind_a_request_does_not_get_into_its_answer(patient: int) -> None:
    async with connected(patient) as connection:
        await connection.send(request("GET /slow HTTP/1.1") + request() + b"\0\0\0\0")
        assert await connection.rest() == b""


# Bounds.


async def test_a_large_body_that_comes_at_once_is_not_taken_for_a_header(patient: int) -> None:
    async with connected(patient) as connection:
        await connection.send(request(POST, "Content-Length: 5000000", body=b"x" * 5_000_000))
        assert (await connection.answer()).body == b"5000000 2"
        await connection.send(request(POST, "Content-Length: 300000", body=b"x" * 300_000) + request())
        assert (await connection.answer()).body == b"300000 2"
        assert (await connection.answer()).body == b"0 1"


HEADERS_TOO_LARGE = {
    "a header of 70 kB": request("GET / HTTP/1.1", "X-Long: " + "a" * 70_000),
    "a header of 1 MB": request("GET / HTTP/1.1", "X-Long: " + "a" * 1_000_000),
    "a header without end": b"GET / HTTP/1.1\r\nX-Long: " + b"a" * 1_000_000,
    "a name without end": b"GET / HTTP/1.1\r\n" + b"a" * 1_000_000,
    "200 headers": request("GET / HTTP/1.1", *["X: y"] * 200),
    "20,000 headers": request("GET / HTTP/1.1", *["X: y"] * 20_000),
    "trailers": request(POST, "Transfer-Encoding: chunked") + b"0\r\n" + b"X: y\r\n" * 200 + b"\r\n",
}


@pytest.mark.parametrize("data", HEADERS_TOO_LARGE.values(), ids=HEADERS_TOO_LARGE.keys())
async def test_a_header_that_is_too_large_ends_the_connection(guarded: int, data: bytes) -> None:
    async with connected(guarded) as connection:
        await connection.send(data)
        # Whoever still sends when the connection closes may see a reset before the answer.
        assert (await connection.rest())[:12] in (b"HTTP/1.1 431", b"")


async def test_the_largest_header_that_is_taken_is_told_apart_from_one_more(patient: int) -> None:
    async with connected(patient) as connection:
        await connection.send(request("GET / HTTP/1.1", *["X: y"] * 99))
        assert (await connection.answer()).body == b"0 100"
        await connection.send(request("GET / HTTP/1.1", *["X: y"] * 100))
        await connection.is_refused(431)


@pytest.mark.parametrize("length", [20_000, 70_000, 1_000_000])
async def test_a_path_that_is_too_long_ends_the_connection(guarded: int, length: int) -> None:
    async with connected(guarded) as connection:
        await connection.send(request(f"GET /{'a' * length} HTTP/1.1"))
        assert (await connection.rest())[:12] in (b"HTTP/1.1 414", b"")


async def test_a_trailer_does_not_become_a_header(guarded: int) -> None:
    async with connected(guarded) as connection:
        chunks = b"1\r\na\r\n0\r\nAuthorization: Bearer x\r\n\r\n"
        await connection.send(request(POST, "Transfer-Encoding: chunked", body=chunks))
        assert (await connection.answer()).body == b"1 2"


# Framing, on a running gateway.

MALFORMED = {
    "length and chunks": request(POST, "Content-Length: 4", "Transfer-Encoding: chunked", body=b"0\r\n\r\n"),
    "chunks and length": request(POST, "Transfer-Encoding: chunked", "Content-Length: 4", body=b"0\r\n\r\n"),
    "two lengths": request(POST, "Content-Length: 1", "Content-Length: 1", body=b"x"),
    "two different lengths": request(POST, "Content-Length: 1", "Content-Length: 2", body=b"xx"),
    "a list of lengths": request(POST, "Content-Length: 4,4", body=b"xxxx"),
    "a length with a sign": request(POST, "Content-Length: +4", body=b"xxxx"),
    "a negative length": request(POST, "Content-Length: -1"),
    "a huge length": request(POST, "Content-Length: " + "9" * 30),
    "an unknown encoding": request(POST, "Transfer-Encoding: xchunked", body=b"0\r\n\r\n"),
    "chunked, but not last": request(POST, "Transfer-Encoding: chunked, identity", body=b"0\r\n\r\n"),
    "a space before the colon": request(POST, "Transfer-Encoding : chunked", body=b"0\r\n\r\n"),
    "a bad chunk size": request(POST, "Transfer-Encoding: chunked", body=b"xyz\r\n"),
    "a huge chunk size": request(POST, "Transfer-Encoding: chunked", body=b"f" * 20 + b"\r\n"),
    "bare line feeds": b"GET / HTTP/1.1\nHost: x\n\n",
    "a bare carriage return": b"GET / HTTP/1.1\r\nHost: x\r\nX: a\rb\r\n\r\n",
    "a folded header": b"GET / HTTP/1.1\r\nHost: x\r\nX: a\r\n b\r\n\r\n",
    "a NUL in a header": request("GET / HTTP/1.1", "X: a\0b"),
    "a space in a name": request("GET / HTTP/1.1", "X Y: z"),
    "no colon": request("GET / HTTP/1.1", "nonsense"),
    "HTTP/0.9": b"GET /\r\n\r\n",
    "HTTP/9.9": request("GET / HTTP/9.9"),
    "an unknown method": request("BREW / HTTP/1.1"),
    "a preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a TLS hello": bytes.fromhex("16030100c8010000c40303") + bytes(range(190)),
    "zeros": bytes(100),
    "a path that is no ASCII": "GET /ä HTTP/1.1\r\nHost: x\r\n\r\n".encode(),
    "no path": b"GET  HTTP/1.1\r\nHost: x\r\n\r\n",
    "a broken address": request("GET http://[ HTTP/1.1"),
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED.keys())
async def test_what_is_not_http_is_refused_once(stage: Stage, data: bytes) -> None:
    async with connected(stage.gateway.port) as connection:
        await connection.send(data)
        await connection.send(request())  # nothing of this may be answered
        answer = await connection.answer()
        assert_refused(answer, 400)
        assert b"HTTP/1.1" not in await connection.rest()


@pytest.mark.parametrize("upgrade", ["websocket", "h2c", "nonsense"])
async def test_an_offer_to_upgrade_is_passed_over(stage: Stage, upgrade: str) -> None:
    async with connected(stage.gateway.port) as connection:
        offer = ("Connection: Upgrade", f"Upgrade: {upgrade}", "Sec-WebSocket-Key: x", "Sec-WebSocket-Version: 13")
        await connection.send(request("GET /healthz HTTP/1.1", *offer))
        assert (await connection.answer()).body == b'{"status":"ok"}'


async def test_an_answer_after_100_continue_is_the_usual_one(stage: Stage) -> None:
    async with connected(stage.gateway.port) as connection:
        credential = f"Authorization: Bearer {stage.key}"
        headers = ("Content-Type: application/json", "Content-Length: 4", "Expect: 100-continue", credential)
        await connection.send(request(f"POST {CHAT} HTTP/1.1", *headers))
        assert (await connection.answer()).status == 100
        await connection.send(b"null")
        assert_refused(await connection.answer(), 400)


@pytest.mark.parametrize(("header", "status"), [("X: y", 401), ("Authorization: Bearer {key}", 413)])
async def test_what_will_be_refused_is_refused_before_100_continue(stage: Stage, header: str, status: int) -> None:
    async with connected(stage.gateway.port) as connection:
        headers = (
            "Content-Type: application/json",
            "Content-Length: 99999999",
            "Expect: 100-continue",
            header.format(key=stage.key),
        )
        await connection.send(request(f"POST {CHAT} HTTP/1.1", *headers))
        assert_refused(await connection.answer(), status)


@pytest.mark.parametrize("target", [CHAT, "/v1/models", "/admin/v1/accounts"])
async def test_two_credentials_are_none(stage: Stage, target: str) -> None:
    async with connected(stage.gateway.port) as connection:
        method = "POST" if target == CHAT else "GET"
        credential = f"Authorization: Bearer {stage.key}"
        await connection.send(request(f"{method} {target} HTTP/1.1", credential, credential, "Content-Length: 0"))
        assert_refused(await connection.answer(), 400, code="invalid_request")


async def test_the_gateway_still_serves_and_nothing_was_charged(stage: Stage) -> None:
    assert (await stage.client.get("/v1/models")).status_code == 200
    await stage.nothing_happened()
