"""Clients that count what they receive, and leave when they please.

They speak HTTP by hand: a client has to be able to reset its connection, to close half of it, and to cost little, and
its count must owe nothing to the gateway. Every attempt has a request id of its own, ``c<client>-<attempt>``, which
is also the prompt, so that the judge can set what was received beside what was charged and what a provider sent.
"""

import asyncio
import contextlib
import random
import socket
import struct
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Literal

import msgspec

from tests.harness import GatewayProcess
from tests.upstream import Plan, Upstream

Departure = Literal["fin", "rst", "half-close"]

# One o200k token; every piece that a provider says is this one.
WORD = " hello"
# Less than what the provider says, which does not obey: the first hold covers this much, so that holds have to grow.
ASKED_TOKENS = 20
_RESET = struct.pack("ii", 1, 0)
_RETRY_PAUSE_S = 0.3
_ATTEMPTS = 60

FAULTS: dict[str, Plan] = {
    "up/reset": Plan(fault="reset", fault_at=15),
    "up/truncated": Plan(fault="truncate", fault_at=10),
    "up/erring": Plan(fault="error_event", fault_at=5),
    "up/broken": Plan(status=500),
}


class Visit(msgspec.Struct, kw_only=True):
    """One attempt. ``end`` is ``done``, ``cut: why``, ``error: why``, ``refused: status``, ``left`` or ``broken``."""

    request_id: str
    received: int = 0
    end: str = ""

    @property
    def is_told(self) -> bool:
        """Whether the gateway said the end itself, so that what it sent was received."""
        return self.end.startswith(("done", "cut", "error"))


class Habit(msgspec.Struct, frozen=True, kw_only=True):
    """What a client wants, and after how many pieces it leaves, if it does."""

    model: str = "up/fine"
    leaves_at: int | None = None
    leaves_by: Departure = "fin"


class Door(msgspec.Struct, frozen=True):
    """Where a client sends its request, and its key. The address is asked for at each attempt."""

    port: Callable[[], int]
    key: str


class Client:
    """One client with its habit. ``visits`` are its attempts so far."""

    def __init__(self, number: int, habit: Habit) -> None:
        self.number = number
        self.habit = habit
        self.visits: list[Visit] = []
        self.is_over = False

    @property
    def received(self) -> int:
        """Pieces received in all."""
        return sum(visit.received for visit in self.visits)

    async def ask(self, doors: Sequence[Door]) -> None:
        """Ask until something was answered or refused for good; a gateway that is away is left for the next one."""
        try:
            await self._ask(doors)
        finally:
            self.is_over = True

    async def _ask(self, doors: Sequence[Door]) -> None:
        for attempt in range(_ATTEMPTS):
            door = doors[(self.number + attempt) % len(doors)]
            visit = Visit(request_id=f"c{self.number}-{attempt}")
            self.visits.append(visit)
            try:
                await self._visit(door, visit)
            except OSError:
                visit.end = visit.end or "broken"
            is_answered = visit.end.startswith(("done", "cut", "error", "left", "refused: 4", "refused: 502"))
            if is_answered or visit.received:
                return
            await asyncio.sleep(_RETRY_PAUSE_S)

    async def _visit(self, door: Door, visit: Visit) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", door.port())
        try:
            writer.write(request_bytes(door.key, visit.request_id, self.habit.model))
            status = int((await reader.readline() or b"- 0").split()[1])
            if status != 200:
                visit.end = f"refused: {status}" if status else "broken"
                return
            while await reader.readline() not in (b"\r\n", b""):
                pass
            await self._read(reader, writer, visit)
        finally:
            writer.transport.abort()

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, visit: Visit) -> None:
        habit = self.habit
        while line := await reader.readline():
            if line.startswith(b"data: "):
                _take(line[6:].strip(), visit)
            if visit.end == "done":
                return
            if habit.leaves_at is not None and visit.received >= habit.leaves_at:
                visit.end = "left"
                await depart(reader, writer, habit.leaves_by)
                return
        visit.end = visit.end or "broken"


def _take(payload: bytes, visit: Visit) -> None:
    if payload == b"[DONE]":
        visit.end = visit.end or "done"
        return
    chunk: dict[str, Any] = msgspec.json.decode(payload)
    if "error" in chunk:
        visit.end = f"error: {chunk['error']['code']}"
        return
    for choice in chunk.get("choices", ()):
        visit.received += (choice["delta"].get("content") or "").count(WORD)
    if "reason" in (told := chunk.get("x_gateway") or {}):
        visit.end = f"cut: {told['reason']}"


def request_bytes(key: str, request_id: str, model: str, **headers: str) -> bytes:
    """A whole request as a client sends it."""
    body = msgspec.json.encode(
        {
            "model": model,
            "stream": True,
            "max_tokens": ASKED_TOKENS,
            "messages": [{"role": "user", "content": request_id}],
        }
    )
    lines = {
        "host": "gateway",
        "authorization": f"Bearer {key}",
        "x-request-id": request_id,
        "content-type": "application/json",
        "content-length": str(len(body)),
        "connection": "close",
        **headers,
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"POST /v1/chat/completions HTTP/1.1\r\n{head}\r\n".encode() + body


async def depart(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, by: Departure) -> None:
    """Leave: close (FIN), reset (RST), or close only the sending half and wait until the gateway has closed too."""
    connection: socket.socket = writer.get_extra_info("socket")
    if by == "rst":
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    elif by == "half-close":
        writer.write_eof()
        with contextlib.suppress(OSError):
            while await reader.read(65_536):
                pass
    writer.transport.abort()


class Crowd:
    """Many clients at once."""

    def __init__(self, clients: list[Client], chance: random.Random) -> None:
        self.clients = clients
        self._chance = chance
        self._arrivals = [chance.random() for _ in clients]

    @property
    def visits(self) -> list[Visit]:
        """Every attempt of every client."""
        return [visit for client in self.clients for visit in client.visits]

    @property
    def served(self) -> int:
        """How many clients have received something."""
        return sum(1 for client in self.clients if client.received)

    @property
    def is_over(self) -> bool:
        """Whether every client has its end."""
        return all(client.is_over for client in self.clients)

    def ends(self) -> Counter[str]:
        """How attempts ended."""
        return Counter(visit.end for visit in self.visits)

    async def run(self, doors: Sequence[Door], *, arrive_within_s: float = 1.0) -> None:
        """Let all of them ask; returns when the last has its end."""

        async def come(client: Client, at: float) -> None:
            await asyncio.sleep(at * arrive_within_s)
            await client.ask(doors)

        async with asyncio.TaskGroup() as group:
            for client, at in zip(self.clients, self._arrivals, strict=True):
                group.create_task(come(client, at))


def mixed(chance: random.Random, count: int, *, pieces: int) -> Crowd:
    """A quarter of them leaves at random, half of these by a reset; a twelfth gets a provider that fails."""
    clients = []
    for number in range(count):
        draw = chance.random()
        habit = Habit()
        if draw < 0.25:
            by: Departure = "fin" if draw < 0.125 else "rst"
            habit = Habit(leaves_at=chance.randrange(1, pieces), leaves_by=by)
        elif draw < 0.33:
            habit = Habit(model=chance.choice(list(FAULTS)))
        clients.append(Client(number, habit))
    return Crowd(clients, chance)


def speak(upstream: Upstream, *, pieces: int, delay_s: float) -> None:
    """What the providers say: ``pieces`` words, ``delay_s`` before each; the failing ones as far as they get."""
    said = Plan(text=(WORD,) * pieces, delay_s=delay_s)
    upstream.for_model("fine", said)
    upstream.for_model("short", Plan(text=(WORD,)))
    for name, plan in FAULTS.items():
        faulty = msgspec.structs.replace(plan, text=said.text, delay_s=delay_s)
        upstream.for_model(name.removeprefix("up/"), faulty)


def doors_of(gateways: Sequence[GatewayProcess], key: str) -> list[Door]:
    """The gateways as a client sees them."""
    return [Door(lambda gateway=gateway: gateway.port, key) for gateway in gateways]  # type: ignore[misc]
