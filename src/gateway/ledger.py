"""Usage records: what every exchange held, counted, was told, and was charged.

A record travels inside the settlement's ledger row, so a charge and its record exist together or not at all. The
stream of rows per account is the journal of its money; this room reads it back.
"""

import asyncio
import heapq
from typing import Any

import msgspec

from gateway.limits import keys
from gateway.limits.redis import Redis

_MOVED_BY_USE = frozenset((b"post", b"reap", b"trueup"))
_SCAN_PAGE = 500


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """A call to a provider that came to nothing; ms, ``after_ms`` from the request's first call.

    Tokens, and ``cost`` in µ$, are what the provider has to be expected to bill: nothing where it refused, the prompt
    by our count where it may have read it. No account is charged for that.
    """

    target: str
    code: str
    status: int | None
    after_ms: int = 0
    took_ms: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost: int = 0


class UsageRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One exchange. Tokens as the bill has them, amounts in µ$, times in ms.

    ``outcome`` is complete, truncated, cancelled, cut or failed, with the ``reason`` where it has one. ``estimated``
    says that tokens are our own count. ``counted_output`` is what was forwarded by our count and ``reported_output``
    what the provider said, whoever was believed. ``held`` is the last hold; the row has what was charged and absorbed.
    ``attempts`` counts the calls to providers, ``failed`` has those of them that came to nothing.
    ``variant`` names the arm of an experiment, ``abuse`` what was found in the stream, ``shadowed`` the limits in
    shadow mode that would have refused it. ``mirror_of`` is the id of the request that this one mirrors.
    """

    request_id: str
    subject: str = ""
    model: str = ""
    target: str = ""
    protocol: str = ""
    stream: bool = False
    outcome: str = "failed"
    reason: str = ""
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    counted_output: int = 0
    reported_output: int = 0
    estimated: bool = False
    held: int = 0
    cost: int = 0
    first_token_ms: float = 0
    duration_ms: int = 0
    attempts: int = 1
    failed: tuple[Attempt, ...] = ()
    variant: str = ""
    abuse: str = ""
    shadowed: tuple[str, ...] = ()
    mirror_of: str = ""


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One ledger row that charged something, with its record. ``id`` is its place in the account's ledger."""

    id: str
    account: str
    sid: str
    kind: str
    charged: int
    absorbed: int
    outcome: str
    record: dict[str, Any]

    @property
    def time_ms(self) -> int:
        """When it was posted, Unix time in ms by Redis's clock."""
        return int(self.id.partition("-")[0])


class Page(msgspec.Struct, frozen=True):
    """Rows, newest first; ``next`` is the cursor of the page that follows, ``None`` on the last.

    A cursor is the last row's id and account, since rows of two accounts may have the same id.
    """

    rows: list[Row]
    next: str | None


class Ledger:
    """Reads ledgers. Methods may raise ``StoreUnavailable``."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def page(self, accounts: list[str], *, from_ms: int, to_ms: int, cursor: str | None, count: int) -> Page:
        """The newest ``count`` rows of these accounts between two times; ``cursor`` continues an earlier page."""
        per_account = [
            await self._rows(account, _newest(account, to_ms, cursor), str(from_ms), count + 1) for account in accounts
        ]
        rows = list(heapq.merge(*per_account, key=_order, reverse=True))[: count + 1]
        return Page(rows[:count], _cursor(rows[count - 1]) if len(rows) > count else None)

    async def _rows(self, account: str, newest: str, oldest: str, count: int) -> list[Row]:
        rows: list[Row] = []
        while len(rows) < count:
            entries = await self._redis.call(
                "XREVRANGE", keys.ledger(account), newest, oldest, "COUNT", min(count, _SCAN_PAGE)
            )
            rows += [row for entry in entries if (row := _row(account, entry)) is not None]
            if len(entries) < min(count, _SCAN_PAGE):
                break
            newest = f"({entries[-1][0].decode()}"
        return rows[:count]


class StreamState(msgspec.Struct, frozen=True, kw_only=True):
    """One stream as Redis knows it: ``state`` is open, reaped or done; amounts in µ$, Unix time in ms.

    ``subject`` owns it: whose credential asked for it.
    """

    id: str
    state: str
    outcome: str
    charged: int
    held: int
    started_ms: int
    subject: str
    model: str
    protocol: str


class Streams:
    """Reads single streams. Methods may raise ``StoreUnavailable``."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def get(self, account: str, sid: str) -> StreamState | None:
        """A stream of the account; ``None`` where it has none of this id, or had it too long ago."""
        return _stream_state(sid, await self._redis.call("HMGET", keys.record(account, sid), *_STREAM_FIELDS))

    async def running(self, account: str, *, count: int) -> list[StreamState]:
        """The account's open streams on all gateways, ``count`` of them at most."""
        sids = [sid.decode() for sid in await self._redis.call("ZRANGE", keys.leases(account), 0, count - 1)]
        states = await asyncio.gather(*[self.get(account, sid) for sid in sids])
        return [state for state in states if state is not None and state.state == "open"]


_STREAM_FIELDS = ("st", "out", "c", "h", "t0", "m")


class _Facts(msgspec.Struct, frozen=True):
    """What is read of a record's facts."""

    subject: str = ""
    model: str = ""
    protocol: str = ""


def _stream_state(sid: str, values: list[bytes | None]) -> StreamState | None:
    state, outcome, charged, held, started, facts = values
    if state is None:
        return None
    known = msgspec.json.decode(facts or b"{}", type=_Facts)
    return StreamState(
        id=sid,
        state=state.decode(),
        outcome=(outcome or b"").decode(),
        charged=int(charged or 0),
        held=int(held or 0),
        started_ms=int(started or 0),
        subject=known.subject,
        model=known.model,
        protocol=known.protocol,
    )


def _order(row: Row) -> tuple[int, int, str]:
    milliseconds, _, sequence = row.id.partition("-")
    return int(milliseconds), int(sequence), row.account


def _cursor(row: Row) -> str:
    return f"{row.id}-{row.account}"


def _newest(account: str, to_ms: int, cursor: str | None) -> str:
    """Where an account's rows continue: among rows of one id, the later names of accounts come first."""
    if cursor is None:
        return str(to_ms)
    milliseconds, sequence, last_account = cursor.split("-", 2)
    is_still_to_come = account < last_account
    return f"{'' if is_still_to_come else '('}{milliseconds}-{sequence}"


def _row(account: str, entry: Any) -> Row | None:
    identity, flat = entry
    fields = dict(zip(flat[::2], flat[1::2], strict=True))
    if fields[b"op"] not in _MOVED_BY_USE:
        return None
    return Row(
        id=identity.decode(),
        account=account,
        sid=fields[b"sid"].decode(),
        kind=fields[b"op"].decode(),
        charged=int(fields[b"d"]),
        absorbed=int(fields[b"o"]),
        outcome=fields[b"out"].decode(),
        record=msgspec.json.decode(fields[b"rec"]),
    )
