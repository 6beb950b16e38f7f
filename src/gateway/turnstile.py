"""Where a batch of frames becomes bytes for the client: none passes that is not paid for, nor faster than allowed.

Most batches pass in one piece, and most of these without waking anybody. One that the hold does not cover, or that the
tier's rules have something to say about, passes frame by frame, and each waits for its turn.
"""

import asyncio
import time

from gateway.canonical.events import Batch, Frame
from gateway.conduct import Conduct, budget_notice
from gateway.downstream import Downstream
from gateway.endings import Ending, cut_for, cut_off
from gateway.entrance import Admitted
from gateway.guard import Guard
from gateway.live import LiveExchanges
from gateway.metering.meter import Meter
from gateway.protocols.wire import Cut, Encoder

_FIRST_BUDGET_MARK = 800


class Turnstile:
    """One exchange's frames on their way out."""

    __slots__ = (
        "_admitted",
        "_clock",
        "_conduct",
        "_downstream",
        "_has_rules",
        "_meter",
        "_reservation",
        "_tell_budget_at",
        "awake_at",
    )

    def __init__(
        self, admitted: Admitted, meter: Meter, conduct: Conduct, downstream: Downstream, clock: LiveExchanges
    ) -> None:
        """``awake_at`` is when something last came from the provider or was waited for on purpose, monotonic."""
        self._admitted = admitted
        self._reservation = admitted.reservation
        self._meter = meter
        self._conduct = conduct
        self._downstream = downstream
        self._clock = clock
        self._has_rules = conduct.is_needed
        self._tell_budget_at = _FIRST_BUDGET_MARK
        self.awake_at = clock.now

    def let_through(self, frames: list[Frame], encoder: Encoder) -> bytes | None:
        """These frames as bytes, paid for; ``None``, and nothing done, where they have to pass one by one."""
        if self._has_rules:
            return None
        meter, reservation = self._meter, self._reservation
        tokens = meter.weigh_all(frames)
        cost = meter.cost_with(tokens)
        if not reservation.covers(cost):
            return None
        reservation.use(cost)
        meter.output += tokens
        reservation.tokens = meter.input + meter.output
        if len(frames) == 1:
            payload = encoder.encode(frames[0])
        else:
            payload = b"".join([encoder.encode(frame) for frame in frames])
        if reservation.used_permille >= self._tell_budget_at:
            payload = self._tell_budget(encoder) + payload
        return payload

    def pass_on(self, guard: Guard, encoder: Encoder, batch: Batch) -> bool:
        """Send a batch of mere text where it arrives; ``False``, and nothing done, if there is more to think of."""
        downstream = self._downstream
        if not downstream.is_free or not guard.is_mere_text(batch.frames):
            return False
        payload = self.let_through(batch.frames, encoder)
        if payload is None:
            return False
        self.awake_at = self._clock.now
        if payload:
            downstream.push(payload, encoder.headers)
        self._reservation.keep_ahead()
        return True

    async def one_by_one(
        self, frames: list[Frame], encoder: Encoder, ending: Ending | None
    ) -> tuple[bytes, Ending | None]:
        """What of these frames may be sent, and the ending where it holds one; ``ending`` follows the last of them."""
        meter, reservation = self._meter, self._reservation
        out: list[bytes] = []
        for frame in frames:
            tokens = meter.weigh(frame)
            cost = meter.cost_with(tokens)
            if not reservation.covers(cost):
                await self._flush(out, encoder)
                shortfall = await reservation.cover(cost)
                if shortfall is not None:
                    cut, cut_ending = cut_for(shortfall)
                    return encoder.cut(cut, meter.counted), cut_ending
            reservation.use(cost)
            meter.forwarded(tokens)
            reservation.tokens = meter.input + meter.output
            if reservation.used_permille >= self._tell_budget_at:
                out.append(self._tell_budget(encoder))
            out.append(encoder.encode(frame))
            rule = await self._follow_rules(frame, tokens, out, encoder) if self._has_rules else None
            if rule is not None:
                return b"".join(out) + encoder.cut(rule, meter.counted), cut_off(rule)
        return b"".join(out), ending

    async def _flush(self, out: list[bytes], encoder: Encoder) -> None:
        if sendable := b"".join(out):
            await self._downstream.write(sendable, encoder.headers)
        out.clear()

    async def _follow_rules(self, frame: Frame, tokens: int, out: list[bytes], encoder: Encoder) -> Cut | None:
        """The tier's rules for running streams: notices, slower, or the end, of which the reason is returned."""
        conduct = self._conduct
        if conduct.is_waived:
            return None
        verdict = conduct.judge((frame,), tokens, self._meter.tokens, time.monotonic())
        out += [encoder.notice(notice) for notice in verdict.notices]
        if verdict.cut is not None:
            return verdict.cut
        pause_s = conduct.pause_s(time.monotonic())
        if pause_s > 0:
            await self._flush(out, encoder)
        while pause_s > 0:
            await asyncio.sleep(pause_s)
            self.awake_at = self._clock.now
            pause_s = conduct.pause_s(time.monotonic())
        return None

    def _tell_budget(self, encoder: Encoder) -> bytes:
        reservation = self._reservation
        index, permille = reservation.used_index, reservation.used_permille
        limit = self._admitted.allowances.at(index).name if index else ""
        notice, self._tell_budget_at = budget_notice(permille, limit)
        return encoder.notice(notice)
