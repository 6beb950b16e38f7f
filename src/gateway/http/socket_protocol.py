"""uvicorn's WebSocket protocol with the bounds it lacks.

Stock uvicorn answers pings that nobody reads the answers of, joins as many fragments as come, logs the address with
everything in it, leaves a connection open whose handshake it cannot parse, and raises for a frame that is sent while
the connection closes. An application gets two functions here: one that resets the connection, and one that says how
large a message may be, so that whoever has not said who he is can be kept short.
"""

from collections.abc import Callable
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState
from websockets.exceptions import ProtocolError
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.server import ServerProtocol

from gateway.http.server_protocol import RESET, reset

SIZE = "gateway.size"

MESSAGE_BYTES_MAX_AT_FIRST = 1024 * 1024
# Libraries that fragment use pieces of 4 KiB and more.
_FRAGMENTS_MAX = 16_384
_GOING_AWAY = 1001
_INVALID_TEXT = 1007


class GuardedSocket(WebSocketsSansIOProtocol):
    """One connection, from its handshake on."""

    def __init__(self, config: Config, server_state: ServerState, app_state: dict[str, Any]) -> None:
        super().__init__(config, server_state, app_state)
        self.conn = _Conversation(self.writable.is_set, max_size=MESSAGE_BYTES_MAX_AT_FIRST, logger=self.logger)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.handshake_exc is not None and not self.handshake_initiated:
            self.transport.write(b"".join(self.conn.data_to_send()))
            self.transport.close()

    async def run_asgi(self) -> None:
        """Call the application, with what it may do to the connection."""
        self.scope["extensions"][RESET] = {"reset": self.reset}
        self.scope["extensions"][SIZE] = {"allow": self.allow}
        await super().run_asgi()

    def reset(self) -> None:
        """Drop the connection at once, and what the kernel still has for a peer that does not take it."""
        reset(self.transport)

    def allow(self, bytes_max: int) -> None:
        """Take messages of this size from the next one on."""
        self.conn.max_message_size = bytes_max

    def send_receive_event_to_app(self) -> None:
        """Called when a message is complete; text that is not UTF-8 ends the connection."""
        if self.curr_msg_data_type == "text" and not self.close_sent:
            try:
                self.frames = [b"".join(self.frames)]
                self.frames[0].decode()
            except UnicodeDecodeError:
                self.frames = []
                self.conn.fail(_INVALID_TEXT, "This is not UTF-8.")
                self.handle_parser_exception()
                return
        super().send_receive_event_to_app()

    async def send(self, message: Any) -> None:
        """Raises ``ClientDisconnected`` where the connection is closing, whoever began it."""
        await self.writable.wait()
        if self.close_sent and self.handshake_complete:
            raise ClientDisconnected
        await super().send(message)

    def shutdown(self) -> None:
        """Called when the server stops: who is still here is to come back to another one."""
        if self.handshake_complete and not self.close_sent and self.conn.state is State.OPEN:
            self.stop_keepalive()
            self.queue.put_nowait({"type": "websocket.disconnect", "code": _GOING_AWAY})
            self.conn.send_close(_GOING_AWAY)
            self.transport.write(b"".join(self.conn.data_to_send()))
            self.transport.close()
        else:
            super().shutdown()


class _Conversation(ServerProtocol):
    """Parses and builds frames. ``may_answer`` says whether the peer takes what is written."""

    def __init__(self, may_answer: Callable[[], bool], **options: Any) -> None:
        super().__init__(**options)
        self._may_answer = may_answer
        self._fragments = 0

    def recv_frame(self, frame: Frame) -> None:
        """Called for every frame."""
        if frame.opcode is Opcode.PING and not self._may_answer():
            return
        if frame.opcode is Opcode.CONT:
            self._fragments += 1
            if self._fragments > _FRAGMENTS_MAX:
                raise ProtocolError("too many fragments")
        elif frame.opcode in (Opcode.TEXT, Opcode.BINARY):
            self._fragments = 0
        super().recv_frame(frame)
