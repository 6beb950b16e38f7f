"""What must be true of an account at any instant, and what is not: the checks behind ``gateway audit``.

Everything here is pure. ``Snapshot`` is an account as Redis had it at one instant, and ``Tally`` is its ledger up to
that instant; ``audit_reading`` makes both. A check whose evidence is incomplete (rows older than the ledger's retention
are gone) is skipped with its reason, so that a finding is always a fact. Amounts are µ$.
"""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import msgspec

from gateway.limits import keys
from gateway.limits.allowances import Allowances, Unit
from gateway.limits.audit_ledger import Tally

# Limits are scaled with load and trust, and a bucket keeps a level from when its limit was another.
_BUCKET_SCALING_MAX = 100
_QUIET_AFTER_ROLLBACK_MS = 3_600_000
_ROLLED_BACK = "Redis was restored, written to by hand, or met a bug. "
_ASK = "Keep this output and the ledger's export; then report it."


class Finding(msgspec.Struct, frozen=True):
    """One discrepancy: what was expected of ``subject``, what was found, and what to do about it."""

    account: str
    invariant: str
    subject: str
    expected: str
    found: str
    advice: str

    @property
    def identity(self) -> tuple[str, str, str]:
        """What stays the same when it is looked at again."""
        return self.account, self.invariant, self.subject


class Skipped(msgspec.Struct, frozen=True):
    """A check that could not be made, and why."""

    account: str
    invariant: str
    reason: str


class OpenStream(msgspec.Struct, frozen=True):
    """The record behind a lease; ``state`` is ``None`` where there is none."""

    state: str | None
    held: int
    used: int
    tokens: int
    allowances: Allowances


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """One account at one instant. Keys of limits are by name; ``streams`` is ``None`` where there are too many.

    ``wallet`` has the fields g, s, h and o; a bucket is its text, a window its fields, slots are sids with the end of
    their lease (ms).
    """

    account: str
    now_ms: int
    wallet: dict[str, int] | None
    leases: dict[str, float]
    streams: dict[str, OpenStream] | None
    last_id: str
    grants: dict[str, int]
    created_ms: int | None
    windows: dict[str, dict[str, int]]
    buckets: dict[str, str | None]
    slots: dict[str, dict[str, float]]
    is_listed: bool = True
    is_announced: bool = True


def check(snapshot: Snapshot, tally: Tally) -> Iterator[Finding | Skipped]:
    """Everything that can be said about one account."""
    if snapshot.wallet is None:
        yield from _check_missing_wallet(snapshot, tally)
        return
    if not snapshot.is_listed:
        yield _finding(snapshot, "accounts", "listing", "a listed account", "a wallet nobody lists", _relist(snapshot))
    yield from _check_balance(snapshot.account, snapshot.wallet)
    yield from _check_grants(snapshot, tally, snapshot.wallet)
    yield from _check_spent(snapshot, tally, snapshot.wallet)
    yield from tally_findings(snapshot.account, tally)
    if snapshot.streams is None:
        reason = f"{len(snapshot.leases)} open streams are too many to read at once"
        yield from (Skipped(snapshot.account, name, reason) for name in ("I2", "I6", "I7", "I8"))
        return
    yield from _check_streams(snapshot, snapshot.streams, snapshot.wallet, tally)
    yield from _check_windows(snapshot, snapshot.streams)
    yield from _check_buckets(snapshot, snapshot.streams)
    yield from _check_slots(snapshot, snapshot.streams)


def _finding(at: Snapshot, invariant: str, subject: str, expected: Any, found: Any, advice: str) -> Finding:
    return Finding(at.account, invariant, subject, str(expected), str(found), advice)


def _relist(at: Snapshot) -> str:
    return f"`ZADD {keys.ACCOUNTS} <time in ms> {at.account}`, or restore the account from an export."


def _check_missing_wallet(at: Snapshot, tally: Tally) -> Iterator[Finding]:
    if at.is_listed or tally.rows or at.grants or at.leases:
        found = f"none, with {tally.rows} ledger rows"
        yield _finding(at, "accounts", "wallet", "a wallet", found, "Run `gateway credits restore` with the exports.")


def _check_balance(account: str, wallet: dict[str, int]) -> Iterator[Finding]:
    """I1. ``available`` is derived, so what can be wrong is a sign."""
    amounts = {
        "granted": wallet["g"],
        "spent": wallet["s"],
        "held": wallet["h"],
        "absorbed": wallet["o"],
        "available": wallet["g"] - wallet["s"] - wallet["h"],
    }
    for name, amount in amounts.items():
        if amount < 0:
            yield Finding(account, "I1", name, "0 or more", str(amount), _ROLLED_BACK + _ASK)


def _check_grants(at: Snapshot, tally: Tally, wallet: dict[str, int]) -> Iterator[Finding | Skipped]:
    """I4: the wallet, the ids and the ledger agree about what was granted."""
    carried = tally.carried["granted"]
    total = sum(at.grants.values())
    if total != wallet["g"] and not carried:
        yield _finding(at, "I4", "granted", f"{total} (the sum of its grants)", wallet["g"], _ROLLED_BACK + _ASK)
    for grant_id, amount in tally.grants.items():
        if at.grants.get(grant_id) != amount:
            found = at.grants.get(grant_id, "no such id")
            advice = f"`HSET {keys.grants(at.account)} {grant_id} {amount}`, or it may be granted again."
            yield _finding(at, "I4", f"grant {grant_id}", amount, found, advice)
    if not _is_complete(at, tally):
        yield Skipped(at.account, "I4", f"{_beginning(tally)}; the ids of the grants were checked")
    elif tally.granted != wallet["g"]:
        expected = f"{tally.granted} (the sum of the ledger's grants)"
        yield _finding(at, "I4", "granted in the ledger", expected, wallet["g"], _ROLLED_BACK + _ASK)


def _is_complete(at: Snapshot, tally: Tally) -> bool:
    """Whether the ledger still has its first row.

    Only rows older than its retention are ever trimmed, so a younger account has them all. An older one has them all
    where every grant has its row: nothing is charged before the first grant, and trimming begins at the front.
    """
    is_young = at.created_ms is not None and at.created_ms > at.now_ms - tally.keep_ms
    return is_young or tally.has_carried or at.grants.keys() <= tally.grants.keys()


def _beginning(tally: Tally) -> str:
    if not tally.first_ms:
        return "the ledger has no rows any more"
    return f"the ledger begins at {datetime.fromtimestamp(tally.first_ms / 1000, UTC):%Y-%m-%dT%H:%M:%SZ}"


def _check_spent(at: Snapshot, tally: Tally, wallet: dict[str, int]) -> Iterator[Finding | Skipped]:
    """I3 and I12: the totals are the sums of the ledger."""
    if not _is_complete(at, tally):
        yield Skipped(at.account, "I3, I12", f"{_beginning(tally)}; its rows were compared with the streams' records")
        return
    for invariant, field, subject, total in (
        ("I3", "s", "spent", tally.spent),
        ("I12", "o", "absorbed", tally.absorbed),
    ):
        if wallet[field] != total:
            advice = _ROLLED_BACK + _ASK
            yield _finding(at, invariant, subject, f"{total} (the sum of the ledger)", wallet[field], advice)


def tally_findings(account: str, tally: Tally) -> Iterator[Finding]:
    """I5: what the ledger says twice."""
    for sid, found in tally.twice:
        yield Finding(
            account,
            "I5",
            f"stream {sid}",
            "one post, one reap, one trueup at most",
            found,
            "Grant the excess back. " + _ASK,
        )


def _check_streams(
    at: Snapshot, streams: dict[str, OpenStream], wallet: dict[str, int], tally: Tally
) -> Iterator[Finding]:
    """I2, I6 and I8."""
    for sid, stream in streams.items():
        if stream.state != "open":
            state = stream.state or "no record"
            advice = f"`ZREM {keys.leases(at.account)} {sid}` once its lease is over, if no gateway has done it."
            yield _finding(at, "I6", f"stream {sid}", "open, since it has a lease", state, advice)
    held = sum(stream.held for stream in streams.values() if stream.state == "open")
    if held != wallet["h"]:
        expected = f"{held} (what its {len(streams)} open streams hold)"
        yield _finding(at, "I2", "held", expected, wallet["h"], _ROLLED_BACK + _ASK)
    if tally.rollback_ms < at.now_ms - _QUIET_AFTER_ROLLBACK_MS:  # what was lost is told again, as far as there is room
        for sid, stream in streams.items():
            if stream.state == "open" and 0 < stream.held < stream.used:
                yield _finding(at, "I8", f"stream {sid}", f"{stream.held} used at most", stream.used, _ASK)
    if streams and not at.is_announced:
        advice = f"`ZADD {keys.ACTIVE} <time in ms> {at.account}`: without it no reaper looks here."
        yield _finding(at, "I6", "reaping", f"an entry in {keys.ACTIVE}", "none", advice)


def _check_windows(at: Snapshot, streams: dict[str, OpenStream]) -> Iterator[Finding]:
    """I7: what is held of a window is what open streams hold, and its sum is that of its parts."""
    holds: dict[str, int] = {}
    for stream in streams.values():
        for window in stream.allowances.windows if stream.state == "open" else ():
            amount = {Unit.MONEY: stream.held, Unit.TOKENS: stream.tokens, Unit.REQUESTS: 1}[window.unit]
            holds[window.name] = holds.get(window.name, 0) + amount
    for name, fields in at.windows.items():
        expected, found = holds.get(name, 0), fields.get("h", 0)
        if found != expected:
            advice = f"`HSET {keys.limits_of(at.account).window(name)} h {expected}` while the account has no traffic."
            yield _finding(at, "I7", f"window {name}, held", f"{expected} (what open streams hold)", found, advice)
        parts = [amount for field, amount in fields.items() if field.startswith("b")]
        total = fields.get("sum", 0)
        is_rolling = name.rpartition(".")[2].isdigit()
        # A calendar window counts one part; where its time zone was changed, another may be left beside it.
        if total != sum(parts) and (is_rolling or total not in (0, *parts)):
            advice = (
                f"`HSET {keys.limits_of(at.account).window(name)} sum {sum(parts)}` while the account has no traffic."
            )
            yield _finding(at, "I7", f"window {name}, sum", f"{sum(parts)} (the sum of its parts)", total, advice)


def _check_buckets(at: Snapshot, streams: dict[str, OpenStream]) -> Iterator[Finding]:
    fulls: dict[str, int] = {}
    for stream in streams.values():
        for bucket in stream.allowances.buckets:
            fulls[bucket.name] = max(fulls.get(bucket.name, 0), bucket.burst * bucket.period_ms)
    for name, text in at.buckets.items():
        if text is None:
            continue
        advice = f"`DEL {keys.limits_of(at.account).bucket(name)}`: a missing bucket is full."
        level, _, at_ms = text.partition(" ")
        if not (level.removeprefix("-").isdigit() and at_ms.isdigit()):
            yield _finding(at, "buckets", name, "a level and a time", text, advice)
        elif name in fulls and abs(int(level)) > fulls[name] * _BUCKET_SCALING_MAX:
            yield _finding(at, "buckets", name, f"between -{fulls[name]} and {fulls[name]}", level, advice)


def _check_slots(at: Snapshot, streams: dict[str, OpenStream]) -> Iterator[Finding]:
    """Slots are held by open streams, by all of them, or by leases that ran out and are cleared away when needed."""
    for name, members in at.slots.items():
        key = keys.limits_of(at.account).slots(name)
        for sid, until_ms in members.items():
            if until_ms > at.now_ms and sid not in streams:
                advice = f"`ZREM {key} {sid}`, or wait until its lease is over."
                yield _finding(at, "slots", f"{name}, stream {sid}", "an open stream", "none of this id", advice)
    for sid, stream in streams.items():
        for limit in stream.allowances.slots if stream.state == "open" else ():
            if at.leases[sid] > at.now_ms and limit.name in at.slots and sid not in at.slots[limit.name]:
                advice = "It comes back when its lease is renewed."
                yield _finding(at, "slots", f"{limit.name}, stream {sid}", "a slot, since it is open", "none", advice)
