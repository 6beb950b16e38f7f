"""Every row of the bad-input matrix, once, over a raw socket against a running gateway.

A case is named by its row. Each must get its answer in the envelope of the protocol that was spoken, charge, hold and
count nothing (the account may make two requests in all, and does so at the end), and leave the process as it was; its
log is searched for tracebacks when it stops. Variations of the rows are in ``test_bad_bodies.py``, ``test_guard.py``.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio
import uvicorn
from uvicorn.server import ServerState

from gateway.http.server_protocol import GuardedProtocol
from tests.harness import GatewayProcess
from tests.http.bad_requests import ACCEPTED_BODIES, REFUSED_BODIES, REFUSED_FRAMES, REFUSED_HEADS, Expected
from tests.http.conftest import BODY_BYTES_MAX, CHAT, DATA_STREAM, Stage, assert_refused, body_of
from tests.http.raw import JSON, Wire, ask, post, request

pytestmark = pytest.mark.asyncio(loop_scope="module")

_RSS_GROWTH_MAX = 32 << 20
_REQUESTS_MAX = 2


class CannedProvider:
    """Answers every call with the pieces it was given, each in a packet of its own."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []

    async def start(self) -> int:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def stop(self) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        await reader.readexactly(int(head.split(b"content-length:")[1].split(b"\r\n")[0]))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
        for piece in self.pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        writer.close()


class Site(Stage):
    """The gateway, an account that must never be charged, one that may, and connections that say too little."""

    def __init__(self, gateway: GatewayProcess, key: str, spender: str, canned: CannedProvider) -> None:
        super().__init__(gateway, key)
        self.spender = spender
        self.canned = canned
        credential = (f"Authorization: Bearer {key}", JSON)
        unfinished = {
            "32-silent-connection": b"",
            "32-header-that-stops": b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: aaa",
            "32-body-never-finished": request(
                f"POST {CHAT} HTTP/1.1", *credential, "Transfer-Encoding: chunked", body=b"1\r\n{\r\n"
            ),
            "22-content-length-too-large": request(
                f"POST {CHAT} HTTP/1.1", *credential, "Content-Length: 50", body=b"{}"
            ),
        }
        self.unfinished = {name: Wire(gateway.port) for name in unfinished}
        for name, data in unfinished.items():
            self.unfinished[name].send(data)

    def ask(self, data: bytes) -> Any:
        return ask(self.gateway.port, data)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def site() -> AsyncIterator[Site]:
    canned = CannedProvider()
    provider = {"type": "openai", "base_url": f"http://127.0.0.1:{await canned.start()}/v1", "api_key": "sk-canned"}
    config = {
        "server": {"body_bytes_max": BODY_BYTES_MAX},
        "providers": {"canned": provider | {"price": {"input": 0, "output": 10}}},
        "tiers": {
            "default": {"requests": {"limit": 1_000_000}, "concurrent_streams": 1000},
            "strict": {"requests": {"limit": _REQUESTS_MAX, "period_s": 86_400}, "concurrent_streams": 1},
        },
    }
    async with GatewayProcess(config) as gateway:
        keys = await gateway.account(tier="strict"), await gateway.account("spender")
        running = Site(gateway, *keys, canned)
        yield running
        for wire in running.unfinished.values():
            wire.__exit__()
        await nothing_was_counted(running)
        await running.client.aclose()
    await canned.stop()


async def nothing_was_counted(site: Site) -> None:
    """The allowance and the slot of the account are as they were: it can use all of the one, through the other."""
    await site.nothing_happened()
    for _ in range(_REQUESTS_MAX):
        assert (await asyncio.to_thread(site.ask, post(CHAT, site.key, body_of(CHAT)))).status == 200
        await site.gateway.settled()
    answer = await asyncio.to_thread(site.ask, post(CHAT, site.key, body_of(CHAT)))
    assert (answer.status, answer.json()["error"]["code"]) == (429, "rate_limit_exceeded")


# What a row does, blocking; returns how many requests a model answered.
Row = Callable[[Site], int]
ROWS: dict[str, Row] = {}


def row(name: str) -> Callable[[Row], Row]:
    def add(run: Row) -> Row:
        assert name not in ROWS
        ROWS[name] = run
        return run

    return add


def row_of_each_protocol(name: str) -> Callable[[Callable[[Site, str], int]], None]:
    def add(run: Callable[[Site, str], int]) -> None:
        for path, protocol in ((CHAT, "chat"), (DATA_STREAM, "ai-sdk-4")):
            row(f"{name}-{protocol}")(lambda site, path=path: run(site, path))  # type: ignore[misc]

    return add


def add_refusal(name: str, path: str, expected: Expected, build: Callable[[str], bytes]) -> None:
    @row(name)
    def refused(site: Site) -> int:
        error = assert_refused(site.ask(build(site.key)), expected.status, path, code=expected.code)
        if expected.param is not None:
            assert error["param"] == expected.param
        return 0


for _name, _path, _expected, _body in REFUSED_BODIES:
    add_refusal(_name, _path, _expected, lambda key, path=_path, body=_body: post(path, key, body))
for _name, _path, _expected, _build in REFUSED_HEADS:
    add_refusal(_name, _path, _expected, _build)
for _name, _status, _data in REFUSED_FRAMES:
    # Which protocol was meant is not known when this is refused: the envelope is OpenAI's.
    add_refusal(_name, CHAT, Expected(_status), lambda key, data=_data: data)
for _name, _path, _body in ACCEPTED_BODIES:

    @row(_name)
    def accepted(site: Site, path: str = _path, body: bytes = _body) -> int:
        assert site.ask(post(path, site.spender, body)).status == 200
        return 1


@row_of_each_protocol("21-endless-chunks")
def endless_chunks(site: Site, path: str) -> int:
    before = site.rss_bytes()
    with Wire(site.gateway.port) as wire:
        chunked = (f"Authorization: Bearer {site.key}", JSON, "Transfer-Encoding: chunked")
        chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
        wire.send(request(f"POST {path} HTTP/1.1", *chunked, body=chunk * 1000))
        assert_refused(wire.answer(), 413, path, code="request_too_large")
    assert site.rss_bytes() - before < _RSS_GROWTH_MAX
    return 0


@row_of_each_protocol("20-fifty-megabytes")
def fifty_megabytes(site: Site, path: str) -> int:
    before = site.rss_bytes()
    assert_refused(site.ask(post(path, site.key, b" " * (50 << 20))), 413, path, code="request_too_large")
    assert site.rss_bytes() - before < _RSS_GROWTH_MAX
    return 0


@row_of_each_protocol("22-content-length-too-small")
def shorter_length(site: Site, path: str) -> int:
    body = json.dumps(body_of(path)).encode()
    length = f"Content-Length: {len(body) - 1}"
    answer = site.ask(request(f"POST {path} HTTP/1.1", f"Authorization: Bearer {site.key}", JSON, length, body=body))
    assert answer.status == 400
    return 0


def add_unfinished(name: str) -> None:
    @row(name)
    def unfinished(site: Site) -> int:
        wire = site.unfinished[name]
        assert_refused(wire.answer(), 408, code="request_timeout")
        assert wire.rest() == b""
        return 0


for _name in (
    "22-content-length-too-large",
    "32-silent-connection",
    "32-header-that-stops",
    "32-body-never-finished",
):
    add_unfinished(_name)


@row_of_each_protocol("29-header-with-an-underscore")
def underscores(site: Site, path: str) -> int:
    """Dropped: neither a second credential or length, nor another media type or origin."""
    odd = ("Authorization_: x", "Content_Length: 1", "Transfer_Encoding: chunked", "Content_Type: text/plain")
    body = body_of(path)
    assert site.ask(post(path, site.spender, body, *odd)).status == 200
    line, credential = f"POST {path} HTTP/1.1", f"Authorization: Bearer {site.key}"
    assert_refused(site.ask(request(line, credential, "Content_Type: application/json")), 415, path)
    assert_refused(site.ask(request(line, f"Authori_zation: Bearer {site.key}")), 401, path)
    return 1


@row("30-endless-header")
def endless_header(site: Site) -> int:
    before = site.rss_bytes()
    assert_refused(site.ask(b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: " + b"a" * (30 << 20)), 431)
    assert site.rss_bytes() - before < _RSS_GROWTH_MAX
    return 0


@row_of_each_protocol("35-head-opens-no-stream")
def head(site: Site, path: str) -> int:
    data = post(path, site.key, body_of(path)).replace(b"POST", b"HEAD", 1)
    assert ask(site.gateway.port, data, is_head=True).status == 405
    return 0


@row_of_each_protocol("36-pipelined-requests")
def pipelined(site: Site, path: str) -> int:
    """Answered in order; one that is bad spoils neither the one before nor the one after it."""
    good, bad = post(path, site.spender, body_of(path)), post(path, site.key, b"{")
    with Wire(site.gateway.port) as wire:
        wire.send(good + bad + good)
        assert wire.answer().status == 200
        assert_refused(wire.answer(), 400, path, code="invalid_json")
        assert wire.answer().status == 200
        # The second of two waits for the first, and may then still be sent.
        wire.send(good + good[:-1])
        assert wire.answer().status == 200
        wire.send(good[-1:])
        assert wire.answer().status == 200
    return 4


@row_of_each_protocol("37-expect-100-continue")
def expect(site: Site, path: str) -> int:
    line, expected = f"POST {path} HTTP/1.1", "Expect: 100-continue"
    good, wrong = f"Authorization: Bearer {site.spender}", "Authorization: Bearer x"
    assert_refused(site.ask(request(line, wrong, JSON, "Content-Length: 10", expected)), 401, path)
    assert_refused(site.ask(request(line, good, JSON, "Content-Length: 99999999", expected)), 413, path)
    body = json.dumps(body_of(path)).encode()
    with Wire(site.gateway.port) as wire:
        wire.send(request(line, good, JSON, f"Content-Length: {len(body)}", expected))
        assert wire.answer().status == 100
        wire.send(body)
        assert wire.answer().status == 200
    return 1


@row_of_each_protocol("44-last-event-id")
def last_event_id(site: Site, path: str) -> int:
    for garbage in ("", "x" * 5000, "\xff\xfe", "-1; DROP TABLE streams"):
        assert site.ask(post(path, site.spender, body_of(path), f"Last-Event-ID: {garbage}")).status == 200
    return 4


@row_of_each_protocol("45-x-forwarded-for")
def forwarded(site: Site, path: str) -> int:
    lies = ("X-Forwarded-For: 10.0.0.1, 127.0.0.1, ::1, x", "X-Forwarded-Proto: javascript", "X-Forwarded-Host: evil")
    answer = site.ask(post(path, site.spender, body_of(path), *lies, "Forwarded: for=evil;host=evil"))
    assert answer.status == 200
    assert "10.0.0.1" not in site.log() and "evil" not in site.log()
    return 1


def chunk_of(text: str | None, **more: Any) -> dict[str, Any]:
    delta = {} if text is None else {"content": text}
    choice = {"index": 0, "delta": delta, "finish_reason": "stop" if text is None else None}
    return {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice], **more}


def texts_of(path: str, body: bytes) -> str:
    """What a client of the protocol reads; a line that is not of the protocol is an error."""
    lines = [line for line in body.split(b"\n") if line]
    if path == DATA_STREAM:
        assert all(line[:2] in (b"f:", b"0:", b"e:", b"d:") for line in lines), body
        return "".join(json.loads(line[2:]) for line in lines if line[:2] == b"0:")
    assert all(line.startswith(b"data: ") for line in lines) and lines.pop() == b"data: [DONE]", body
    chunks = [json.loads(line[6:]) for line in lines]
    return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])


def streamed(site: Site, path: str, pieces: list[bytes]) -> str:
    site.canned.pieces = pieces
    body = body_of(path, model="canned/any") | ({"stream": True} if path == CHAT else {})
    answer = site.ask(post(path, site.spender, body))
    assert answer.status == 200
    return texts_of(path, answer.body)


INJECTION = 'a\r\n\r\ndata: [DONE]\n\nevent: error\rid: 1\n\n0:"x"\nd:{}\u2028\u0085\x0b: b'


@row_of_each_protocol("47-output-that-looks-like-frames")
def output_like_frames(site: Site, path: str) -> int:
    events = [f"data: {json.dumps(chunk)}\n\n".encode() for chunk in (chunk_of(INJECTION), chunk_of(None))]
    assert streamed(site, path, [*events, b"data: [DONE]\n\n"]) == INJECTION
    raw = json.dumps(chunk_of(INJECTION), ensure_ascii=False).encode()
    assert streamed(site, path, [b"data: " + raw + b"\n\n", events[1], b"data: [DONE]\n\n"]) == INJECTION
    return 2


@row_of_each_protocol("48-frames-of-every-spelling")
def frames_of_every_spelling(site: Site, path: str) -> int:
    text = "Grüße, 世界 🎈"
    said = json.dumps(chunk_of(text), ensure_ascii=False).encode()
    over_two_lines = said.replace(b', "object"', b',\ndata: "object"')
    last = json.dumps(chunk_of(None)).encode()
    stream = b"".join(
        [
            b": a comment\r\n\r\nevent: message\r\ndata: " + said + b"\r\n\r\n",
            b"data:" + said + b"\r\r",
            b"retry: 5\nid: 7\ndata: " + over_two_lines + b"\n\n",
            b"data:" + last + b"\n\ndata: [DONE]\r\n\r\n",
        ]
    )
    for size in (1, 7, len(stream)):
        assert streamed(site, path, [stream[i : i + size] for i in range(0, len(stream), size)]) == text * 3
    return 3


@pytest.mark.parametrize("run", [pytest.param(run, id=name) for name, run in sorted(ROWS.items())])
async def test_a_bad_input_gets_its_answer_and_changes_nothing(site: Site, run: Row) -> None:
    balance, before = await site.gateway.settled(), await site.gateway.metric("gateway_requests_total")
    answered = await asyncio.to_thread(run, site)
    async with asyncio.timeout(10):
        while (counted := await site.gateway.metric("gateway_requests_total") - before) < answered:
            await asyncio.sleep(0.02)
    assert counted == answered
    assert await site.gateway.balance() == balance
    assert await site.gateway.metric("gateway_streams_in_flight") == 0
    assert site.gateway.process is not None and site.gateway.process.poll() is None


@pytest.mark.parametrize("name", [pytest.param("X_Real_IP", id="29-dropped-header")])
async def test_a_header_with_an_underscore_does_not_reach_the_application(name: str) -> None:
    """The gateway itself reads no header that could be spelt so: this is the server's protocol with another app."""
    seen: list[list[tuple[bytes, bytes]]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["headers"])
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    config = uvicorn.Config(app, lifespan="off", log_config=None, access_log=False)
    server = await asyncio.get_running_loop().create_server(
        lambda: GuardedProtocol(config=config, server_state=ServerState(), app_state={}), "127.0.0.1", 0
    )
    async with server:
        port = server.sockets[0].getsockname()[1]
        answer = await asyncio.to_thread(ask, port, request("GET / HTTP/1.1", f"{name}: 10.0.0.1", "X-Real-Name: x"))
    assert answer.status == 204
    assert [dict(headers) for headers in seen] == [{b"host": b"gateway", b"x-real-name": b"x"}]


async def test_every_row_of_the_matrix_has_a_case() -> None:
    assert {int(name[:2]) for name in ROWS} == set(range(1, 49))
