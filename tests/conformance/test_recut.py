"""The law of cuts: however a provider's bytes fall, each client gets the same bytes and the account the same bill.

Every stream is cut at every single offset, and into single bytes. What leaves the decoder is compared frame by frame;
the guard, the meter and the encoders are functions of the frames and of how many came in one read, so each of those
ways is taken once. Streams are those of the simulated providers and of vendors with a quirk.
"""

import contextlib
import itertools
import json
import os
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from redis import Redis

from gateway.canonical.events import Failure, Frame
from gateway.canonical.request import Request
from gateway.guard import Guard
from gateway.metering.meter import Bill, Meter
from gateway.metering.prices import Price, PriceSchedule
from gateway.metering.tokens import counter
from gateway.protocols.wire import Cut, Encoder, ServerRole, StreamMeta
from tests.conformance.answers import PLANS
from tests.conformance.cases import CREATED
from tests.conformance.habits import HABITS
from tests.conformance.readers import FORMATS, data_of
from tests.conformance.test_conformance_pairs import PROVIDER_ROLES, asked, provider_bytes
from tests.exchange.fleet import CHAT, Fleet, Party, ask, provider
from tests.harness import GatewayProcess, RedisServer
from tests.protocols.anthropic_shapes import EVERYTHING_BYTES
from tests.protocols.chat_streams import QUIRKS
from tests.upstream import Plan, ToolCall, Upstream, Usage

Reads = list[list[Frame]]

SCHEDULE = PriceSchedule(Price(input=150_000, output=600_000, cache_read=75_000, reasoning=700_000))
BOUND = Cut("credits_exhausted", "The account's credit is used up; the answer ends here.")
# Answers whose frames are all in another one's; Gemini's signature is on the call itself.
PARTS = ("single tool", "content filter", "usage", "reasoning and a tool")
WHOLE = (("gemini", "reasoning and a tool"),)
OWN_STREAMS = {
    "openai_chat": {name: data for name, (data, _) in QUIRKS.items()},
    "anthropic_messages": {"everything": EVERYTHING_BYTES, "cut short": EVERYTHING_BYTES[:1500]},
    **{
        vendor: {it: data for it, (name, data, _) in HABITS.items() if name == vendor and "Exception" not in it}
        for vendor in ("gemini", "bedrock_converse")
    },
}


def streams_of(name: str) -> dict[str, bytes]:
    """What a provider of the format sends: each planned answer, and what is known of real ones beside it."""
    body = asked("openai_chat", name)
    planned = {
        answer.name: provider_bytes(name, body, answer.plan_of(name))
        for answer in PLANS
        if answer.name not in PARTS or (name, answer.name) in WHOLE
    }
    return {**planned, **OWN_STREAMS.get(name, {})}


# Binary frames have no lines; and of three formats that share their decoder of lines, the longest is left out.
AS_IT_COMES = ("bedrock_converse", "openai_responses")
# Not each stream with each end of a line: that is the work of one decoder, which all of them share.
ENDS = {"reasoning": (b"\r\n",), "everything": (b"\r\n",), "parallel tools": (b"\r", b"\n")}


def spellings(name: str, title: str, data: bytes) -> dict[str, bytes]:
    """The stream as it comes, and with other ends of its lines."""
    ends = () if name in AS_IT_COMES else ENDS.get(title, ())
    others = {repr(end): data.replace(b"\r\n", b"\n").replace(b"\n", end) for end in ends}
    return {"as it comes": data, **{end: other for end, other in others.items() if other != data}}


CASES = [
    pytest.param(name, data, id=f"{name}-{title}-{end}")
    for name in PROVIDER_ROLES
    for title, stream in streams_of(name).items()
    for end, data in spellings(name, title, stream).items()
]


def decoded(name: str, *pieces: bytes) -> Reads:
    """The frames of each read, and of the end of the bytes."""
    decoder = PROVIDER_ROLES[name].decoder("up")
    reads = []
    for piece in pieces:
        if decoder.is_done:  # nobody reads on
            break
        reads.append(decoder.feed(piece))
    return reads if decoder.is_done else [*reads, decoder.end_of_bytes()]


def flat(reads: Reads) -> list[Any]:
    """All frames, to be compared; no two errors are equal, so one is told by its words."""
    return [
        repr(frame) if frame.events and isinstance(frame.events[-1], Failure) else frame
        for read in reads
        for frame in read
    ]


class Client(msgspec.Struct, frozen=True):
    """Somebody who waits for an answer: a format, and whether it is streamed."""

    server: ServerRole
    request: Request

    def encoder(self, wire: str) -> Encoder:
        return self.server.encoder(self.request, StreamMeta("r1", CREATED, wire, stream_id="s1", input_tokens=10))


def clients() -> dict[str, Client]:
    found = {}
    for name, spoken in FORMATS.items():
        for stream in (True, False) if spoken.whole is not None else (True,):
            body = json.loads(spoken.ask(stream=stream))
            if stream and name in ("openai_chat", "openai_completions"):
                body["stream_options"] = {"include_usage": True}
            request = spoken.role.decode_request(json.dumps(body).encode(), {})
            found[f"{name}, {'streamed' if stream else 'whole'}"] = Client(spoken.role, request)
    return found


CLIENTS = clients()


def relayed(reads: Reads, encoder: Encoder, bound: Cut | None) -> tuple[bytes, Bill]:
    """What the client gets for these reads and what it is charged: the exchange in small."""
    meter, guard, out = Meter(SCHEDULE, counter(), 10), Guard(), b""
    guard.provider, guard.bound_by = "up", bound
    for frames in filter(None, reads):
        passed, failure = guard.check(list(frames))
        meter.forwarded(sum(meter.weigh(frame) for frame in passed))
        out += b"".join([encoder.encode(frame) for frame in passed])
        if failure is not None:
            return out + encoder.fail(failure), meter.bill(complete=False)
    usage = meter.reported or meter.counted
    if guard.is_at_bound and bound is not None:
        return out + encoder.cut(bound, usage), meter.bill(complete=True)
    return out + encoder.end(usage), meter.bill(complete=True)


class Ids:
    """Ids that are made up, the same again after each ``restart``."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)

    def restart(self) -> None:
        self._numbers = itertools.count(1)

    def urandom(self, size: int) -> bytes:
        return next(self._numbers).to_bytes(size, "big")


@pytest.fixture
def ids(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ids]:
    """What would be told apart by chance or by the time is not."""
    counted = Ids()
    monkeypatch.setattr(os, "urandom", counted.urandom)
    monkeypatch.setattr(time, "time", lambda: float(CREATED))
    yield counted
    monkeypatch.undo()


@pytest.mark.parametrize(("name", "data"), CASES)
def test_a_cut_anywhere_changes_neither_the_answer_nor_the_bill(ids: Ids, name: str, data: bytes) -> None:
    def read(*pieces: bytes) -> Reads:
        ids.restart()
        return decoded(name, *pieces)

    def answer(title: str, reads: Reads) -> tuple[bytes, Bill]:
        ids.restart()
        return relayed(reads, CLIENTS[title].encoder(name), BOUND)

    at_once = read(data)
    frames = flat(at_once)
    ways: dict[tuple[int, ...], Reads] = {}
    for offset in range(1, len(data)):
        reads = read(data[:offset], data[offset:])
        assert flat(reads) == frames, offset
        ways[tuple(map(len, reads))] = reads
    single = read(*(data[at : at + 1] for at in range(len(data))))
    assert flat(single) == frames
    expected = {title: answer(title, at_once) for title in CLIENTS}
    for title in CLIENTS:
        assert answer(title, single) == expected[title]
    for reads, title in zip(ways.values(), itertools.cycle(CLIENTS), strict=False):
        assert answer(title, reads) == expected[title]


@pytest_asyncio.fixture
async def party() -> AsyncIterator[Party]:
    """An account in front of a gateway that asks one simulated provider in three formats."""
    async with contextlib.AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(Upstream())
        redis = stack.enter_context(RedisServer())
        store = stack.enter_context(Redis.from_url(redis.url))
        providers = {
            "up": provider(upstream),
            "claude": provider(upstream, type="anthropic"),
            "google": provider(upstream, type="gemini", base_url=f"{upstream.base_url}/v1beta"),
        }
        gateway = GatewayProcess({"providers": providers}, redis_url=redis.url)
        stack.push_async_callback(gateway.stop)
        await gateway.start()
        started = Fleet(upstream, store, [gateway])
        stack.push_async_callback(started.client.aclose)
        yield await started.party()


SAID = Plan(
    text=("Hel", "lo ", "Zü😀\u2028!"),
    reasoning=("Hm",),
    signature="c2lnbmVk",
    tool_calls=(ToolCall(name="weather", id="call_a", arguments=('{"city":', '"Zürich"}')),),
    usage=Usage(input=20, output=7),
)


FALLS: tuple[dict[str, Any], ...] = ({"cut": 100_000}, {"cut": 1}, {"cut": 7}, {"cut": 64, "crlf": True})


@pytest.mark.asyncio
async def test_cuts_on_the_wire_change_nothing_a_client_reads_or_pays(party: Party) -> None:
    for number, target in enumerate(("up/x", "claude/x", "google/gemini-x")):
        await check_cuts_on_the_wire(party, target, number * len(FALLS))


async def check_cuts_on_the_wire(party: Party, target: str, before: int) -> None:
    seen = []
    for number, fall in enumerate(FALLS, before + 1):
        party.fleet.upstream.plan = msgspec.structs.replace(SAID, **fall)
        body = ask(model=target, max_tokens=4000, stream=True)
        answer = await party.fleet.client.post(party.fleet.url() + CHAT, json=body, headers=party.headers())
        frames = data_of(answer.content)
        record = await party.record(number)
        spoken = [choice["delta"] for frame in frames for choice in frame["choices"]]
        seen.append((spoken, record["output_tokens"], record["cost"], record["counted_output"]))
    assert all(one == seen[0] for one in seen), target
    assert "".join(delta.get("content") or "" for delta in seen[0][0]) == "Hello Zü😀\u2028!"
