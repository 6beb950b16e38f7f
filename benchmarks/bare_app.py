"""The least a gateway in Python can do, as an ASGI application: pass the bytes on. `foundations.py` puts it on servers.

BARE_UPSTREAM is the port that it asks. Nothing is checked, counted or read; the provider is asked by the gateway's own
client.
"""

import os
from typing import Any

from gateway.providers.address import Address, address_of
from gateway.providers.transport import Post, Transport

CONNECT_S = 5.0
HEADERS = {"content-type": "application/json", "user-agent": "bare"}


class Bare:
    """The application; its client is made in the server's loop."""

    def __init__(self) -> None:
        self.address: Address = address_of(f"http://127.0.0.1:{os.environ['BARE_UPSTREAM']}/v1/chat/completions")
        self.head = self.address.head(HEADERS)
        self.transport: Transport | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            raise NotImplementedError  # no start-up to wait for
        if scope["method"] == "GET":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"ready"})
            return
        self.transport = self.transport or Transport()
        body, is_more = b"", True
        while is_more:
            message = await receive()
            body += message.get("body", b"")
            is_more = message.get("more_body", False)
        answer = await self.transport.post(Post(self.address.origin, self.head, body, CONNECT_S))
        try:
            headers = [(b"content-type", answer.headers["content-type"].encode())]
            await send({"type": "http.response.start", "status": answer.status, "headers": headers})
            while piece := await answer.read(bytes):
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            answer.close()


app = Bare()
