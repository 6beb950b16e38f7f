"""What applies to a caller right now: its tier, the arm of an experiment, the scale of its limits, a downgrade.

The account's own facts are a few seconds old at most. Where Redis does not answer, the last known ones hold; an account
nobody here has seen is not let in, since another tier may allow more than its own.
"""

import contextlib
import time
from collections.abc import Mapping

import msgspec

from gateway.canonical.caller import Caller
from gateway.canonical.errors import ErrorCode, PermissionDenied, ServiceUnavailable
from gateway.canonical.request import Request
from gateway.experiments import Experiments
from gateway.limits.accounts import Accounts, Standing
from gateway.limits.features import features_of
from gateway.limits.load import Gauges
from gateway.limits.redis import StoreUnavailable, retrying
from gateway.limits.strategies import AS_CONFIGURED, STRATEGIES
from gateway.limits.tiers import Tier
from gateway.limits.trust import Trust

DEFAULT_TIER = "default"

_STANDING_BUDGET_S = 2.0
_LAST_KNOWN_MAX = 10_000


class Entitlement(msgspec.Struct, frozen=True, kw_only=True):
    """What one request may do. ``model`` is the one that answers, which is another than asked after a downgrade."""

    tier: Tier
    permille: int
    model: str
    is_downgraded: bool = False


class Entitlements:
    """Knows every tier, and which of them is whose."""

    def __init__(
        self,
        tiers: Mapping[str, Tier],
        variants: Mapping[str, Tier],
        accounts: Accounts,
        *,
        experiments: Experiments,
        gauges: Gauges,
        trust: Trust,
    ) -> None:
        """``tiers`` has at least the default one; ``variants`` are tiers as the arms of experiments change them."""
        self._tiers = dict(tiers)
        self._variants = dict(variants)
        self._accounts = accounts
        self._experiments = experiments
        self._gauges = gauges
        self._trust = trust
        self._last_known: dict[str, Standing] = {}

    def under(
        self, tiers: Mapping[str, Tier], variants: Mapping[str, Tier], experiments: Experiments
    ) -> "Entitlements":
        """The same accounts under other tiers."""
        other = Entitlements(
            tiers, variants, self._accounts, experiments=experiments, gauges=self._gauges, trust=self._trust
        )
        other._last_known = self._last_known
        return other

    async def of(self, caller: Caller, model: str) -> Entitlement:
        """The caller's entitlement; raises ``PermissionDenied`` where it may not use the model at all.

        Raises ``ServiceUnavailable`` where Redis does not say which tier the account has, and never did.
        """
        if not caller.may_use(model):
            raise PermissionDenied("This credential does not allow the model.", code=ErrorCode.MODEL_NOT_ALLOWED)
        account = caller.account
        standing = await self._standing(caller)
        downgraded_to = standing.downgraded_to if standing.downgraded_until > time.time() else None
        tier = self.tier(caller.tier or standing.tier, account)
        if not tier.allows_model(model):
            raise PermissionDenied("This account's tier does not allow the model.", code=ErrorCode.MODEL_NOT_ALLOWED)
        return Entitlement(
            tier=tier,
            permille=await self.permille(tier, account),
            model=downgraded_to or model,
            is_downgraded=downgraded_to is not None and downgraded_to != model,
        )

    async def _standing(self, caller: Caller) -> Standing:
        account = caller.account
        last = self._last_known.get(account)
        if last is None and caller.tier is not None:
            last = Standing(tier=None)  # its credential says what matters
        try:
            if last is not None:
                standing = await self._accounts.standing(account)
            else:
                standing = await retrying(lambda: self._accounts.standing(account), _STANDING_BUDGET_S)
        except StoreUnavailable:
            if last is not None:
                return last
            raise ServiceUnavailable(
                "The account's limits cannot be checked at the moment; nothing was charged. Try again shortly.",
                retry_after_s=1,
            ) from None
        if len(self._last_known) >= _LAST_KNOWN_MAX and account not in self._last_known:
            self._last_known.clear()
        self._last_known[account] = standing
        return standing

    def tier(self, name: str | None, account: str) -> Tier:
        """The tier of this name (the default one for an unknown name), as the account's experiment changes it."""
        tier = self._tiers.get(name or DEFAULT_TIER) or self._tiers[DEFAULT_TIER]
        variant = self._experiments.variant_of(tier.name, account, time.time())
        return tier if variant is None else self._variants[variant.name]

    async def permille(self, tier: Tier, account: str) -> int:
        """How the tier's strategy scales the account's rates and slots, in thousandths."""
        if tier.strategy == "fixed":
            return AS_CONFIGURED
        standing = await self._trust.of(account)
        return STRATEGIES[tier.strategy].permille(self._gauges.factor, standing.factor)

    async def downgrade(self, account: str, tier: Tier) -> None:
        """Answer the account's next requests with the tier's cheaper model, for as long as the tier says."""
        flow = tier.flow
        if flow.downgrade_to is None:
            return
        # Where Redis does not answer the account keeps its model: not worth a request that was already let in.
        with contextlib.suppress(StoreUnavailable):
            await self._accounts.downgrade(account, flow.downgrade_to, time.time() + flow.downgrade_s)


def check_features(tier: Tier, request: Request, protocol: str) -> None:
    """Raises ``PermissionDenied`` where a request uses what its tier does not include."""
    if tier.endpoints is not None and protocol not in tier.endpoints:
        text = "This account's tier does not include this endpoint."
        raise PermissionDenied(text, code=ErrorCode.FEATURE_NOT_ALLOWED)
    if tier.features is None:
        return
    missing = features_of(request) - tier.features
    if missing:
        names = ", ".join(sorted(missing)).replace("_", " ")
        raise PermissionDenied(f"This account's tier does not include {names}.", code=ErrorCode.FEATURE_NOT_ALLOWED)
