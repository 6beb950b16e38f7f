"""What happened, as counters that all replicas share: the last hour, experiments, and each account's history.

Every method that counts is called on the hot path and only adds to ``Tallies``. Requests include the refused ones
everywhere. The names of the fields are part of the keys (``limits.keys``): alerts, experiments and trust read them.
"""

import time
from collections.abc import Callable

import msgspec

from gateway.canonical.errors import ErrorCode
from gateway.ledger import UsageRecord
from gateway.limits import keys
from gateway.limits.tallies import Tallies

_MINUTES = 60
_STAT_TTL_S = 2 * 3600
_EXPERIMENT_TTL_S = 400 * 86_400
_HISTORY_DAYS = 60
_HISTORY_TTL_S = _HISTORY_DAYS * 86_400
_HISTORY_FIELDS = ("requests", "refused", "strikes", "spent")
_DAY_S = 86_400
_TARGETS_MAX = 100
_ACCOUNTS_MAX = 100_000

_FAILED = frozenset(("failed", "truncated"))
# A failure that the client's own request caused, or our own stop, says nothing about how well we serve.
_NO_FAILURE = frozenset((ErrorCode.PROVIDER_REJECTED.value, ErrorCode.MODEL_NOT_FOUND.value, ErrorCode.DRAINING.value))
# Our own trouble: it says nothing about the account that was turned away.
_NOT_THE_ACCOUNT = frozenset(
    (
        ErrorCode.CREDIT_STORE_UNAVAILABLE.value,
        ErrorCode.IDENTITY_UNAVAILABLE.value,
        ErrorCode.DRAINING.value,
        ErrorCode.INTERNAL_ERROR.value,
    )
)


class Drift(msgspec.Struct, frozen=True):
    """Output tokens of one target, by our count and by the provider's."""

    counted: int = 0
    reported: int = 0


class Hour(msgspec.Struct, frozen=True, kw_only=True):
    """What all gateways saw in the last hour. ``requests`` include the refused ones; amounts in µ$."""

    requests: int = 0
    failed: int = 0
    refused: int = 0
    abuse: int = 0
    cost: int = 0
    absorbed: int = 0
    counted: int = 0
    reported: int = 0
    targets: dict[str, Drift] = {}

    @property
    def ran(self) -> int:
        """Requests that were not refused."""
        return self.requests - self.refused


class Statistics:
    """Counts. ``clock`` is Unix time in seconds."""

    def __init__(self, tallies: Tallies, clock: Callable[[], float] = time.time) -> None:
        self._tallies = tallies
        self._clock = clock
        self._minute = -1
        self._stat = ""
        self._day = -1
        self._stale: tuple[str, ...] = ()
        self._pruned: set[str] = set()
        self._targets: set[str] = set()

    def ended(self, account: str, record: UsageRecord) -> None:
        """A request that ran came to its end."""
        add, stat = self._tallies.add, self._stat_now()
        is_failure = record.outcome in _FAILED and record.reason not in _NO_FAILURE
        add(stat, "requests", 1, ttl_s=_STAT_TTL_S)
        add(stat, "cost", record.cost, ttl_s=_STAT_TTL_S)
        if is_failure:
            add(stat, "failed", 1, ttl_s=_STAT_TTL_S)
        if record.abuse:
            add(stat, "abuse", 1, ttl_s=_STAT_TTL_S)
        self._remember(account, spent=record.cost, strikes=1 if record.abuse else 0)
        if record.variant:
            completed = 1 if record.outcome == "complete" else 0
            self._add_to_variant(
                record.variant,
                {
                    "requests": 1,
                    "completed": completed,
                    "failed": 1 if is_failure else 0,
                    "input_tokens": record.input_tokens,
                    "output_tokens": record.output_tokens,
                    "cost": record.cost,
                },
            )

    def refused(self, account: str, code: str, variant: str) -> None:
        """A request was turned away; ``variant`` is empty where the account takes part in no experiment."""
        stat = self._stat_now()
        self._tallies.add(stat, "requests", 1, ttl_s=_STAT_TTL_S)
        self._tallies.add(stat, "refused", 1, ttl_s=_STAT_TTL_S)
        is_abuse = code == ErrorCode.ABUSE_DETECTED.value
        if is_abuse:
            self._tallies.add(stat, "abuse", 1, ttl_s=_STAT_TTL_S)
        if code in _NOT_THE_ACCOUNT:
            return
        self._remember(account, refused=1, strikes=1 if is_abuse else 0)
        if variant:
            self._add_to_variant(variant, {"requests": 1, "refused": 1})

    def absorbed(self, account: str, microusd: int) -> None:
        """The account could not cover this much of a cost: it was not spent by the account after all."""
        if microusd:
            self._tallies.add(self._stat_now(), "absorbed", microusd, ttl_s=_STAT_TTL_S)
            day = int(self._clock()) // _DAY_S
            self._tallies.add(keys.history(account), f"{day}:spent", -microusd, ttl_s=_HISTORY_TTL_S)

    def drift(self, target: str, counted: int, reported: int) -> None:
        """Output tokens of one answer by our count and by the provider's."""
        stat = self._stat_now()
        label = self._label(target)
        for name, tokens in (("counted", counted), ("reported", reported)):
            self._tallies.add(stat, name, tokens, ttl_s=_STAT_TTL_S)
            self._tallies.add(stat, f"{name}:{label}", tokens, ttl_s=_STAT_TTL_S)

    def _label(self, target: str) -> str:
        """The target's own name while there are not too many, since some providers take any model's name."""
        if target not in self._targets:
            if len(self._targets) >= _TARGETS_MAX:
                return "other"
            self._targets.add(target)
        return target

    def _add_to_variant(self, variant: str, amounts: dict[str, int]) -> None:
        experiment, _, name = variant.partition("/")
        key = keys.experiment(experiment)
        for field, amount in amounts.items():
            if amount:
                self._tallies.add(key, f"{name}:{field}", amount, ttl_s=_EXPERIMENT_TTL_S)

    def _remember(self, account: str, *, spent: int = 0, refused: int = 0, strikes: int = 0) -> None:
        """One more request in the account's history."""
        day = int(self._clock()) // _DAY_S
        if day != self._day:
            self._day = day
            self._stale = _stale_fields(day)
            self._pruned.clear()
        key = keys.history(account)
        for name, amount in (("requests", 1), ("spent", spent), ("refused", refused), ("strikes", strikes)):
            if amount:
                self._tallies.add(key, f"{day}:{name}", amount, ttl_s=_HISTORY_TTL_S)
        if account not in self._pruned and len(self._pruned) < _ACCOUNTS_MAX:
            self._pruned.add(account)
            self._tallies.forget(key, self._stale)

    def _stat_now(self) -> str:
        minute = int(self._clock()) // 60
        if minute != self._minute:
            self._minute = minute
            self._stat = keys.stat(minute)
        return self._stat

    async def last_hour(self) -> Hour:
        """The sums of the last 60 minutes, as flushed so far. Raises ``StoreUnavailable``."""
        minute = int(self._clock()) // 60
        buckets = await self._tallies.read(*(keys.stat(minute - ago) for ago in range(_MINUTES)))
        sums: dict[str, int] = {}
        for bucket in buckets:
            for field, count in bucket.items():
                sums[field] = sums.get(field, 0) + count
        totals = {name: sums.get(name, 0) for name in Hour.__struct_fields__ if name != "targets"}
        return Hour(**totals, targets=_targets(sums))


def _stale_fields(day: int) -> tuple[str, ...]:
    """Fields of days that are no longer read. An account that was quiet for longer than this has no history at all."""
    days = range(day - 2 * _HISTORY_DAYS, day - _HISTORY_DAYS)
    return tuple(f"{old}:{name}" for old in days for name in _HISTORY_FIELDS)


def _targets(sums: dict[str, int]) -> dict[str, Drift]:
    names = {field.partition(":")[2] for field in sums if ":" in field}
    return {
        name: Drift(counted=sums.get(f"counted:{name}", 0), reported=sums.get(f"reported:{name}", 0)) for name in names
    }
