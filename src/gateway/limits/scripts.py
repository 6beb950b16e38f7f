"""Each Lua script as a typed function.

A script states its keys and arguments in its head; the stub states what it passes. The two are compared when this
module is imported, so that neither can drift from the other unnoticed.
"""

import asyncio
from importlib import resources

import msgspec

from gateway.limits import keys
from gateway.limits.redis import LuaSource, RedisOwner

_LUA = resources.files("gateway.limits") / "lua"
_PRELUDE = (_LUA / "_prelude.lua").read_text()


def _load(name: str, *, key_names: str, arg_names: str) -> LuaSource:
    text = (_LUA / f"{name}.lua").read_text()
    for header in (f"-- KEYS: {key_names}\n", f"-- ARGV: {arg_names}\n"):
        if header not in text:
            raise ImportError(f"{name}.lua has no line {header.strip()!r}: script and stub have drifted apart")
    return LuaSource(_PRELUDE + text)


_RESERVE = _load(
    "reserve",
    key_names="wallet record leases buckets* slots*",
    arg_names="sid nonce hold_min hold lease_ms facts n_buckets (limit period_ms burst cost)* n_slots (max)*",
)
_EXTEND = _load("extend", key_names="wallet record leases slots*", arg_names="sid used need target lease_ms")
_SETTLE = _load(
    "settle",
    key_names="wallet record leases ledger buckets* slots*",
    arg_names="sid actual outcome created_ms retention_ms ledger_keep_ms usage"
    " n_buckets (limit period_ms burst delta)*",
)
_REAP = _load(
    "reap",
    key_names="wallet leases ledger slots records*",
    arg_names="grace_ms retention_ms ledger_keep_ms (sid)*",
)
_GRANT = _load("grant", key_names="wallet grants ledger", arg_names="grant_id amount")


# The names of an account's own limits.
REQUESTS = "requests"
STREAMS = "streams"


class Bucket(msgspec.Struct, frozen=True):
    """A rate limit on one key: ``limit`` per ``period_ms``, at most ``burst`` at once."""

    name: str
    limit: int
    period_ms: int
    burst: int


class Slots(msgspec.Struct, frozen=True):
    """A concurrency limit on one key."""

    name: str
    max: int


class Allowances(msgspec.Struct, frozen=True):
    """What limits one stream beside money; fixed at admission."""

    buckets: tuple[Bucket, ...] = ()
    slots: tuple[Slots, ...] = ()


class Stream(msgspec.Struct, frozen=True, kw_only=True):
    """What identifies one stream to every script. ``created_ms`` is Unix time, used for retention only."""

    sid: str
    account: str
    created_ms: int
    allowances: Allowances = Allowances()


class HoldRange(msgspec.Struct, frozen=True):
    """What a stream needs held to start, and what it gets where the balance is ample; µ$."""

    least: int
    most: int


class Retention(msgspec.Struct, frozen=True, kw_only=True):
    """How long finished streams answer replays, and how long the ledger is kept."""

    stream_ms: int = 72 * 3600 * 1000
    ledger_ms: int = 90 * 24 * 3600 * 1000


class ReserveReply(msgspec.Struct, frozen=True):
    """``index`` counts from 1 and names the bucket or slots that refused. Amounts in µ$."""

    code: int
    index: int
    retry_after_ms: int
    held: int
    available: int


class ExtendReply(msgspec.Struct, frozen=True):
    """Amounts in µ$."""

    code: int
    held: int
    available: int


class Posting(msgspec.Struct, frozen=True, kw_only=True):
    """What a stream cost in the end: ``actual`` µ$ in total.

    ``refund`` gives back what admission took from the buckets. ``usage`` is the usage record as JSON.
    """

    actual: int
    outcome: str
    refund: bool
    usage: bytes


class SettleReply(msgspec.Struct, frozen=True):
    """Amounts in µ$."""

    code: int
    charged: int
    absorbed: int


class ReapReply(msgspec.Struct, frozen=True):
    """How many streams were finished, and the µ$ posted for them."""

    reaped: int
    posted: int


class GrantReply(msgspec.Struct, frozen=True):
    """``granted`` is the account's total in µ$."""

    code: int
    granted: int


def _slot_keys(stream: Stream) -> tuple[str, ...]:
    return tuple(keys.slots(stream.account, slots.name) for slots in stream.allowances.slots)


def _bucket_keys(stream: Stream) -> tuple[str, ...]:
    return tuple(keys.bucket(stream.account, bucket.name) for bucket in stream.allowances.buckets)


def _stream_keys(stream: Stream) -> tuple[str, str, str]:
    return keys.wallet(stream.account), keys.record(stream.account, stream.sid), keys.leases(stream.account)


def _bucket_args(stream: Stream, amount: int) -> tuple[int, ...]:
    args = [len(stream.allowances.buckets)]
    for bucket in stream.allowances.buckets:
        args += (bucket.limit, bucket.period_ms, bucket.burst, amount)
    return tuple(args)


def reserve(
    redis: RedisOwner, stream: Stream, *, nonce: str, hold: HoldRange, lease_ms: int, facts: bytes
) -> asyncio.Future[ReserveReply]:
    """Admit a stream with a hold within the range, or refuse it and change nothing.

    ``nonce`` names the gateway process, so that its own retry is told apart from somebody else's stream.
    """
    slots = stream.allowances.slots
    return redis.script(
        _RESERVE,
        (*_stream_keys(stream), *_bucket_keys(stream), *_slot_keys(stream)),
        (
            *(stream.sid, nonce, hold.least, hold.most, lease_ms, facts),
            *_bucket_args(stream, 1),
            *(len(slots), *(limit.max for limit in slots)),
        ),
        lambda reply: ReserveReply(*reply),
    )


def extend(
    redis: RedisOwner, stream: Stream, *, used: int, need: int, target: int, lease_ms: int
) -> asyncio.Future[ExtendReply]:
    """Grow the hold towards ``target`` µ$ in total and renew the leases. All amounts are totals."""
    return redis.script(
        _EXTEND,
        (*_stream_keys(stream), *_slot_keys(stream)),
        (stream.sid, used, need, target, lease_ms),
        lambda reply: ExtendReply(*reply),
    )


def settle(redis: RedisOwner, stream: Stream, posting: Posting, retention: Retention) -> asyncio.Future[SettleReply]:
    """Post what a stream cost, once, and end it."""
    return redis.script(
        _SETTLE,
        (*_stream_keys(stream), keys.ledger(stream.account), *_bucket_keys(stream), *_slot_keys(stream)),
        (
            *(stream.sid, posting.actual, posting.outcome, stream.created_ms),
            *(retention.stream_ms, retention.ledger_ms, posting.usage),
            *_bucket_args(stream, -1 if posting.refund else 0),
        ),
        lambda reply: SettleReply(*reply),
    )


def reap(
    redis: RedisOwner, account: str, sids: tuple[str, ...], *, slots: str, grace_ms: int, retention: Retention
) -> asyncio.Future[ReapReply]:
    """Finish those of the listed streams of which the lease ran out longer than ``grace_ms`` ago."""
    return redis.script(
        _REAP,
        (
            *(keys.wallet(account), keys.leases(account), keys.ledger(account), keys.slots(account, slots)),
            *(keys.record(account, sid) for sid in sids),
        ),
        (grace_ms, retention.stream_ms, retention.ledger_ms, *sids),
        lambda reply: ReapReply(*reply),
    )


def grant(redis: RedisOwner, account: str, *, grant_id: str, amount: int) -> asyncio.Future[GrantReply]:
    """Add ``amount`` µ$, once per id."""
    return redis.script(
        _GRANT,
        (keys.wallet(account), keys.grants(account), keys.ledger(account)),
        (grant_id, amount),
        lambda reply: GrantReply(*reply),
    )
