"""One call to one target, up to its first word, and what calls that came to nothing have to be expected to cost.

A provider that refused bills nothing. One that may have begun to read bills the prompt at least, whether or not its
answer was of any use; nobody but the operator pays for that, so each such call is remembered with its price.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from typing import Protocol

import msgspec

from gateway.canonical.errors import (
    ErrorCode,
    ProviderError,
    ProviderRateLimited,
    ProviderRejected,
    ProviderTimeout,
    StreamTruncated,
)
from gateway.canonical.events import Batch, Event, Failure, Frame, MessageStart, UsageReport
from gateway.canonical.request import Request
from gateway.canonical.usage import Usage
from gateway.ledger import Attempt
from gateway.limits.deployment_capacity import Full
from gateway.metering.meter import Bill, Meter
from gateway.providers.credentials import CredentialError
from gateway.providers.provider import Call, Shortcut
from gateway.providers.transport import ConnectTimeout, TransportError
from gateway.router import Target
from gateway.routing.deployments import Deployment

_COOL_S = 1.0
_NOTHING = Bill(usage=Usage(), cost_microusd=0, estimated=False)

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

    ``beside`` is asked at the same time as ``current``. Once nobody waits for the answer any more (``is_abandoned``, of
    which ``on_abandoned`` is told) only ``current`` counts, and no further one is asked. ``meter`` and ``meter_for``
    price what came to nothing. ``causes`` says why a provider was not reached, for the log, by the number of the
    failed try.
    """

    failed: list[Attempt] = []
    current: Target | None = None
    beside: Target | None = None
    is_abandoned: bool = False
    began_at: float = 0.0
    meter: Meter | None = None
    meter_for: Callable[[Target, Meter], Meter] | None = None
    causes: dict[int, str] = {}
    on_abandoned: Callable[[], None] | None = None

    @property
    def target_name(self) -> str:
        """The target that answers or was tried last, ``""`` where none was."""
        if self.current is not None:
            return self.current.name
        return self.failed[-1].target if self.failed else ""

    def join(self, target: Target) -> None:
        """Another target is asked as well; current is the one that would bill the rest of an answer nobody wants."""
        self.beside = target
        if self.current is not None and target.is_drained and not self.current.is_drained:
            self.current, self.beside = target, self.current

    def abandon(self) -> None:
        """Nobody waits for the answer any more; it is read on all the same."""
        self.is_abandoned = True
        if self.on_abandoned is not None:
            self.on_abandoned()

    def failed_with(self, target: Target, error: ProviderError, began: float) -> None:
        """A target failed, after ``began``; the one beside it goes on, unless nobody waits for that."""
        if self.current is target:
            self.current = None if self.is_abandoned else self.beside
        self.beside = None
        bill = _bill(self, target, None) if _may_be_billed(error) else _NOTHING
        if error.cause:
            self.causes[len(self.failed)] = error.cause
        self._remember(target, error.code.value, error.status, began, bill)

    def gave_up(self, target: Target, code: str, began: float, said: Batch | None) -> None:
        """A target that had not failed will not be heard to its end; ``said`` is what had come."""
        if self.beside is target:
            self.beside = None
        self._remember(target, code, None, began, _bill(self, target, said))

    def was_in_vain(self, upstream: "Upstream", code: str, bill: Bill) -> None:
        """The answer that had begun will be charged to nobody."""
        self.current = None
        self._remember(upstream.target, code, None, upstream.began, bill)

    def _remember(self, target: Target, code: str, status: int | None, began: float, bill: Bill) -> None:
        self.failed.append(
            Attempt(
                target=target.name,
                code=code,
                status=status,
                after_ms=round((began - self.began_at) * 1000),
                took_ms=round((time.monotonic() - began) * 1000),
                input_tokens=bill.usage.input,
                output_tokens=bill.usage.output,
                cost=bill.cost_microusd,
            )
        )


class Upstream(msgspec.Struct, frozen=True, kw_only=True):
    """A stream that has begun: its first batch, and where the rest comes from. Close it whatever happens.

    ``began`` is when it was asked for, monotonic. Batches may come by the ``shortcut`` once it is set.
    """

    target: Target
    first: Batch
    began: float
    batches: AsyncGenerator[Batch, None]
    shortcut: Shortcut

    def broke(self, error: ProviderError) -> None:
        """It failed in the middle, which is told to whoever chooses next time."""
        _judge(self.target.deployment, error, time.monotonic())

    async def aclose(self) -> None:
        """Hang up."""
        self.shortcut.pass_on = None
        try:
            await self.batches.aclose()
        finally:
            self.target.deployment.end()


async def ask_one(ask: Ask, calls: Calls) -> Upstream:
    """Ask one target and wait for its first word; ``calls`` learns of a failure before it is raised."""
    target, request = ask
    deployment = target.deployment
    began = time.monotonic()
    deployment.begin(began)
    shortcut = Shortcut()
    try:
        first, batches = await _begin(request, target, shortcut)
    except ProviderError as error:
        deployment.end()
        _judge(deployment, error, time.monotonic())
        calls.failed_with(target, error, began)
        raise
    except BaseException:
        deployment.end()
        deployment.breaker.abandoned(time.monotonic())
        raise
    now = time.monotonic()
    deployment.began_to_answer(now - began, now)
    return Upstream(target=target, first=first, began=began, batches=batches, shortcut=shortcut)


def _bill(calls: Calls, target: Target, said: Batch | None) -> Bill:
    """What a call costs that may have been worked on: the prompt by our count, and what had come of it."""
    if calls.meter is None or calls.meter_for is None:
        return _NOTHING
    meter = calls.meter_for(target, calls.meter)
    for frame in said.frames if said is not None else ():
        meter.forwarded(meter.weigh(frame))
    return meter.bill(complete=False)


def _may_be_billed(error: ProviderError) -> bool:
    """Whether the provider may have read the prompt: it refused nothing, and the request was on its way."""
    is_refusal = isinstance(error, ProviderRateLimited | ProviderRejected)
    if is_refusal or error.code is ErrorCode.PROVIDER_OVERLOADED or _is_unsent(error):
        return False
    return isinstance(error, ProviderTimeout) or error.status is None


def _is_unsent(error: ProviderError) -> bool:
    """Whether there was no connection, or no credential, to send anything with."""
    met = error.__context__
    if isinstance(met, TransportError):  # one that was made, and broke, has no error of the system's as its cause
        return isinstance(met.__cause__, OSError)
    return isinstance(met, ConnectTimeout | CredentialError)


def _judge(deployment: Deployment, error: ProviderError, now: float) -> None:
    """What a failure says about the deployment: a request judged wrong says that it works."""
    if isinstance(error, ProviderRejected):
        deployment.breaker.succeeded(now)
    elif isinstance(error, ProviderRateLimited):
        deployment.breaker.abandoned(now)
        deployment.cool_down(_COOL_S if error.retry_after_s is None else error.retry_after_s, now)
    else:
        deployment.breaker.failed(now)


async def _begin(request: Request, target: Target, shortcut: Shortcut) -> tuple[Batch, AsyncGenerator[Batch, None]]:
    """Call one target and wait for its first words; what fails before that is raised, and the call is closed."""
    provider = target.provider
    batches = provider.stream(Call(request, target.model, target.deployment.used_up, shortcut))
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
