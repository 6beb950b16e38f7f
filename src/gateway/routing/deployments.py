"""What this process knows of each deployment: how busy, how fast, how healthy it is."""

import time
from collections.abc import Collection

import msgspec

from gateway.routing.breaker import Breaker, BreakerRules
from gateway.routing.first_words import FirstWords
from gateway.routing.retries import RetryBudget, RetryRules

# The weight of a new sample in the time to the first event; older ones fade.
_SMOOTHING = 0.2
# A deployment that was slow once is looked at again after a while, or it would never be asked again.
_FORGET_S = 60.0
_DEPLOYMENTS_MAX = 4_096


class DeploymentRules(msgspec.Struct, frozen=True, kw_only=True):
    """How all deployments are treated."""

    breaker: BreakerRules = BreakerRules()
    retries: RetryRules = RetryRules()


class Deployment:
    """One model of one provider."""

    __slots__ = (
        "_cool_until",
        "_first_event_at",
        "_first_event_s",
        "breaker",
        "budget",
        "first_words",
        "in_flight",
        "name",
    )

    def __init__(self, name: str, rules: DeploymentRules) -> None:
        self.name = name
        self.breaker = Breaker(rules.breaker)
        self.budget = RetryBudget(rules.retries)
        self.first_words = FirstWords()
        self.in_flight = 0
        self._cool_until = 0.0
        self._first_event_s = 0.0
        self._first_event_at = 0.0

    @property
    def ready_at(self) -> float:
        """From when on it may be asked: it neither fails nor is at its own limit, as far as is known."""
        cool, sick = self._cool_until, self.breaker.ready_at
        return cool if cool > sick else sick

    @property
    def rests_until(self) -> float:
        """The same, without the time for which a probe that runs keeps others away."""
        return self.ready_at if self.breaker.state == "open" else self._cool_until

    def latency_s(self, now: float) -> float:
        """The time to its first event, a decaying average in seconds; 0 where it is not known or long ago."""
        return self._first_event_s if now - self._first_event_at < _FORGET_S else 0.0

    def follow(self, rules: DeploymentRules) -> None:
        """Treat it by other rules."""
        self.breaker.rules = rules.breaker
        self.budget.rules = rules.retries

    def begin(self, now: float) -> None:
        """It is asked."""
        self.in_flight += 1
        self.breaker.begin(now)

    def end(self) -> None:
        """The call is over, however it ended."""
        self.in_flight -= 1

    def began_to_answer(self, after_s: float, now: float) -> None:
        """Its first event came."""
        known_s = self.latency_s(now)
        self._first_event_s = after_s if not known_s else known_s + _SMOOTHING * (after_s - known_s)
        self._first_event_at = now
        self.breaker.succeeded(now)

    def used_up(self, for_s: float) -> None:
        """It answered, and said that this was the last for so long."""
        self.cool_down(for_s, time.monotonic())

    def cool_down(self, for_s: float, now: float) -> None:
        """Its provider said that a limit is reached, and for how long."""
        self._cool_until = max(self._cool_until, now + for_s)


class Deployments:
    """Every deployment that was asked for, by ``provider/model``."""

    def __init__(self, rules: DeploymentRules | None = None) -> None:
        self.rules = rules or DeploymentRules()
        self._known: dict[str, Deployment] = {}

    def of(self, name: str) -> Deployment:
        """The deployment of a name; one nobody asked for lately may be forgotten."""
        known = self._known.get(name)
        if known is None:
            if len(self._known) >= _DEPLOYMENTS_MAX:
                self._forget_idle()
            known = self._known[name] = Deployment(name, self.rules)
        return known

    def follow(self, rules: DeploymentRules, *, gone: Collection[str]) -> None:
        """Treat them by other rules, and forget those of the providers that are ``gone`` or became others."""
        self.rules = rules
        self._known = {name: it for name, it in self._known.items() if name.partition("/")[0] not in gone}
        for it in self._known.values():
            it.follow(rules)

    def sick(self, now: float) -> dict[str, float]:
        """Those that are left alone, and for how much longer, in seconds."""
        return {name: it.rests_until - now for name, it in self._known.items() if it.rests_until > now}

    def hear(self, name: str, open_for_s: float) -> None:
        """Another replica leaves it alone for so long."""
        self.of(name).breaker.hear(open_for_s, time.monotonic())

    def _forget_idle(self) -> None:
        now = time.monotonic()
        self._known = {name: it for name, it in self._known.items() if it.in_flight or it.ready_at > now}
