"""How long a model may think before it answers, for requests that came in another format.

An effort becomes a budget, and whatever budget comes out stays below the bound on the whole answer: Anthropic refuses
one that does not, and the gateway lowers bounds to what an account can pay.
https://platform.claude.com/docs/en/build-with-claude/extended-thinking
"""

from typing import Any

from gateway.canonical.errors import ErrorCode, RequestError
from gateway.canonical.request import Request
from gateway.protocols.anthropic_messages.history import can_continue_thinking
from gateway.protocols.anthropic_messages.shapes import Turn

BUDGET_TOKENS_MIN = 1024

# Reasoning effort → thinking budget, in tokens. The least is what Anthropic takes at all; the most leaves room for
# the usual bound on an answer below 32 000, the smallest output limit of the models that think.
BUDGET_TOKENS = {
    "minimal": BUDGET_TOKENS_MIN,
    "low": 2048,
    "medium": 8192,
    "high": 16384,
    "xhigh": 20480,
    "max": 23808,
}


def choose_thinking(request: Request, turns: list[Turn]) -> dict[str, Any] | None:
    """The ``thinking`` to send, ``None`` for none; raises ``RequestError`` for an effort that has no such name."""
    thinking = _of_effort(request) if request.thinking is None else _within_bound(request.thinking, request)
    if thinking is None or not is_on(thinking) or can_continue_thinking(turns):
        return thinking
    return None


def is_on(thinking: dict[str, Any] | None) -> bool:
    """Whether it lets the model think."""
    return thinking is not None and thinking.get("type") != "disabled"


def budget_of(thinking: dict[str, Any] | None) -> int | None:
    """The budget in tokens, where there is one."""
    budget = thinking.get("budget_tokens") if thinking is not None else None
    return budget if type(budget) is int else None


def _within_bound(thinking: dict[str, Any], request: Request) -> dict[str, Any] | None:
    """The client's own, with a budget below the bound on the answer; ``None`` where the least has no room."""
    bound, budget = request.output_tokens_max, budget_of(thinking)
    if bound is None or budget is None or budget < bound or not is_on(thinking):
        return thinking
    if bound <= BUDGET_TOKENS_MIN:
        return None
    return {**thinking, "budget_tokens": _share(bound)}


def _share(bound: int) -> int:
    """Half of the bound stays for the answer, unless the least budget needs more."""
    return max(BUDGET_TOKENS_MIN, bound // 2)


def _of_effort(request: Request) -> dict[str, Any] | None:
    if request.effort is None:
        return None
    if request.effort == "none":
        return {"type": "disabled"}
    budget = BUDGET_TOKENS.get(request.effort)
    if budget is None:
        raise RequestError(
            f"Reasoning effort must be none or one of {', '.join(BUDGET_TOKENS)}.",
            code=ErrorCode.UNSUPPORTED_VALUE,
            param="reasoning_effort",
        )
    if request.tools and request.tool_choice is not None and request.tool_choice.mode in ("required", "tool"):
        # "Thinking may not be enabled when tool_choice forces tool use": the call is an order, the effort a wish.
        return None
    bound = request.output_tokens_max
    if bound is not None:
        if bound <= BUDGET_TOKENS_MIN:
            return None
        budget = min(budget, _share(bound))
    return {"type": "enabled", "budget_tokens": budget}
