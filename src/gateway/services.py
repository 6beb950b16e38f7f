"""What every exchange works with, how patient it is, and what its client asked for beside the request."""

from collections.abc import Callable

import msgspec

from gateway.entrance import Entrance
from gateway.limits.deployment_capacity import DeploymentCapacity
from gateway.limits.tiers import Tier
from gateway.live import LiveExchanges
from gateway.routing.mirrors import Mirrors
from gateway.statistics import Statistics
from gateway.tasks import TaskOwner
from gateway.telemetry import Telemetry


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

    entrance: Entrance
    live: LiveExchanges
    telemetry: Telemetry
    statistics: Statistics
    tasks: TaskOwner
    capacity: DeploymentCapacity
    observe_latency: Callable[[float, str], None]
    patience: Patience = Patience()
    mirrors: Mirrors = msgspec.field(default_factory=Mirrors)

    def downgrade(self, account: str, tier: Tier) -> None:
        """Answer the account's next requests with its tier's cheaper model."""
        self.tasks.start(self.entrance.entitlements.downgrade(account, tier), "downgrade")

    def __post_init__(self) -> None:
        self.telemetry.registry.register(self.mirrors.results)


class Wishes(msgspec.Struct, frozen=True, kw_only=True):
    """What a client asks for in its headers. ``digest`` is of the request, where it names an idempotency key.

    ``resumable`` is ``None`` where it is left to the configuration. ``is_strict`` refuses a request of which something
    would be lost on its way to the provider.
    """

    idempotency_key: str = ""
    digest: str = ""
    notices: bool = False
    resumable: bool | None = None
    is_strict: bool = False
