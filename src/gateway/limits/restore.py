"""Putting back from exports what a Redis has lost: wallets, ledgers, grants, accounts and keys.

Only what is missing is written. A wallet that exists is left alone unless its ledger is the beginning of the exported
one, as that of an older state of Redis is; so a second run changes nothing. Gateways that run put back by themselves
what they hold and what they have settled in the last minute; the records of finished streams are put back here, so
that none of it is charged twice.
"""

import time
from collections.abc import Sequence
from enum import StrEnum
from importlib import resources

import msgspec

from gateway.limits import keys
from gateway.limits.audit import Snapshot
from gateway.limits.audit_ledger import LedgerRow
from gateway.limits.audit_reading import LimitNames, read_rows, read_snapshot
from gateway.limits.exported import Exported, Totals, place
from gateway.limits.redis import LuaSource, Redis
from gateway.limits.scripts import Retention

_RESTORE = LuaSource((resources.files("gateway.limits") / "lua" / "restore.lua").read_text())
_PAGE = 500
_ANNOUNCED_S = 600
_DONE, _OPEN = 1, -1


class Action(StrEnum):
    """What is to be done about a wallet."""

    NOTHING = "nothing"
    REBUILD = "rebuild"
    CONTINUE = "continue"
    REFUSE = "refuse"


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What a restore would do, or did, for one account.

    ``totals`` is what the wallet comes to, µ$; ``unexplained`` the part of it for which the files have no rows;
    ``after`` the last row that Redis has, ``rows`` how many are put behind it.
    """

    account: str
    action: Action
    reason: str = ""
    totals: Totals = Totals(0, 0, 0)
    unexplained: Totals = Totals(0, 0, 0)
    after: str = ""
    rows: int = 0
    has_account: bool = True
    keys: tuple[str, ...] = ()
    gaps: tuple[str, ...] = ()


class Restorer:
    """Compares exports with a Redis, and puts back what is missing. Methods may raise ``StoreUnavailable``."""

    def __init__(self, redis: Redis, exported: Exported, retention: Retention | None = None) -> None:
        self._redis = redis
        self._exported = exported
        self._retention = retention or Retention()

    async def plan(self, account: str) -> Plan:
        """What there is to do; changes nothing."""
        at = await read_snapshot(self._redis, account, LimitNames(), streams_max=0)
        mismatch, has_all = await self._compare(account, at)
        totals = self._exported.totals(account)
        rows = self._exported.count(account, after=at.last_id)
        plan = Plan(
            account=account,
            action=Action.NOTHING,
            totals=totals,
            unexplained=totals.minus(self._exported.summed(account)),
            after=at.last_id,
            rows=rows,
            has_account=at.created_ms is not None,
            keys=await self._missing_keys(account),
            gaps=tuple(self._exported.gaps(account)),
        )
        if at.wallet is None:
            return _replaced(plan, Action.REFUSE if mismatch else Action.REBUILD, mismatch)
        if has_all:
            return _replaced(plan, Action.NOTHING, "", rows=0)
        wallet = Totals(at.wallet["g"], at.wallet["s"], at.wallet["o"])
        expected = totals.minus(self._exported.summed(account, after=place(at.last_id)))
        if mismatch or wallet != expected:
            reason = mismatch or f"its wallet has {tuple(wallet)} where the exported rows come to {tuple(expected)}"
            return _replaced(plan, Action.REFUSE, reason)
        return _replaced(plan, Action.CONTINUE, "")

    async def _compare(self, account: str, at: Snapshot) -> tuple[str, bool]:
        """Why the ledger in Redis is not the beginning of the exported one ("" where it is), and whether it has it all.

        Rows older than the ledger's retention may be missing at its beginning: Redis trims them.
        """
        trimmed_ms, mismatch = at.now_ms - self._retention.ledger_ms, ""
        expected = self._exported.rows(account)
        known = next(expected, None)
        async for row in read_rows(self._redis, account, after="", until=at.last_id):
            while known is not None and known.time_ms < trimmed_ms and place(known.id) < place(row.id):
                known = next(expected, None)
            if known is not None and _without_record(known) == _without_record(row):
                known = next(expected, None)
            elif not mismatch:
                mismatch = f"its ledger has row {row.id} ({row.op}), which is not the next one in the files"
        while known is not None and known.time_ms < trimmed_ms:
            known = next(expected, None)
        return mismatch, known is None

    async def _missing_keys(self, account: str) -> tuple[str, ...]:
        names = [line.key for line in self._exported.keys(account)]
        return tuple([name for name in names if await self._redis.call("HGET", keys.api_key(name), "account") is None])

    async def apply(self, plan: Plan) -> Plan:
        """Do it; returns the plan, refused where Redis was changed meanwhile."""
        if plan.action in (Action.REBUILD, Action.CONTINUE):
            reason = await self._put_rows(plan)
            if not reason and plan.action is Action.REBUILD:
                reason = await self._make_wallet(plan)
            if reason:
                return _replaced(plan, Action.REFUSE, reason)
            # A stream that a gateway revives was announced to reapers before this Redis knew of it.
            until_ms = int((time.time() + _ANNOUNCED_S) * 1000)
            await self._redis.call("ZADD", keys.ACTIVE, "GT", until_ms, plan.account)
        if plan.action is not Action.REFUSE:
            await self._put_account(plan)
        return plan

    async def _put_rows(self, plan: Plan) -> str:
        """Put the rows back, page by page; returns why not."""
        last, page = plan.after, list[LedgerRow]()
        for row in self._exported.rows(plan.account, after=plan.after):
            page.append(row)
            if len(page) == _PAGE:
                if reason := await self._put_page(plan, last, page):
                    return reason
                last, page = page[-1].id, []
        return await self._put_page(plan, last, page) if page else ""

    async def _put_page(self, plan: Plan, last: str, page: Sequence[LedgerRow]) -> str:
        code = await self._script(
            plan,
            "rows",
            last,
            [
                (
                    *(row.id, row.time_ms, row.op, row.sid, str(row.amount), str(row.absorbed), row.outcome),
                    *(row.record, *(str(amount) for amount in row.effect)),
                )
                for row in page
            ],
            tuple(keys.record(plan.account, row.sid) if row.is_use else keys.wallet(plan.account) for row in page),
        )
        if code == _OPEN:
            return "a stream that ended by the files is open in Redis"
        return "" if code == _DONE else "its ledger or its wallet was changed meanwhile; stop its traffic"

    async def _make_wallet(self, plan: Plan) -> str:
        account, unexplained = self._exported.account(plan.account), ""
        if plan.unexplained != Totals(0, 0, 0):
            unexplained = msgspec.json.encode(plan.unexplained._asdict()).decode()
        for grant in self._exported.grants(plan.account):
            await self._redis.call("HSETNX", keys.grants(plan.account), grant.grant, grant.amount)
        last = self._exported.last_id(plan.account)
        is_suspended = account is not None and account.is_suspended
        amounts = [str(amount) for amount in plan.totals]
        code = await self._script(plan, "finish", last, [*amounts, str(int(is_suspended)), unexplained], ())
        return "" if code == _DONE else "its ledger or its wallet was changed meanwhile; run this again"

    async def _script(self, plan: Plan, op: str, last: str, rows: Sequence[object], records: tuple[str, ...]) -> int:
        names = (keys.wallet(plan.account), keys.ledger(plan.account), keys.grants(plan.account), *records)
        has_wallet = int(plan.action is Action.CONTINUE)
        packed = msgspec.msgpack.encode(rows)
        return await self._redis.script(_RESTORE, names, (op, last, has_wallet, self._retention.stream_ms, packed), int)

    async def _put_account(self, plan: Plan) -> None:
        line = self._exported.account(plan.account)
        if line is not None and line.created_ms and not plan.has_account:
            tier = ("tier", line.tier) if line.tier else ()
            name = keys.account(plan.account)
            await self._redis.call("HSET", name, "created", line.created_ms, "name", line.name, *tier)
        if line is not None and line.created_ms:
            await self._redis.call("ZADD", keys.ACCOUNTS, "NX", line.created_ms, plan.account)
        missing = set(plan.keys)
        for key in self._exported.keys(plan.account):
            if key.key in missing:
                flat = [item for pair in key.fields.items() for item in pair]
                await self._redis.call("HSET", keys.api_key(key.key), *flat)
            await self._redis.call("SADD", keys.account_keys(plan.account), key.key)


def _without_record(row: LedgerRow) -> tuple[object, ...]:
    return row.id, row.op, row.sid, row.amount, row.absorbed, row.outcome


def _replaced(plan: Plan, action: Action, reason: str, *, rows: int | None = None) -> Plan:
    return msgspec.structs.replace(plan, action=action, reason=reason, rows=plan.rows if rows is None else rows)
