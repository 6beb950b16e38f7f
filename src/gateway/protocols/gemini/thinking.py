"""How much a model may think, in the words of its generation.

Gemini 2.5 takes a budget in tokens, later models a level, earlier ones neither; the wrong one is answered with 400.
What is thought counts towards the bound on the answer, so a budget of our choosing leaves half of it.
https://ai.google.dev/gemini-api/docs/thinking
"""

import re
from collections.abc import Iterator
from typing import Any, Literal, TypeAlias

from gateway.canonical.errors import ErrorCode, RequestError
from gateway.canonical.request import Loss, Request

Config: TypeAlias = dict[str, Any]

# Effort → budget, as Google's own endpoint in OpenAI's format has it, and → level. The highest level is of few models.
_BUDGETS = {"minimal": 1024, "low": 1024, "medium": 8192, "high": 24_576, "xhigh": 24_576, "max": 24_576}
_LEVELS = {"minimal": "MINIMAL", "low": "LOW", "medium": "MEDIUM", "high": "HIGH", "xhigh": "HIGH", "max": "HIGH"}
_BUDGET_MIN, _BUDGET_MAX, _PRO_BUDGET_MAX = 512, 24_576, 32_768
_PRO_BUDGET_LEAST = 128
_DYNAMIC = -1

_NO_THINKING = re.compile(r"gemini-(?:1|2\.0)")
_BY_BUDGET = re.compile(r"gemini-2\.")
_IS_PRO = re.compile(r"-pro(?![a-z])")
# "Thinking level MINIMAL is not supported for this model" of all others; the first of its generation had two levels.
_TAKES_MINIMAL = re.compile(r"gemini-3(?:\.1)?-flash")
_TWO_LEVELS = re.compile(r"gemini-3-pro")


def thinking_config(request: Request, model: str) -> Config | None:
    """``thinkingConfig``, ``None`` where nothing is asked; raises ``RequestError`` for an effort that has no name."""
    if request.effort is None and request.thinking is None:
        return None
    if request.effort is not None and request.effort != "none" and request.effort not in _LEVELS:
        raise RequestError(
            f"Reasoning effort must be none or one of {', '.join(_LEVELS)}.",
            code=ErrorCode.UNSUPPORTED_VALUE,
            param="reasoning_effort",
        )
    match _generation(model):
        case "none":
            return None
        case "budget":
            return _budget_config(request, model)
        case "level":
            return _level_config(request, model)


def thinking_lost(request: Request, model: str) -> Iterator[Loss]:
    """What ``thinking_config`` does not say as it was asked."""
    config = thinking_config(request, model)
    if config is None:
        if wants_thinking(request):
            yield from (Loss("dropped", name) for name in _asked(request))
        return
    if not wants_thinking(request):
        if config.get("thinkingBudget") != 0:
            yield from (Loss("changed", name) for name in _asked(request))
    elif request.effort in ("xhigh", "max"):
        yield Loss("lowered", "reasoning_effort")
    elif "thinkingLevel" in config and request.effort is not None and config["thinkingLevel"] != request.effort.upper():
        yield Loss("changed", "reasoning_effort")
    asked = _own_budget(request)
    if asked is None or not wants_thinking(request):
        return
    if "thinkingBudget" not in config:
        yield Loss("changed", "thinking.budget_tokens")
    elif config["thinkingBudget"] < asked:
        yield Loss("lowered", "thinking.budget_tokens")


def wants_thinking(request: Request) -> bool:
    """Whether the client asks the model to think, in either of the two ways there are."""
    if request.thinking is not None:
        return request.thinking.get("type") != "disabled"
    return request.effort not in (None, "none")


def must_be_signed(model: str) -> bool:
    """Whether a call of the current turn is refused without its thought signature."""
    return _BY_BUDGET.match(model) is None and _NO_THINKING.match(model) is None


def _asked(request: Request) -> Iterator[str]:
    if request.thinking is not None:
        yield "thinking"
    elif request.effort is not None:
        yield "reasoning_effort"


def _generation(model: str) -> Literal["none", "budget", "level"]:
    if _NO_THINKING.match(model):
        return "none"
    return "budget" if _BY_BUDGET.match(model) else "level"


def _own_budget(request: Request) -> int | None:
    budget = (request.thinking or {}).get("budget_tokens")
    return budget if type(budget) is int else None


def _shows(request: Request) -> bool:
    return (request.thinking or {}).get("display") != "omitted"


def _budget_config(request: Request, model: str) -> Config:
    is_pro = _IS_PRO.search(model) is not None
    if not wants_thinking(request):
        return {"thinkingBudget": _PRO_BUDGET_LEAST if is_pro else 0}  # the large one never stops to think
    own = _own_budget(request)
    if own is not None:
        budget = min(own, _PRO_BUDGET_MAX if is_pro else _BUDGET_MAX)
    elif request.effort in _BUDGETS:
        budget = _BUDGETS[request.effort]
        if request.output_tokens_max is not None:
            budget = min(budget, max(_BUDGET_MIN, request.output_tokens_max // 2))
    else:
        budget = _DYNAMIC
    return {"includeThoughts": _shows(request), "thinkingBudget": budget}


def _level_config(request: Request, model: str) -> Config:
    if not wants_thinking(request):
        return {"thinkingLevel": _level("minimal", model)}  # none of them can be told not to think at all
    config: Config = {"includeThoughts": _shows(request)}
    if request.effort in _LEVELS:
        config["thinkingLevel"] = _level(request.effort, model)
    elif (own := _own_budget(request)) is not None:
        fitting = (effort for effort in ("low", "medium") if own <= _BUDGETS[effort])
        config["thinkingLevel"] = _level(next(fitting, "high"), model)
    return config


def _level(effort: str, model: str) -> str:
    level = _LEVELS[effort]
    if level == "MINIMAL" and not _TAKES_MINIMAL.match(model):
        return "LOW"
    return "HIGH" if level == "MEDIUM" and _TWO_LEVELS.match(model) else level
