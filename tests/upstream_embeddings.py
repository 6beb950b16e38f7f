"""A provider's ``POST /v1/embeddings``, as OpenAI answers it, with the ways in which compatible servers differ."""

import asyncio
import base64
import struct
from typing import Any, Self

import msgspec
from aiohttp import web

VECTOR = (0.25, -0.5, 1.0)


class EmbeddingsPlan(msgspec.Struct, frozen=True, kw_only=True):
    """One answer. ``body`` replaces it; ``forgets`` leaves fields out; ``stalls`` never answers."""

    status: int = 200
    body: bytes | None = None
    tokens: int = 7
    only_numbers: bool = False
    only_base64: bool = False
    reverses: bool = False
    forgets: tuple[str, ...] = ()
    stalls: bool = False
    breaks: bool = False


class EmbeddingsUpstream:
    """Serves on a port of its own. ``bodies`` are the requests; each vector is ``VECTOR`` plus its input's place."""

    def __init__(self) -> None:
        self.plan = EmbeddingsPlan()
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.aborted = 0
        self.is_asked = asyncio.Event()
        self._runner: web.AppRunner | None = None
        self.url = ""

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_post("/v1/embeddings", self._answer)
        self._runner = web.AppRunner(app, handler_cancellation=True)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/v1"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = msgspec.json.decode(await request.read())
        self.bodies.append(body)
        self.keys.append(request.headers.get("authorization", ""))
        self.is_asked.set()
        plan = self.plan
        if plan.stalls:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.aborted += 1
                raise
        if plan.breaks:
            assert request.transport is not None
            response = web.StreamResponse(headers={"content-length": "1000", "content-type": "application/json"})
            await response.prepare(request)
            await response.write(b'{"data": [')
            request.transport.abort()
            return response
        if plan.body is not None or plan.status != 200:
            error = {"error": {"message": "Not this way.", "type": "invalid_request_error", "code": None}}
            text = plan.body if plan.body is not None else msgspec.json.encode(error)
            return web.Response(status=plan.status, body=text, content_type="application/json")
        return web.Response(body=msgspec.json.encode(_whole(plan, body)), content_type="application/json")


def _whole(plan: EmbeddingsPlan, body: dict[str, Any]) -> dict[str, Any]:
    inputs = body["input"]
    count = 1 if isinstance(inputs, str) or isinstance(inputs[0], int) else len(inputs)
    is_base64 = plan.only_base64 or (body.get("encoding_format") == "base64" and not plan.only_numbers)
    data = [{"object": "embedding", "index": i, "embedding": _vector(i, is_base64)} for i in range(count)]
    if plan.reverses:
        data.reverse()
    answer = {
        "object": "list",
        "data": [{name: value for name, value in each.items() if name not in plan.forgets} for each in data],
        "model": body["model"],
        "usage": {"prompt_tokens": plan.tokens, "total_tokens": plan.tokens},
    }
    return {name: value for name, value in answer.items() if name not in plan.forgets}


def _vector(place: int, is_base64: bool) -> list[float] | str:
    numbers = [place + number for number in VECTOR]
    return base64.b64encode(struct.pack("<3f", *numbers)).decode() if is_base64 else numbers
