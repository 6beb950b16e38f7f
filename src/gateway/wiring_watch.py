"""From configuration to what watches the limits: experiments and alerts. Part of the composition root.

``check_experiments`` finds what only shows when experiments are put side by side, and tells it as a ``ConfigError``.
"""

from decimal import Decimal
from itertools import combinations

from gateway.alerts import Alerts, Thresholds, Webhook
from gateway.config import (
    AlertsConfig,
    Config,
    ConfigError,
    ExperimentConfig,
    RequestsConfig,
    TokensConfig,
    VariantConfig,
)
from gateway.experiments import Experiment, Experiments, Rate, Variant
from gateway.limits.redis import Redis
from gateway.statistics import Statistics

# The tier everybody is in who has no other; it need not be in the configuration.
_DEFAULT_TIER = "default"


def check_experiments(config: Config) -> None:
    """Raises ``ConfigError`` where shares, times or tiers do not fit together."""
    for name, experiment in config.experiments.items():
        _check_experiment(name, experiment, {*config.tiers, _DEFAULT_TIER})
    for (name, one), (other_name, other) in combinations(config.experiments.items(), 2):
        if one.tier == other.tier and one.start < other.end and other.start < one.end:
            raise ConfigError(
                f"experiments.{other_name}: it would run at the same time as {name} in the tier {one.tier}; "
                "an account can only be in one, so let them follow each other"
            )


def _check_experiment(name: str, experiment: ExperimentConfig, tiers: set[str]) -> None:
    where = f"experiments.{name}"
    if experiment.tier not in tiers:
        raise ConfigError(f"{where}: there is no tier {experiment.tier!r}; there are {', '.join(sorted(tiers))}")
    if experiment.end <= experiment.start:
        raise ConfigError(f"{where}: the end must be later than the start")
    total = sum(variant.share for variant in experiment.variants.values())
    if total > 100:
        raise ConfigError(f"{where}: the shares of the variants add up to {total}; 100 is all there is")


def experiments(config: Config) -> Experiments:
    """The experiments of the configuration; raises ``ConfigError``."""
    check_experiments(config)
    return Experiments([_experiment(name, experiment) for name, experiment in config.experiments.items()])


def _experiment(name: str, config: ExperimentConfig) -> Experiment:
    return Experiment(
        name=name,
        tier=config.tier,
        start_s=config.start.timestamp(),
        end_s=config.end.timestamp(),
        variants=tuple(_variant(f"{name}/{arm}", variant) for arm, variant in config.variants.items()),
    )


def _variant(name: str, config: VariantConfig) -> Variant:
    return Variant(
        name=name,
        share=config.share,
        requests=_rate(config.requests),
        tokens=_rate(config.tokens),
        concurrent_streams=config.concurrent_streams,
        tokens_per_request=config.tokens_per_request,
    )


def _rate(config: RequestsConfig | TokensConfig | None) -> Rate | None:
    if config is None:
        return None
    return Rate(limit=config.limit, period_ms=int(config.period_s * 1000), burst=config.burst or config.limit)


def alerts_from(config: AlertsConfig, statistics: Statistics, redis: Redis, gateway: str) -> Alerts:
    """What tells the operator; ``gateway`` is this process's name in an alert. Raises ``ConfigError``."""
    thresholds = Thresholds(
        cost_per_hour=_microusd(config.cost_usd_per_hour),
        error_share=config.error_share,
        refused_share=config.refused_share,
        abuse_share=config.abuse_share,
        drift_share=config.drift_share,
        absorbed=_microusd(config.absorbed_usd),
        requests_min=config.requests_min,
        repeat_s=config.repeat_s,
    )
    webhook = None
    if config.webhook is not None:
        try:
            webhook = Webhook(config.webhook.url, config.webhook.secret)
        except ValueError as error:
            raise ConfigError(f"alerts.webhook.url: {error}") from None
    return Alerts(statistics, thresholds, redis, webhook, gateway=gateway)


def _microusd(usd: Decimal | None) -> int | None:
    return None if usd is None else int(usd * 1_000_000)
