"""The lines of an export, and how they are read from Redis: everything that money and access need to come back.

An export is JSON lines: first each account with its keys and grants, then its ledger's rows, oldest first, then its
balance at the last of them. A row that comes twice is the same row, so exports may overlap. Usage history, trust and
what limits have counted are not in it: they build up anew.
"""

from collections.abc import AsyncIterator
from typing import Any

import msgspec

from gateway.limits import keys
from gateway.limits.audit_reading import LimitNames, listed_accounts, read_rows, read_snapshot
from gateway.limits.redis import Redis

_OVERLAP_MS = 60_000
_PAGE = 500


class AccountLine(msgspec.Struct, frozen=True, kw_only=True, tag="account", tag_field="type", omit_defaults=True):
    """An account as it was at ``at_ms``; times are Unix ms."""

    account: str
    at_ms: int
    created_ms: int
    name: str = ""
    tier: str | None = None
    is_suspended: bool = False


class KeyLine(msgspec.Struct, frozen=True, kw_only=True, tag="key", tag_field="type", omit_defaults=True):
    """An API key as it was at ``at_ms``, of which the secret is known by its SHA-256 digest only."""

    account: str
    at_ms: int
    key: str
    fields: dict[str, str]


class GrantLine(msgspec.Struct, frozen=True, kw_only=True, tag="grant", tag_field="type"):
    """A grant, µ$: also those of which the ledger has no row any more."""

    account: str
    grant: str
    amount: int


class RowLine(msgspec.Struct, frozen=True, kw_only=True, tag="row", tag_field="type"):
    """One row of a ledger; amounts in µ$."""

    account: str
    id: str
    op: str
    sid: str
    amount: int
    absorbed: int
    outcome: str
    record: msgspec.Raw


class BalanceLine(msgspec.Struct, frozen=True, kw_only=True, tag="balance", tag_field="type"):
    """What an account's totals were when ``at`` was its ledger's last row; "" where it had none."""

    account: str
    at: str
    granted: int
    spent: int
    absorbed: int


class CursorLine(msgspec.Struct, frozen=True, kw_only=True, tag="cursor", tag_field="type"):
    """The end of an export: where the next one begins."""

    cursor: str


Line = AccountLine | KeyLine | GrantLine | RowLine | BalanceLine | CursorLine


async def export(redis: Redis, *, since: str = "") -> AsyncIterator[Line]:
    """Every line from behind the row id ``since``; may raise ``StoreUnavailable``.

    The cursor is a minute before the first row this export can have missed, by the slowest master's clock.
    """
    clocks = [await server.call("TIME") for server in await redis.masters()]
    start_ms = min(int(seconds) * 1000 + int(micros) // 1000 for seconds, micros in clocks)
    for account in await listed_accounts(redis):
        async for line in _account(redis, account, since, start_ms):
            yield line
    yield CursorLine(cursor=f"{start_ms - _OVERLAP_MS}-0")


async def _account(redis: Redis, account: str, since: str, at_ms: int) -> AsyncIterator[Line]:
    yield await _account_line(redis, account, at_ms)
    for member in sorted(await redis.call("SMEMBERS", keys.account_keys(account))):
        key_id = member.decode()
        flat = await redis.call("HGETALL", keys.api_key(key_id))
        fields = {name.decode(): value.decode() for name, value in zip(flat[::2], flat[1::2], strict=True)}
        if fields:
            yield KeyLine(account=account, at_ms=at_ms, key=key_id, fields=fields)
    snapshot = await read_snapshot(redis, account, LimitNames(), streams_max=0)
    for grant_id, amount in snapshot.grants.items() if not since else ():
        yield GrantLine(account=account, grant=grant_id, amount=amount)
    async for row in read_rows(redis, account, after=since, until=snapshot.last_id):
        yield RowLine(
            account=account,
            id=row.id,
            op=row.op,
            sid=row.sid,
            amount=row.amount,
            absorbed=row.absorbed,
            outcome=row.outcome,
            record=msgspec.Raw(row.record),
        )
    wallet = snapshot.wallet
    if wallet is not None:
        last = snapshot.last_id
        yield BalanceLine(account=account, at=last, granted=wallet["g"], spent=wallet["s"], absorbed=wallet["o"])


async def _account_line(redis: Redis, account: str, at_ms: int) -> AccountLine:
    created, name, tier = await redis.call("HMGET", keys.account(account), "created", "name", "tier")
    suspended: Any = await redis.call("HGET", keys.wallet(account), "x")
    return AccountLine(
        account=account,
        at_ms=at_ms,
        created_ms=int(created or 0),
        name=(name or b"").decode(),
        tier=None if tier is None else tier.decode(),
        is_suspended=suspended is not None,
    )
