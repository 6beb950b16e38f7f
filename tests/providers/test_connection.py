"""One connection, fed by hand: every framing of an answer cut at every offset, and what a provider may do wrong."""

import asyncio
import socket
from collections.abc import Iterator
from typing import cast

import pytest

from gateway.providers.connection import Connection, TransportError

CHUNKED = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"5\r\nhello\r\n6;why=not\r\n world\r\n0\r\nx-trailer: content-length\r\n\r\n"
)
SIZED = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nCONTENT-LENGTH: 11\r\n\r\nhello world"
OPEN_ENDED = b"HTTP/1.0 200 OK\r\ncontent-type: text/plain\r\n\r\nhello world"
INTERIM = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </x>\r\nx-first: 1\r\n\r\n" + SIZED
EMPTY = b"HTTP/1.1 204 No Content\r\nx-first: 2\r\n\r\n"
BARE_LINES = b"HTTP/1.1 200 OK\ncontent-length: 11\n\nhello world"
HEAD = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: "


class Wire(asyncio.Transport):
    """What a connection does to its transport."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.writes = 0
        self.is_aborted = False
        self.is_paused = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data
        self.writes += 1

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        assert high == 1

    def abort(self) -> None:
        self.is_aborted = True

    def is_closing(self) -> bool:
        return self.is_aborted

    def pause_reading(self) -> None:
        assert not self.is_paused
        self.is_paused = True

    def resume_reading(self) -> None:
        assert self.is_paused
        self.is_paused = False


class Talk:
    """A connection with a request under way."""

    def __init__(self, body: bytes = b"{}") -> None:
        self.wire = Wire()
        self.lost: list[Connection] = []
        self.connection = Connection(cast(socket.socket, None), self.lost.append)
        self.connection.connection_made(self.wire)
        self.body = body

    async def ask(self, *pieces: bytes) -> Connection:
        """Ask, get ``pieces`` as they are cut, and wait for the head."""
        asked = asyncio.ensure_future(self.connection.ask(HEAD, self.body))  # noqa: TID251
        await asyncio.sleep(0)
        for piece in pieces:
            self.connection.data_received(piece)
        await asked
        return self.connection


async def body_of(connection: Connection) -> bytes:
    body = b""
    while piece := await connection.read(bytes):
        body += piece
    return body


def cuts(answer: bytes) -> Iterator[tuple[bytes, ...]]:
    yield (answer,)
    yield tuple(answer[at : at + 1] for at in range(len(answer)))
    yield from ((answer[:at], answer[at:]) for at in range(1, len(answer)))


@pytest.mark.parametrize("answer", [CHUNKED, SIZED, INTERIM, BARE_LINES], ids=["chunked", "sized", "interim", "bare"])
async def test_a_framed_answer_reads_the_same_however_it_is_cut(answer: bytes) -> None:
    for pieces in cuts(answer):
        talk = Talk()
        connection = await talk.ask(*pieces)
        assert (connection.status, await body_of(connection)) == (200, b"hello world")
        assert "x-first" not in connection.headers and "x-trailer" not in connection.headers
        assert connection.is_whole and connection.rest() and not talk.wire.is_aborted


async def test_an_answer_without_framing_ends_with_its_connection_however_it_is_cut() -> None:
    for pieces in cuts(OPEN_ENDED):
        talk = Talk()
        connection = await talk.ask(*pieces)
        assert not connection.is_whole
        connection.eof_received()
        assert await body_of(connection) == b"hello world" and connection.is_whole and not connection.rest()


async def test_an_answer_without_a_body_is_whole_at_once() -> None:
    for pieces in cuts(EMPTY):
        connection = await Talk().ask(*pieces)
        assert (connection.status, await connection.read(bytes), connection.headers) == (204, None, {"x-first": "2"})
        assert connection.rest()


@pytest.mark.parametrize("answer", [CHUNKED, SIZED], ids=["chunked", "sized"])
async def test_an_answer_cut_short_is_told_after_what_came_of_it(answer: bytes) -> None:
    head = answer.index(b"\r\n\r\n") + 4
    for at in range(1, len(answer)):
        for error, cause in ((None, "closed"), (ConnectionResetError(), "reset")):
            talk = Talk()
            if at < head:
                asked = asyncio.ensure_future(talk.ask(answer[:at]))  # noqa: TID251
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                talk.connection.connection_lost(error)
                with pytest.raises(TransportError, match=cause):
                    await asked
                continue
            connection = await talk.ask(answer[:at])
            connection.connection_lost(error)
            came = b""
            with pytest.raises(TransportError, match=cause):
                while True:
                    came += await connection.read(bytes)
            assert b"hello world".startswith(came) and len(came) >= min(at - head, 5) * (answer is SIZED)
            assert talk.lost == [connection] and not connection.rest() and not connection.was_unsent


GARBAGE = {
    "no-http": b"SSH-2.0-OpenSSH_9.6\r\n",
    "half-http": b"HTTP/1.1 two hundred\r\n\r\n",
    "two-lengths": b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabc",
    "upgrade": b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n",
    "endless-line": b"HTTP/1.1 200 OK\r\nx: " + b"x" * 70_000,
    "long-head": b"HTTP/1.1 200 OK\r\n" + b"".join(b"x-%d: %d\r\n" % (n, 10**300) for n in range(250)) + b"\r\n",
    "many-headers": b"HTTP/1.1 200 OK\r\n" + b"".join(b"x-%d: 1\r\n" % n for n in range(300)) + b"\r\n",
    "endless-interim": b"HTTP/1.1 100 Continue\r\n\r\n" * 3_000,
}


@pytest.mark.parametrize("answer", GARBAGE.values(), ids=GARBAGE)
async def test_a_head_that_is_none_is_an_error_and_hangs_up(answer: bytes) -> None:
    talk = Talk()
    with pytest.raises(TransportError):
        await talk.ask(answer)
    assert talk.wire.is_aborted and not talk.connection.rest()


@pytest.mark.parametrize(
    "rest",
    [b"xyz\r\n", b"0\r\nx: " + b"x" * 70_000, b"1;" + b"x" * 70_000, b"fffffffffffffffff\r\n"],
    ids=["no-size", "endless-trailer", "endless-extension", "huge-size"],
)
async def test_a_broken_body_is_told_after_what_came_before_it(rest: bytes) -> None:
    whole = CHUNKED[: CHUNKED.index(b"6;why")]
    for pieces in ((whole + rest,), (whole, rest)):
        talk = Talk()
        connection = await talk.ask(*pieces)
        if not rest.endswith(b"x") or len(pieces) == 2:
            assert await connection.read(bytes) == b"hello"
            connection.data_received(rest) if rest.endswith(b"x") else None
            with pytest.raises(TransportError):
                await connection.read(bytes)
            assert talk.wire.is_aborted


@pytest.mark.parametrize("answer", [CHUNKED, SIZED, EMPTY], ids=["chunked", "sized", "empty"])
@pytest.mark.parametrize("extra", [b"H", SIZED, b"\0"], ids=["byte", "answer", "nul"])
async def test_bytes_that_nobody_asked_for_end_the_connection_and_are_no_answer(answer: bytes, extra: bytes) -> None:
    joined, later = Talk(), Talk()
    connection = await joined.ask(answer + extra)
    assert await body_of(connection) == (b"" if answer is EMPTY else b"hello world")
    assert not connection.rest()
    connection = await later.ask(answer)
    await body_of(connection)
    assert connection.rest()
    connection.data_received(extra)
    assert later.wire.is_aborted and not connection.is_kept


async def test_one_connection_carries_one_request_after_another() -> None:
    talk = Talk()
    for answer in (CHUNKED, SIZED, INTERIM, EMPTY, SIZED):
        connection = await talk.ask(answer)
        assert connection.status == (204 if answer is EMPTY else 200)
        assert await body_of(connection) == (b"" if answer is EMPTY else b"hello world") and connection.rest()
    closing = SIZED.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    assert await body_of(await talk.ask(closing)) == b"hello world" and not talk.connection.rest()


async def test_a_small_request_is_one_write_and_a_large_one_is_not_copied() -> None:
    small, large = Talk(b'{"a": 1}'), Talk(b"x" * 1_000_000)
    await small.ask(SIZED)
    await large.ask(SIZED)
    assert (small.wire.writes, small.wire.written) == (1, HEAD + b'8\r\n\r\n{"a": 1}')
    assert (large.wire.writes, large.wire.written) == (2, HEAD + b"1000000\r\n\r\n" + b"x" * 1_000_000)


async def test_a_connection_whose_request_is_still_going_out_is_not_used_again() -> None:
    talk = Talk()
    connection = await talk.ask(SIZED)
    connection.pause_writing()
    assert await body_of(connection) == b"hello world" and not connection.rest()
    connection.resume_writing()
    assert connection.rest()


async def test_a_request_that_nobody_can_have_read_is_known() -> None:
    for error, is_sending, came, is_unsent in (
        (BrokenPipeError(), False, b"", True),
        (ConnectionResetError(), True, b"", True),
        (None, True, b"", True),
        (None, False, b"", False),
        (ConnectionResetError(), False, b"", False),
        (None, True, b"H", False),
    ):
        talk = Talk()
        asked = asyncio.ensure_future(talk.ask(*([came] if came else [])))  # noqa: TID251
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        if is_sending:
            talk.connection.pause_writing()
        talk.connection.connection_lost(error)
        with pytest.raises(TransportError):
            await asked
        assert talk.connection.was_unsent is is_unsent


async def test_a_provider_that_is_faster_than_its_reader_has_to_wait() -> None:
    talk = Talk()
    head = b"HTTP/1.1 200 OK\r\ncontent-length: 2000000\r\n\r\n"
    connection = await talk.ask(head)
    for _ in range(5):
        connection.data_received(b"x" * 50_000)
    assert not talk.wire.is_paused
    connection.data_received(b"x" * 50_000)
    assert talk.wire.is_paused
    assert len(await connection.read(bytes)) == 300_000 and not talk.wire.is_paused


async def test_a_cancelled_read_loses_nothing() -> None:
    talk = Talk()
    connection = await talk.ask(SIZED[:-11])
    for came in (b"", b"h"):
        read = asyncio.ensure_future(connection.read(bytes))  # noqa: TID251
        await asyncio.sleep(0)
        if came:
            connection.data_received(came)  # the reader is woken and cancelled in the same turn
        read.cancel()
        with pytest.raises(asyncio.CancelledError):
            await read
    connection.data_received(b"e")
    assert await connection.read(bytes) == b"h" and await connection.read(bytes) == b"e"
    connection.data_received(b"llo world")
    assert await body_of(connection) == b"llo world"


async def test_what_its_reader_deals_with_where_it_arrives_wakes_nobody() -> None:
    connection = await Talk().ask(SIZED[:-11])
    came: list[bytes] = []

    def take(data: bytes) -> str | None:
        came.append(data)
        return data.decode().upper() if data.startswith(b"w") else None

    read = asyncio.ensure_future(connection.read(take))  # noqa: TID251
    await asyncio.sleep(0)
    for piece in (b"he", b"llo "):
        connection.data_received(piece)
        await asyncio.sleep(0)
        assert came.pop() == piece and not read.done()
    connection.data_received(b"wor")
    connection.data_received(b"ld")  # nobody waits for it: it stays
    assert await read == "WOR" and came == [b"wor"]
    assert await connection.read(take) is None and came == [b"wor", b"ld"]
    assert connection.is_whole and connection.rest()


async def test_a_reader_that_fails_where_bytes_arrive_is_told_by_its_read() -> None:
    connection = await Talk().ask(SIZED[:-11])

    def take(data: bytes) -> bytes | None:
        raise ZeroDivisionError

    read = asyncio.ensure_future(connection.read(take))  # noqa: TID251
    await asyncio.sleep(0)
    connection.data_received(b"he")
    with pytest.raises(ZeroDivisionError):
        await read
    connection.data_received(b"llo world")
    assert await body_of(connection) == b"llo world"
