"""From targets in order to a stream that has begun to say something.

The next target is tried, and all of them once more after a pause, only while nothing has reached the client: what was
said is never said twice. An error that another target would give as well ends it at once.
"""

import asyncio
import math
import time
from collections.abc import Sequence

from gateway.calls import Ask, Gate, ask_one
from gateway.calls import Calls as Calls
from gateway.calls import Upstream as Upstream
from gateway.canonical.errors import (
    ErrorCode,
    ProviderError,
    ProviderRateLimited,
    ProviderTimeout,
    ProviderUnavailable,
)
from gateway.hedging import Hedge
from gateway.routing.deployments import Deployment
from gateway.routing.retries import RetryRules, backoff_s

# What a provider asks us to wait is waited for up to here; a client is told about more.
_WAIT_S_MAX = 2.0
_CREDENTIAL_REFUSED = (401, 402, 403)


async def open_first(asks: Sequence[Ask], calls: Calls, rules: RetryRules, gate: Gate) -> Upstream:
    """The first target that begins to answer, each asked in its own terms; ``calls`` is kept up to date meanwhile.

    Raises the last target's ``ProviderError``, or ``RequestError`` for what a target cannot take.
    """
    calls.began_at = time.monotonic()
    failure: ProviderError | None = None
    full_s: dict[str, float] = {}
    late = asks[0][0].hedge
    hedge = None if late is None else Hedge(late, asks, calls, gate)
    for number in range(rules.rounds + 1):
        if failure is not None:
            pause_s = _pause_s(failure, number, rules)
            if pause_s is None:
                break
            await asyncio.sleep(pause_s)
        for ask in asks:
            name = ask[0].name
            if not _may_try(ask, hedge, is_again=number > 0, is_lone=len(asks) == 1):
                continue
            if (full := await gate.take(name)) is not None:
                full_s[name] = full.for_s
                continue
            calls.current = ask[0]
            try:
                return await (ask_one(ask, calls) if hedge is None else hedge.open_first(ask))
            except ProviderError as error:
                failure = error
                gate.failed(name)
                if not error.retryable or calls.is_abandoned:
                    raise
        if failure is None:
            raise _all_rest([target.deployment for target, _ in asks], full_s)
    assert failure is not None
    raise failure


def _may_try(ask: Ask, hedge: Hedge | None, *, is_again: bool, is_lone: bool) -> bool:
    """A lone deployment is asked even where it failed before: nobody else could answer."""
    if hedge is not None and hedge.has_asked(ask):
        return False
    deployment = ask[0].deployment
    if not is_lone and deployment.ready_at > time.monotonic():
        return False
    if is_again:
        return deployment.budget.take()
    deployment.budget.called()
    return True


def _pause_s(failure: ProviderError, number: int, rules: RetryRules) -> float | None:
    """How long to wait before asking all of them once more; ``None`` where the client had better know now."""
    if isinstance(failure, ProviderTimeout) or failure.status in _CREDENTIAL_REFUSED:
        return None
    pause_s = backoff_s(rules, number)
    if failure.retry_after_s is None:
        return None if isinstance(failure, ProviderRateLimited) else pause_s
    return max(pause_s, failure.retry_after_s) if failure.retry_after_s <= _WAIT_S_MAX else None


def _all_rest(deployments: Sequence[Deployment], full_s: dict[str, float]) -> ProviderError:
    """Nobody may be asked: some are full for so long, the others are left alone."""
    now, provider = time.monotonic(), deployments[0].name.partition("/")[0]
    wait_s = min(full_s.get(it.name, max(0.0, it.ready_at - now)) for it in deployments)
    retry_after_s = None if math.isinf(wait_s) else wait_s
    if full_s:
        text = "What the providers of this model may be asked is used up for now."
        return ProviderRateLimited(text, provider=provider, retry_after_s=retry_after_s)
    text = "Every provider of this model is failing or at its limit; try again later."
    return ProviderUnavailable(text, provider=provider, code=ErrorCode.PROVIDER_OVERLOADED, retry_after_s=retry_after_s)
