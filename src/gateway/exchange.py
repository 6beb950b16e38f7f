"""The way of one request, and its only end.

A request is admitted, a provider is found, its events flow to the client one frame at a time, each of them paid for
before it is sent, and however that stops, it is settled exactly once. The story is told from top to bottom in
``run``; everything a step needs is in the room it calls. Nothing here knows a wire format, a vendor or a Redis key.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import structlog
from anyio import CancelScope, move_on_after

from gateway.canonical.caller import Caller
from gateway.canonical.errors import (
    ErrorCode,
    GatewayError,
    PermissionDenied,
    ProviderError,
    ProviderTimeout,
    ServiceUnavailable,
    StreamTruncated,
)
from gateway.canonical.events import Batch, Failure, Frame, Order
from gateway.canonical.request import Request
from gateway.canonical.usage import Usage
from gateway.downstream import Downstream
from gateway.endings import (
    CLIENT_LEFT,
    CLIENT_STALLED,
    COMPLETE,
    STOPPED,
    Ending,
    Outcome,
    broke_error,
    cut_for,
    failed,
)
from gateway.ledger import UsageRecord
from gateway.limits.admission import Admission, Ask, Tier
from gateway.limits.reservation import Reservation
from gateway.limits.scripts import Posting
from gateway.live import LiveExchanges
from gateway.metering.meter import Bill, Meter
from gateway.metering.quote import quote
from gateway.metering.tokens import TokenCounter, count_input
from gateway.protocols.wire import Encoder, ServerRole, StreamMeta
from gateway.router import Calls, Router, Target, Upstream
from gateway.tasks import TaskOwner
from gateway.telemetry import Telemetry

_log = structlog.get_logger()
_Receive = Callable[[], Awaitable[Any]]

_LAST_WORDS_S = 5.0


class Patience(msgspec.Struct, frozen=True, kw_only=True):
    """How long an exchange waits for its client, in seconds.

    The status line is held back for ``commit_s`` so that early failures are real HTTP errors; then it goes out, and
    something harmless follows every ``heartbeat_s`` without data. A client that takes nothing for ``send_s`` is cut.
    """

    commit_s: float = 5.0
    heartbeat_s: float = 10.0
    send_s: float = 30.0


class Services(msgspec.Struct, frozen=True, kw_only=True):
    """What every exchange works with; built once, by ``app.py``."""

    router: Router
    admission: Admission
    tier_of: Callable[[Caller], Awaitable[Tier]]
    count: TokenCounter
    live: LiveExchanges
    telemetry: Telemetry
    tasks: TaskOwner
    patience: Patience = Patience()


class Exchange:
    """One authenticated, decoded request on its way."""

    def __init__(
        self, services: Services, protocol: ServerRole, request: Request, caller: Caller, request_id: str
    ) -> None:
        self._services = services
        self._protocol = protocol
        self._request = request
        self._caller = caller
        self._request_id = request_id
        self._started_at = time.monotonic()
        self._first_event_at = 0.0
        self._last_batch_at = 0.0
        self._order = Order()
        self._calls = Calls()
        self._scope = CancelScope()
        self._interruption: Ending | None = None
        self._upstream: Upstream | None = None
        self._encoder: Encoder | None = None

    async def run(self, receive: _Receive, downstream: Downstream) -> None:
        """The whole way. ``receive`` tells when the client leaves; ``downstream`` is where the answer goes."""
        self._downstream = downstream
        try:
            targets = self._resolve()
            await self._admit(targets)
        except GatewayError as error:
            await self._refuse(error)
            return
        except Exception:
            _log.exception("admission_broke", request_id=self._request_id)
            await self._refuse(broke_error())
            return
        self._services.live.add(self)
        self._services.telemetry.in_flight.inc()
        self._watching = self._services.tasks.start(self._watch(receive), "watch-client")
        ending = STOPPED
        try:
            ending = await self._relay_until_ended(targets)
            await self._say_last_words(ending)
        except Exception:
            _log.exception("exchange_broke", request_id=self._request_id)
            ending = failed(broke_error())
            await self._say_last_words(ending)
        finally:
            self._watching.cancel()
            self._settle(ending)
            self._services.telemetry.in_flight.dec()
            self._services.live.discard(self)
            await self._close_upstream(ending)

    # Admission.

    def _resolve(self) -> tuple[Target, ...]:
        model = self._request.model
        if not self._caller.may_use(model):
            raise PermissionDenied("This credential does not allow the model.", code=ErrorCode.MODEL_NOT_ALLOWED)
        return self._services.router.resolve(model)

    async def _admit(self, targets: tuple[Target, ...]) -> None:
        """Hold what the request needs to begin, or raise why it may not."""
        services, request = self._services, self._request
        input_tokens = await count_input(request, services.count)
        quoted = quote(request, input_tokens, (target.price for target in targets))
        ask = Ask(
            account=self._caller.account,
            tier=await services.tier_of(self._caller),
            model=request.model,
            request_id=self._request_id,
            hold_min=quoted.hold_min,
            slice=quoted.slice,
            facts=msgspec.json.encode(self._facts()),
        )
        self._meter = Meter(targets[0].price, services.count, input_tokens)
        self._reservation: Reservation = await services.admission.reserve(ask)

    def _facts(self, **known: Any) -> UsageRecord:
        return UsageRecord(
            request_id=self._request_id,
            subject=self._caller.subject,
            model=self._request.model,
            protocol=self._protocol.name,
            stream=self._request.stream,
            **known,
        )

    async def _refuse(self, error: GatewayError) -> None:
        self._services.telemetry.refused(self._request_id, self._caller, error.code.value)
        await self._downstream.reply(self._protocol.encode_error(error))

    # The stream.

    async def _relay_until_ended(self, targets: tuple[Target, ...]) -> Ending:
        with self._scope:
            try:
                return await self._relay(targets)
            except GatewayError as error:
                return failed(error)
        return self._interruption or STOPPED

    async def _relay(self, targets: tuple[Target, ...]) -> Ending:
        """From the first event to the last; returns how it ended, with everything said but an error."""
        upstream = await self._open(targets)
        encoder = self._encoder_for(upstream.target)
        batch: Batch | None = upstream.first
        while batch is not None:
            self._last_batch_at = self._services.live.now
            payload, ending = await self._pay_and_encode(batch, encoder)
            if ending is None and batch.is_last:
                ending = COMPLETE
                payload += encoder.end(self._meter.reported or self._meter.counted)
            if ending is None:
                if payload:
                    await self._downstream.write(payload, encoder.headers)
                    self._last_batch_at = self._services.live.now
                self._reservation.keep_ahead()
                batch = await anext(upstream.batches, None)
            elif ending.error is None:
                await self._downstream.finish(payload, encoder.headers)
                return ending
            else:
                if payload:
                    await self._downstream.write(payload, encoder.headers)
                return ending
        raise StreamTruncated("The provider's stream ended early.", provider=upstream.target.provider.name)

    async def _open(self, targets: tuple[Target, ...]) -> Upstream:
        upstream = await self._services.router.open(self._request, targets, self._calls)
        self._upstream = upstream
        self._first_event_at = time.monotonic()
        self._last_batch_at = self._services.live.now
        if upstream.target is not targets[0]:
            self._meter = Meter(upstream.target.price, self._services.count, self._meter.input)
        return upstream

    def _encoder_for(self, target: Target | None) -> Encoder:
        if self._encoder is None:
            wire = target.provider.wire if target is not None else None
            meta = StreamMeta(self._request_id, int(time.time()), wire)
            self._encoder = self._protocol.encoder(self._request, meta)
        return self._encoder

    async def _pay_and_encode(self, batch: Batch, encoder: Encoder) -> tuple[bytes, Ending | None]:
        """What of a batch may be sent, and the ending where it holds one. No frame passes that is not paid for."""
        frames, failure = self._check(batch.frames)
        ending = None if failure is None else failed(failure)
        meter, reservation = self._meter, self._reservation
        tokens = sum([meter.weigh(frame) for frame in frames])
        cost = meter.cost_with(tokens)
        if not reservation.covers(cost):
            return await self._pay_one_by_one(frames, encoder, ending)
        reservation.use(cost)
        meter.forwarded(tokens)
        return b"".join([encoder.encode(frame) for frame in frames]), ending

    async def _pay_one_by_one(
        self, frames: list[Frame], encoder: Encoder, ending: Ending | None
    ) -> tuple[bytes, Ending | None]:
        """The frames of a batch that is not covered as a whole: each waits for its hold, the first without is cut."""
        meter, reservation = self._meter, self._reservation
        out: list[bytes] = []
        for frame in frames:
            tokens = meter.weigh(frame)
            cost = meter.cost_with(tokens)
            if not reservation.covers(cost):
                if sendable := b"".join(out):
                    await self._downstream.write(sendable, encoder.headers)
                out.clear()
                shortfall = await reservation.cover(cost)
                if shortfall is not None:
                    cut, cut_ending = cut_for(shortfall)
                    return encoder.cut(cut, meter.counted), cut_ending
            reservation.use(cost)
            meter.forwarded(tokens)
            out.append(encoder.encode(frame))
        return b"".join(out), ending

    def _check(self, frames: list[Frame]) -> tuple[list[Frame], ProviderError | None]:
        """The guard: the frames whose events are in order, and the error that ended them, if one did."""
        upstream = self._upstream
        provider = upstream.target.provider.name if upstream is not None else ""
        for number, frame in enumerate(frames):
            for event in frame.events:
                if type(event) is Failure:
                    return frames[:number], event.error
                try:
                    self._order.check(event, provider)
                except ProviderError as error:
                    return frames[:number], error
        return frames, None

    # Interruptions: whoever notices something calls ``_interrupt``; the first one wins.

    async def _watch(self, receive: _Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._interrupt(CLIENT_LEFT)

    def tick(self, now: float) -> None:
        """Heartbeats, deadlines and the lease; called a few times a second."""
        downstream, patience = self._downstream, self._services.patience
        self._reservation.beat(now)
        if downstream.sending_since is not None:
            if now - downstream.sending_since > patience.send_s:
                self._interrupt(CLIENT_STALLED)
            return
        quiet_s = now - downstream.last_write_at
        if quiet_s >= (patience.heartbeat_s if downstream.is_started else patience.commit_s):
            self._beat()
        upstream = self._upstream
        if upstream is None:
            return
        timeouts = upstream.target.provider.timeouts
        if now - self._last_batch_at > timeouts.idle_s or now - self._started_at > timeouts.total_s:
            error = ProviderTimeout("The provider stopped sending.", provider=upstream.target.provider.name)
            self._interrupt(failed(error))

    def _beat(self) -> None:
        if not self._request.stream:
            return
        encoder = self._encoder_for(self._upstream.target if self._upstream is not None else None)
        if encoder.heartbeat:
            self._services.tasks.start(self._downstream.write(encoder.heartbeat, encoder.headers), "heartbeat")

    def drain(self) -> None:
        """The process stops and the grace is over."""
        error = ServiceUnavailable("The gateway is stopping; send the request again.", code=ErrorCode.DRAINING)
        self._interrupt(failed(error))

    def _interrupt(self, ending: Ending) -> None:
        if self._interruption is None:
            self._interruption = ending
            self._scope.cancel()

    # The end.

    async def _say_last_words(self, ending: Ending) -> None:
        """Tell the client about an error: as an HTTP answer while nothing was sent, within the stream after that."""
        if ending is CLIENT_STALLED:
            await self._hang_up()
        if ending.error is None or self._downstream.is_finished:
            return
        with move_on_after(_LAST_WORDS_S) as patience:
            if not self._downstream.is_started:
                await self._downstream.reply(self._protocol.encode_error(ending.error))
            else:
                encoder = self._encoder_for(None)
                await self._downstream.finish(encoder.fail(ending.error), encoder.headers)
        if patience.cancelled_caught:
            await self._hang_up()

    async def _hang_up(self) -> None:
        """Reset the connection, and wait until the server has noticed, or it takes us for having forgotten the rest."""
        self._downstream.abort()
        with move_on_after(_LAST_WORDS_S):
            await asyncio.wait([self._watching])

    async def _close_upstream(self, ending: Ending) -> None:
        """Hang up; after a whole answer the provider may take the connection back first, to be used again."""
        if self._upstream is None:
            return
        if ending is COMPLETE:
            await anext(self._upstream.batches, None)
        await self._upstream.batches.aclose()

    def _settle(self, ending: Ending) -> None:
        """Post what the exchange cost. Awaits nothing, since the frame may be dying."""
        bill, refund = self._bill(ending)
        now = time.monotonic()
        first_event_s = self._first_event_at - self._started_at if self._first_event_at else None
        for attempt in self._calls.failed:
            self._services.telemetry.attempt_failed(self._request_id, attempt)
        record = self._facts(
            target=self._calls.target_name,
            outcome=ending.outcome.value,
            reason=ending.reason,
            input_tokens=bill.usage.input,
            output_tokens=bill.usage.output,
            cache_read_tokens=bill.usage.cache_read,
            cache_write_tokens=bill.usage.cache_write,
            reasoning_tokens=bill.usage.reasoning,
            counted_output=self._meter.output,
            estimated=bill.estimated,
            held=self._reservation.held,
            cost=bill.cost_microusd,
            first_token_ms=round((first_event_s or 0) * 1000, 1),
            duration_ms=int((now - self._started_at) * 1000),
            attempts=len(self._calls.failed) + (self._calls.current is not None),
        )
        usage = msgspec.json.encode(record)
        self._reservation.settle(Posting(actual=bill.cost_microusd, outcome=record.outcome, refund=refund, usage=usage))
        self._services.telemetry.exchange_ended(self._caller, record, first_event_s)

    def _bill(self, ending: Ending) -> tuple[Bill, bool]:
        """What is owed, and whether the request is taken off the rate again.

        Nothing where no provider was reached, or where one failed before the client was shown anything. A client that
        leaves while a provider reads its prompt pays for the prompt.
        """
        has_left = ending in (CLIENT_LEFT, CLIENT_STALLED)
        was_read = self._upstream is not None or (has_left and self._calls.current is not None)
        failed_unseen = ending.outcome in (Outcome.FAILED, Outcome.TRUNCATED) and not self._shown
        if not was_read or failed_unseen:
            return Bill(usage=Usage(), cost_microusd=0, estimated=False), not has_left
        return self._meter.bill(complete=ending.outcome is Outcome.COMPLETE), False

    @property
    def _shown(self) -> bool:
        """Whether the client was sent any of the answer; a whole answer is sent at the end or not at all."""
        return self._meter.output > 0 and self._request.stream
