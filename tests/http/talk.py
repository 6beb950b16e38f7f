"""A page on a WebSocket: it sends frames of AI SDK 7 and sorts what comes back by request."""

import asyncio
import contextlib
import json
from collections import defaultdict
from collections.abc import AsyncIterator
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from tests.harness import GatewayProcess

PATH = "/api/chat/ws"
LAST = ("end", "error", "no-active")
_PATIENCE_S = 30.0

Frame = dict[str, Any]


def send_frame(
    request_id: str = "r1", chat_id: str = "chat-1", model: str = "demo/fast", *, text: str = "Hi", **more: Any
) -> Frame:
    """What the transport sends for a message of the user's."""
    message = {"id": "m1", "role": "user", "parts": [{"type": "text", "text": text}]}
    body = {"model": model, **more.pop("body", {})}
    asked = {"type": "send", "requestId": request_id, "id": chat_id, "messages": [message], "body": body}
    return {**asked, "trigger": "submit-message", "headers": {}, **more}


class Talk:
    """One connection."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection
        self.frames: dict[str, list[Frame]] = defaultdict(list)
        self.order: list[str] = []

    async def send(self, frame: Frame | str | bytes) -> None:
        await self.connection.send(json.dumps(frame) if isinstance(frame, dict) else frame)

    async def ask(self, request_id: str = "r1", chat_id: str = "chat-1", model: str = "demo/fast", **more: Any) -> None:
        await self.send(send_frame(request_id, chat_id, model, **more))

    async def resume(self, request_id: str, chat_id: str = "chat-1", **more: Any) -> None:
        await self.send({"type": "resume", "requestId": request_id, "id": chat_id, "headers": {}, "body": {}, **more})

    async def abort(self, request_id: str) -> None:
        await self.send({"type": "abort", "requestId": request_id})

    async def next(self) -> Frame:
        async with asyncio.timeout(_PATIENCE_S):
            frame: Frame = json.loads(await self.connection.recv())
        self.frames[frame["requestId"]].append(frame)
        self.order.append(frame["requestId"])
        return frame

    async def ended(self, request_id: str = "r1") -> list[Frame]:
        """Read until a request's last frame; returns all of that request's."""
        while not self.frames[request_id] or self.frames[request_id][-1]["type"] not in LAST:
            await self.next()
        return self.frames[request_id]

    async def said(self, chunks: int, request_id: str = "r1") -> list[Frame]:
        """Read until so many chunks have come."""
        while len(chunks_of(self.frames[request_id])) < chunks:
            await self.next()
        return self.frames[request_id]

    async def closed(self) -> tuple[int | None, str | None]:
        """Read until the connection ends; with which code, and why."""
        with contextlib.suppress(ConnectionClosed):
            while True:
                await self.next()
        return self.connection.close_code, self.connection.close_reason


@contextlib.asynccontextmanager
async def talking(
    gateway: GatewayProcess,
    key: str = "",
    *,
    query: str = "",
    protocols: tuple[str, ...] = (),
    origin: str | None = None,
    **headers: str,
) -> AsyncIterator[Talk]:
    """A connection whose handshake has the key in a header, where one is given."""
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    if key:
        sent["authorization"] = f"Bearer {key}"
    if origin is not None:
        sent["origin"] = origin
    async with connect(
        f"ws://127.0.0.1:{gateway.port}{PATH}{query}",
        additional_headers=sent,
        subprotocols=[Subprotocol(name) for name in protocols] or None,
        compression=None,
        proxy=None,
        max_size=None,
        max_queue=None,
    ) as connection:
        yield Talk(connection)


def chunks_of(frames: list[Frame]) -> list[Any]:
    """The chunks of a request, which are numbered without a gap."""
    chunks = [frame for frame in frames if frame["type"] == "chunk"]
    numbers = [frame["sequence"] for frame in chunks]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers))) if numbers else True
    return [frame["chunk"] for frame in chunks]


def text_of(frames: list[Frame]) -> str:
    """What was said."""
    return "".join(chunk["delta"] for chunk in chunks_of(frames) if chunk["type"] == "text-delta")


def words_of(frames: list[Frame]) -> int:
    """How many pieces of text and reasoning were said; of the demo's, each is a token."""
    return sum(chunk["type"].endswith("-delta") for chunk in chunks_of(frames))


def upgrade(path: str, *headers: str, method: str = "GET", key: str = "dGhlIHNhbXBsZSBub25jZQ==") -> bytes:
    """A handshake as bytes."""
    offer = (f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Version: 13", "Connection: Upgrade", "Upgrade: websocket")
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: gateway", *offer, *headers, "", ""]).encode("latin-1")


def frame_bytes(payload: bytes, *, first: int = 0x81, is_masked: bool = True) -> bytes:
    """A WebSocket frame, whole text where ``first`` says nothing else; the mask is zero."""
    size = len(payload)
    mask = 0x80 if is_masked else 0
    if size < 126:
        head = bytes([first, mask | size])
    elif size < 65536:
        head = bytes([first, mask | 126]) + size.to_bytes(2, "big")
    else:
        head = bytes([first, mask | 127]) + size.to_bytes(8, "big")
    return head + (bytes(4) if is_masked else b"") + payload
