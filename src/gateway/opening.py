"""From targets in order to a stream that has begun to say something.

The next target is tried, and all of them once more after a pause, only while nothing has reached the client: what was
said is never said twice. An error that another target would give as well ends it at once.
"""

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Protocol

import msgspec

from gateway.canonical.errors import (
    ErrorCode,
    ProviderError,
    ProviderRateLimited,
    ProviderRejected,
    ProviderTimeout,
    ProviderUnavailable,
    StreamTruncated,
)
from gateway.canonical.events import Batch, Event, Failure, Frame, MessageStart, UsageReport
from gateway.canonical.request import Request
from gateway.ledger import Attempt
from gateway.limits.deployment_capacity import Full
from gateway.providers.provider import Call
from gateway.router import Target
from gateway.routing.deployments import Deployment
from gateway.routing.retries import RetryRules, backoff_s

# What a provider asks us to wait is waited for up to here; a client is told about more.
_WAIT_S_MAX = 2.0
_COOL_S = 1.0
_CREDENTIAL_REFUSED = (401, 402, 403)

Ask = tuple[Target, Request]


class Gate(Protocol):
    """Where each call takes its part of what a deployment may be asked by all gateways together."""

    async def take(self, name: str) -> Full | None:
        """``None`` where there was room."""
        ...

    def failed(self, name: str) -> None:
        """The call that was taken for came to nothing."""
        ...


class Calls(msgspec.Struct):
    """What was asked of providers for one request: the tries that failed, and the one that is on its way.

    Once nobody waits for the answer any more (``is_abandoned``) no further one is asked.
    """

    failed: list[Attempt] = []
    current: Target | None = None
    is_abandoned: bool = False
    began_at: float = 0.0

    @property
    def target_name(self) -> str:
        """The target that answers or was tried last, ``""`` where none was."""
        if self.current is not None:
            return self.current.name
        return self.failed[-1].target if self.failed else ""


class Upstream(msgspec.Struct, frozen=True, kw_only=True):
    """A stream that has begun: its first batch, and where the rest comes from. Close it whatever happens."""

    target: Target
    first: Batch
    batches: AsyncGenerator[Batch, None]

    def broke(self, error: ProviderError) -> None:
        """It failed in the middle, which is told to whoever chooses next time."""
        _judge(self.target.deployment, error, time.monotonic())

    async def aclose(self) -> None:
        """Hang up."""
        try:
            await self.batches.aclose()
        finally:
            self.target.deployment.end()


async def open_first(asks: Sequence[Ask], calls: Calls, rules: RetryRules, gate: Gate) -> Upstream:
    """The first target that begins to answer, each asked in its own terms; ``calls`` is kept up to date meanwhile.

    Raises the last target's ``ProviderError``, or ``RequestError`` for what a target cannot take.
    """
    calls.began_at = time.monotonic()
    failure: ProviderError | None = None
    full_s: dict[str, float] = {}
    for number in range(rules.rounds + 1):
        if failure is not None:
            pause_s = _pause_s(failure, number, rules)
            if pause_s is None:
                break
            await asyncio.sleep(pause_s)
        for ask in asks:
            name = ask[0].name
            if not _may_try(ask[0].deployment, is_again=number > 0, is_lone=len(asks) == 1):
                continue
            if (full := await gate.take(name)) is not None:
                full_s[name] = full.for_s
                continue
            try:
                return await _try(ask, calls)
            except ProviderError as error:
                failure = error
                gate.failed(name)
                if not error.retryable or calls.is_abandoned:
                    raise
        if failure is None:
            raise _all_rest([target.deployment for target, _ in asks], full_s)
    assert failure is not None
    raise failure


def _may_try(deployment: Deployment, *, is_again: bool, is_lone: bool) -> bool:
    """A lone deployment is asked even where it failed before: nobody else could answer."""
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


async def _try(ask: Ask, calls: Calls) -> Upstream:
    target, request = ask
    deployment = target.deployment
    began = time.monotonic()
    calls.current = target
    deployment.begin(began)
    try:
        first, batches = await _begin(request, target)
    except ProviderError as error:
        now = time.monotonic()
        deployment.end()
        _judge(deployment, error, now)
        calls.current = None
        calls.failed.append(
            Attempt(
                target=target.name,
                code=error.code.value,
                status=error.status,
                after_ms=round((began - calls.began_at) * 1000),
                took_ms=round((now - began) * 1000),
            )
        )
        raise
    except BaseException:
        deployment.end()
        deployment.breaker.abandoned(time.monotonic())
        raise
    now = time.monotonic()
    deployment.began_to_answer(now - began, now)
    return Upstream(target=target, first=first, batches=batches)


def _judge(deployment: Deployment, error: ProviderError, now: float) -> None:
    """What a failure says about the deployment: a request judged wrong says that it works."""
    if isinstance(error, ProviderRejected):
        deployment.breaker.succeeded(now)
    elif isinstance(error, ProviderRateLimited):
        deployment.breaker.abandoned(now)
        deployment.cool_down(_COOL_S if error.retry_after_s is None else error.retry_after_s, now)
    else:
        deployment.breaker.failed(now)


async def _begin(request: Request, target: Target) -> tuple[Batch, AsyncGenerator[Batch, None]]:
    """Call one target and wait for its first words; what fails before that is raised, and the call is closed."""
    provider = target.provider
    batches = provider.stream(Call(request, target.model, target.deployment.used_up))
    try:
        async with asyncio.timeout(provider.timeouts.first_event_s):
            return await _first_words(batches), batches
    except StopAsyncIteration:
        raise StreamTruncated("The provider's stream ended before it began.", provider=provider.name) from None
    except TimeoutError:
        await batches.aclose()
        raise ProviderTimeout("The provider did not begin to answer in time.", provider=provider.name) from None
    except BaseException:
        await batches.aclose()
        raise


async def _first_words(batches: AsyncGenerator[Batch, None]) -> Batch:
    """Everything up to the first batch with something in it: a greeting alone does not hold a client to a target."""
    greeting: list[Frame] = []
    while True:  # a provider may send comments while it thinks; the caller's timeout bounds that
        batch = await anext(batches)
        words = next((event for frame in batch.frames for event in frame.events if _is_word(event)), None)
        if isinstance(words, Failure):
            raise words.error
        if words is not None or batch.is_last:
            return Batch([*greeting, *batch.frames], is_last=batch.is_last) if greeting else batch
        greeting += batch.frames


def _is_word(event: Event) -> bool:
    return not isinstance(event, MessageStart | UsageReport)
