"""The way in: what a request needs before it may start, and what it starts with.

Gates that cost nothing come first, then counting, then the one decision about limits and credit. What comes out is a
reservation, a meter, and the request as it goes to the provider, bounded by what can be paid.
"""

import asyncio
from collections.abc import Callable

import msgspec

from gateway.canonical.caller import Caller
from gateway.canonical.errors import ErrorCode, LimitExceeded, RequestError
from gateway.canonical.request import Request
from gateway.catalogue.fitting import check_length, fitted, words_of
from gateway.conduct import tokens_cut
from gateway.endings import cut_for
from gateway.entitlements import Entitlement, Entitlements, check_features
from gateway.limits.admission import Admission, Ask
from gateway.limits.allowances import Allowances, Bucket, Unit
from gateway.limits.refusals import label_of
from gateway.limits.reservation import Reservation, Shortfall
from gateway.limits.scripts import HoldRange, Posting
from gateway.limits.tiers import Limits, Party, Rulebook, Tier, with_prompt_limit
from gateway.losses import keeping, serving, those
from gateway.metering.flow import prompt_digest
from gateway.metering.meter import Meter
from gateway.metering.quote import Quote, Wanted, bound, cost_max, longest, quote
from gateway.metering.tokens import TokenCounter, count_bytes, count_input, survey
from gateway.protocols.wire import Allowance, Cut, Notice
from gateway.router import Router, Target
from gateway.service_tiers import in_service_tier

_PROMPT = "prompt"
# A prompt that is sent again and again is answered this much later, where the tier paces it.
_REPETITION_PAUSE_S = 1.0
# https://platform.openai.com/docs/api-reference/embeddings/create#input
_EMBEDDED_TOKENS_MAX = 300_000


class Knock(msgspec.Struct, frozen=True, kw_only=True):
    """A request at the door. ``facts`` makes the usage record as far as it is known, given the tier's variant.

    ``is_strict`` refuses it where no target is asked for all of it.
    """

    request: Request
    caller: Caller
    protocol: str
    request_id: str
    facts: Callable[[str], bytes]
    idempotency_key: str = ""
    digest: str = ""
    is_strict: bool = False


class Admitted(msgspec.Struct, frozen=True, kw_only=True):
    """A request that may run. ``asks`` are its targets in order, each with the request bounded by what can be paid.

    ``bounds`` say for each what it means if the answer ends there; ``None`` where the bound is the client's own.
    ``shadowed`` names limits that would have refused it and only watch; ``notices`` are told before the answer.
    ``allowances`` are those of the tier; what the reservation took may have more, behind them. ``tokens`` is what the
    request is thought to use.
    """

    asks: tuple[tuple[Target, Request], ...]
    bounds: tuple[Cut | None, ...]
    tier: Tier
    reservation: Reservation
    meter: Meter
    allowances: Allowances
    tokens: int
    shadowed: tuple[str, ...]
    abuse: str
    standing: list[Allowance]
    notices: tuple[Notice, ...]


class Offer(msgspec.Struct, frozen=True):
    """What one configuration offers: which models, to whom, how much of them. A request is let in under one of them."""

    router: Router
    entitlements: Entitlements
    rulebook: Rulebook


class Entrance:
    """Lets requests in, one at a time, or says why not. ``offer`` may be replaced; who came before keeps theirs."""

    def __init__(self, offer: Offer, admission: Admission, counters: Callable[[str], TokenCounter]) -> None:
        self.offer = offer
        self._admission = admission
        self._counters = counters

    @property
    def router(self) -> Router:
        """The models that are offered to whoever comes."""
        return self.offer.router

    @property
    def entitlements(self) -> Entitlements:
        """What applies to whoever comes."""
        return self.offer.entitlements

    async def admit(self, knock: Knock) -> Admitted:
        """Raises a ``GatewayError`` where the request may not run; then nothing was taken."""
        request, offer = knock.request, self.offer
        entitlement = await offer.entitlements.of(knock.caller, request.model)
        if entitlement.is_downgraded:
            entitlement = _downgraded(entitlement, request, offer.router)
        tier = entitlement.tier
        check_features(tier, request, knock.protocol)
        reasons = request.effort is not None or request.thinking is not None or request.bills_unseen
        account, chat_id = knock.caller.account, request.chat_id or ""
        targets = offer.router.choose(entitlement.model, reasons=reasons, account=account, chat_id=chat_id)
        targets = _able(knock, targets, offer.router.resolve(entitlement.model, reasons=reasons))
        _check_prices(request, targets)
        if request.untold:
            every = offer.router.resolve(entitlement.model, reasons=reasons)
            targets = _in_service_tier(request, targets, every)
        wanted = await _count(request, self._counters(targets[0].tokenizer), tier)
        targets = await _roomy(request, wanted.input, targets, self._counters(targets[0].tokenizer))
        count = self._counters(targets[0].tokenizer)
        quoted = quote(wanted, [target.terms for target in targets])
        rated = _rated(knock, entitlement, offer.rulebook)
        limits = _with_prompt(rated, knock, tier)
        reservation = await self._reserve(knock, tier, limits, quoted)
        try:
            shadowed, abuse = await self._look_at_shadows(reservation, limits.own, tier, knock.caller.account)
            payable = reservation.held if quoted.is_full else reservation.held + reservation.available
            fits = [(target, fitted(request, target.card)) for target in targets]
            asks = [(target, _bounded(fit, wanted, target, tier, payable)) for target, fit in fits]
            bounds = [
                _bound_by(fit, wanted, target, tier, asked)
                for (target, fit), (_, asked) in zip(fits, asks, strict=True)
            ]
            costs = [cost_max(wanted, target.terms, asked.output_tokens_max) for target, asked in asks]
            reservation.cost_max = None if None in costs else max([cost for cost in costs if cost is not None])
            return Admitted(
                asks=tuple(asks),
                bounds=tuple(bounds),
                tier=tier,
                reservation=reservation,
                meter=Meter(targets[0].terms.price, count, wanted.input, wanted.images),
                allowances=rated.own,
                tokens=quoted.tokens,
                shadowed=shadowed,
                abuse=abuse,
                standing=_standing(rated.own, reservation),
                notices=_greeting(entitlement, tier, abuse),
            )
        except BaseException:
            reservation.settle(Posting(actual=0, outcome="failed", tokens=0, refund=True, usage=b"{}"))
            raise

    def meter_for(self, target: Target, meter: Meter) -> Meter:
        """A meter for another target of the same request, after the first did not answer."""
        return Meter(target.terms.price, self._counters(target.tokenizer), meter.input, meter.images)

    async def _reserve(self, knock: Knock, tier: Tier, limits: Limits, quoted: Quote) -> Reservation:
        ask = Ask(
            account=knock.caller.account,
            limits=limits,
            hold=HoldRange(quoted.least, quoted.most, takes_all=quoted.is_full),
            tokens=quoted.tokens,
            model=knock.request.model,
            request_id=knock.request_id,
            facts=knock.facts(tier.variant),
            idempotency_key=knock.idempotency_key,
            digest=knock.digest,
        )
        try:
            return await self._admission.reserve(ask)
        except LimitExceeded as error:
            if error.scope == _PROMPT:
                raise LimitExceeded(
                    "The same prompt was sent too often in the last minutes.",
                    limit="identical_prompts",
                    scope="account",
                    code=ErrorCode.ABUSE_DETECTED,
                    retry_after_s=error.retry_after_s,
                ) from None
            raise

    async def _look_at_shadows(
        self, reservation: Reservation, allowances: Allowances, tier: Tier, account: str
    ) -> tuple[tuple[str, ...], str]:
        """The limits that would have refused, and what is done about a prompt that was sent too often."""
        if not reservation.shadowed:
            return reservation.shared_shadowed, ""
        limits = [allowances.at(index) for index in reservation.shadowed]
        own = tuple(label_of(limit) for limit in limits if not limit.name.startswith(f"{_PROMPT}."))
        names = own + reservation.shared_shadowed
        if not any(isinstance(limit, Bucket) and limit.name.startswith(f"{_PROMPT}.") for limit in limits):
            return names, ""
        action = tier.flow.identical_action
        if action == "pace":
            await asyncio.sleep(_REPETITION_PAUSE_S)
        elif action == "downgrade":
            await self.entitlements.downgrade(account, tier)
        return names, "identical_prompts"


def _downgraded(entitlement: Entitlement, request: Request, router: Router) -> Entitlement:
    """The cheaper model while it is offered, else the tier's cheaper model of today, else what was asked for."""
    candidates = [entitlement.model, entitlement.tier.flow.downgrade_to]
    if request.embedding is not None:  # a cheaper model's vectors cannot be compared with this one's
        candidates = []
    for model in candidates:
        if model is not None and router.offers(model):
            return msgspec.structs.replace(entitlement, model=model, is_downgraded=model != request.model)
    return msgspec.structs.replace(entitlement, model=request.model, is_downgraded=False)


def _rated(knock: Knock, entitlement: Entitlement, rulebook: Rulebook) -> Limits:
    caller, request = knock.caller, knock.request
    user = (caller.subject if caller.method == "jwt" else request.user) or ""
    party = Party(caller.account, caller.subject, user, request.model)
    return rulebook.limits(entitlement.tier, party, entitlement.permille)


def _standing(allowances: Allowances, reservation: Reservation) -> list[Allowance]:
    """How the tightest limits on requests and on tokens stand."""
    return [
        Allowance("tokens" if rate.unit is Unit.TOKENS else "requests", rate.limit, rate.left, rate.reset_s)
        for rate in allowances.rates(reservation.left)
    ]


def _greeting(entitlement: Entitlement, tier: Tier, abuse: str) -> tuple[Notice, ...]:
    """What a client may want to know before its answer begins."""
    notices = []
    if entitlement.is_downgraded:
        text = f"This answer comes from {entitlement.model}, a cheaper model."
        notices.append(Notice(kind="downgrade", reason="downgraded", message=text))
    if abuse and tier.flow.identical_action == "warn":
        text = "Take care: the same prompt was sent too often in the last minutes."
        notices.append(Notice(kind="warning", reason=ErrorCode.ABUSE_DETECTED.value, message=text))
    return tuple(notices)


def _with_prompt(limits: Limits, knock: Knock, tier: Tier) -> Limits:
    """The same, and how often this prompt may be sent. That is no rate of the account's, so no header tells of it."""
    flow = tier.flow
    if flow.identical_prompts is None:
        return limits
    own = with_prompt_limit(
        limits.own,
        knock.caller.account,
        prompt_digest(knock.request),
        flow.identical_prompts,
        is_shadow=flow.identical_action != "cut",
    )
    return Limits(own, limits.shared)


def _able(knock: Knock, chosen: tuple[Target, ...], every: tuple[Target, ...]) -> tuple[Target, ...]:
    """Those of the chosen targets that can serve the request, else of all; raises what the first one lacks."""
    try:
        able = serving(knock.request, chosen)
        return keeping(knock.request, able) if knock.is_strict else able
    except RequestError:
        if len(every) <= len(chosen):
            raise
    able = serving(knock.request, every)
    return (keeping(knock.request, able) if knock.is_strict else able)[: len(chosen)]


def _in_service_tier(request: Request, chosen: tuple[Target, ...], every: tuple[Target, ...]) -> tuple[Target, ...]:
    """Those of the chosen targets that have a price for the tier that is asked for, else of all."""
    try:
        return in_service_tier(request, chosen)
    except RequestError:
        if len(every) <= len(chosen):
            raise
    return in_service_tier(request, serving(request, every))[: len(chosen)]


async def _roomy(request: Request, tokens: int, targets: tuple[Target, ...], count: TokenCounter) -> tuple[Target, ...]:
    """Those of the targets that the prompt can fit into; raises ``RequestError`` where there is none.

    Counted in bytes it is never known to be too long.
    """
    windows = [target.prompt_tokens_max for target in targets if target.prompt_tokens_max is not None]
    if not windows or tokens <= min(windows) or request.embedding is not None or count is count_bytes:
        return targets
    words = await count_input(words_of(request), count)
    return those(targets, lambda target: check_length(request, words, target.prompt_tokens_max))


def _check_prices(request: Request, targets: tuple[Target, ...]) -> None:
    for target in targets:
        if target.terms.price.is_input_only and request.embedding is None:
            raise RequestError(
                f"The model {request.model!r} has no price for output, so it is there for embeddings only.",
                code=ErrorCode.MODEL_UNPRICED,
                param="model",
            )


async def _count(request: Request, count: TokenCounter, tier: Tier) -> Wanted:
    seen = survey(request)
    tokens = await seen.tokens(count)
    if request.embedding is not None and tokens > _EMBEDDED_TOKENS_MAX:
        raise RequestError(
            f"The inputs have {tokens} tokens together; {_EMBEDDED_TOKENS_MAX} are allowed in one request.",
            code=ErrorCode.TOKENS_PER_REQUEST_EXCEEDED,
            param="input",
        )
    if tier.tokens_per_request is not None and tokens >= tier.tokens_per_request:
        raise RequestError(
            f"The request has {tokens} tokens; this account's tier allows {tier.tokens_per_request} for a request and "
            "its answer together.",
            code=ErrorCode.TOKENS_PER_REQUEST_EXCEEDED,
        )
    return Wanted(
        input=tokens,
        output=request.output_tokens_max,
        choices=request.choices,
        images=seen.images,
        marks_cache=seen.marks_cache,
    )


def _bounded(request: Request, wanted: Wanted, target: Target, tier: Tier, payable: int) -> Request:
    """The request with its bound on output lowered to what can be paid and is allowed, where that is less."""
    tokens = bound(wanted, target.terms, payable, tier.tokens_per_request)
    if tokens is None or (request.output_tokens_max is not None and request.output_tokens_max <= tokens):
        return request
    return msgspec.structs.replace(request, output_tokens_max=tokens)


def _bound_by(request: Request, wanted: Wanted, target: Target, tier: Tier, asked: Request) -> Cut | None:
    """What ended an answer that reaches its bound: the credit or the tier, where they lowered it."""
    tokens = asked.output_tokens_max
    if tokens is None or tokens == request.output_tokens_max or request.choices > 1:
        return None
    if tier.tokens_per_request is not None and tokens >= tier.tokens_per_request - wanted.input:
        return tokens_cut(tier.tokens_per_request)
    if target.terms.is_held_full and tokens >= longest(wanted, target.terms):
        return None
    return cut_for(Shortfall.CREDITS_EXHAUSTED)[0]
