"""`python -m benchmarks.routing`: what choosing among an alias's deployments costs, per request.

The router is built as the gateway builds it; nothing is called. Each figure is CPU time of this process, the median of
several rounds that take turns.
"""

import statistics
import time
from collections.abc import Sequence
from decimal import Decimal
from typing import cast

from gateway.config import Config, ModelConfig, PriceConfig, ProviderConfig, TargetConfig
from gateway.providers.transport import Transport
from gateway.routing.strategies import StrategyName
from gateway.wiring import router

BUDGET_US = 20.0
SIZES = (2, 10, 100)
STRATEGIES: Sequence[StrategyName] = ("priority", "weighted", "least_in_flight", "lowest_latency", "cheapest")
ROUNDS, CHOICES = 7, 2_000


def measure(size: int, strategy: StrategyName, *, is_sticky: bool) -> float:
    """CPU-µs per choice, including the look-up of the alias."""
    price = PriceConfig(input=Decimal(1), output=Decimal(2))
    providers = {f"p{n}": ProviderConfig(base_url="http://127.0.0.1:1/v1", price=price) for n in range(size)}
    targets = tuple(TargetConfig(model=f"{name}/m", weight=1 + n % 3) for n, name in enumerate(providers))
    alias = ModelConfig(targets=targets, strategy=strategy, sticky="account" if is_sticky else None)
    chooser = router(Config(providers=providers, models={"fast": alias}), cast(Transport, None))
    chooser.choose("fast", reasons=False, account="warm", chat_id="")
    begin = time.process_time()
    for number in range(CHOICES):
        chooser.choose("fast", reasons=False, account=f"account-{number % 50}", chat_id="")
    return (time.process_time() - begin) / CHOICES * 1e6


def main() -> None:
    """Print the table."""
    print("CPU-us per choice, median of rounds (best)\n")
    print("| strategy | " + " | ".join(f"{size} deployments" for size in SIZES) + " |")
    print("|---|" + "---|" * len(SIZES))
    worst = 0.0
    for name, strategy, is_sticky in (*((it, it, False) for it in STRATEGIES), ("sticky", "weighted", True)):
        cells = []
        for size in SIZES:
            samples = [measure(size, strategy, is_sticky=is_sticky) for _ in range(ROUNDS)]
            worst = max(worst, statistics.median(samples))
            cells.append(f"{statistics.median(samples):.1f} ({min(samples):.1f})")
        print(f"| {name} | " + " | ".join(cells) + " |")
    print(f"\nThe dearest is {worst:.1f}; the budget is {BUDGET_US:g}.")


if __name__ == "__main__":
    main()
