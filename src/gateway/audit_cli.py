"""The commands that read and write Redis themselves: ``audit``, ``ledger export`` and ``credits restore``.

They are for when the gateway cannot be asked, or should not be believed. They need Redis, not a gateway: the address is
GATEWAY_REDIS_URL, or the socket of the embedded Redis in GATEWAY_DATA_DIR while a gateway runs on it.
"""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import msgspec
import typer
from pydantic import ValidationError
from redis.exceptions import RedisError

from gateway.config import Environment
from gateway.embedded_redis import EmbeddedRedis, NoRedis
from gateway.limits import keys
from gateway.limits.audit import Finding
from gateway.limits.audit_reading import Auditor, Report
from gateway.limits.connect import open_redis
from gateway.limits.export import CursorLine, export
from gateway.limits.exported import BadExport, Exported, Totals
from gateway.limits.redis import Redis, StoreUnavailable
from gateway.limits.restore import Action, Plan, Restorer
from gateway.metering.prices import usd_string

T = TypeVar("T")

_TIMEOUT_S = 10.0
_DISCREPANCIES, _CANNOT_LOOK = 1, 2

_Url = Annotated[str | None, typer.Option("--redis-url", help="The Redis; GATEWAY_REDIS_URL without it.")]

ledger = typer.Typer(no_args_is_help=True, help="The journal of what was granted and charged.")


def register(app: typer.Typer, credits: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command("audit")(audit)
    app.add_typer(ledger, name="ledger")
    credits.command("restore")(restore)


def audit(
    account: Annotated[str | None, typer.Option(help="One account; all without.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of lines.")] = False,
    redis_url: _Url = None,
) -> None:
    """Check that every balance adds up, and name what does not. Changes nothing; safe under traffic.

    Amounts are µ$. Checked: I1 no amount below 0, I2 holds, I3 charges, I4 grants, I5 nothing charged twice,
    I6 leases, I7 windows, I8 use within holds, I12 what was absorbed; slots, buckets, expiries and listings.
    I9 (a refusal changes nothing), I10 (repeating changes nothing) and I11 (the journals agree) are behaviour: tests
    check it, no Redis shows it.

    Exit code 0: all is well. 1: there are discrepancies. 2: Redis could not be read, or has no account.
    """
    if account is not None and not keys.ACCOUNT_NAME.fullmatch(account):
        _fail(f"{account!r} is no name of an account.")
    report = _run(redis_url, lambda redis: Auditor(redis).run(account))
    if not report.accounts:
        who = f"account {account}" if account else "account"
        _fail(f"This Redis has no {who}. Is it the right one? `gateway credits restore` rebuilds one that was emptied.")
    if as_json:
        typer.echo(msgspec.json.encode(report))
    else:
        _print_report(report)
    if report.findings:
        raise typer.Exit(_DISCREPANCIES)


def _print_report(report: Report) -> None:
    for found in report.findings:
        typer.echo(_sentence(found))
    for skipped in report.skipped:
        typer.echo(f"{skipped.account}: {skipped.invariant} not checked: {skipped.reason}.")
    count = len(report.findings)
    counts = (
        _counted(report.accounts, "account"),
        _counted(report.open_streams, "open stream"),
        _counted(report.records, "record"),
        _counted(report.ledger_rows, "ledger row"),
    )
    skipped_too = f", {_counted(len(report.skipped), 'check')} skipped" if report.skipped else ""
    typer.echo(f"{', '.join(counts)}: {count or 'no'} {'discrepancy' if count == 1 else 'discrepancies'}{skipped_too}.")


def _sentence(it: Finding) -> str:
    return f"{it.account}: {it.invariant} {it.subject}: expected {it.expected}, found {it.found}. {it.advice}"


@ledger.callback()
def _ledger() -> None:
    """Without this, typer would make the only command of the group the group itself."""


@ledger.command("export")
def ledger_export(
    since: Annotated[str, typer.Option(help="The cursor of an earlier export: only what came after it.")] = "",
    redis_url: _Url = None,
) -> None:
    """Print accounts, keys (digests only), grants, ledger rows and balances as JSON lines. Run it every night.

    The last line is the cursor that the next export continues from. Exports overlap by a minute: the same (account, id)
    is the same row.
    """
    if since and not _is_row_id(since):
        _fail(f"--since {since!r}: a cursor looks like 1763720000000-0.")
    _run(redis_url, lambda redis: _write_lines(redis, since))


def _is_row_id(text: str) -> bool:
    ms, _, seq = text.partition("-")
    return ms.isascii() and ms.isdigit() and (not seq or (seq.isascii() and seq.isdigit()))


async def _write_lines(redis: Redis, since: str) -> None:
    async for line in export(redis, since=since):
        sys.stdout.buffer.write(msgspec.json.encode(line) + b"\n")
        if isinstance(line, CursorLine):
            typer.echo(f"The next export continues with --since {line.cursor}", err=True)
    sys.stdout.buffer.flush()


def restore(
    files: Annotated[list[Path], typer.Argument(help="Exports of `gateway ledger export`, in any order.")],
    apply: Annotated[bool, typer.Option("--apply", help="Do it; without, only say what would be done.")] = False,
    redis_url: _Url = None,
) -> None:
    """Put back wallets, ledgers, accounts and keys that Redis has lost, from exports.

    Says what it would do unless --apply is given. A wallet that exists is only touched where its ledger is the
    beginning of the exported one; a second run changes nothing. Exit code 1: an account was refused.
    """
    with Exported() as exported:
        for path in files:
            try:
                with path.open("rb") as file:
                    exported.add(file, str(path))
            except OSError as error:
                _fail(f"{path}: {error.strerror}")
            except BadExport as error:
                _fail(str(error))
        plans = _run(redis_url, lambda redis: _restore_all(redis, exported, is_applied=apply))
    if not apply and any(_has_work(plan) for plan in plans):
        typer.echo("Nothing was written. Run it again with --apply.")
    if any(plan.action is Action.REFUSE for plan in plans):
        raise typer.Exit(_DISCREPANCIES)


async def _restore_all(redis: Redis, exported: Exported, *, is_applied: bool) -> list[Plan]:
    restorer, plans = Restorer(redis, exported), []
    for account in exported.accounts:
        plan = await restorer.plan(account)
        if is_applied:
            plan = await restorer.apply(plan)
        typer.echo(_outcome(plan, is_applied=is_applied))
        plans.append(plan)
    return plans


def _has_work(plan: Plan) -> bool:
    return plan.action in (Action.REBUILD, Action.CONTINUE) or bool(plan.keys) or not plan.has_account


def _outcome(plan: Plan, *, is_applied: bool) -> str:
    """What was or would be done for one account, in one line."""
    if plan.action is Action.REFUSE:
        return f"{plan.account}: refused: {plan.reason}."
    would = "" if is_applied else "would be "
    done = []
    totals = plan.totals
    if plan.action is Action.REBUILD:
        done.append(f"wallet {would}restored: {_amounts(totals)}, {_counted(plan.rows, 'ledger row')}")
    elif plan.action is Action.CONTINUE:
        done.append(f"wallet {would}continued by {_counted(plan.rows, 'ledger row')} to {_amounts(totals)}")
    if not plan.has_account:
        done.append(f"account {would}restored")
    if plan.keys:
        done.append(f"{_counted(len(plan.keys), 'API key')} {would}restored")
    if plan.action is Action.REBUILD and plan.unexplained != Totals(0, 0, 0):
        done.append(f"the files have no rows for {_amounts(plan.unexplained)} of it")
    done += [f"rows are missing from the files {gap}" for gap in plan.gaps]
    return f"{plan.account}: {'; '.join(done) or 'nothing is missing'}."


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _amounts(totals: Totals) -> str:
    granted, spent, absorbed = (usd_string(amount) for amount in totals)
    return f"${granted} granted, ${spent} spent, ${absorbed} absorbed"


def _run(url: str | None, work: Callable[[Redis], Coroutine[Any, Any, T]]) -> T:
    """Run ``work`` with the Redis that is meant; exits with 2 where it cannot be read."""
    try:
        return asyncio.run(_connected(url, work))
    except (StoreUnavailable, RedisError, NoRedis, ValueError, ValidationError) as error:
        _fail(f"Redis could not be used: {error}")


async def _connected(url: str | None, work: Callable[[Redis], Coroutine[Any, Any, T]]) -> T:
    async with _opened(url or _default_url()) as redis:
        return await work(redis)


@contextlib.asynccontextmanager
async def _opened(url: str) -> AsyncIterator[Redis]:
    redis = open_redis(url, timeout_s=_TIMEOUT_S)
    redis.start()
    try:
        yield redis
    finally:
        await redis.aclose()


def _default_url() -> str:
    environment = Environment()
    return environment.redis_url or EmbeddedRedis(environment.data_dir / "redis").url


def _fail(message: str) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(_CANNOT_LOOK)
