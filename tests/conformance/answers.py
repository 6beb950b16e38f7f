"""The answers that a provider is ordered to give, and what a client should understand of each.

A plan is rendered by the simulated provider of a format. Where a vendor says a thing in its own way only, it has a plan
or a wording of its own here.
"""

from typing import Any

import msgspec

from gateway.canonical.events import Unified
from gateway.canonical.usage import Usage
from tests.conformance import cases
from tests.conformance.cases import Understood
from tests.upstream import plan as upstream
from tests.upstream.plan import Plan

_USED = upstream.Usage(input=20, output=7, reasoning=0)
_BROKEN = "The provider's stream ended before it was complete."
_OVERLOADED = {"error": "The provider is overloaded."}
_CUT = {"error": "The provider's stream ended before the answer did."}


class Answer(msgspec.Struct, frozen=True):
    """A plan, and what of it a client should understand.

    ``plans`` are those of providers for which it differs; ``wordings`` has what such a provider words otherwise.
    """

    name: str
    plan: Plan
    understood: Understood
    plans: dict[str, Plan] = {}
    wordings: dict[str, dict[str, str]] = {}

    def plan_of(self, provider: str) -> Plan:
        """The plan for a provider of this format."""
        return self.plans.get(provider, self.plan)

    def of(self, provider: str) -> Understood:
        """What there is to understand."""
        return msgspec.structs.replace(self.understood, **self.wordings.get(provider, {}))


def _said(finish: Unified = Unified.STOP, usage: Usage = cases.USAGE, **said: Any) -> Understood:
    return Understood(finish=finish, usage=usage, **said)


_WEATHER = upstream.ToolCall(name="weather", arguments=('{"city":', '"Zürich"}'), id="call_a")
_NOW = upstream.ToolCall(name="now", arguments=('{"zone":1.50}',), id="call_b")


def _bare(arguments: str) -> Plan:
    return Plan(tool_calls=(upstream.ToolCall(name="now", arguments=(arguments,), id="call_a"),), usage=_USED)


# What a Responses provider sealed comes with the id of its item, and is marked as nobody else's.
_ISSUED = f"responses:rs_{1:016x}{0:016x}:{cases.SIGNATURE}"
_REASONED = Plan(text=cases.WORDS, reasoning=cases.THOUGHTS, signature=cases.SIGNATURE, usage=_USED)
_DETAILED = upstream.Usage(input=20, output=7, cache_read=5, cache_write=4, reasoning=3)

PLANS = (
    Answer("text", Plan(text=cases.WORDS, usage=_USED), _said(text=cases.SAID)),
    Answer(
        "reasoning",
        _REASONED,
        _said(text=cases.SAID, reasoning="".join(cases.THOUGHTS), signature=cases.SIGNATURE),
        wordings={
            "openai_responses": {"signature": _ISSUED},
            # Gemini signs the end of its words, which no client's format can: it comes as reasoning of its own.
            "gemini": {"signature": f"gemini:end:{cases.SIGNATURE}"},
        },
    ),
    Answer(
        "reasoning and a tool",
        Plan(reasoning=cases.THOUGHTS, signature=cases.SIGNATURE, tool_calls=(_WEATHER,), usage=_USED),
        _said(Unified.TOOL_CALLS, reasoning="".join(cases.THOUGHTS), signature=cases.SIGNATURE, calls=(cases.CITY,)),
        wordings={
            "openai_responses": {"signature": _ISSUED},
            "gemini": {"signature": f"gemini:call.call_a:{cases.SIGNATURE}"},
        },
    ),
    Answer(
        "single tool",
        Plan(text=cases.WORDS, tool_calls=(_WEATHER,), usage=_USED),
        _said(Unified.TOOL_CALLS, text=cases.SAID, calls=(cases.CITY,)),
    ),
    Answer(
        "parallel tools",
        Plan(tool_calls=(_WEATHER, _NOW), usage=_USED),
        _said(Unified.TOOL_CALLS, calls=(cases.CITY, cases.ZONE)),
    ),
    # As the vendors send it: OpenAI and Google write an empty object, Anthropic and Bedrock nothing.
    Answer(
        "tool without arguments",
        _bare("{}"),
        _said(Unified.TOOL_CALLS, calls=(("call_a", "now", "{}"),)),
        plans={"anthropic_messages": _bare(""), "bedrock_converse": _bare("")},
    ),
    # Gemini has no words for it: a prompt that it will not answer gets no candidate.
    Answer(
        "refusal",
        Plan(refusal=("I will ", "not."), usage=_USED),
        _said(refusal="I will not."),
        plans={"gemini": Plan(finish_reason="PROMPT_SAFETY", usage=_USED)},
    ),
    Answer(
        "length",
        Plan(text=cases.WORDS, finish_reason="length", usage=_USED),
        _said(Unified.LENGTH, text=cases.SAID),
    ),
    Answer(
        "content filter",
        Plan(text=cases.WORDS, finish_reason="content_filter", usage=_USED),
        _said(Unified.CONTENT_FILTER, text=cases.SAID),
    ),
    Answer(
        "error within",
        Plan(text=cases.WORDS, fault="error_event", usage=_USED),
        Understood(text=cases.SAID, error="The provider failed with status 500."),
        wordings={
            "anthropic_messages": _OVERLOADED,
            "gemini": _OVERLOADED,
            "bedrock_converse": {"error": "The provider's rate limit is reached."},
        },
    ),
    Answer(
        "truncated",
        Plan(text=cases.WORDS, fault="truncate", usage=_USED),
        Understood(text=cases.SAID, error=_BROKEN),
        wordings={"anthropic_messages": _CUT, "bedrock_converse": _CUT},
    ),
    Answer(
        "usage",
        Plan(text=cases.WORDS, usage=_DETAILED),
        _said(usage=cases.DETAILED, text=cases.SAID),
    ),
)
