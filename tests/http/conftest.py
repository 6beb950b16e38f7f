"""One gateway process with a funded account, shared by the tests of a module, and the ways to talk to it badly."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import pytest_asyncio

from tests.harness import GatewayProcess

CHAT = "/v1/chat/completions"
DATA_STREAM = "/api/ai/chat-stream"
BODY_BYTES_MAX = 1024 * 1024
_ANSWER_S = 20.0


class Answer(msgspec.Struct, frozen=True):
    """One HTTP answer as it came over the wire."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Stage:
    """A running gateway and one funded account."""

    def __init__(self, gateway: GatewayProcess, key: str) -> None:
        self.gateway = gateway
        self.key = key
        self.client = httpx.AsyncClient(
            base_url=gateway.base_url, headers={"Authorization": f"Bearer {key}"}, timeout=_ANSWER_S, trust_env=False
        )

    async def post(
        self, path: str, body: bytes | dict[str, Any], headers: Mapping[str, str] | None = None
    ) -> httpx.Response:
        """Send a body as JSON, whatever it is."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return await self.client.post(
            path, content=content, headers={"content-type": "application/json", **(headers or {})}
        )

    async def raw(self, head: str, body: bytes = b"") -> Answer:
        """Send a request as it is written here, with the credential, and read one answer."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.gateway.port)
        try:
            lines = [head.replace("\n", "\r\n"), "Host: gateway", f"Authorization: Bearer {self.key}", "", ""]
            writer.write("\r\n".join(lines).encode() + body)
            return await read_answer(reader, is_head=head.startswith("HEAD"))
        finally:
            writer.close()

    def rss_bytes(self) -> int:
        """What the gateway's process holds in memory."""
        assert self.gateway.process is not None
        status = Path(f"/proc/{self.gateway.process.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
        return int(line.split()[1]) * 1024

    def log(self) -> str:
        return self.gateway.log.read_text()

    async def nothing_happened(self) -> None:
        """No request was charged, and nothing is held."""
        balance = await self.gateway.settled()
        assert balance["spent"] == balance["held"] == balance["absorbed"] == 0
        assert balance["available"] == balance["granted"]
        assert await self.gateway.metric("gateway_streams_in_flight") == 0


def body_of(path: str, **changes: Any) -> dict[str, Any]:
    """A request that is fine but for its changes; it asks for one token."""
    tokens = {"max_tokens": 1} if path == CHAT else {"maxTokens": 1}
    return {"model": "demo/fast", "messages": [{"role": "user", "content": "Hello"}], **tokens, **changes}


async def read_answer(reader: asyncio.StreamReader, *, is_head: bool = False) -> Answer:
    """One answer from a connection: its length is given, or it ends with the connection."""
    async with asyncio.timeout(_ANSWER_S):
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        pairs = (line.split(": ", 1) for line in head[1:] if line)
        headers = {name.lower(): value for name, value in pairs}
        length = 0 if is_head else int(headers.get("content-length", 0))
        return Answer(int(head[0].split(" ")[1]), headers, await reader.readexactly(length))


def assert_refused(answer: httpx.Response | Answer, status: int, path: str = CHAT, *, code: str | None = None) -> Any:
    """A refusal in the envelope of the path's protocol; returns what is in it."""
    content = answer.content if isinstance(answer, httpx.Response) else answer.body
    assert (answer.status_code if isinstance(answer, httpx.Response) else answer.status) == status, content
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"]
    body = json.loads(content)
    assert body.keys() == {"error"}
    error = body["error"]
    names = {"message", "param", "code"} if path.startswith("/api/") else {"message", "type", "param", "code"}
    assert error.keys() == names
    assert isinstance(error["message"], str) and 0 < len(error["message"]) < 600
    assert error.get("type", "invalid_request_error") == "invalid_request_error"
    if code is not None:
        assert error["code"] == code, error
    return error


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def stage() -> AsyncIterator[Stage]:
    config = {
        "server": {"body_bytes_max": BODY_BYTES_MAX},
        "tiers": {"default": {"requests": {"limit": 1_000_000}, "concurrent_streams": 1000}},
    }
    async with GatewayProcess(config) as gateway:
        running = Stage(gateway, await gateway.account())
        yield running
        await running.client.aclose()


@pytest.fixture(params=[CHAT, DATA_STREAM])
def path(request: pytest.FixtureRequest) -> str:
    """Each path on which models answer."""
    chosen: str = request.param
    return chosen
