"""HTTP/1.1 by hand: requests in, answers out, every write and chunk boundary ours to order.

It knows nothing of vendors. Requests may have a length or come in chunks; what a peer sends while it is answered is
kept for the next request, so that watching for a hang-up loses nothing.
"""

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable, Mapping
from http import HTTPStatus

import msgspec

from .exchange import Received
from .plan import Plan

HEAD_BYTES_MAX = 64 * 1024
BODY_BYTES_MAX = 64 * 1024 * 1024
READ_BYTES = 64 * 1024


class HungUp(Exception):
    """The peer is gone, or speaks no HTTP."""


class Inbox:
    """What a peer sends. ``hang_up`` may be cancelled at any time without losing bytes."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader
        self._buffer = bytearray()

    async def _more(self) -> bool:
        try:
            chunk = await self._reader.read(READ_BYTES)
        except ConnectionError:
            return False
        self._buffer += chunk
        return bool(chunk)

    async def until(self, mark: bytes, size_max: int) -> bytes:
        """Everything up to ``mark``, which is dropped."""
        while (at := self._buffer.find(mark)) < 0:
            if len(self._buffer) > size_max or not await self._more():
                raise HungUp
        found = bytes(self._buffer[:at])
        del self._buffer[: at + len(mark)]
        return found

    async def exactly(self, size: int) -> bytes:
        """The next ``size`` bytes."""
        while len(self._buffer) < size:
            if size > BODY_BYTES_MAX or not await self._more():
                raise HungUp
        found = bytes(self._buffer[:size])
        del self._buffer[:size]
        return found

    async def hang_up(self) -> None:
        """Returns when the peer is gone."""
        while await self._more():
            pass


async def read_request(inbox: Inbox) -> Received:
    """The next request. Raises ``HungUp`` where there is none."""
    head = await inbox.until(b"\r\n\r\n", HEAD_BYTES_MAX)
    start, *lines = head.decode("latin-1").split("\r\n")
    words = start.split(" ")
    if len(words) != 3:
        raise HungUp
    pairs = (line.partition(":") for line in lines)
    headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
    path, _, query = words[1].partition("?")
    raw = await _read_body(inbox, headers)
    body = None
    with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
        body = msgspec.json.decode(raw)
    return Received(method=words[0], path=path, query=query, headers=headers, raw=raw, body=body)


async def _read_body(inbox: Inbox, headers: Mapping[str, str]) -> bytes:
    if "chunked" not in headers.get("transfer-encoding", "").lower():
        return await inbox.exactly(int(headers.get("content-length", "0")))
    body = b""
    while size := int((await inbox.until(b"\r\n", HEAD_BYTES_MAX)).partition(b";")[0], 16):
        body += await inbox.exactly(size)
        await inbox.exactly(2)
    while await inbox.until(b"\r\n", HEAD_BYTES_MAX):
        pass
    return body


class Outbox:
    """One answer to one request: its head, then pieces of a body, cut or joined as the plan wants.

    A streamed body is chunked, one chunk per write. ``note`` is called after each write.
    """

    def __init__(self, writer: asyncio.StreamWriter, received: Received, note: Callable[[], None]) -> None:
        self._writer = writer
        self._received = received
        self._note = note
        self._cut: int | None = None
        self._is_joined = False
        self._is_chunked = False
        self._buffer = bytearray()
        self._pieces: list[str] = []

    async def start(self, status: int, headers: Mapping[str, str], plan: Plan, length: int | None = None) -> None:
        """The head. A ``length`` of ``None`` means chunks."""
        self._cut, self._is_joined, self._is_chunked = plan.cut, plan.coalesce, length is None
        self._received.status = status
        framing = {"transfer-encoding": "chunked"} if length is None else {"content-length": str(length)}
        reason = HTTPStatus(status).phrase if status in HTTPStatus.__members__.values() else "Unknown"
        lines = [f"HTTP/1.1 {status} {reason}", *(f"{name}: {value}" for name, value in {**headers, **framing}.items())]
        await self.send("\r\n".join([*lines, "", ""]).encode("latin-1"))

    async def send(self, data: bytes) -> None:
        """Bytes as they are. The peer, in the same loop, gets its turn to read them."""
        self._writer.write(data)
        await self._writer.drain()
        await asyncio.sleep(0)

    async def write(self, data: bytes, piece: str | None = None) -> None:
        """Part of the body; ``piece`` is noted as delivered once its bytes are written."""
        self._buffer += data
        if piece is not None:
            self._pieces.append(piece)
        if self._is_joined:
            return
        if self._cut is None:
            return await self.flush()
        while len(self._buffer) >= self._cut:
            await self._write_chunk(self._cut)
        self._deliver()

    async def flush(self) -> None:
        """Writes what is held back."""
        if self._buffer:
            await self._write_chunk(len(self._buffer))
        self._deliver()

    async def _write_chunk(self, size: int) -> None:
        chunk = bytes(self._buffer[:size])
        del self._buffer[:size]
        await self.send(b"%x\r\n%b\r\n" % (size, chunk) if self._is_chunked else chunk)

    def _deliver(self) -> None:
        self._received.delivered += self._pieces
        self._pieces = []
        self._note()

    async def end(self) -> None:
        """The end of the body. From here on a hang-up is no abort: the peer has all there is."""
        await self.flush()
        self._received.is_complete = True
        if self._is_chunked:
            await self.send(b"0\r\n\r\n")

    async def close(self) -> None:
        """Hangs up in the middle, with a FIN."""
        await self.flush()
        self._received.is_complete = True
        self._writer.close()

    async def reset(self) -> None:
        """Hangs up in the middle, with a RST."""
        await self.flush()
        self._received.is_complete = True
        sock = self._writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()
