"""A share of requests, asked of another model too, unseen by their clients and at an operator's expense.

A mirror is an exchange of its own: admitted, held, metered and settled like any other, for another account, with
nobody who reads it. It begins when the mirrored one was admitted and knows nothing of it afterwards, so neither can
change how the other ends.
"""

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import msgspec

from gateway.canonical.caller import Caller
from gateway.canonical.errors import GatewayError
from gateway.canonical.events import Frame
from gateway.canonical.request import Request
from gateway.canonical.usage import Usage
from gateway.downstream import Downstream
from gateway.endings import Ending
from gateway.entrance import Admitted
from gateway.exchange import Exchange
from gateway.ledger import UsageRecord
from gateway.protocols.wire import Allowance, Cut, Headers, Notice, Reply, StreamMeta
from gateway.services import Services, Wishes

MIRROR = "mirror"
# By then the mirrored request is at its provider, and what the mirror costs in work does not stand in its way.
_HEAD_START_S = 0.05


class MirroredExchange(Exchange):
    """An exchange that a mirror may follow."""

    def _begin(self, admitted: Admitted) -> None:
        super()._begin(admitted)
        services, name = self._services, self._request.model
        rule = services.entrance.router.mirrors.get(name)
        if rule is not None and services.mirrors.take(name, rule):
            request = msgspec.structs.replace(self._request, model=rule.to)
            new = partial(Mirror, services, self._protocol.name, request, rule.account, mirror_of=self._request_id)
            services.tasks.start(_run(new, services, name), "mirror")


class Mirror(Exchange):
    """The same request on its way to another model. ``result`` is what became of it."""

    def __init__(self, services: Services, protocol: str, request: Request, account: str, *, mirror_of: str) -> None:
        """``account`` pays, and its tier's limits hold; ``mirror_of`` is the id of the mirrored request."""
        caller = Caller(account=account, subject=MIRROR, method=MIRROR)
        super().__init__(services, _SilentRole(protocol), request, caller, f"{mirror_of}-{MIRROR}", Wishes())
        self._mirror_of = mirror_of
        self.result = "failed"

    def _facts(self, **known: Any) -> UsageRecord:
        return super()._facts(mirror_of=self._mirror_of, **known)

    async def _refuse(self, error: GatewayError) -> None:
        self.result = "refused"
        await super()._refuse(error)

    def _settle(self, ending: Ending) -> None:
        self.result = ending.outcome.value
        super()._settle(ending)


async def _run(new: Callable[[], Mirror], services: Services, name: str) -> None:
    """A drain waits for it, as for a request that somebody reads. The head start is no part of its times."""
    mirror: Mirror | None = None
    with services.live.arriving():
        try:
            await asyncio.sleep(_HEAD_START_S)
            if not services.live.is_draining:
                mirror = new()
                await mirror.run(_stay, Downstream(_drop, (), _reset))
        finally:
            services.mirrors.leave(name, "skipped" if mirror is None else mirror.result)


class _Silence:
    """The encoder of an answer that goes nowhere."""

    headers: Headers = ()
    heartbeat = b""

    def encode(self, frame: Frame) -> bytes:
        return b""

    def notice(self, notice: Notice) -> bytes:
        return b""

    def end(self, usage: Usage) -> bytes:
        return b""

    def cut(self, cut: Cut, usage: Usage) -> bytes:
        return b""

    def fail(self, error: GatewayError) -> bytes:
        return b""


_SILENCE = _Silence()


class _SilentRole:
    """The mirrored request's protocol by name, for limits and records, with nothing to say."""

    def __init__(self, name: str) -> None:
        self.name = name

    def decode_request(self, body: bytes, query: Mapping[str, str]) -> Request:
        raise NotImplementedError

    def encoder(self, request: Request, meta: StreamMeta) -> _Silence:
        return _SILENCE

    def encode_error(self, error: GatewayError) -> Reply:
        return Reply(503, (), b"")

    def rate_headers(self, standing: list[Allowance]) -> Headers:
        return ()


async def _stay() -> Any:
    """Nobody is there who could leave."""
    await asyncio.Event().wait()


async def _drop(message: Any) -> None:
    """Nobody is there to be told."""


def _reset() -> None:
    """There is no connection."""
