"""The server's sockets: where bytes fall, how answers break, and what is recorded."""

import asyncio
import contextlib
import json
from typing import Any

import httpx
import pytest

from . import Plan, Upstream
from .__main__ import has_more

PATHS = {"openai": "/v1/chat/completions", "anthropic": "/v1/messages"}
HEADERS = {"authorization": "Bearer sk", "anthropic-version": "2023-06-01"}
ASK: dict[str, Any] = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}], "stream": True}


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest) -> str:
    return PATHS[request.param]


class Raw:
    """A client that sees bytes and nothing else."""

    def __init__(self, upstream: Upstream) -> None:
        self._port = int(upstream.base_url.rpartition(":")[2])

    async def __aenter__(self) -> "Raw":
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self._port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()

    async def ask(self, path: str, **more: Any) -> None:
        body = json.dumps(ASK | more).encode()
        head = [f"POST {path} HTTP/1.1", "host: up", f"content-length: {len(body)}"]
        lines = [*head, *(f"{name}: {value}" for name, value in HEADERS.items()), "", ""]
        self.writer.write("\r\n".join(lines).encode() + body)
        await self.writer.drain()

    async def until(self, mark: bytes) -> bytes:
        return await asyncio.wait_for(self.reader.readuntil(mark), 5)

    async def chunks(self) -> list[bytes]:
        """The chunks of a body, after its head."""
        await self.until(b"\r\n\r\n")
        found = []
        while size := int(await self.until(b"\r\n"), 16):
            found.append(await self.reader.readexactly(size))
            await self.reader.readexactly(2)
        await self.reader.readexactly(2)
        return found

    async def rest(self) -> bytes:
        return await asyncio.wait_for(self.reader.read(), 5)


async def bytes_of(upstream: Upstream, path: str, plan: Plan) -> list[bytes]:
    upstream.plan = plan
    async with Raw(upstream) as raw:
        await raw.ask(path)
        return await raw.chunks()


async def test_cuts_and_joins_change_no_byte(path: str) -> None:
    words = ("Grüße", " 🙂", "\u2028")
    bodies = []
    for plan in (Plan(text=words), *(Plan(text=words, cut=n) for n in (1, 7)), Plan(text=words, coalesce=True)):
        async with Upstream() as upstream:
            chunks = await bytes_of(upstream, path, plan)
            bodies.append(b"".join(chunks))
            assert all(len(chunk) == plan.cut for chunk in chunks[:-1]) or plan.cut is None
            assert len(chunks) == 1 or not plan.coalesce
            assert upstream.delivered == [list(words)]
    assert len(set(bodies)) == 1


async def test_line_ends_comments_and_missing_ends_are_as_ordered(upstream: Upstream, path: str) -> None:
    crlf = b"".join(await bytes_of(upstream, path, Plan(crlf=True, no_space=True)))
    assert crlf.count(b"\n") == crlf.count(b"\r\n") and b"data:{" in crlf
    commented = await bytes_of(upstream, path, Plan(comments=True))
    assert all(chunk.startswith(b": keep-alive\n\n") for chunk in commented)
    undone = b"".join(await bytes_of(upstream, path, Plan(done=False)))
    assert b"[DONE]" not in undone and b"message_stop" not in undone
    garbled = b"".join(await bytes_of(upstream, path, Plan(fault="garbage", fault_at=1)))
    assert b"\xff\xfe" in garbled and (b"[DONE]" in garbled or b"message_stop" in garbled)


async def test_connections_are_kept_and_requests_recorded(upstream: Upstream, path: str) -> None:
    async with Raw(upstream) as raw:
        for _ in range(3):
            await raw.ask(path)
            await raw.chunks()
        await upstream.until(lambda u: u.open_streams == 0)
        assert upstream.connections == 1
    await upstream.until(lambda u: u.connections == 0)
    assert [received.serial for received in upstream.requests] == [1, 2, 3]
    assert upstream.requests[0].body == ASK and json.loads(upstream.requests[0].raw) == ASK
    assert upstream.requests[0].headers["host"] == "up" and upstream.aborted == 0


async def test_a_chunked_request_is_read(upstream: Upstream, path: str) -> None:
    async def body() -> Any:
        for byte in json.dumps(ASK).encode():
            yield bytes([byte])

    async with httpx.AsyncClient(headers=HEADERS) as client:
        answer = await client.post(f"{upstream.base_url}{path}?beta=true", content=body())
    assert answer.status_code == 200 and upstream.requests[0].body == ASK
    assert (upstream.requests[0].path, upstream.requests[0].query) == (path, "beta=true")


@pytest.mark.parametrize("fault_at", [0, 2, None])
async def test_breaks_come_after_the_ordered_piece(upstream: Upstream, path: str, fault_at: int | None) -> None:
    count = 4 if fault_at is None else fault_at
    for fault in ("reset", "close", "truncate", "html"):
        upstream.plan = Plan(fault=fault, fault_at=fault_at)  # type: ignore[arg-type]
        async with Raw(upstream) as raw:
            await raw.ask(path)
            seen = await raw.until(b"\r\n\r\n")
            while True:
                try:
                    line = await raw.until(b"\n")
                except asyncio.IncompleteReadError:
                    assert fault == "close"
                    break
                except ConnectionResetError:
                    assert fault == "reset"
                    break
                seen += line
                if line == b"0\r\n":
                    assert fault in ("truncate", "html")
                    break
        assert (b"502 Bad Gateway" in seen) == (fault == "html")
        assert b"end_turn" not in seen and b'"finish_reason":"stop"' not in seen
        assert fault_at == 0 or (b"message_start" in seen) == (path == "/v1/messages")
        assert len(upstream.delivered[-1]) == count
    await upstream.until(lambda u: u.connections == 0)
    assert upstream.aborted == 0


async def test_breaks_may_come_before_the_head(upstream: Upstream, path: str) -> None:
    upstream.queue(*(Plan(fault=fault, fault_at=-1) for fault in ("close", "garbage", "html")))  # type: ignore[arg-type]
    said = []
    for _ in range(3):
        async with Raw(upstream) as raw:
            await raw.ask(path)
            said.append(await (raw.until(b"</html>") if len(said) == 2 else raw.rest()))
    assert said[0] == b"" and said[1].startswith(b"\x15\x03")
    assert said[2].startswith(b"HTTP/1.1 502 Bad Gateway\r\n") and b"content-type: text/html" in said[2]
    upstream.plan = Plan(fault="reset", fault_at=-1)
    async with Raw(upstream) as raw:
        await raw.ask(path)
        with pytest.raises(ConnectionResetError):
            await raw.rest()


@pytest.mark.parametrize("fault_at", [-1, 0, 2])
async def test_a_stall_ends_with_release(upstream: Upstream, path: str, fault_at: int) -> None:
    upstream.plan = Plan(fault="stall", fault_at=fault_at)
    async with Raw(upstream) as raw:
        await raw.ask(path)
        await upstream.until(lambda u: u.stalled == 1)
        assert len(upstream.delivered[0]) == max(fault_at, 0)
        upstream.release()
        await raw.chunks()
    assert len(upstream.delivered[0]) == 4 and upstream.aborted == 0 and upstream.stalled == 0


@pytest.mark.parametrize(
    "plan",
    [
        Plan(fault="stall", fault_at=-1),
        Plan(fault="stall", fault_at=2),
        Plan(delay_s=3600),
        Plan(endless=True, delay_s=0.001),
        Plan(endless=True),
    ],
    ids=["before the head", "in the stream", "asleep", "endless", "endless and not read"],
)
async def test_a_hang_up_is_noticed_at_once(path: str, plan: Plan) -> None:
    async with Upstream(send_buffer_bytes=4096) as upstream:
        upstream.plan = plan
        async with Raw(upstream) as raw:
            await raw.ask(path)
            await upstream.until(lambda u: u.open_streams == 1)
        await upstream.until(lambda u: u.open_streams == 0 and u.connections == 0)
        assert upstream.aborted == 1 and not upstream.requests[0].is_complete


async def test_whole_answers_break_too(upstream: Upstream, path: str) -> None:
    for fault in ("close", "reset", "garbage", "html", "error_event"):
        upstream.plan = Plan(fault=fault)  # type: ignore[arg-type]
        async with httpx.AsyncClient(base_url=upstream.base_url, headers=HEADERS) as client:
            ask = client.post(path, json=ASK | {"stream": False})
            if fault in ("close", "reset"):
                with pytest.raises(httpx.TransportError):
                    await ask
                continue
            answer = await ask
            assert answer.status_code == {"garbage": 200, "html": 502, "error_event": 500}[fault]
            if fault == "garbage":
                with pytest.raises(json.JSONDecodeError):
                    answer.json()


@pytest.mark.parametrize("fault_at", [-1, 0])
async def test_a_whole_answer_stalls_too(upstream: Upstream, path: str, fault_at: int) -> None:
    upstream.plan = Plan(fault="stall", fault_at=fault_at)
    async with Raw(upstream) as raw:
        await raw.ask(path, stream=False)
        await upstream.until(lambda u: u.stalled == 1)
        upstream.release()
        assert b"Hello, world!" in await raw.until(b"}}}" if path == "/v1/chat/completions" else b'"standard"}}')
        await upstream.until(lambda u: u.open_streams == 0)
        upstream.plan = Plan(endless=True)
        await raw.ask(path, stream=False)
        await upstream.until(lambda u: u.stalled == 1)
    await upstream.until(lambda u: u.aborted == 1 and u.connections == 0)


async def test_a_server_that_stops_leaves_no_one_waiting(path: str) -> None:
    async with Upstream() as upstream:
        upstream.plan = Plan(fault="stall", fault_at=1)
        raw = Raw(upstream)
        await raw.__aenter__()
        await raw.ask(path)
        await upstream.until(lambda u: u.stalled == 1)
    await raw.__aexit__()
    assert upstream.connections == 0 and upstream.open_streams == 0


async def test_until_tells_what_it_saw(upstream: Upstream) -> None:
    with pytest.raises(TimeoutError, match="open_streams=0"):
        await upstream.until(lambda u: u.aborted == 1, timeout_s=0.01)
    assert not has_more(upstream, seen=0)


async def test_ordered_bodies_and_unknown_paths(upstream: Upstream, path: str) -> None:
    upstream.queue(Plan(status=418, error_body="I'm a teapot"), Plan(status=400, error_body={"detail": "no"}))
    async with httpx.AsyncClient(base_url=upstream.base_url, headers=HEADERS) as client:
        text, detail = [await client.post(path, json=ASK) for _ in range(2)]
        unknown, method = await client.post("/v1/nothing", json=ASK), await client.get(path)
    assert (text.status_code, text.text) == (418, "I'm a teapot")
    assert (detail.status_code, detail.json()) == (400, {"detail": "no"})
    assert (unknown.status_code, method.status_code) == (404, 405)
