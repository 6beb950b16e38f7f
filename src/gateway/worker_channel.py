"""What a parent and its workers tell each other, over a pair of connected sockets, each message with its length first.

Orders go this way and not by signal, since a service manager or a terminal may signal the workers as well: what came
twice would read as the second signal, which ends streams. When the other side has died, the channel ends.
"""

import asyncio
import socket
from typing import TypeAlias

import msgspec

from gateway.metric_sums import Family

_LENGTH_BYTES = 4


class Ready(msgspec.Struct, frozen=True, tag=True):
    """From a worker: it accepts requests."""


class Drain(msgspec.Struct, frozen=True, tag=True):
    """To a worker: end as SIGTERM would have it."""


class Reload(msgspec.Struct, frozen=True, tag=True):
    """To a worker: read the configuration again. From one: it was asked to and did, and the others should."""


class CountsWanted(msgspec.Struct, frozen=True, tag=True):
    """To a worker: say what you have counted. From one: somebody asks for everybody's."""


class Counts(msgspec.Struct, frozen=True, tag=True):
    """From a worker: what it has counted. To one: the sum."""

    families: tuple[Family, ...]


Message: TypeAlias = Ready | Drain | Reload | CountsWanted | Counts


class Channel:
    """One end. Messages arrive in the order in which they were sent."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)

    @classmethod
    async def open(cls, end: socket.socket) -> "Channel":
        """The channel over one end of a pair, which it owns from then on."""
        return cls(*await asyncio.open_unix_connection(sock=end))

    def send(self, message: Message) -> None:
        """Send soon; to nobody where the other side has gone."""
        if not self._writer.is_closing():
            encoded = msgspec.msgpack.encode(message)
            self._writer.write(len(encoded).to_bytes(_LENGTH_BYTES) + encoded)

    async def receive(self) -> Message | None:
        """The next message, or ``None`` once the other side has gone, or is of another version."""
        try:
            length = int.from_bytes(await self._reader.readexactly(_LENGTH_BYTES))
            return self._decoder.decode(await self._reader.readexactly(length))
        except (asyncio.IncompleteReadError, OSError, msgspec.DecodeError):
            return None

    async def aclose(self) -> None:
        """Send what waits, and close."""
        self._writer.close()
        try:
            await self._writer.wait_closed()
        except OSError:
            return
