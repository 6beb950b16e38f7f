"""Admission to the account ``acme`` with everything behind it, and clocks that can be made to jump."""

import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from gateway.canonical.errors import GatewayError
from gateway.limits import keys
from gateway.limits.admission import Admission, Ask
from gateway.limits.allowances import Allowances
from gateway.limits.journal import Journal
from gateway.limits.reaper import Reaper
from gateway.limits.redis import RedisOwner
from gateway.limits.reservation import Books, HoldPolicy, Reservation
from gateway.limits.scripts import HoldRange, Posting, Retention, Scripts
from gateway.limits.settlements import Settlements
from gateway.limits.tiers import Limits
from gateway.tasks import TaskOwner

POLICY = HoldPolicy(lease_s=30, margin_s=1, extend_budget_s=1)


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)


def end(actual: int, **how: Any) -> Posting:
    given = {"outcome": "complete", "tokens": 0, "refund": False, "usage": b"{}", **how}
    return Posting(actual=actual, **given)


class Clock:
    """The monotonic clock of a process that can be frozen."""

    def __init__(self) -> None:
        self.skipped_s = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.skipped_s


class Desk:
    """One gateway, as far as money goes. ``teller`` looks at the same account from outside."""

    def __init__(
        self, teller: Any, owner: RedisOwner, folder: Path, *, policy: HoldPolicy = POLICY, slots: int = 8
    ) -> None:
        self.teller = teller
        self.owner = owner
        self.journal = Journal(folder / "0.journal", slots=slots)
        self.scripts = Scripts(owner, "desk")
        self.settlements = Settlements(self.scripts, self.journal, Retention())
        self.reaper = Reaper(self.scripts, Retention(), grace_s=policy.grace_s)
        self.books = Books(
            scripts=self.scripts,
            journal=self.journal,
            settlements=self.settlements,
            policy=policy,
            reaper=self.reaper,
        )
        self.scripts.on_rollback = self.books.say_again
        self.admission = Admission(self.books)
        self.tasks = TaskOwner()
        self.tasks.start(self.settlements.run(), "outbox")

    async def reserve(
        self,
        least: int = 10,
        slice_: int = 90,
        *,
        tokens: int = 0,
        shared: Sequence[tuple[keys.Owner, Allowances]] = (),
        **ask: Any,
    ) -> Reservation:
        """``ask`` may have ``idempotency_key`` and ``digest``; the limits are the teller's."""
        return await self.admission.reserve(
            Ask(
                account="acme",
                limits=Limits(self.teller.allowances, tuple(shared)),
                hold=HoldRange(least, least + slice_),
                tokens=tokens,
                model="m",
                request_id="r",
                facts=b'{"model":"m"}',
                **ask,
            )
        )

    async def refused(self, least: int = 10, **ask: Any) -> GatewayError:
        with pytest.raises(GatewayError) as caught:
            await self.reserve(least, **ask)
        return caught.value

    def used(self) -> list[int]:
        return [entry.used for entry in self.journal.entries()]

    async def flushed(self, budget_s: float = 20) -> int:
        return await self.settlements.flush(budget_s)

    async def aclose(self) -> None:
        await self.tasks.aclose()
        await self.owner.aclose()
        self.journal.close()
