"""A gateway to attack: the provider, the issuer and the trap beside it, and the ways to ask it."""

import asyncio
import json
import time
from typing import Any

from tests.harness import ADMIN_KEY, GatewayProcess
from tests.http.conftest import CHAT, Answer, Stage, body_of
from tests.http.raw import ask, post, request
from tests.identity.issuer import JwksServer
from tests.identity.tokens import assemble, build_claims
from tests.upstream import Upstream


class Trap:
    """An address at which nothing of ours should ever call."""

    def __init__(self) -> None:
        self.calls = 0

    async def start(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.calls += 1
        writer.close()

    async def stop(self) -> None:
        self._server.close()
        await self._server.wait_closed()


class Site(Stage):
    """A gateway, its provider, the issuer it trusts, and a trap that stands in its environment as a proxy."""

    def __init__(self, gateway: GatewayProcess, key: str, upstream: Upstream, issuer: JwksServer, trap: str) -> None:
        super().__init__(gateway, key)
        self.upstream = upstream
        self.issuer = issuer
        self.trap = trap

    async def ask(self, data: bytes) -> Answer:
        return await asyncio.to_thread(ask, self.gateway.port, data)

    async def chat(self, *headers: str, key: str | None = None, **changes: Any) -> Answer:
        """One chat with the provider."""
        return await self.ask(post(CHAT, key or self.key, body_of(CHAT, **({"model": "up/any"} | changes)), *headers))

    async def with_token(self, token: str) -> Answer:
        return await self.chat(key=token)

    async def metrics(self) -> str:
        return (await self.ask(request("GET /metrics HTTP/1.1"))).body.decode()

    async def admin(self, method: str, path: str, body: Any, *headers: str) -> Answer:
        data = post(f"/admin/v1{path}", ADMIN_KEY, json.dumps(body).encode(), *headers)
        return await self.ask(data.replace(b"POST", method.encode(), 1))


def token(algorithm: str = "RS256", *, kid: str = "rsa", header: dict[str, Any] | None = None, **claims: Any) -> str:
    """A token that is good now, with changes."""
    claims = build_claims(**({"exp": int(time.time()) + 600} | claims))
    return assemble({"alg": algorithm, "kid": kid} | (header or {}), claims, algorithm)
