"""How long a connection for Responses lives, without waiting for it."""

import json
from typing import Any

from gateway.http.responses_socket import ResponsesSocket
from gateway.http.websockets import Socket
from gateway.responses.connection import ConnectionStore


class Endpoint:
    """Remembers what it was asked."""

    def new_store(self) -> ConnectionStore:
        return ConnectionStore(None, lambda kept: False)


async def test_a_connection_that_had_its_time_is_told_so_and_retires() -> None:
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "websocket.disconnect"}

    async def send(message: Any) -> None:
        sent.append(json.loads(message["text"]))

    nothing: Any = None
    endpoint: Any = Endpoint()
    socket = Socket({"type": "websocket"}, receive, send)
    old = ResponsesSocket(nothing, endpoint, nothing, life_s=-1)
    await old.take(socket, json.dumps({"type": "response.create", "model": "a/b", "input": "Hi", "stream_id": "x"}))
    [told] = sent
    assert (told["type"], told["status"], told["stream_id"]) == ("error", 400, "x")
    assert told["error"]["code"] == "websocket_connection_limit_reached"
    assert socket.retiring is not None and not socket.requests
