"""What all gateways together may ask of one deployment: so much a minute, so many at once.

A provider's own limit counts per key and region, whoever asks. Where the operator names it, each call takes its part in
Redis before it is made; a deployment that is full is passed over, with the time until it is not. A minute is any
minute: a bucket, which fills up while it is emptied, would allow twice its limit in one.
"""

import math
from functools import partial
from typing import TypeAlias

import msgspec

from gateway.limits import keys
from gateway.limits.allowances import Allowances
from gateway.limits.redis import StoreUnavailable, forget_result, retrying
from gateway.limits.reservation import TOUCH_S, Reservation
from gateway.limits.scripts import Scripts, Share
from gateway.limits.tiers import BucketRule, Rule, WindowRule, shared_allowances

_BUDGET_S = 1.0
_NEVER_FITS = -7

_Limits: TypeAlias = dict[str, tuple[keys.Owner, Allowances]]


class Full(msgspec.Struct, frozen=True):
    """There is no room, and for how long; infinite where there never is for so many tokens."""

    for_s: float


class DeploymentCapacity:
    """The limits of deployments, by ``provider/model``; those it does not know have none."""

    def __init__(self, scripts: Scripts, rules: dict[str, tuple[Rule, ...]]) -> None:
        self._scripts = scripts
        self._limits: _Limits = {}
        self.follow(rules)

    def follow(self, rules: dict[str, tuple[Rule, ...]]) -> None:
        """Keep to other limits; a gate that was opened keeps its own."""
        owners = {name: keys.capacity(f"deployment.{keys.digest(name)}") for name in rules}
        self._limits = {
            name: (owners[name], shared_allowances(owners[name], [_rolling(rule) for rule in group]))
            for name, group in rules.items()
        }

    def gate(self, reservation: Reservation, tokens: int) -> "Gate":
        """What one exchange passes on its way to a deployment; ``tokens`` is what it is thought to use."""
        return Gate(self._scripts, self._limits, reservation, tokens)


class Gate:
    """One exchange's way to deployments. What it took is given back when the exchange is settled."""

    __slots__ = ("_limits", "_reservation", "_scripts", "_tokens")

    def __init__(self, scripts: Scripts, limits: _Limits, reservation: Reservation, tokens: int) -> None:
        self._scripts = scripts
        self._limits = limits
        self._reservation = reservation
        self._tokens = tokens

    async def take(self, name: str) -> Full | None:
        """Take one call's part of a deployment; ``None`` where there was room, or nobody can say."""
        if name not in self._limits:
            return None
        share = self._share(name)
        nonce = self._reservation.stream.nonce
        try:
            reply = await retrying(partial(self._scripts.cap, share, "acquire", nonce), _BUDGET_S)
        except StoreUnavailable:
            return None
        except BaseException:
            self._release(share, is_made=False)
            raise
        if reply.code < 0:
            return Full(math.inf if reply.code == _NEVER_FITS else reply.retry_after_ms / 1000)
        self._reservation.shares += (share,)
        return None

    def failed(self, name: str) -> None:
        """The call that was taken for came to nothing: it counts as a request, and its tokens come back."""
        if name not in self._limits:
            return
        share, taken = self._share(name), self._reservation.shares
        if share in taken:
            self._reservation.shares = tuple(other for other in taken if other != share)
            self._release(share, is_made=True)

    def _share(self, name: str) -> Share:
        owner, allowances = self._limits[name]
        return Share(owner=owner, allowances=allowances, estimate=self._tokens, lease_ms=int(TOUCH_S * 3000))

    def _release(self, share: Share, *, is_made: bool) -> None:
        nonce = self._reservation.stream.nonce
        forget_result(self._scripts.cap(share, "release", nonce, refund=not is_made))


def _rolling(rule: Rule) -> Rule:
    if not isinstance(rule, BucketRule):
        return rule
    return WindowRule(per=rule.per, unit=rule.unit, limit=rule.limit, rolling_ms=rule.period_ms)
