"""Who gets a WebSocket, and what one may not do with it: credentials, origins, sizes, and bytes that are no frames."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from websockets.exceptions import ConnectionClosed

from tests.harness import GatewayProcess
from tests.http.conftest import Stage
from tests.http.raw import Wire, request
from tests.http.talk import PATH, frame_bytes, send_frame, talking, text_of, upgrade

WRONG = "gw-000000000000-notakeyofthisgatewayatallnotakeyofthisgatewayata"
MIB = 1024 * 1024


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def gateway() -> AsyncIterator[GatewayProcess]:
    config = {"server": {"body_bytes_max": 4 * MIB, "cors_origins": ["https://app.example"], "streams_max": 50}}
    async with GatewayProcess(config) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def key(gateway: GatewayProcess) -> str:
    return await gateway.account()


pytestmark = pytest.mark.asyncio(loop_scope="module")


def ways(secret: str) -> dict[str, dict[str, Any]]:
    """Every way to show a credential when the connection is opened."""
    return {
        "authorization": {"key": secret},
        "x-api-key": {"x_api_key": secret},
        "subprotocol": {"protocols": ("gateway.v1", f"gateway-key.{secret}")},
        "OpenAI's subprotocol": {"protocols": ("gateway.v1", f"openai-insecure-api-key.{secret}")},
        "query": {"query": f"?token={secret}"},
    }


@pytest.mark.parametrize("way", ways(""))
async def test_a_credential_is_shown_in_the_handshake(gateway: GatewayProcess, key: str, way: str) -> None:
    async with talking(gateway, **ways(key)[way]) as talk:
        assert talk.connection.subprotocol == ("gateway.v1" if "protocol" in way else None)
        await talk.ask()
        assert text_of(await talk.ended())


@pytest.mark.parametrize("way", ways(""))
async def test_a_wrong_credential_is_told_with_a_code_that_a_page_can_read(gateway: GatewayProcess, way: str) -> None:
    async with talking(gateway, **ways(WRONG)[way]) as talk:
        code, reason = await talk.closed()
        assert code == 4401 and reason


async def test_a_credential_comes_in_the_first_frame_or_with_each_request(gateway: GatewayProcess, key: str) -> None:
    async with talking(gateway) as talk:
        await talk.send({"type": "auth", "token": key})
        await talk.ask()
        assert text_of(await talk.ended())
    async with talking(gateway) as talk:
        await talk.ask("r1", headers={"Authorization": f"Bearer {key}"})
        assert text_of(await talk.ended("r1"))
        await talk.ask("r2")
        (refused,) = await talk.ended("r2")
        assert refused["code"] == "invalid_api_key", "what one request brings is no credential of the next one"
        await talk.resume("r3", headers={"x-api-key": key})
        assert (await talk.ended("r3"))[-1]["type"] in ("end", "no-active")
    async with talking(gateway) as talk:
        await talk.send({"type": "auth", "token": WRONG})
        assert (await talk.closed())[0] == 4401


async def test_a_requests_own_credential_goes_before_the_connections(gateway: GatewayProcess, key: str) -> None:
    other = await gateway.account("other", usd="0")
    async with talking(gateway, key) as talk:
        await talk.ask("r1", headers={"authorization": f"Bearer {other}"})
        assert (await talk.ended("r1"))[0]["code"] == "credits_exhausted"
        await talk.ask("r2", headers={"authorization": f"Bearer {WRONG}"})
        assert (await talk.ended("r2"))[0]["code"] == "invalid_api_key"
        await talk.ask("r3")
        assert text_of(await talk.ended("r3"))


async def test_a_connection_whose_key_is_revoked_ends_after_saying_so(gateway: GatewayProcess, key: str) -> None:
    made = (await gateway.admin.post("/accounts/acme/keys", json={"name": "short"})).json()
    async with talking(gateway, made["key"]) as talk:
        assert (await gateway.admin.delete(f"/accounts/acme/keys/{made['id']}")).is_success
        async with asyncio.timeout(20):
            while not (talk.frames["r1"] and talk.frames["r1"][-1]["type"] == "error"):
                talk.frames.clear()
                with contextlib.suppress(ConnectionClosed):
                    await talk.ask("r1", model="demo/fast", body={"maxOutputTokens": 1})
                    await talk.ended("r1")
        assert talk.frames["r1"][-1]["code"] == "invalid_api_key"
        assert (await talk.closed())[0] == 4401


async def test_who_shows_no_credential_may_not_stay(gateway: GatewayProcess) -> None:
    async with talking(gateway) as talk:
        await talk.ask()
        assert (await talk.ended())[0]["code"] == "invalid_api_key"
        assert (await talk.closed())[0] == 4401


async def test_two_credentials_and_one_under_another_name_are_refused(gateway: GatewayProcess, key: str) -> None:
    async with talking(gateway, key, query=f"?token={WRONG}") as talk:
        assert (await talk.closed())[0] == 4401
    async with talking(gateway, query=f"?api_key={key}") as talk:
        assert (await talk.closed())[0] == 4401


async def test_no_credential_is_written_into_the_log(gateway: GatewayProcess, key: str) -> None:
    for secret in (key, WRONG):
        async with talking(gateway, query=f"?token={secret}&model=demo/fast") as talk:
            with contextlib.suppress(ConnectionClosed):
                await talk.ask()
                await talk.ended()
    log = gateway.log.read_text()
    assert key not in log and WRONG not in log


@pytest.mark.parametrize(
    ("origin", "may"),
    [("https://app.example", True), ("https://evil.example", False), ("null", False), ("http://own", True)],
)
async def test_pages_of_some_origins_only_may_open_one(
    gateway: GatewayProcess, key: str, origin: str, may: bool
) -> None:
    origin = f"http://127.0.0.1:{gateway.port}" if origin == "http://own" else origin
    async with talking(gateway, key, origin=origin) as talk:
        if may:
            await talk.ask()
            assert text_of(await talk.ended())
        else:
            assert (await talk.closed())[0] == 4403


async def test_frames_that_mean_nothing_are_told_so_and_disturb_nobody(gateway: GatewayProcess, key: str) -> None:
    async with talking(gateway, key) as talk:
        await talk.ask("r1", model="demo/reasoning")
        bad: list[str | bytes | dict[str, Any]] = [
            *("", "x", "[]", "{}", "null", b"\xff\xfe", "[" * 100_000, '{"a":' * 100_000, '{"type":"send"'),
            {"type": "nonsense", "requestId": "q"},
            {"type": "send", "requestId": "q"},
            {"type": "send", "requestId": 5, "id": "c"},
            send_frame("q", ""),
            send_frame("q", trigger="whatever"),
            send_frame("q", headers={"a": 5}),
            send_frame("q") | {"body": []},
            send_frame("q") | {"messages": "none"},
            send_frame("q") | {"messages": json.loads("[" * 100 + "]" * 100)},
            {"type": "resume", "requestId": "q", "id": "c", "lastSequence": -1},
            {"type": "abort"},
            {"type": "auth"},
            send_frame("r1"),
        ]
        for frame in bad:
            talk.frames["q"].clear()
            talk.frames[""].clear()
            await talk.send(frame)
            while not (talk.frames["q"] or talk.frames[""]):
                await talk.next()
            (told,) = talk.frames["q"] or talk.frames[""]
            assert told["type"] == "error" and told["errorText"], frame
        assert (await talk.ended("r1"))[-1]["type"] == "end"


async def test_a_connection_has_so_many_requests_at_once(gateway: GatewayProcess, key: str) -> None:
    async with talking(gateway, key) as talk:
        for number in range(17):
            await talk.ask(f"r{number}", f"chat-{number}", "demo/endless")
        (refused,) = await talk.ended("r16")
        assert "at once" in refused["errorText"]
        for number in range(17):
            await talk.abort(f"r{number}")
        await gateway.settled()
        await talk.ask("last")
        assert text_of(await talk.ended("last"))


async def test_a_message_has_a_size(gateway: GatewayProcess, key: str) -> None:
    async with talking(gateway, key) as talk:
        # What a page may post is refused by the same rule, and in words.
        await talk.ask("r1", text="x" * (4 * MIB + 1000))
        assert (await talk.ended("r1"))[0]["code"] == "request_too_large"
        with contextlib.suppress(ConnectionClosed):
            await talk.ask("r2", text="x" * (5 * MIB))
        assert (await talk.closed())[0] == 1009
    async with talking(gateway) as talk:
        with contextlib.suppress(ConnectionClosed):
            await talk.ask(text="x" * (MIB + 1000), headers={"authorization": f"Bearer {key}"})
        assert (await talk.closed())[0] == 1009, "as long as nobody knows who it is, less is taken"


async def test_a_gateway_has_so_many_connections() -> None:
    async with GatewayProcess({"server": {"streams_max": 2}}) as gateway:
        key = await gateway.account()
        async with talking(gateway, key) as one, talking(gateway, key), talking(gateway, key) as three:
            assert (await three.closed())[0] == 1013
            await one.ask()
            assert text_of(await one.ended())


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (frame_bytes(b"x", is_masked=False), 1002),
        (frame_bytes(b"x", first=0x83), 1002),
        (frame_bytes(b"x", first=0xF1), 1002),
        (frame_bytes(b"x", first=0x80), 1002),
        (frame_bytes(b"x" * 126, first=0x89), 1002),
        (frame_bytes(b"\xff\xfe"), 1007),
        (frame_bytes(b'"\xc3', first=0x01) + frame_bytes(b'("', first=0x80), 1007),
        (frame_bytes(b"x", first=0x01) + frame_bytes(b"", first=0x00) * 20_000, 1002),
        (b"\x81\xff" + (2**62).to_bytes(8, "big"), 1009),
        (b"\x81\xff" + b"\xff" * 8, 1009),
        (frame_bytes(b"\x00", first=0x88), 1002),
        (frame_bytes(b"GET / HTTP/1.1\r\n\r\n", first=0x47), 1002),
    ],
    ids=lambda value: None if isinstance(value, bytes) else str(value),
)
async def test_bytes_that_are_no_frames_close_the_connection(
    gateway: GatewayProcess, key: str, sent: bytes, code: int
) -> None:
    def talk() -> bytes:
        with Wire(gateway.port) as wire:
            wire.send(upgrade(PATH, f"Authorization: Bearer {key}"))
            assert wire.answer().status == 101
            wire.send(sent)
            return wire.rest()

    received = await asyncio.to_thread(talk)
    at = received.rindex(b"\x88")
    assert int.from_bytes(received[at + 2 : at + 4], "big") == code


async def test_pings_whose_answers_nobody_reads_are_not_kept(gateway: GatewayProcess, key: str) -> None:
    stage = Stage(gateway, key)
    before = stage.rss_bytes()
    pings = frame_bytes(b"x" * 125, first=0x89) * 500

    def flood() -> int:
        with Wire(gateway.port) as wire:
            wire.send(upgrade(PATH, f"Authorization: Bearer {key}"))
            assert wire.answer().status == 101
            for _ in range(24 * MIB // len(pings)):
                wire.send(pings)
            return stage.rss_bytes()

    assert await asyncio.to_thread(flood) - before < 12 * MIB
    await stage.client.aclose()
    async with talking(gateway, key) as talk:
        await talk.ask()
        assert text_of(await talk.ended())


@pytest.mark.parametrize(
    ("handshake", "status"),
    [
        (upgrade(PATH, key="short"), 400),
        (upgrade(PATH, method="POST"), 405),
        (upgrade(PATH, f"Cookie: {'x' * 9000}"), 431),
        (upgrade(f"{PATH}?{'x' * 9000}"), 414),
        (upgrade(f"{PATH}/"), 404),
        (upgrade("/v1/models"), 401),
        (upgrade("/healthz"), 200),
        (request(f"GET {PATH} HTTP/1.1"), 400),
        (request(f"GET {PATH} HTTP/1.1", "Connection: Upgrade", "Upgrade: h2c"), 400),
    ],
)
async def test_what_is_no_handshake_is_answered_as_http(gateway: GatewayProcess, handshake: bytes, status: int) -> None:
    def ask() -> int:
        with Wire(gateway.port) as wire:
            wire.send(handshake)
            return wire.answer().status

    assert await asyncio.to_thread(ask) == status


async def test_a_handshake_behind_an_unanswered_request_is_no_handshake(gateway: GatewayProcess, key: str) -> None:
    def ask() -> list[int]:
        with Wire(gateway.port) as wire:
            models = request("GET /v1/models HTTP/1.1", f"Authorization: Bearer {key}")
            wire.send(models + upgrade(PATH, f"Authorization: Bearer {key}"))
            return [wire.answer().status, wire.answer().status]

    assert await asyncio.to_thread(ask) == [200, 400]


async def test_a_connection_that_was_used_for_http_may_become_one(gateway: GatewayProcess, key: str) -> None:
    def ask() -> list[int]:
        with Wire(gateway.port) as wire:
            wire.send(request("GET /v1/models HTTP/1.1", f"Authorization: Bearer {key}"))
            first = wire.answer().status
            wire.send(upgrade(PATH, f"Authorization: Bearer {key}"))
            return [first, wire.answer().status]

    assert await asyncio.to_thread(ask) == [200, 101]


async def test_a_connection_outlives_the_deadlines_of_http(gateway: GatewayProcess, key: str) -> None:
    async with talking(gateway, key) as talk, talking(gateway) as clock:
        assert (await clock.closed())[0] == 4401, "which takes as long as the longest of them"
        await talk.ask()
        assert text_of(await talk.ended())
