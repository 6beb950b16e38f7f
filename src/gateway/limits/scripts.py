"""Each Lua script as a typed method.

A script states its keys and arguments in its head; the method states what it passes. The two are compared when this
module is imported, so that neither can drift from the other unnoticed. Amounts are integers in µ$.
"""

import asyncio
import time
from collections.abc import Callable
from importlib import resources
from typing import Any

import msgspec

from gateway.limits import keys
from gateway.limits.allowances import Allowances
from gateway.limits.redis import LuaSource, Redis

_LUA = resources.files("gateway.limits") / "lua"
_PRELUDE = (_LUA / "_prelude.lua").read_text() + (_LUA / "_limits.lua").read_text()

_STREAM_KEYS = "wallet record leases revision ledger windows* buckets* slots*"
_RECOVERING = (20, -20)
# A revision nobody heard of for this long is not compared any more; Redis forgets it after a day.
_REVISION_S = 12 * 3600.0
_REVISIONS_MAX = 50_000


# A settlement may wait for the next call of its gateway, and arrives before it: one trip and one write to disk less.
_SETTLE_PATIENCE_S = 0.002
_ACCOUNT_KEYS_MAX = 10_000


def _load(name: str, *, key_names: str, arg_names: str) -> LuaSource:
    text = (_LUA / f"{name}.lua").read_text()
    for header in (f"-- KEYS: {key_names}\n", f"-- ARGV: {arg_names}\n"):
        if header not in text:
            raise ImportError(f"{name}.lua has no line {header.strip()!r}: script and stub have drifted apart")
    return LuaSource(_PRELUDE + text)


_RESERVE = _load(
    "reserve",
    key_names=_STREAM_KEYS,
    arg_names="sid request nonce least most fair lease_ms seen tokens facts stored limits",
)
_EXTEND = _load(
    "extend",
    key_names=_STREAM_KEYS,
    arg_names="sid request nonce used need target believed lease_ms seen tokens stored limits",
)
_SETTLE = _load(
    "settle",
    key_names=_STREAM_KEYS,
    arg_names="sid request nonce actual outcome created_ms retention_ms ledger_keep_ms seen tokens refund usage limits",
)
_SETTLE_PATIENTLY = LuaSource(_SETTLE.text, patience_s=_SETTLE_PATIENCE_S)
_REAP = _load("reap", key_names=_STREAM_KEYS, arg_names="sid grace_ms retention_ms ledger_keep_ms charge_held limits")
_GRANT = _load("grant", key_names="wallet grants ledger", arg_names="grant_id amount")
_CAP = _load(
    "cap", key_names="permits windows* buckets* slots*", arg_names="op sid lease_ms estimate tokens refund limits"
)


class Stream(msgspec.Struct, frozen=True, kw_only=True):
    """What identifies one stream to every script.

    ``created_ms`` is Unix time, used for retention only. ``nonce`` tells one run from another of the same id, and
    ``request`` is a digest of the request where the id comes from an idempotency key.
    """

    sid: str
    account: str
    created_ms: int
    nonce: str
    allowances: Allowances
    request: str = ""


class HoldRange(msgspec.Struct, frozen=True):
    """What a stream needs held to start, and what it gets where the balance is ample; µ$.

    Near the end of a balance streams get equal shares of what is left, unless one ``takes_all`` it can use.
    """

    least: int
    most: int
    takes_all: bool = False


class Retention(msgspec.Struct, frozen=True, kw_only=True):
    """How long finished streams answer replays, and how long the ledger is kept."""

    stream_ms: int = 72 * 3600 * 1000
    ledger_ms: int = 90 * 24 * 3600 * 1000


class ReserveReply(msgspec.Struct, frozen=True):
    """``index`` counts from 1 and names the limit that refused, as ``Allowances.at`` does.

    ``used_permille`` is how much of the balance (``used_index`` 0) or of a budget is used or held; ``shadowed`` are
    the limits that would have refused; ``left`` is what each bucket still has.
    """

    code: int
    index: int
    retry_after_ms: int
    held: int
    available: int
    revision: int
    used_permille: int
    used_index: int
    shadowed: list[int]
    left: list[int]


class ExtendReply(msgspec.Struct, frozen=True):
    """``debt_ms`` is how long the token limits need until they are out of debt."""

    code: int
    held: int
    available: int
    revision: int
    used_permille: int
    used_index: int
    debt_ms: int


class Growth(msgspec.Struct, frozen=True, kw_only=True):
    """How a stream stands and what it asks for; all totals. ``need`` is the hold without which it cannot go on.

    ``is_beyond`` says that ``tokens`` is more than the admission took from the token limits.
    """

    used: int
    need: int
    target: int
    believed: int
    tokens: int
    is_beyond: bool = True


class Posting(msgspec.Struct, frozen=True, kw_only=True):
    """What a stream cost in the end: ``actual`` µ$ and ``tokens`` in total.

    ``refund`` gives back what the request itself took from the limits. ``usage`` is the usage record as JSON.
    """

    actual: int
    outcome: str
    tokens: int
    refund: bool
    usage: bytes


class SettleReply(msgspec.Struct, frozen=True):
    """What Redis made of a posting."""

    code: int
    charged: int
    absorbed: int
    revision: int


class ReapReply(msgspec.Struct, frozen=True):
    """Whether a stream was finished, and the µ$ posted for it."""

    code: int
    posted: int


class GrantReply(msgspec.Struct, frozen=True):
    """``granted`` is the account's total in µ$."""

    code: int
    granted: int


class CapReply(msgspec.Struct, frozen=True):
    """``index`` and ``shadowed`` count buckets, then slots, from 1."""

    code: int
    index: int
    retry_after_ms: int
    shadowed: list[int]


class Scripts:
    """The scripts, bound to one Redis and to what this gateway knows of it.

    ``gateway`` names the process and stays the same over restarts. ``on_rollback`` is told the account of which Redis
    has lost changes that it had acknowledged.
    """

    def __init__(self, redis: Redis, gateway: str) -> None:
        self.redis = redis
        self.gateway = gateway
        self.on_rollback: Callable[[str], None] = lambda account: None
        self._seen: dict[str, tuple[int, float]] = {}
        self._account_keys: dict[str, tuple[str, str, str, str]] = {}

    def seen(self, account: str) -> int:
        """The highest revision of the account that Redis has told this gateway."""
        known = self._seen.get(account)
        return known[0] if known is not None and time.monotonic() - known[1] < _REVISION_S else 0

    def _note(self, account: str, code: int, revision: int) -> None:
        if revision > self.seen(account):
            if len(self._seen) >= _REVISIONS_MAX and account not in self._seen:
                self._seen.pop(next(iter(self._seen)))
            self._seen[account] = (revision, time.monotonic())
        if code in _RECOVERING:
            self.on_rollback(account)

    def _stream_keys(self, stream: Stream, allowances: Allowances) -> tuple[str, ...]:
        wallet, leases, revision, ledger = self._account_keys.get(stream.account) or self._spell(stream.account)
        return (wallet, keys.record(stream.account, stream.sid), leases, revision, ledger, *allowances.keys)

    def _spell(self, account: str) -> tuple[str, str, str, str]:
        if len(self._account_keys) >= _ACCOUNT_KEYS_MAX:
            self._account_keys.clear()
        spelled = self._account_keys[account] = (
            keys.wallet(account),
            keys.leases(account),
            keys.revision(account, self.gateway),
            keys.ledger(account),
        )
        return spelled

    def reserve(
        self, stream: Stream, *, hold: HoldRange, lease_ms: int, tokens: int, facts: bytes
    ) -> asyncio.Future[ReserveReply]:
        """Admit a stream with a hold within the range, or refuse it and change nothing; ``tokens`` is an estimate."""
        account, allowances = stream.account, stream.allowances

        def parse(reply: list[Any]) -> ReserveReply:
            self._note(account, reply[0], reply[5])
            return ReserveReply(*reply)

        fair = 0 if hold.takes_all else 1
        return self.redis.script(
            _RESERVE,
            self._stream_keys(stream, allowances),
            (
                *(stream.sid, stream.request, stream.nonce, hold.least, hold.most, fair, lease_ms),
                *(self.seen(account), tokens, facts, allowances.stored, allowances.packed),
            ),
            parse,
        )

    def extend(
        self, stream: Stream, growth: Growth, *, lease_ms: int, revive: bool = False
    ) -> asyncio.Future[ExtendReply]:
        """Grow the hold towards ``target`` and renew the leases; ``revive`` re-creates a record that Redis lost."""
        limits = stream.allowances if growth.is_beyond or revive else stream.allowances.without_buckets

        def parse(reply: list[int]) -> ExtendReply:
            self._note(stream.account, reply[0], reply[3])
            return ExtendReply(*reply)

        return self.redis.script(
            _EXTEND,
            self._stream_keys(stream, limits),
            (
                *(stream.sid, stream.request, stream.nonce, growth.used, growth.need, growth.target, growth.believed),
                *(lease_ms, self.seen(stream.account), growth.tokens),
                *(stream.allowances.stored if revive else b"", limits.packed),
            ),
            parse,
        )

    def settle(
        self, stream: Stream, posting: Posting, retention: Retention, *, is_patient: bool = False
    ) -> asyncio.Future[SettleReply]:
        """Post what a stream cost, once, and end it. A patient call waits a moment for another to travel with."""
        account, allowances = stream.account, stream.allowances

        def parse(reply: list[int]) -> SettleReply:
            code, charged, absorbed, revision, is_recovering = reply
            self._note(account, _RECOVERING[0] if is_recovering else code, revision)
            return SettleReply(code, charged, absorbed, revision)

        return self.redis.script(
            _SETTLE_PATIENTLY if is_patient else _SETTLE,
            self._stream_keys(stream, allowances),
            (
                *(stream.sid, stream.request, stream.nonce, posting.actual, posting.outcome, stream.created_ms),
                *(retention.stream_ms, retention.ledger_ms, self.seen(account)),
                *(posting.tokens, 1 if posting.refund else 0, posting.usage, allowances.packed),
            ),
            parse,
        )

    def reap(
        self, stream: Stream, *, grace_ms: int, retention: Retention, charge_held: bool
    ) -> asyncio.Future[ReapReply]:
        """Finish a stream of which the lease ran out longer than ``grace_ms`` ago."""
        return self.redis.script(
            _REAP,
            self._stream_keys(stream, stream.allowances),
            (
                *(stream.sid, grace_ms, retention.stream_ms, retention.ledger_ms, int(charge_held)),
                stream.allowances.packed,
            ),
            lambda reply: ReapReply(*reply),
        )

    def grant(self, account: str, *, grant_id: str, amount: int) -> asyncio.Future[GrantReply]:
        """Add ``amount`` µ$, once per id."""
        return self.redis.script(
            _GRANT,
            (keys.wallet(account), keys.grants(account), keys.ledger(account)),
            (grant_id, amount),
            lambda reply: GrantReply(*reply),
        )

    def cap(
        self, share: "Share", op: str, run: str, *, tokens: int = 0, refund: bool = False
    ) -> asyncio.Future[CapReply]:
        """Acquire, touch or release a share of capacity that accounts have in common; ``run`` is a stream's nonce."""
        return self.redis.script(
            _CAP,
            (share.owner.permits, *share.allowances.keys),
            (op, run, share.lease_ms, share.estimate, tokens, int(refund), share.allowances.packed),
            lambda reply: CapReply(*reply),
        )


class Share(msgspec.Struct, frozen=True, kw_only=True):
    """What one stream takes of a shared capacity: ``estimate`` is its tokens as far as they can be known."""

    owner: keys.Owner
    allowances: Allowances
    estimate: int
    lease_ms: int
