"""Plays one planned answer to its end, or into its fault.

All that goes wrong on purpose after a request was accepted goes wrong here; what a vendor says comes from its module.
"""

import asyncio
from collections.abc import Awaitable, Callable

import msgspec

from .exchange import Received, Rejected, Vendor
from .http1 import Outbox
from .plan import Plan

HTML = b"<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n<body><h1>502 Bad Gateway</h1></body>\r\n</html>\r\n"
NOT_HTTP = b"\x15\x03\x01\x00\x02\x02\x28 this is not HTTP\r\n\r\n"
COMMENT = b": keep-alive\n\n"
STREAM = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"}


class Player:
    """One answer. ``stall`` waits until the test lets go."""

    def __init__(self, vendor: Vendor, plan: Plan, outbox: Outbox, stall: Callable[[], Awaitable[None]]) -> None:
        self._vendor = vendor
        self._plan = plan
        self._outbox = outbox
        self._stall = stall

    async def play(self, received: Received) -> None:
        """Answers ``received`` as planned."""
        plan = self._plan
        if plan.fault != "none" and plan.fault_at == -1 and not await self._fail_before_head(received):
            return
        if plan.status != 200:
            return await self._answer_error(received)
        if received.is_stream and not plan.json_instead_of_stream:
            return await self._play_stream(received)
        await self._play_whole(received)

    def _headers(self, received: Received, content: dict[str, str]) -> dict[str, str]:
        retry = {} if self._plan.retry_after is None else {"retry-after": str(self._plan.retry_after)}
        return {**self._vendor.headers(received), **content, **retry, **self._plan.headers}

    async def answer_json(
        self, received: Received, status: int, body: bytes, content: str = "application/json"
    ) -> None:
        """A whole answer with a length."""
        headers = self._headers(received, {"content-type": content})
        await self._outbox.start(status, headers, self._plan, len(body))
        await self._outbox.write(body)
        await self._outbox.end()

    async def reject(self, received: Received, rejected: Rejected) -> None:
        """The vendor's envelope."""
        await self.answer_json(received, rejected.status, self._vendor.error(received, rejected))

    async def _answer_error(self, received: Received) -> None:
        plan = self._plan
        if plan.error_body is None:
            return await self.reject(received, self._vendor.ordered_error(plan.status))
        if isinstance(plan.error_body, str):
            return await self.answer_json(received, plan.status, plan.error_body.encode(), "text/plain")
        await self.answer_json(received, plan.status, msgspec.json.encode(plan.error_body))

    async def _fail_before_head(self, received: Received) -> bool:
        """Returns whether there is still something to say."""
        match self._plan.fault:
            case "reset":
                await self._outbox.reset()
            case "stall":
                await self._stall()
                return True
            case "garbage":
                await self._outbox.send(NOT_HTTP)
                await self._outbox.close()
            case "html":
                await self._answer_html(received)
            case _:
                await self._outbox.close()
        return False

    async def _answer_html(self, received: Received) -> None:
        status = 502 if self._plan.status == 200 else self._plan.status
        await self.answer_json(received, status, HTML, "text/html")

    async def _play_stream(self, received: Received) -> None:
        plan, outbox = self._plan, self._outbox
        kind = getattr(self._vendor, "stream_type", STREAM["content-type"])
        await outbox.start(200, self._headers(received, {**STREAM, "content-type": kind}), plan)
        due = plan.fault_at if plan.fault != "none" else -1
        if due == 0 and not await self._fail_in_stream(received):
            return
        spoken = 0
        for step in self._vendor.stream(received, plan):
            if due is None and step.is_closing and not await self._fail_in_stream(received):
                return
            if step.piece is not None and plan.delay_s:
                await asyncio.sleep(plan.delay_s)
            await outbox.write((COMMENT if plan.comments else b"") + step.data, step.piece)
            spoken += step.piece is not None
            if step.piece is not None and spoken == due and not await self._fail_in_stream(received):
                return
        await outbox.end()

    async def _fail_in_stream(self, received: Received) -> bool:
        """Returns whether the stream goes on."""
        outbox = self._outbox
        match self._plan.fault:
            case "reset":
                await outbox.reset()
            case "close":
                await outbox.close()
            case "stall":
                await outbox.flush()
                await self._stall()
                return True
            case "garbage":
                await outbox.write(self._vendor.garbage)
                return True
            case "error_event":
                await outbox.write(self._vendor.error_event(received, self._plan))
                await outbox.end()
            case "html":
                await outbox.write(HTML)
                await outbox.end()
            case _:
                await outbox.end()
        return False

    async def _play_whole(self, received: Received) -> None:
        plan = self._plan
        if plan.endless and not plan.obey_max_tokens:
            return await self._stall()
        body, pieces = self._vendor.whole(received, plan)
        await asyncio.sleep(plan.delay_s * len(pieces))
        match plan.fault if plan.fault_at != -1 else "none":
            case "none":
                await self.answer_json(received, 200, body)
                received.delivered += pieces
            case "html":
                await self._answer_html(received)
            case "garbage":
                await self.answer_json(received, 200, body[: len(body) // 2])
            case "error_event":
                await self.reject(received, self._vendor.ordered_error(500))
            case _:
                await self._fail_in_body(received, body)

    async def _fail_in_body(self, received: Received, body: bytes) -> None:
        """Half of the body, then the fault; a body with a length cannot end cleanly before its end."""
        half = len(body) // 2
        await self._outbox.start(
            200, self._headers(received, {"content-type": "application/json"}), self._plan, len(body)
        )
        await self._outbox.write(body[:half])
        if self._plan.fault == "stall":
            await self._outbox.flush()
            await self._stall()
            await self._outbox.write(body[half:])
            return await self._outbox.end()
        await (self._outbox.reset() if self._plan.fault == "reset" else self._outbox.close())
