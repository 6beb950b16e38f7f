"""OpenAI's WebSocket mode of Responses: its own client, and frames by hand."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import pytest_asyncio
from openai import AsyncOpenAI, OpenAI
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.clients.conftest import PRICE
from tests.harness import GatewayProcess, RedisServer
from tests.upstream import Plan, ToolCall, Upstream, Usage

pytestmark = pytest.mark.asyncio(loop_scope="module")

MODEL = "up/gpt-upstream"
ENDS = ("response.completed", "response.incomplete", "response.failed")
TOOL: dict[str, Any] = {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": False}
OSLO = ToolCall(name="weather", arguments=('{"city":', '"Oslo"}'))


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def stateless(provider: Upstream, redis_server: RedisServer) -> AsyncIterator[GatewayProcess]:
    """A gateway that stores no responses."""
    up = {"type": "openai", "base_url": provider.openai_url, "api_key": "sk-upstream", "price": PRICE}
    config = {"providers": {"up": up}, "responses": {"store": False}}
    async with GatewayProcess(config, redis_url=redis_server.url) as running:
        yield running


class Line:
    """A connection on which frames are sent and read by hand."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket

    async def ask(self, said: Any = "Hi", **more: Any) -> None:
        await self.send({"type": "response.create", "model": MODEL, "input": said, **more})

    async def send(self, frame: Any) -> None:
        await self.socket.send(frame if isinstance(frame, str | bytes) else json.dumps(frame))

    async def next(self) -> Any:
        async with asyncio.timeout(15):
            return json.loads(await self.socket.recv())

    async def rest(self) -> list[Any]:
        """Every frame up to the end of one response, or to an error instead of one."""
        frames = [await self.next()]
        while frames[-1]["type"] not in (*ENDS, "error"):
            frames.append(await self.next())
        return frames

    async def answer(self, said: Any = "Hi", **more: Any) -> Any:
        await self.ask(said, **more)
        return (await self.rest())[-1]["response"]

    async def refusal(self, frame: Any) -> tuple[int, str, str | None]:
        await self.send(frame)
        told = await self.next()
        assert told["type"] == "error", told
        return told["status"], told["error"]["code"], told["error"]["param"]


@asynccontextmanager
async def opened(gateway: GatewayProcess, key: str) -> AsyncIterator[Line]:
    url = gateway.base_url.replace("http", "ws") + "/v1/responses"
    async with connect(url, additional_headers={"Authorization": f"Bearer {key}"}, proxy=None) as socket:
        yield Line(socket)


def said_to(upstream: Upstream) -> list[Any]:
    return [message["content"] for message in upstream.requests[-1].body["messages"]]


def text_of(response: Any) -> str:
    return "".join(part["text"] for item in response["output"] for part in item.get("content", ()))


async def told_by(connection: Any) -> list[Any]:
    seen: list[Any] = []
    async for event in connection:
        seen.append(event)
        if event.type in ENDS:
            break
    return seen


async def test_openais_client_asks_and_goes_on(upstream: Upstream, client: AsyncOpenAI) -> None:
    async with client.responses.connect() as connection:
        await connection.response.create(model=MODEL, input="Hi")
        seen = await told_by(connection)
        assert [event.sequence_number for event in seen] == list(range(len(seen)))
        assert seen[0].type == "response.created" and seen[-1].response.output_text == "Hello, world!"
        upstream.plan = Plan(tool_calls=(OSLO,))
        going_on: dict[str, Any] = {"previous_response_id": seen[-1].response.id, "tools": [TOOL]}
        await connection.response.create(model=MODEL, input="Weather?", **going_on)
        assert (await told_by(connection))[-1].response.output[0].name == "weather"
    assert said_to(upstream) == ["Hi", "Hello, world!", "Weather?"]
    stored = await client.responses.retrieve(seen[-1].response.id)
    assert stored.to_dict() == seen[-1].response.to_dict()


def ask_blocking(base_url: str, key: str) -> tuple[str, str | None]:
    with OpenAI(base_url=f"{base_url}/v1", api_key=key) as client, client.responses.connect() as connection:
        connection.response.create(model=MODEL, input="Hi")
        whole: Any = next(event for event in connection if event.type == "response.completed")
        connection.response.create(model="nowhere/none", input="Hi")
        refused: Any = connection.recv()
        return whole.response.output_text, refused.error.code


# The client opens its connection in a way that is deprecated since websockets 17.1.
@pytest.mark.filterwarnings("ignore:connect:DeprecationWarning")
async def test_openais_blocking_client_reads_answers_and_errors(
    upstream: Upstream, gateway: GatewayProcess, key: str
) -> None:
    told = await asyncio.to_thread(ask_blocking, gateway.base_url, key)
    assert told == ("Hello, world!", "model_not_found")


async def test_the_events_are_those_of_http(
    upstream: Upstream, gateway: GatewayProcess, key: str, client: AsyncOpenAI
) -> None:
    upstream.plan = Plan(reasoning=("Hm",), text=("Let me see.",), tool_calls=(OSLO,))
    streamed = [event async for event in await client.responses.create(model=MODEL, input="Hi", stream=True)]
    async with opened(gateway, key) as line:
        await line.ask()
        frames = await line.rest()
    assert [frame["type"] for frame in frames] == [event.type for event in streamed]
    assert [set(frame) for frame in frames] == [set(event.to_dict()) for event in streamed]


async def test_what_is_not_stored_is_remembered_by_its_connection(
    upstream: Upstream, gateway: GatewayProcess, key: str
) -> None:
    async with opened(gateway, key) as line, opened(gateway, key) as other:
        upstream.queue(Plan(tool_calls=(OSLO,)), Plan(text=("Rain.",)), Plan(text=("You're welcome.",)))
        first = await line.answer("Weather?", store=False, tools=[TOOL])
        assert first["store"] is False
        output = {"type": "function_call_output", "call_id": first["output"][0]["call_id"], "output": "rain"}
        second = await line.answer([output], store=False, previous_response_id=first["id"])
        assert (text_of(second), second["previous_response_id"]) == ("Rain.", first["id"])
        await line.answer("Thanks", store=True, previous_response_id=second["id"])
        roles = [message["role"] for message in upstream.requests[-1].body["messages"]]
        assert roles == ["user", "assistant", "tool", "assistant", "user"]
        gone = (400, "previous_response_not_found", "previous_response_id")
        asked = {"type": "response.create", "model": MODEL, "input": "Hm", "previous_response_id": first["id"]}
        assert await other.refusal(asked) == gone
        reference = [{"type": "item_reference", "id": first["output"][0]["id"]}]
        assert await other.refusal({**asked, "previous_response_id": None, "input": reference}) == (
            404,
            "not_found",
            "input[0]",
        )


async def test_a_connection_remembers_where_nothing_is_stored(upstream: Upstream, stateless: GatewayProcess) -> None:
    async with opened(stateless, await stateless.account()) as line:
        first = await line.answer("Hi", store=True)
        assert first["store"] is False
        await line.answer("Go on", previous_response_id=first["id"])
        assert said_to(upstream) == ["Hi", "Hello, world!", "Go on"]


async def test_lanes_are_answered_beside_each_other_and_each_in_order(
    upstream: Upstream, gateway: GatewayProcess, key: str
) -> None:
    async with opened(gateway, key) as line:
        upstream.queue(Plan(fault="stall", fault_at=1), Plan(text=("second",)), Plan(text=("third",)))
        await line.ask("one", stream_id="a")
        while (await line.next())["type"] != "response.output_text.delta":
            pass
        await line.ask("two", stream_id="b")
        frames = await line.rest()
        assert {frame["stream_id"] for frame in frames} == {"b"} and text_of(frames[-1]["response"]) == "second"
        await line.ask("three", stream_id="a")
        upstream.release()
        first, second = await line.rest(), await line.rest()
        assert {frame["stream_id"] for frame in (*first, *second)} == {"a"}
        assert text_of(first[-1]["response"]) == "Hello, world!" and text_of(second[-1]["response"]) == "third"
        await line.ask("four")
        assert all("stream_id" not in frame for frame in await line.rest())


async def test_what_runs_ends_with_its_connection_and_is_paid_for_once(
    upstream: Upstream, gateway: GatewayProcess
) -> None:
    key = await gateway.account("leaver")
    upstream.plan = Plan(endless=True, delay_s=0.01, usage=Usage(input=100))
    async with opened(gateway, key) as line:
        await line.ask()
        await line.ask("never asked")
        while (await line.next())["type"] != "response.output_text.delta":
            pass
    await gateway.settled("leaver", records=1)
    [row] = await gateway.usage("leaver")
    assert (row["record"]["outcome"], row["record"]["reason"]) == ("cancelled", "client_left")
    assert len(upstream.requests) == 1


async def test_an_error_within_a_stream_is_told_as_over_http(
    upstream: Upstream, gateway: GatewayProcess, key: str
) -> None:
    upstream.queue(Plan(fault="error_event", fault_at=2), Plan())
    async with opened(gateway, key) as line:
        await line.ask()
        told = await line.rest()
        assert told[-1]["type"] == "error" and "sequence_number" in told[-1] and "status" not in told[-1]
        assert (await line.next())["type"] == "response.failed"
        assert text_of(await line.answer()) == "Hello, world!"


CREATE: dict[str, Any] = {"type": "response.create", "model": MODEL, "input": "Hi"}
WRONG: list[tuple[Any, int, str, str | None]] = [
    ("no JSON", 400, "invalid_json", None),
    (b"\x00\xff", 400, "invalid_json", None),
    ([CREATE], 400, "invalid_value", None),
    ('{"type": "response.create", "type": "response.create"}', 400, "invalid_json", None),
    ({**CREATE, "type": "response.delete"}, 400, "invalid_value", "type"),
    ({**CREATE, "type": 7}, 400, "invalid_value", "type"),
    ({"model": MODEL, "input": "Hi"}, 400, "invalid_value", "type"),
    ({"type": "response.steer", "previous_response_id": "resp_1", "input": "x"}, 400, "unsupported_value", "type"),
    ({**CREATE, "stream_id": 5}, 400, "invalid_value", "stream_id"),
    ({**CREATE, "stream_id": ""}, 400, "invalid_value", "stream_id"),
    ({**CREATE, "stream_id": "x" * 300}, 400, "invalid_value", "stream_id"),
    ({**CREATE, "background": True}, 400, "unsupported_value", "background"),
    ({**CREATE, "generate": False}, 400, "unsupported_value", "generate"),
    ({**CREATE, "temperature": "hot"}, 400, "invalid_value", "temperature"),
    ({**CREATE, "model": "nowhere/none"}, 404, "model_not_found", "model"),
    ({**CREATE, "previous_response_id": "resp_x"}, 400, "previous_response_not_found", "previous_response_id"),
    ({"type": "response.create", "input": "Hi"}, 400, "invalid_value", "model"),
    ("[" * 100_000, 400, "invalid_json", None),
]


async def test_a_wrong_frame_is_refused_and_the_connection_lives_on(
    upstream: Upstream, gateway: GatewayProcess, key: str
) -> None:
    async with opened(gateway, key) as line:
        for frame, *expected in WRONG:
            assert list(await line.refusal(frame)) == expected, frame
        await line.send({**CREATE, "temperature": "hot", "stream_id": "mine"})
        assert (await line.next())["stream_id"] == "mine"
        assert upstream.requests == []
        await line.ask(stream=False, generate=True)
        assert text_of((await line.rest())[-1]["response"]) == "Hello, world!"


async def test_there_is_a_bound_to_what_waits(upstream: Upstream, gateway: GatewayProcess, key: str) -> None:
    upstream.plan = Plan(fault="stall", fault_at=0)
    async with opened(gateway, key) as line:
        for number in range(40):
            await line.ask(stream_id=f"lane {number % 2}")
        told = await line.next()
        while told["type"] != "error":
            told = await line.next()
        assert told["status"] == 400 and "wait" in told["error"]["message"]


async def test_who_may_not_connect_is_told_why(upstream: Upstream, gateway: GatewayProcess) -> None:
    async with opened(gateway, "gw-nobody") as line:
        with pytest.raises(ConnectionClosed) as closed:
            await line.next()
    assert closed.value.rcvd is not None and closed.value.rcvd.code == 4401
    async with opened(gateway, await gateway.account("poor-socket", usd="0")) as line:
        assert (await line.refusal(CREATE))[:2] == (402, "credits_exhausted")
    key = await gateway.account("limited-socket", tier="tiny")
    async with opened(gateway, key) as line:
        assert text_of(await line.answer()) == "Hello, world!"
        assert (await line.refusal(CREATE))[:2] == (429, "rate_limit_exceeded")
