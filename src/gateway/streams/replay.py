"""Sends a logged answer once more, from its beginning, and goes on with it as it is made."""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

from anyio import move_on_after

from gateway.canonical.errors import GatewayError, ServiceUnavailable
from gateway.downstream import Downstream
from gateway.limits.redis import StoreUnavailable
from gateway.live import LiveExchanges
from gateway.protocols.wire import Headers, Reply
from gateway.services import Patience
from gateway.streams.log import Part
from gateway.tasks import TaskOwner

_AWAY = "What was said cannot be read at the moment; try again shortly."


class Replay:
    """One reader of one log. ``run`` returns whether the end was reached and sent."""

    def __init__(self, downstream: Downstream, live: LiveExchanges, patience: Patience, tasks: TaskOwner) -> None:
        self._downstream = downstream
        self._live = live
        self._patience = patience
        self._tasks = tasks
        self._headers: Headers = ()

    async def run(
        self,
        parts: AsyncGenerator[Part | None],
        receive: Callable[[], Awaitable[Any]],
        *,
        heartbeat: bytes,
        fail: Callable[[GatewayError], bytes],
    ) -> bool:
        """``heartbeat`` and ``fail`` are the format's; raises ``GatewayError`` only before anything was sent."""
        leaving = self._tasks.start(_left(receive), "watch-reader")
        try:
            async with aclosing(parts):
                async for part in parts:
                    if leaving.done() or self._downstream.is_finished:
                        return False
                    if self._live.is_over:
                        self._downstream.abort()
                        return False
                    await (self._beat(heartbeat) if part is None else self._send(part))
            return self._downstream.is_finished
        except (GatewayError, StoreUnavailable) as error:
            told = error if isinstance(error, GatewayError) else ServiceUnavailable(_AWAY, retry_after_s=1)
            if not self._downstream.is_started:
                raise told from None
            await self._bounded(self._downstream.finish(fail(told), self._headers))
            return False
        finally:
            leaving.cancel()

    async def _send(self, part: Part) -> None:
        if part.head is not None:
            if part.head.status != 200:
                await self._bounded(
                    self._downstream.reply(Reply(part.head.status, part.head.to_headers(), part.payload))
                )
                return
            self._headers = part.head.to_headers()
        send = self._downstream.finish if part.is_end else self._downstream.write
        await self._bounded(send(part.payload, self._headers))

    async def _beat(self, heartbeat: bytes) -> None:
        downstream = self._downstream
        if downstream.is_started and time.monotonic() - downstream.last_write_at >= self._patience.heartbeat_s:
            await self._bounded(downstream.write(heartbeat, self._headers))

    async def _bounded(self, sending: Awaitable[None]) -> None:
        """A reader that takes nothing is let go."""
        with move_on_after(self._patience.send_s) as patience:
            await sending
        if patience.cancelled_caught:
            self._downstream.abort()


async def _left(receive: Callable[[], Awaitable[Any]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        await asyncio.sleep(0)
