"""How ``gateway audit`` looks at a Redis that is in use.

An account is read at one instant by one script; its ledger only grows, so it is read in pages up to where it ended at
that instant, and the two agree whatever happens meanwhile. Keys are found in one scan of every master. What seems wrong
is looked at again, and only what stays wrong is reported. Nothing here writes.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from importlib import resources
from typing import Any

import msgspec

from gateway.limits import keys
from gateway.limits.allowances import Allowances
from gateway.limits.audit import Finding, OpenStream, Skipped, Snapshot, check
from gateway.limits.audit_ledger import Charged, LedgerRow, Tally, row_of
from gateway.limits.redis import LuaSource, Redis, RedisOwner
from gateway.limits.scripts import Retention

_LOOK = LuaSource((resources.files("gateway.limits") / "lua" / "audit.lua").read_text())
_LOOKS = 3
_PAUSE_S = 0.3
_STREAMS_MAX = 20_000
_PAGE = 500
# A record is asked for only while it has this much of its retention left.
_MARGIN_MS = 60_000
_KEY = re.compile(rb"cr:\{([a-z0-9][a-z0-9_-]{0,63})\}:([a-z]+):?(.*)", re.DOTALL)
_RESTORE = "Redis was restored, written to by hand, or met a bug; keep this output and the ledger's export."


class LimitNames(msgspec.Struct):
    """The names of an account's limits that have a key."""

    windows: set[str] = msgspec.field(default_factory=set)
    buckets: set[str] = msgspec.field(default_factory=set)
    slots: set[str] = msgspec.field(default_factory=set)

    def add(self, kind: str, name: str) -> None:
        """Note one key by the letter of its kind; other kinds are no limits."""
        match kind:
            case "b":
                self.windows.add(name)
            case "r":
                self.buckets.add(name)
            case "c":
                self.slots.add(name)


class Report(msgspec.Struct):
    """What an audit saw."""

    findings: list[Finding] = msgspec.field(default_factory=list)
    skipped: list[Skipped] = msgspec.field(default_factory=list)
    accounts: int = 0
    open_streams: int = 0
    records: int = 0
    ledger_rows: int = 0

    def add(self, found: Finding | Skipped) -> None:
        """Note one result of a check."""
        if isinstance(found, Finding):
            self.findings.append(found)
        else:
            self.skipped.append(found)


async def read_snapshot(redis: Redis, account: str, names: LimitNames, *, streams_max: int = _STREAMS_MAX) -> Snapshot:
    """One account at one instant, with these limits; may raise ``StoreUnavailable``."""
    owner = keys.limits_of(account)
    windows, buckets, slots = sorted(names.windows), sorted(names.buckets), sorted(names.slots)
    lua_keys = (
        *(keys.wallet(account), keys.leases(account), keys.ledger(account), keys.grants(account)),
        keys.account(account),
        *(owner.window(name) for name in windows),
        *(owner.bucket(name) for name in buckets),
        *(owner.slots(name) for name in slots),
    )
    counts = (len(windows), len(buckets), len(slots))
    reply = await redis.script(_LOOK, lua_keys, (keys.record(account, ""), streams_max, *counts), list)
    now, wallet, leases, records, last_id, grants, created, *limits = reply
    listed = await redis.call("ZSCORE", keys.ACCOUNTS, account)
    announced = await redis.call("ZSCORE", keys.ACTIVE, account)
    ends = {sid.decode(): float(until) for sid, until in _pairs(leases)}
    return Snapshot(
        account=account,
        now_ms=int(now),
        wallet=_wallet(wallet),
        leases=ends,
        streams=_streams(owner, list(ends), records),
        last_id=last_id.decode(),
        grants=_amounts(grants),
        created_ms=None if created is None else int(created),
        windows={name: _amounts(flat) for name, flat in zip(windows, limits[0], strict=True)},
        buckets={name: None if it is None else it.decode() for name, it in zip(buckets, limits[1], strict=True)},
        slots={
            name: {sid.decode(): float(until) for sid, until in _pairs(flat)}
            for name, flat in zip(slots, limits[2], strict=True)
        },
        is_listed=listed is not None,
        is_announced=announced is not None,
    )


def _pairs(flat: Sequence[Any]) -> list[tuple[Any, Any]]:
    return list(zip(flat[::2], flat[1::2], strict=True))


def _amounts(flat: Sequence[bytes]) -> dict[str, int]:
    return {name.decode(): int(value) for name, value in _pairs(flat)}


def _wallet(flat: Sequence[bytes]) -> dict[str, int] | None:
    fields = {name.decode(): value for name, value in _pairs(flat)}
    return {name: int(fields.get(name, 0)) for name in ("g", "s", "h", "o")} if "g" in fields else None


def _streams(owner: keys.Owner, sids: list[str], records: list[Any]) -> dict[str, OpenStream] | None:
    if len(records) != len(sids):
        return None
    return {
        sid: OpenStream(
            state=None if state is None else state.decode(),
            held=int(held or 0),
            used=int(used or 0),
            tokens=int(tokens or 0),
            allowances=Allowances.load(owner, lim) if lim else Allowances(owner),
        )
        for sid, (state, held, used, tokens, lim) in zip(sids, records, strict=True)
    }


async def read_rows(redis: Redis, account: str, *, after: str, until: str) -> AsyncIterator[LedgerRow]:
    """The ledger's rows, oldest first, from behind one id ("" for the first) up to another."""
    store, start = redis, f"({after}" if after else "-"
    while until:
        entries = await store.call("XRANGE", keys.ledger(account), start, until, "COUNT", _PAGE)
        for entry in entries:
            yield row_of(entry)
        if len(entries) < _PAGE:
            return
        start = f"({entries[-1][0].decode()}"


class Auditor:
    """Looks at every account, one after another. Methods may raise ``StoreUnavailable`` or what Redis refused."""

    def __init__(self, redis: Redis, retention: Retention | None = None) -> None:
        self._store = redis
        self._retention = retention or Retention()
        self._names: dict[str, LimitNames] = {}
        self._sizes: dict[str, tuple[int, int]] = {}
        self.report = Report()

    async def run(self, account: str | None = None) -> Report:
        """Check everything, or one account."""
        suspects: list[tuple[str, str, str]] = []
        for server in await self._store.masters():
            suspects += [suspect async for suspect in self._scan(server, account)]
        for name in await listed_accounts(self._store):
            if account in (None, name):
                self._names.setdefault(name, LimitNames())
        for name in sorted(self._names):
            await self._audit(name)
        for name, kind, rest in suspects:
            await self._confirm_key(name, kind, rest)
        self.report.accounts = len(self._names)
        self.report.open_streams = sum(streams for streams, _ in self._sizes.values())
        self.report.ledger_rows = sum(rows for _, rows in self._sizes.values())
        return self.report

    # One pass over all keys: which limits there are, and what is wrong with single keys.

    async def _scan(self, server: RedisOwner, account: str | None) -> AsyncIterator[tuple[str, str, str]]:
        pattern = f"cr:{{{account}}}:*" if account else "cr:{*"
        cursor: Any = 0
        while True:
            cursor, found = await server.call("SCAN", cursor, "MATCH", pattern, "COUNT", _PAGE)
            parsed = [parts for key in found if (parts := _parts(key)) is not None]
            for name, kind, rest in parsed:
                self._names.setdefault(name, LimitNames()).add(kind, rest)
            looked_at = [parts for parts in parsed if parts[1] in ("s", "b", "r")]
            self.report.records += sum(kind == "s" for _, kind, _ in looked_at)
            wrong = await asyncio.gather(*(self._look_at_key(*it) for it in looked_at))
            for suspect, finding in zip(looked_at, wrong, strict=True):
                if finding is not None:
                    yield suspect
            if int(cursor) == 0:
                return

    async def _look_at_key(self, account: str, kind: str, rest: str) -> Finding | None:
        owner = keys.limits_of(account)
        if kind == "s":
            return await self._look_at_record(account, rest)
        key = owner.window(rest) if kind == "b" else owner.bucket(rest)
        if await self._store.call("PTTL", key) != -1:
            return None
        word = "window" if kind == "b" else "bucket"
        return Finding(account, "ttl", f"{word} {rest}", "an expiry", "none", f"`PEXPIRE {key} 259200000`.")

    async def _look_at_record(self, account: str, sid: str) -> Finding | None:
        key = keys.record(account, sid)
        state, ttl, lease = await asyncio.gather(
            self._store.call("HGET", key, "st"),
            self._store.call("PTTL", key),
            self._store.call("ZSCORE", keys.leases(account), sid),
        )
        subject = f"stream {sid}"
        if state == b"open":
            if lease is None:
                return Finding(account, "I6", subject, "a lease, since it is open", "none", _relet(account, sid))
            if ttl >= 0:
                advice = f"`PERSIST {key}`: its hold would never be given back."
                return Finding(account, "ttl", subject, "no expiry, since it is open", f"{ttl} ms", advice)
        elif state is not None:
            if ttl == -1:
                advice = f"`PEXPIRE {key} {self._retention.stream_ms}`."
                return Finding(account, "ttl", subject, "an expiry, since it is finished", "none", advice)
        return None

    async def _confirm_key(self, account: str, kind: str, rest: str) -> None:
        finding = None
        for look in range(_LOOKS - 1):
            finding = await self._look_at_key(account, kind, rest)
            if finding is None:
                return
            await asyncio.sleep(_PAUSE_S if look == 0 else 0)
        if finding is not None:
            self.report.add(finding)

    # One account.

    async def _audit(self, account: str) -> None:
        """Look; where something is wrong look again, and keep what was wrong each time."""
        found = await self._look(account)
        for _ in range(_LOOKS - 1):
            wrong = {it.identity for it in found if isinstance(it, Finding)}
            if not wrong:
                break
            await asyncio.sleep(_PAUSE_S)
            again = await self._look(account)
            found = [it for it in again if isinstance(it, Skipped) or it.identity in wrong]
        for it in found:
            self.report.add(it)

    async def _look(self, account: str) -> list[Finding | Skipped]:
        names = self._names[account]
        snapshot = await read_snapshot(self._store, account, names)
        if snapshot.streams and self._learn(names, snapshot.streams):
            snapshot = await read_snapshot(self._store, account, names)
        tally = Tally(self._retention)
        async for row in read_rows(self._store, account, after="", until=snapshot.last_id):
            tally.add(row)
        self._sizes[account] = (len(snapshot.leases), tally.rows)
        return [*check(snapshot, tally), *await self._compare_records(account, tally, snapshot)]

    def _learn(self, names: LimitNames, streams: dict[str, OpenStream]) -> bool:
        """Add the limits that open streams name; returns whether there was one that the scan had not found."""
        before = len(names.windows) + len(names.buckets) + len(names.slots)
        for stream in streams.values():
            names.windows.update(window.name for window in stream.allowances.windows)
            names.buckets.update(bucket.name for bucket in stream.allowances.buckets)
            names.slots.update(limit.name for limit in stream.allowances.slots)
        return len(names.windows) + len(names.buckets) + len(names.slots) > before

    async def _compare_records(self, account: str, tally: Tally, at: Snapshot) -> list[Finding]:
        """I3 and I12, per stream: a record says what its rows say, for as long as it is kept."""
        found: list[Finding] = []
        due = [
            (sid, charged)
            for sid, charged in tally.recent.items()
            if charged.at_ms > at.now_ms - self._retention.stream_ms + _MARGIN_MS and sid
        ]
        for start in range(0, len(due), _PAGE):
            page = due[start : start + _PAGE]
            records = await asyncio.gather(
                *(self._store.call("HMGET", keys.record(account, sid), "st", "c", "o") for sid, _ in page)
            )
            for (sid, charged), record in zip(page, records, strict=True):
                found += _differences(account, sid, charged, record)
        return found


def _parts(key: bytes) -> tuple[str, str, str] | None:
    """Account, kind and the rest of one of an account's keys."""
    match = _KEY.fullmatch(key)
    return None if match is None else (match[1].decode(), match[2].decode(), match[3].decode("utf-8", "replace"))


def _relet(account: str, sid: str) -> str:
    return f"`ZADD {keys.leases(account)} 0 {sid}` and `ZADD {keys.ACTIVE} 0 {account}`: a reaper will end it."


def _differences(account: str, sid: str, charged: Charged, record: list[bytes | None]) -> list[Finding]:
    state, amount, absorbed = record
    if state == b"open":  # it ended at no cost and runs again
        return []
    subject = f"stream {sid}"
    if state is None:
        return [Finding(account, "I3", subject, f"a record, charged {charged.amount}", "none", _RESTORE)]
    found = []
    for invariant, word, expected, value in (
        ("I3", "charged", charged.amount, amount),
        ("I12", "absorbed", charged.absorbed, absorbed),
    ):
        if int(value or 0) != expected:
            expectation = f"{expected} {word}, by the ledger"
            found.append(Finding(account, invariant, subject, expectation, str(int(value or 0)), _RESTORE))
    return found


async def listed_accounts(redis: Redis) -> list[str]:
    """Every account there is, by name."""
    store, names, cursor = redis, set[str](), b"0"
    while True:
        cursor, flat = await store.call("ZSCAN", keys.ACCOUNTS, cursor, "COUNT", _PAGE)
        names.update(name.decode() for name in flat[::2])
        if int(cursor) == 0:
            return sorted(names)
