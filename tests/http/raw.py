"""A client on a plain socket: it sends the bytes it is given, as they are, and reads what comes back.

Blocking, and meant to be used in a thread: where a server hangs up while a client is still sending, the kernel keeps
the answer for whoever reads on, and an event loop's transport does not.
"""

import contextlib
import json
import socket
import threading
from typing import Any, Self

from tests.http.conftest import Answer

_PATIENCE_S = 20.0
_AT_ONCE = 64 * 1024
JSON = "Content-Type: application/json"


class Wire:
    """One connection."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=_PATIENCE_S)
        self._received = b""
        self._sender: threading.Thread | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        if self._sender is not None:
            self._sender.join(_PATIENCE_S)

    def send(self, data: bytes) -> None:
        """Send as much as the server takes; it may have hung up. What is large is sent while answers are read."""
        if len(data) <= _AT_ONCE:
            self._send(data)
        else:
            self._sender = threading.Thread(target=self._send, args=(data,))
            self._sender.start()

    def _send(self, data: bytes) -> None:
        with contextlib.suppress(OSError):
            self._socket.sendall(data)

    def answer(self, *, is_head: bool = False) -> Answer:
        """The next answer, whole; raises ``EOFError`` where the connection ends first."""
        lines = self._until(b"\r\n\r\n").decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:] if line)}
        status = int(lines[0].split(" ")[1])
        if is_head:
            body = b""
        elif headers.get("transfer-encoding") == "chunked":
            body = b"".join(iter(self._chunk, b""))
        else:
            body = self._exactly(int(headers.get("content-length", 0)))
        return Answer(status, headers, body)

    def rest(self) -> bytes:
        """Everything until the server closes; a reset is an end like any other."""
        with contextlib.suppress(ConnectionError):
            while data := self._socket.recv(_AT_ONCE):
                self._received += data
        received, self._received = self._received, b""
        return received

    def _chunk(self) -> bytes:
        size = int(self._until(b"\r\n"), 16)
        data = self._exactly(size)
        self._exactly(2)
        return data

    def _until(self, mark: bytes) -> bytes:
        while mark not in self._received:
            self._more()
        found, _, self._received = self._received.partition(mark)
        return found

    def _exactly(self, size: int) -> bytes:
        while len(self._received) < size:
            self._more()
        found, self._received = self._received[:size], self._received[size:]
        return found

    def _more(self) -> None:
        data = self._socket.recv(_AT_ONCE)
        if not data:
            raise EOFError(self._received)
        self._received += data


def request(line: str, *headers: str, body: bytes = b"", host: str = "Host: gateway") -> bytes:
    """A request whose header is as it is written here, with one Host."""
    return "\r\n".join([line, host, *headers, "", ""]).encode("latin-1") + body


def post(path: str, key: str, body: bytes | dict[str, Any], *headers: str) -> bytes:
    """A body as a well-behaved client would send it."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    length = f"Content-Length: {len(content)}"
    return request(f"POST {path} HTTP/1.1", f"Authorization: Bearer {key}", JSON, length, *headers, body=content)


def ask(port: int, data: bytes, *, is_head: bool = False) -> Answer:
    """Send on a connection of its own; the first answer."""
    with Wire(port) as wire:
        wire.send(data)
        return wire.answer(is_head=is_head)
