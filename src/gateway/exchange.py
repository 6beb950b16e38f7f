"""The way of one request, and its only end, told from top to bottom in ``run``.

A request is admitted, a provider is found, its events flow to the client one frame at a time, each of them paid for
before it is sent, and however that stops, it is settled exactly once. Nothing here knows a wire format, a vendor or a
Redis key: everything a step needs is in the room it calls.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import msgspec
import structlog
from anyio import move_on_after

from gateway.billing import Course, owed
from gateway.canonical.caller import Caller
from gateway.canonical.errors import (
    ErrorCode,
    GatewayError,
    LimitExceeded,
    ProviderError,
    ProviderTimeout,
    ServiceUnavailable,
    StreamTruncated,
)
from gateway.canonical.events import Batch
from gateway.canonical.request import Request
from gateway.conduct import Conduct
from gateway.downstream import Downstream
from gateway.endings import (
    CLIENT_LEFT,
    CLIENT_STALLED,
    COMPLETE,
    REVOKED,
    STOPPED,
    STOPPED_BY_CALLER,
    Ending,
    Outcome,
    broke_error,
    cut_off,
    failed,
)
from gateway.entrance import Admitted, Knock
from gateway.guard import Guard
from gateway.ledger import UsageRecord
from gateway.limits.revocations import STREAM_PREFIX
from gateway.limits.scripts import Posting
from gateway.losses import warning_headers
from gateway.metering.meter import Bill
from gateway.opening import Calls, Upstream, open_first
from gateway.protocols.wire import Allowance, Encoder, ServerRole, StreamMeta
from gateway.providers.provider import Hangup
from gateway.router import Target
from gateway.services import Services, Wishes
from gateway.turnstile import Turnstile

_log = structlog.get_logger()
_Receive = Callable[[], Awaitable[Any]]

_LAST_WORDS_S = 5.0


class Exchange:
    """One authenticated, decoded request on its way."""

    def __init__(
        self,
        services: Services,
        protocol: ServerRole,
        request: Request,
        caller: Caller,
        request_id: str,
        wishes: Wishes,
    ) -> None:
        self._services = services
        self._protocol = protocol
        self._request = request
        self._caller = caller
        self._request_id = request_id
        self._wishes = wishes
        self._started_at = time.monotonic()
        self._first_event_at = 0.0
        self._guard = Guard()
        self._calls = Calls()
        self._relaying: asyncio.Task[None] | None = None
        self._cancels = 0
        self._interruption: Ending | None = None
        self._upstream: Upstream | None = None
        self._encoder: Encoder | None = None
        self._left_with: Bill | None = None
        self._is_whole = False
        self._has_warned = False
        self._variant = ""
        self._left_at = 0.0
        self._watching: asyncio.Task[None] | None = None
        self._gone = asyncio.Event()

    async def run(self, receive: _Receive, downstream: Downstream) -> None:
        """The whole way. ``receive`` tells when the client leaves; ``downstream`` is where the answer goes."""
        self._downstream = downstream
        try:
            self._begin(await self._admit())
        except GatewayError as error:
            await self._refuse(error)
            return
        except Exception:
            _log.exception("admission_broke", request_id=self._request_id)
            await self._refuse(broke_error())
            return
        self._services.live.add(self, since=self._started_at)
        ending = STOPPED
        try:
            await self._begin_to_watch(receive)
            ending = self._interruption or await self._relay_until_ended()
            await self._say_last_words(ending)
        except Exception:
            _log.exception("exchange_broke", request_id=self._request_id)
            ending = failed(broke_error())
            await self._say_last_words(ending)
        finally:
            self._downstream.unwatch()
            if self._watching is not None:
                self._watching.cancel()
            self._services.live.discard(self)
            try:
                self._settle(ending)
            finally:
                self._encoder = None  # it may hold us, and what is in a circle waits for the garbage collector
                await self._close_upstream(ending)

    # Admission.

    async def _admit(self) -> Admitted:
        wishes = self._wishes
        return await self._services.entrance.admit(
            Knock(
                request=self._request,
                caller=self._caller,
                protocol=self._protocol.name,
                request_id=self._request_id,
                facts=self._first_facts,
                idempotency_key=wishes.idempotency_key,
                digest=wishes.digest,
                is_strict=wishes.is_strict,
            )
        )

    def _first_facts(self, variant: str) -> bytes:
        """The record as far as it is known before anything ran, now that the variant of its limits is."""
        self._variant = variant
        return msgspec.json.encode(self._facts(variant=variant))

    def _begin(self, admitted: Admitted) -> None:
        """Take over what was admitted: from here on it has to be settled."""
        self._admitted = admitted
        self._reservation = admitted.reservation
        self._meter, self._priced_by = admitted.meter, admitted.asks[0][0]
        downgrade = partial(self._services.downgrade, self._caller.account, admitted.tier)
        self._conduct = Conduct(admitted.tier, admitted.reservation, self._started_at, downgrade)
        stream_id = admitted.reservation.stream.sid
        rate_headers = self._protocol.rate_headers(admitted.standing)
        self._downstream.add_headers(((b"x-gateway-stream-id", stream_id.encode()), *rate_headers))
        self._downstream.admitted(stream_id)

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
        error.request_id = self._request_id
        self._services.telemetry.refused(self._request_id, self._caller, error.code.value)
        self._services.statistics.refused(self._caller.account, error.code.value, self._variant)
        if isinstance(error, LimitExceeded) and error.counts is not None and error.standing is not None:
            standing = Allowance(error.counts, *error.standing)
            self._downstream.add_headers(self._protocol.rate_headers([standing]))
        await self._downstream.reply(self._protocol.encode_error(error))

    # The stream.

    async def _relay_until_ended(self) -> Ending:
        task = self._relaying = asyncio.current_task()
        assert task is not None
        try:
            ending = await self._relay()
        except GatewayError as error:
            ending = failed(error)
        except asyncio.CancelledError:
            if self._interruption is None:
                raise
            ending = self._interruption
        finally:
            self._relaying = None
        for _ in range(self._cancels):
            task.uncancel()
        if self._cancels and task.cancelling():
            raise asyncio.CancelledError  # somebody else wants the whole task to end
        return CLIENT_LEFT if self._left_at else ending

    async def _relay(self) -> Ending:
        """From the first event to the last; returns how it ended, with everything said but an error."""
        upstream = await self._open()
        encoder = self._encoder_for(upstream.target)
        downstream, reservation, turnstile = self._downstream, self._reservation, self._turnstile
        guard, live = self._guard, self._services.live
        batch: Batch | None = upstream.first
        upstream.shortcut.pass_on = partial(turnstile.pass_on, guard, encoder)
        greeting = b"".join([encoder.notice(notice) for notice in self._admitted.notices])
        while batch is not None:
            turnstile.awake_at = live.now
            frames, failure = guard.check(batch.frames)
            ending = None if failure is None else failed(failure)
            payload = turnstile.let_through(frames, encoder)
            if payload is None:
                payload, ending = await turnstile.one_by_one(frames, encoder, ending)
            if greeting:
                payload, greeting = greeting + payload, b""
            if ending is None and batch.is_last:
                self._is_whole = True
                last_words, ending = self._end(encoder)
                payload += last_words
            if ending is None:
                if payload and not downstream.push(payload, encoder.headers):
                    await downstream.write(payload, encoder.headers)
                    turnstile.awake_at = live.now
                reservation.keep_ahead()
                batch = await anext(upstream.batches, None)
            elif ending.error is None:
                await downstream.finish(payload, encoder.headers)
                return ending
            else:
                if payload:
                    await downstream.write(payload, encoder.headers)
                return ending
        raise StreamTruncated("The provider's stream ended early.", provider=upstream.target.provider.name)

    def _end(self, encoder: Encoder) -> tuple[bytes, Ending]:
        """The end of a whole answer; one that reached a bound of ours says so."""
        usage = self._meter.reported or self._meter.counted
        bound_by = self._guard.bound_by
        if self._guard.is_at_bound and bound_by is not None:
            return encoder.cut(bound_by, usage), cut_off(bound_by)
        return encoder.end(usage), COMPLETE

    async def _open(self) -> Upstream:
        admitted = self._admitted
        rules = self._services.entrance.router.deployments.rules.retries
        gate = self._services.capacity.gate(self._reservation, admitted.tokens)
        self._calls.meter, self._calls.meter_for = self._meter, self._services.entrance.meter_for
        upstream = await open_first(admitted.asks, self._calls, rules, gate)
        self._first_event_at = time.monotonic()
        self._services.observe_latency(self._first_event_at - self._started_at, upstream.target.name)
        number = [target for target, _ in admitted.asks].index(upstream.target)
        self._price_by(upstream.target)
        self._warn(upstream.target)
        self._guard.bound_by, self._guard.provider = admitted.bounds[number], upstream.target.provider.name
        self._turnstile = Turnstile(admitted, self._meter, self._conduct, self._downstream, self._services.live)
        self._upstream = upstream
        return upstream

    def _price_by(self, target: Target | None) -> None:
        """Until one answers, the prompt costs what it costs at the one that was asked."""
        if self._upstream is None and target is not None and target is not self._priced_by:
            self._priced_by, self._meter = target, self._services.entrance.meter_for(target, self._meter)

    def _warn(self, target: Target) -> None:
        """Before the first byte: say what this target is not asked for as the client did."""
        if not self._has_warned:
            self._has_warned = True
            asked = next(asked for own, asked in self._admitted.asks if own is target)
            self._downstream.add_headers(warning_headers(self._request, target, asked))

    def _encoder_for(self, target: Target | None) -> Encoder:
        if self._encoder is None:
            self._encoder = self._new_encoder(target.provider.wire if target is not None else None)
        return self._encoder

    def _new_encoder(self, wire: str | None) -> Encoder:
        meta = StreamMeta(
            self._request_id,
            int(time.time()),
            wire,
            stream_id=self._reservation.stream.sid,
            wants_notices=self._wishes.notices,
            input_tokens=self._meter.input,
            cost_microusd=lambda: self._meter.bill(complete=self._is_whole).cost_microusd,
        )
        return self._protocol.encoder(self._request, meta)

    # Interruptions: whoever notices something calls ``_interrupt``; the first one wins.

    async def _begin_to_watch(self, receive: _Receive) -> None:
        """From here on a client that leaves is noticed, and so is one that left during admission."""
        if not self._downstream.watch(self._client_left):
            self._watching = self._services.tasks.start(self._watch(receive), "watch-client")
            await asyncio.sleep(0)

    async def _watch(self, receive: _Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._client_left()

    def _client_left(self) -> None:
        self._gone.set()
        if not self._downstream.outlives_client():
            self._give_up()

    def _give_up(self) -> None:
        """Nobody reads the answer any more."""
        if not self._read_on():
            self._interrupt(CLIENT_LEFT)

    def _read_on(self) -> bool:
        """Whether the answer is read on unseen for its true figure, since more is billed than what was sent."""
        if self._left_at:
            return True
        target = self._calls.current
        if target is None or not target.is_drained or not self._services.live.may_drain():
            return False
        self._left_at = time.monotonic()
        self._price_by(self._calls.current)
        self._left_with = self._meter.bill(complete=False)
        self._calls.abandon()
        self._conduct.is_waived = True
        self._downstream.detach()
        return True

    def tick(self, now: float) -> None:
        """Heartbeats, deadlines and the lease; called a few times a second."""
        downstream, patience = self._downstream, self._services.patience
        self._reservation.beat(now)
        if self._interruption is not None:
            self._cancel_relay()  # something within took no notice
        if downstream.sending_since is not None:
            if now - downstream.sending_since > patience.send_s and not downstream.outlives_client():
                self._interrupt(CLIENT_STALLED)
            return
        if downstream.is_orphan(now):
            self._give_up()
        quiet_s = now - downstream.last_write_at
        if quiet_s >= (patience.heartbeat_s if downstream.is_started else patience.commit_s):
            self._beat()
        target = self._calls.current
        if self._left_at and target is not None and now - self._left_at > target.provider.hangup.drain_s:
            self._interrupt(CLIENT_LEFT)
            return
        upstream = self._upstream
        if upstream is None:
            return
        provider = upstream.target.provider
        timeouts = provider.timeouts
        if now - self._turnstile.awake_at > timeouts.idle_s or now - self._started_at > timeouts.total_s:
            self._interrupt(failed(ProviderTimeout("The provider stopped sending.", provider=provider.name)))

    def _beat(self) -> None:
        if not self._request.stream or self._downstream.is_finished:
            return
        encoder = self._encoder or self._new_encoder(None)  # not kept: nobody knows yet in which format it will answer
        if encoder.heartbeat:
            if self._calls.current is not None:
                self._warn(self._calls.current)  # the status line goes out ahead of the answer
            self._services.tasks.start(self._downstream.beat(encoder.heartbeat, encoder.headers), "heartbeat")

    def drain(self) -> None:
        """The process stops and the grace is over."""
        error = ServiceUnavailable("The gateway is stopping; send the request again.", code=ErrorCode.DRAINING)
        self._interrupt(failed(error))

    def revoke(self, name: str) -> None:
        """An account was suspended, a key revoked, a stream stopped: the answer ends here if it was this one's."""
        caller = self._caller
        if name == f"{STREAM_PREFIX}{self._reservation.stream.sid}":
            self._services.tasks.start(self._stop(), "stop")
        elif name == caller.account or (name == caller.subject and caller.method == "api_key"):
            self._interrupt(REVOKED)

    async def _stop(self) -> None:
        """The caller wants no more of it; that makes nothing free which leaving would not."""
        target, cut = self._calls.current, STOPPED_BY_CALLER.cut
        if target is not None and target.is_drained and cut is not None and not self._downstream.is_finished:
            encoder = self._encoder_for(None)
            await self._downstream.finish(encoder.cut(cut, self._meter.counted), encoder.headers)
        if not self._read_on():
            self._interrupt(STOPPED_BY_CALLER)

    def _interrupt(self, ending: Ending) -> None:
        if self._interruption is None:
            self._interruption = ending
            self._cancel_relay()

    def _cancel_relay(self) -> None:
        if self._relaying is not None:
            self._cancels += 1
            self._relaying.cancel()

    # The end.

    async def _say_last_words(self, ending: Ending) -> None:
        """Tell the client about an error: as an HTTP answer while nothing was sent, within the stream after that."""
        if ending is CLIENT_STALLED:
            await self._hang_up()
        if (ending.error is None and ending.cut is None) or self._downstream.is_finished:
            return
        with move_on_after(_LAST_WORDS_S) as patience:
            if ending.cut is not None:
                encoder = self._encoder_for(None)
                await self._downstream.finish(encoder.cut(ending.cut, self._meter.counted), encoder.headers)
            elif ending.error is not None and not self._downstream.is_started:
                ending.error.request_id = self._request_id
                await self._downstream.reply(self._protocol.encode_error(ending.error))
            elif ending.error is not None:
                encoder = self._encoder_for(None)
                await self._downstream.finish(encoder.fail(ending.error), encoder.headers)
        if patience.cancelled_caught:
            await self._hang_up()

    async def _hang_up(self) -> None:
        """Reset the connection, and wait until the server has noticed, or it takes us for having forgotten the rest."""
        self._downstream.abort()
        with move_on_after(_LAST_WORDS_S):
            await self._gone.wait()

    async def _close_upstream(self, ending: Ending) -> None:
        """Hang up; after a whole answer the provider may take the connection back first, to be used again."""
        if self._upstream is None:
            return
        if self._is_whole:
            await anext(self._upstream.batches, None)
        elif isinstance(ending.error, ProviderError):
            self._upstream.broke(ending.error)
            self._services.telemetry.stream_broke(self._request_id, self._upstream.target.name, ending.error)
        await self._upstream.aclose()

    def _settle(self, ending: Ending) -> None:
        """Post what the exchange cost. Awaits nothing, since the frame may be dying."""
        self._price_by(self._calls.current)
        due = owed(ending, self._course(ending), self._meter)
        bill, meter, admitted = due.bill, self._meter, self._admitted
        first_event_s = self._first_event_at - self._started_at if self._first_event_at else None
        if due.refund and self._upstream is not None:
            self._calls.was_in_vain(self._upstream, ending.reason, meter.bill(complete=False))
        for number, attempt in enumerate(self._calls.failed):
            self._services.telemetry.attempt_failed(self._request_id, attempt, self._calls.causes.get(number))
        record = self._facts(
            target=self._calls.target_name,
            outcome=ending.outcome.value,
            reason=ending.reason,
            input_tokens=bill.usage.input,
            output_tokens=bill.usage.output,
            cache_read_tokens=bill.usage.cache_read,
            cache_write_tokens=bill.usage.cache_write,
            reasoning_tokens=bill.usage.reasoning,
            counted_output=meter.output,
            reported_output=meter.reported.output if meter.reported is not None else 0,
            estimated=bill.estimated,
            held=self._reservation.held,
            cost=bill.cost_microusd,
            first_token_ms=round((first_event_s or 0) * 1000, 1),
            duration_ms=int((time.monotonic() - self._started_at) * 1000),
            attempts=len(self._calls.failed) + (self._calls.current is not None),
            failed=tuple(self._calls.failed),
            variant=admitted.tier.variant,
            abuse=admitted.abuse or self._conduct.found,
            shadowed=admitted.shadowed,
        )
        self._reservation.settle(
            Posting(
                actual=bill.cost_microusd,
                outcome=record.outcome,
                tokens=bill.usage.total,
                refund=due.refund,
                usage=msgspec.json.encode(record),
            )
        )
        self._services.telemetry.exchange_ended(self._caller, record, first_event_s)
        self._services.statistics.ended(self._caller.account, record)
        reported = meter.reported_as_sent
        if reported is not None and self._is_whole:
            self._services.statistics.drift(record.target, meter.output, reported)
            self._services.telemetry.drifted(record.target, meter.output, reported)

    def _course(self, ending: Ending) -> Course:
        """How far it came; a whole answer is sent at the end or not at all."""
        target = self._calls.current
        has_left = ending in (CLIENT_LEFT, CLIENT_STALLED)
        return Course(
            was_read=self._upstream is not None or (has_left and target is not None),
            is_shown=self._meter.output > 0 and self._request.stream,
            is_whole=self._is_whole and ending.outcome in (Outcome.COMPLETE, Outcome.CANCELLED, Outcome.CUT),
            hangup=target.provider.hangup if target is not None else Hangup(),
            left_with=self._left_with,
        )
