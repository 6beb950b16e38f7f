"""Two targets for one request: where the first is late to begin, another is asked as well, and the first word wins.

The choice is made in the instant a word comes, so that there is never a second answer to give up; the other call is
cancelled and its connection closed before the first word is passed on. Only aliases that hedge come here: others have
no task and no timer of their own.
"""

import asyncio
import time
from collections.abc import Sequence

from gateway.calls import Ask, Calls, Gate, Upstream, ask_one
from gateway.canonical.errors import GatewayError, ProviderError, ProviderTimeout
from gateway.router import Target
from gateway.routing.first_words import HedgeRules

HEDGED_AWAY = "hedged_away"
ABANDONED = "abandoned"


class Hedge:
    """One request's way to have two targets asked at once, at most once."""

    def __init__(self, rules: HedgeRules, asks: Sequence[Ask], calls: Calls, gate: Gate) -> None:
        self._rules = rules
        self._asks = asks
        self._calls = calls
        self._gate = gate
        self._is_made = False
        self._second: Ask | None = None

    def has_asked(self, ask: Ask) -> bool:
        """Whether this one was asked beside the one before it, and need not be asked again after it failed."""
        if ask is not self._second:
            return False
        self._second = None
        return True

    async def open_first(self, ask: Ask) -> Upstream:
        """The stream of whichever begins first: this target, or another one once this one is late.

        Raises the error of the last of them, or one that no other target would help against.
        """
        deployment = ask[0].deployment
        late_after_s = deployment.first_words.late_after_s(self._rules, ask[0].provider.timeouts.first_event_s)
        race = _Race(ask[0], self._calls, self._gate)
        self._calls.on_abandoned = race.keep_current
        try:
            async with asyncio.TaskGroup() as group:
                first = race.start(ask, group)
                await asyncio.wait((first,), timeout=late_after_s)
                if not first.done() and (second := await self._choose(ask, first)) is not None:
                    self._calls.join(second[0])
                    race.start(second, group)
                await race.decided()
        except BaseException as error:
            if race.winner is not None:
                await race.winner.aclose()
            if isinstance(error, BaseExceptionGroup):
                raise error.exceptions[0] from None
            raise
        finally:
            self._calls.on_abandoned = None
        return race.result()

    async def _choose(self, late: Ask, running: "asyncio.Task[None]") -> Ask | None:
        """The next target that may be asked, ``None`` where there is none, or while it was sought the late one came.

        It is paid from the late one's budget: that one's calls are what hedges must not be too large a share of.
        """
        if self._is_made or self._calls.is_abandoned:
            return None
        later = self._asks[next(number for number, ask in enumerate(self._asks) if ask is late) + 1 :]
        ready = [ask for ask in later if _may_join(ask[0], late[0])]
        if not ready or not late[0].deployment.budget.take():
            return None
        self._is_made = True
        for ask in ready:
            if await self._gate.take(ask[0].name) is not None:
                continue
            if running.done() or self._calls.is_abandoned:
                self._gate.failed(ask[0].name)
                return None
            self._second = ask
            return ask
        return None


def _may_join(target: Target, late: Target) -> bool:
    return target.deployment is not late.deployment and target.deployment.ready_at <= time.monotonic()


class _Race:
    """Calls that run at once; ``winner`` is the one that said a word first."""

    def __init__(self, first: Target, calls: Calls, gate: Gate) -> None:
        self._first = first
        self._calls = calls
        self._gate = gate
        self._errors: list[GatewayError] = []
        self._tasks: list[tuple[Target, asyncio.Task[None]]] = []
        self.winner: Upstream | None = None
        self.is_over = False

    def result(self) -> Upstream:
        """The winner; raises where there is none."""
        if self.winner is not None:
            return self.winner
        raise next((error for error in self._errors if _ends_it(error)), self._errors[-1])

    def start(self, ask: Ask, group: asyncio.TaskGroup) -> "asyncio.Task[None]":
        """Let another target take part."""
        task = group.create_task(self._run(ask))
        self._tasks.append((ask[0], task))
        return task

    async def decided(self) -> None:
        """Wait until there is a winner, or there will be none; then those that still run are given up."""
        running = {task for _, task in self._tasks}
        while running and not self.is_over:
            _, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        for task in running:
            task.cancel()

    def keep_current(self) -> None:
        """Give up all but the one that counts where nobody waits."""
        for target, task in self._tasks:
            if target is not self._calls.current:
                task.cancel()

    async def _run(self, ask: Ask) -> None:
        """One call. It never raises what a target may fail with."""
        target, calls = ask[0], self._calls
        began = time.monotonic()
        try:
            upstream = await ask_one(ask, calls)
        except GatewayError as error:
            self._failed(target, error, began)
            return
        except asyncio.CancelledError:
            if target is not calls.current:
                self._lost(target, began, None)
            raise
        target.deployment.first_words.add(time.monotonic() - began)
        if self.winner is None and not self.is_over and (not calls.is_abandoned or target is calls.current):
            self.winner = upstream
            self.is_over = True
            calls.current, calls.beside = target, None
            return
        try:
            await upstream.aclose()
        finally:
            self._lost(target, began, upstream)

    def _failed(self, target: Target, error: GatewayError, began: float) -> None:
        """The other one goes on, unless it would be told the same, or nobody waits for it."""
        calls = self._calls
        self._errors.append(error)
        self._gate.failed(target.name)
        if isinstance(error, ProviderTimeout):
            target.deployment.first_words.add(time.monotonic() - began)
        if self.is_over:
            return
        if target is self._first and _ends_it(error):
            calls.current, calls.beside = None if isinstance(error, ProviderError) else target, None
            self.is_over = True
        elif calls.current is None:
            self.is_over = True

    def _lost(self, target: Target, began: float, upstream: Upstream | None) -> None:
        self._gate.failed(target.name)
        if upstream is None and target is self._first:
            target.deployment.first_words.add(time.monotonic() - began)
        code = ABANDONED if self.winner is None else HEDGED_AWAY
        self._calls.gave_up(target, code, began, None if upstream is None else upstream.first)


def _ends_it(error: GatewayError) -> bool:
    return not (isinstance(error, ProviderError) and error.retryable)
