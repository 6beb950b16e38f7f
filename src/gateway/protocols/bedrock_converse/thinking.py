"""How a model is asked to reason: each vendor behind Bedrock has a word of its own for it.

Claude takes a budget in tokens, Nova and OpenAI's models an effort; all of it goes into
``additionalModelRequestFields``. A budget stays below the bound on the whole answer, since Claude refuses one that
does not and the gateway lowers bounds to what an account can pay.
"""

from typing import Any

import msgspec

from gateway.canonical.errors import ErrorCode, RequestError
from gateway.canonical.request import Request
from gateway.protocols.bedrock_converse.families import Family, family_of, reasons_as_nova
from gateway.protocols.bedrock_converse.history import Turn, can_continue_thinking

BUDGET_TOKENS_MIN = 1024

# Reasoning effort → thinking budget, in tokens, as for Anthropic's own API.
_BUDGET_TOKENS = {
    "minimal": BUDGET_TOKENS_MIN,
    "low": 2048,
    "medium": 8192,
    "high": 16384,
    "xhigh": 20480,
    "max": 23808,
}
# The three words that Nova and OpenAI's models know.
_EFFORTS = {"minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "high"}


class Reasoning(msgspec.Struct, frozen=True):
    """What is asked: ``fields`` for the model, and how that differs from the request."""

    fields: dict[str, Any]
    is_dropped: bool = False
    is_changed: bool = False

    @property
    def budget(self) -> int | None:
        """Claude's budget in tokens, where there is one."""
        budget = self.fields.get("thinking", {}).get("budget_tokens")
        return budget if type(budget) is int else None

    @property
    def is_thinking(self) -> bool:
        """Whether Claude thinks, which rules out most sampling parameters."""
        return bool(self.fields.get("thinking", {}).get("type", "disabled") != "disabled")


_SILENT = Reasoning({})
_DROPPED = Reasoning({}, is_dropped=True)


def choose_reasoning(request: Request, model: str, turns: list[Turn]) -> Reasoning:
    """Raises ``RequestError`` for an effort that has no such name."""
    effort = request.effort
    if effort not in (None, "none", *_BUDGET_TOKENS):
        raise RequestError(
            f"Reasoning effort must be none or one of {', '.join(_BUDGET_TOKENS)}.",
            code=ErrorCode.UNSUPPORTED_VALUE,
            param="reasoning_effort",
        )
    wants = (effort not in (None, "none")) or (request.thinking or {}).get("type", "disabled") != "disabled"
    match family_of(model):
        case Family.CLAUDE:
            return _claude(request, turns)
        case Family.NAMELESS if request.thinking is not None:
            return _claude(request, turns)
        case Family.NOVA if effort in _EFFORTS and reasons_as_nova(model):
            return _nova(request)
        case Family.OPENAI if effort in _EFFORTS:
            word = _EFFORTS[effort]
            return Reasoning({"reasoning_effort": word}, is_changed=word != effort)
    return _DROPPED if wants else _SILENT


def _nova(request: Request) -> Reasoning:
    """With the highest effort Nova takes neither a bound nor a temperature."""
    assert request.effort is not None
    word = _EFFORTS[request.effort]
    sampling = request.sampling
    if word == "high" and (request.output_tokens_max, sampling.temperature, sampling.top_p) != (None, None, None):
        word = "medium"
    config = {"type": "enabled", "maxReasoningEffort": word}
    return Reasoning({"reasoningConfig": config}, is_changed=word != request.effort)


def _claude(request: Request, turns: list[Turn]) -> Reasoning:
    asked = request.thinking if request.thinking is not None else _of_effort(request)
    if asked is None:
        return _SILENT
    if asked.get("type") == "disabled":
        return Reasoning({"thinking": asked})
    thinking = _within_bound(asked, request.output_tokens_max)
    if thinking is None or _must_call(request) or not can_continue_thinking(turns):
        return _DROPPED
    return Reasoning({"thinking": thinking}, is_changed=request.thinking is not None and thinking != asked)


def _of_effort(request: Request) -> dict[str, Any] | None:
    if request.effort is None:
        return None
    if request.effort == "none":
        return {"type": "disabled"}
    return {"type": "enabled", "budget_tokens": _BUDGET_TOKENS[request.effort]}


def _within_bound(thinking: dict[str, Any], bound: int | None) -> dict[str, Any] | None:
    """With a budget below the bound on the answer, half of which stays for the answer; ``None`` where none fits."""
    budget = thinking.get("budget_tokens")
    if bound is None or type(budget) is not int:
        return thinking
    if bound <= BUDGET_TOKENS_MIN:
        return None
    return (
        {**thinking, "budget_tokens": min(budget, max(BUDGET_TOKENS_MIN, bound // 2))}
        if budget >= bound
        else (thinking)
    )


def _must_call(request: Request) -> bool:
    """The call is an order, the effort a wish: "thinking may not be enabled when tool_choice forces tool use"."""
    choice = request.tool_choice
    return bool(request.tools) and choice is not None and choice.mode in ("required", "tool")
