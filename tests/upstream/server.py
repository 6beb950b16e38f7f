"""The server itself: sockets, plans in order, and a record of all that happened.

Each connection is a task that reads a request, answers it while listening for a hang-up, and goes on with the next.
Everything observable changes under ``until``'s eyes, so tests wait for conditions and never for time.
"""

import asyncio
import contextlib
import re
import socket
from collections import deque
from collections.abc import Callable, Coroutine
from functools import partial
from types import TracebackType
from typing import Any, Self

import msgspec

from .anthropic_messages import AnthropicMessages
from .exchange import CREATED, Received, Rejected, Vendor
from .gemini import CLAUDE_PATH, Gemini, VertexClaude
from .gemini import PATH as GEMINI_PATH
from .http1 import HungUp, Inbox, Outbox, read_request
from .openai_chat import OpenAIChat
from .openai_responses import OpenAIResponses
from .plan import Plan
from .player import Player

# A connection that the kernel accepted needs some turns of the loop until its task runs.
ACCEPT_TURNS = 5
METHODS = {
    "/v1/chat/completions": "POST",
    "/v1/responses": "POST",
    "/v1/messages": "POST",
    "/v1/models": "GET",
}


class Upstream:
    """A provider on 127.0.0.1 while the context lasts.

    ``api_key`` is the only key accepted; ``None`` accepts any. ``strict_fields`` lets the OpenAI side refuse fields it
    does not know, as OpenAI does and compatible servers do not. ``send_buffer_bytes`` makes the kernel's buffer small,
    so that a peer which does not read is soon felt.
    """

    def __init__(
        self,
        *,
        port: int = 0,
        api_key: str | None = None,
        strict_fields: bool = False,
        send_buffer_bytes: int | None = None,
    ) -> None:
        self.plan = Plan()
        self.models = ["gpt-upstream", "claude-upstream"]
        self.requests: list[Received] = []
        self.open_streams = self.connections = self.aborted = self.stalled = 0
        self._port = port
        self._api_key = api_key
        self._send_buffer_bytes = send_buffer_bytes
        self._queue: deque[Plan] = deque()
        self._by_model: dict[str, Plan] = {}
        self._openai = OpenAIChat(strict_fields)
        self._responses = OpenAIResponses(strict_fields)
        self._anthropic = AnthropicMessages()
        # Vendors whose paths name the model.
        self._clouds: list[tuple[re.Pattern[str], Vendor]] = [
            (GEMINI_PATH, Gemini()),
            (CLAUDE_PATH, VertexClaude()),
        ]
        self._tasks: set[asyncio.Task[Any]] = set()
        self._crashes: list[Exception] = []
        self._changed = asyncio.Event()
        self._released = asyncio.Event()
        self._server: asyncio.Server | None = None

    def __repr__(self) -> str:
        return (
            f"<Upstream requests={len(self.requests)} open_streams={self.open_streams} connections={self.connections} "
            f"aborted={self.aborted} stalled={self.stalled} delivered={[len(each) for each in self.delivered]}>"
        )

    @property
    def base_url(self) -> str:
        """Without a path, as Anthropic's SDK wants it."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def openai_url(self) -> str:
        """With ``/v1``, as OpenAI's SDK wants it."""
        return f"{self.base_url}/v1"

    @property
    def delivered(self) -> list[list[str]]:
        """The pieces written so far, per request and in the order of ``requests``."""
        return [received.delivered for received in self.requests]

    def queue(self, *plans: Plan) -> None:
        """Plans for the next requests, first in, first out; they come before all others."""
        self._queue.extend(plans)

    def for_model(self, model: str, plan: Plan) -> None:
        """The plan for every request that names this model."""
        self._by_model[model] = plan

    def release(self) -> None:
        """Lets the answer to each request that came until now go on, whether it stalls or was going to."""
        self._released.set()
        self._released = asyncio.Event()

    async def until(self, condition: Callable[["Upstream"], bool], timeout_s: float = 15.0) -> None:
        """Waits until ``condition`` holds. Raises ``TimeoutError`` that tells the state."""
        try:
            async with asyncio.timeout(timeout_s):
                while not condition(self):
                    await self._changed.wait()
        except TimeoutError:
            raise TimeoutError(f"the condition did not come true in {timeout_s} s: {self!r}") from None

    async def __aenter__(self) -> Self:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if self._send_buffer_bytes is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self._send_buffer_bytes)
        sock.bind(("127.0.0.1", self._port))
        self._port = sock.getsockname()[1]
        self._server = await asyncio.start_server(self._serve, sock=sock)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for _ in range(ACCEPT_TURNS):
            await asyncio.sleep(0)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()
        if self._crashes:
            raise ExceptionGroup("the simulated provider has a bug", self._crashes)

    def _note(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        self._note()
        writer.transport.set_write_buffer_limits(high=0)
        try:
            await self._converse(Inbox(reader), writer)
        except asyncio.CancelledError:
            writer.transport.abort()
        except Exception as error:
            self._crashes.append(error)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
            self.connections -= 1
            self._tasks.discard(task)
            self._note()

    async def _converse(self, inbox: Inbox, writer: asyncio.StreamWriter) -> None:
        while not writer.is_closing():
            try:
                received = await read_request(inbox)
            except HungUp:
                return
            self.requests.append(received)
            received.serial = len(self.requests)
            received.released = self._released
            self.open_streams += 1
            self._note()
            try:
                await self._race(inbox, self._answer(received, Outbox(writer, received, self._note)))
                self.aborted += not received.is_complete
            finally:
                self.open_streams -= 1
                self._note()
            if not received.is_complete or received.headers.get("connection", "").lower() == "close":
                return

    async def _race(self, inbox: Inbox, answer: Coroutine[Any, Any, None]) -> None:
        """Answers until all is said or the peer hangs up."""
        async with asyncio.TaskGroup() as group:
            tasks = group.create_task(answer), group.create_task(inbox.hang_up())
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                task.cancel()

    async def _answer(self, received: Received, outbox: Outbox) -> None:
        vendor, stall = self._vendor(received), partial(self._stall, received)
        with contextlib.suppress(ConnectionError):
            try:
                plan = self._accept(received, vendor)
            except Rejected as rejected:
                received.refused = rejected.message
                return await Player(vendor, Plan(), outbox, stall).reject(received, rejected)
            player = Player(vendor, plan, outbox, stall)
            if received.method == "GET":
                return await player.answer_json(received, 200, self._list_models(received))
            await player.play(received)

    def _vendor(self, received: Received) -> Vendor:
        """By path; where both companies have it, by the header that only one has."""
        for pattern, vendor in self._clouds:
            if pattern.fullmatch(received.path):
                return vendor
        if received.path == "/v1/chat/completions":
            return self._openai
        if received.path == "/v1/responses":
            return self._responses
        is_anthropic = received.path == "/v1/messages" or "anthropic-version" in received.headers
        return self._anthropic if is_anthropic else self._openai

    def _accept(self, received: Received, vendor: Vendor) -> Plan:
        """The plan for a request that the vendor would accept; one that it refuses takes none."""
        model = self._model_in_path(received)
        method = METHODS.get(received.path) if model is None else "POST"
        if method is None:
            raise Rejected(f"Invalid URL ({received.method} {received.path})", status=404)
        if received.method != method:
            raise Rejected(f"Not allowed to {received.method} on {received.path}", status=405)
        if received.key and self._api_key is not None and received.key != self._api_key:
            raise Rejected("Incorrect API key provided.", status=401, code="invalid_api_key")
        vendor.check(received)
        if received.method == "GET":
            return Plan()
        if self._queue:
            return self._queue.popleft()
        return self._by_model.get(model or received.body["model"], self.plan)

    def _model_in_path(self, received: Received) -> str | None:
        found = (pattern.fullmatch(received.path) for pattern, _ in self._clouds)
        return next((match.group(1) for match in found if match is not None), None)

    def _list_models(self, received: Received) -> bytes:
        names = [*self.models, *self._by_model]
        if "anthropic-version" in received.headers:
            at = "2026-01-01T00:00:00Z"
            models = [{"type": "model", "id": name, "display_name": name, "created_at": at} for name in names]
            page = {"data": models, "has_more": False, "first_id": names[0], "last_id": names[-1]}
            return msgspec.json.encode(page)
        listed = [{"id": name, "object": "model", "created": CREATED, "owned_by": "upstream"} for name in names]
        return msgspec.json.encode({"object": "list", "data": listed})

    async def _stall(self, received: Received) -> None:
        self.stalled += 1
        self._note()
        try:
            await received.released.wait()
        finally:
            self.stalled -= 1
            self._note()
