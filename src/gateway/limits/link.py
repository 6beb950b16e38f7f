"""One connection to Redis after its handshake: bytes out, replies in, and no task of its own.

redis-py connects (TLS, user, database) and hands its transport over. From then on replies are parsed in the callback
that brings their bytes, without a stream reader, a task to wake or a timer for each.
"""

import asyncio
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

from hiredis import Reader
from redis._parsers import BaseParser
from redis.asyncio.connection import AbstractConnection, SSLConnection, UnixDomainSocketConnection
from redis.exceptions import ConnectionError as LostConnection
from redis.exceptions import InvalidResponse

_NOT_YET = object()
_CLOSED = "Connection closed by server."


class Link(asyncio.Protocol):
    """Calls ``on_reply`` with each reply in order, errors included, and ``on_lost`` once if the connection ends."""

    def __init__(
        self,
        connection: AbstractConnection,
        on_reply: Callable[[Any], None],
        on_lost: Callable[[Exception], None],
    ) -> None:
        """Take over a connection that has answered everything it was asked. Raises where it has ended meanwhile."""
        reader, writer = connection._reader, connection._writer
        if reader is None or writer is None or reader.at_eof() or writer.transport.is_closing():
            raise LostConnection(_CLOSED)
        self.address = _address(connection)
        self.is_exposed = _is_exposed(connection)
        self._connection = connection  # its streams close the transport when they are collected
        self._transport = writer.transport
        self._reader = Reader(protocolError=InvalidResponse, replyError=BaseParser.parse_error, notEnoughData=_NOT_YET)
        self._on_reply = on_reply
        self._on_lost: Callable[[Exception], None] | None = on_lost
        self._transport.set_protocol(self)

    def write(self, data: bytes) -> None:
        """Send; what a closed transport raises is raised."""
        self._transport.write(data)

    def data_received(self, data: bytes) -> None:
        """Hand on every reply that is complete."""
        try:
            self._reader.feed(data)
            while self._on_lost is not None and (reply := self._reader.gets()) is not _NOT_YET:
                self._on_reply(reply)
        except InvalidResponse as error:
            self._end(error)

    def connection_lost(self, exc: Exception | None) -> None:
        """The server or the network ended it."""
        self._end(exc or LostConnection(_CLOSED))

    def _end(self, error: Exception) -> None:
        on_lost = self._on_lost
        if on_lost is not None:
            self.close(is_broken=True)
            on_lost(error)

    def close(self, *, is_broken: bool = False) -> None:
        """Close at once; nothing is told any more. A broken connection is not waited for."""
        self._on_lost = None
        if is_broken:
            self._transport.abort()
        self._connection._close()  # type: ignore[no-untyped-call]


def _address(connection: AbstractConnection) -> str:
    if isinstance(connection, UnixDomainSocketConnection):
        return str(connection.path)
    return f"{getattr(connection, 'host', '')}:{getattr(connection, 'port', '')}"


def _is_exposed(connection: AbstractConnection) -> bool:
    if isinstance(connection, (UnixDomainSocketConnection, SSLConnection)):
        return False
    host = str(getattr(connection, "host", ""))
    try:
        return not ip_address(host).is_loopback
    except ValueError:
        return host != "localhost"
