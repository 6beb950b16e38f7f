"""What watches the traffic and scales it: statistics, experiments, load, trust, alerts.

Part of the composition root.
"""

from collections.abc import Callable

from gateway.config import Config
from gateway.entitlements import Entitlements
from gateway.limits.accounts import Accounts
from gateway.limits.load import Gauges, Latency, Local, LoopLag
from gateway.limits.redis import Redis
from gateway.limits.strategies import BaseLimit, BaseLimits, LimitsExplanation
from gateway.limits.tallies import Tallies
from gateway.limits.tiers import BucketRule, Rule, SlotsRule, Tier, WindowRule
from gateway.limits.trust import Trust
from gateway.statistics import Statistics
from gateway.tasks import TaskOwner
from gateway.wiring import tiers, variants
from gateway.wiring_watch import alerts_from, experiments


class Watch:
    """Builds and runs everything that looks at traffic as a whole."""

    def __init__(
        self, config: Config, redis: Redis, accounts: Accounts, load: Callable[[], tuple[int, int]], *, gateway: str
    ) -> None:
        """``load`` tells streams and capacity of this process, ``gateway`` names it among the others."""
        self._redis = redis
        self._gateway = gateway
        self._accounts = accounts
        self._read_load = load
        self.tiers = tiers(config)
        self.tallies = Tallies(redis)
        self.statistics = Statistics(self.tallies)
        self.experiments = experiments(config)
        self.lag = LoopLag()
        self.latency = Latency()
        self.gauges = Gauges(redis, gateway, self._local)
        trust = Trust(redis)
        self.entitlements = Entitlements(
            self.tiers, variants(config), accounts, experiments=self.experiments, gauges=self.gauges, trust=trust
        )
        self.explanation = LimitsExplanation(self.gauges, trust, self._base)
        self._alerts = alerts_from(config.alerts, self.statistics, redis, gateway)

    def _local(self) -> Local:
        streams, capacity = self._read_load()
        return Local(
            streams=streams,
            capacity=capacity,
            lag_ms=self.lag.p99_ms,
            upstream_ms=self.latency.p50_ms,
            upstream_ratio=self.latency.ratio,
        )

    def prepare(self, before: Config, after: Config) -> Callable[[], None]:
        """Make what another configuration comes to; the function puts it to use. Raises ``ConfigError``."""
        known, compared = tiers(after), experiments(after)
        entitlements = self.entitlements.under(known, variants(after), compared)
        is_same = after.alerts == before.alerts
        alerts = self._alerts if is_same else alerts_from(after.alerts, self.statistics, self._redis, self._gateway)

        def adopt() -> None:
            self.tiers, self.experiments, self.entitlements = known, compared, entitlements
            if alerts is not self._alerts:
                self._alerts.retire()
                self._alerts = alerts
                self._tasks.start(alerts.run(), "alerts")

        return adopt

    def start(self, tasks: TaskOwner) -> None:
        """Start what runs for as long as the process does."""
        self._tasks = tasks
        tasks.start(self.lag.run(), "loop-lag")
        tasks.start(self.gauges.run(), "gauges")
        tasks.start(self.tallies.run(), "tallies")
        tasks.start(self._alerts.run(), "alerts")

    async def aclose(self) -> None:
        """Tell what was counted last."""
        await self.tallies.flush()

    async def _base(self, account: str) -> BaseLimits | None:
        """An account's limits as they are configured, for the explanation of what they are now."""
        known = await self._accounts.get(account)
        if known is None:
            return None
        tier = self.entitlements.tier(known.tier, account)
        return BaseLimits(
            tier=tier.name,
            strategy=tier.strategy,
            variant=tier.variant or None,
            limits=tuple(base_limits(tier)),
        )


def base_limits(tier: Tier) -> list[BaseLimit]:
    """Every limit of a tier in the words of the admin API."""
    found = [_base_limit(rule) for rule in tier.rules]
    if tier.tokens_per_request is not None:
        most = tier.tokens_per_request
        found.append(
            BaseLimit(name="request.tokens", unit="tokens", limit=most, burst=None, period_s=None, is_scaled=False)
        )
    return found


def _base_limit(rule: Rule) -> BaseLimit:
    mode = ".shadow" if rule.is_shadow else ""
    match rule:
        case BucketRule():
            unit = rule.unit.name.lower()
            return BaseLimit(
                name=f"{rule.per}.{unit}{mode}",
                unit=unit,
                limit=rule.limit,
                burst=rule.burst,
                period_s=rule.period_ms / 1000,
                is_scaled=True,
            )
        case WindowRule():
            unit = "microusd" if rule.unit.name == "MONEY" else rule.unit.name.lower()
            window = rule.calendar.period if rule.calendar is not None else "rolling"
            return BaseLimit(
                name=f"{rule.per}.{unit}.{window}{mode}",
                unit=unit,
                limit=rule.limit,
                burst=None,
                period_s=rule.rolling_ms / 1000 or None,
                is_scaled=False,
            )
        case SlotsRule():
            return BaseLimit(
                name=f"{rule.per}.streams{mode}",
                unit="streams",
                limit=rule.max,
                burst=None,
                period_s=None,
                is_scaled=True,
            )
        case _:
            raise AssertionError(f"no such rule: {rule}")
