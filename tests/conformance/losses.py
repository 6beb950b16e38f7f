"""What a format cannot carry, each with the reason: the one place where the suites expect less than everything.

A loss of an answer changes what a client is expected to understand; a suite that meets a difference which is not
declared here fails, and so does a declaration that changes nothing. ``docs/translation.md`` is made of these.
"""

from collections.abc import Callable
from typing import Any

import msgspec

from gateway.canonical.events import Unified
from gateway.canonical.usage import Usage
from tests.conformance.cases import Understood

Change = Callable[[Understood], Understood]


class Loss(msgspec.Struct, frozen=True):
    """Something of an answer that does not reach the client as it was said."""

    what: str
    becomes: str
    change: Change


def lacking(name: str) -> Change:
    """The client is not told of it at all."""
    empty: Any = () if name == "calls" else ""
    return lambda said: msgspec.structs.replace(said, **{name: empty})


def _refusal_as_text(said: Understood) -> Understood:
    return msgspec.structs.replace(said, text=said.text + said.refusal, refusal="")


def _usage_of(*names: str) -> Change:
    def keep(said: Understood) -> Understood:
        if said.usage is None:
            return said
        return msgspec.structs.replace(said, usage=Usage(**{name: getattr(said.usage, name) for name in names}))

    return keep


def _finish(before: Unified, after: Unified) -> Change:
    return lambda said: msgspec.structs.replace(said, finish=after) if said.finish is before else said


def _refusal_filters(said: Understood) -> Understood:
    return msgspec.structs.replace(said, finish=Unified.CONTENT_FILTER) if said.refusal else said


REFUSAL_AS_TEXT = Loss("a refusal", "text: the format has no word for it", _refusal_as_text)

# By client format: what an answer loses on its way to the client, whoever gave it.
ANSWERS: dict[str, tuple[Loss, ...]] = {
    "openai_chat": (),
    "openai_responses": (),
    "anthropic_messages": (REFUSAL_AS_TEXT,),
    "openai_completions": (
        Loss("reasoning", "dropped: a completion is text and nothing else", lacking("reasoning")),
        Loss("the signature of reasoning", "dropped with the reasoning", lacking("signature")),
        Loss("tool calls", "dropped: a request has no tools, so no model makes any", lacking("calls")),
        Loss(
            "finish reason `tool_calls`",
            "`stop`: the format has no such reason",
            _finish(Unified.TOOL_CALLS, Unified.STOP),
        ),
        REFUSAL_AS_TEXT,
    ),
    "ai_sdk_4": (
        REFUSAL_AS_TEXT,
        Loss(
            "cached and reasoning tokens",
            "dropped: its usage has input and output only",
            _usage_of("input", "output"),
        ),
    ),
    "ai_sdk_ui": (
        REFUSAL_AS_TEXT,
        Loss(
            "tokens written to the cache",
            "dropped: the SDK's usage has no field for them",
            _usage_of("input", "output", "cache_read", "reasoning"),
        ),
    ),
}

# By provider format: what such a provider does not say, or says otherwise.
PROVIDERS: dict[str, tuple[Loss, ...]] = {
    "openai_chat": (Loss("the signature of reasoning", "never sent: the format has none", lacking("signature")),),
    "openai_responses": (),
    "anthropic_messages": (
        Loss("finish reason of a refusal", "`content_filter` (the provider's `refusal`)", _refusal_filters),
        Loss("a refusal", "text: the provider says it so", _refusal_as_text),
    ),
    "gemini": (
        Loss("finish reason of a refusal", "`content_filter` (the provider's `blockReason`)", _refusal_filters),
        Loss("a refusal", "no words: the provider says nothing then", lacking("refusal")),
        Loss(
            "tokens written to the cache",
            "never told: the format has no figure for them",
            _usage_of("input", "output", "cache_read", "reasoning"),
        ),
    ),
    "bedrock_converse": (
        Loss("finish reason of a refusal", "`content_filter` (the provider's `content_filtered`)", _refusal_filters),
        Loss("a refusal", "text: the provider says it so", _refusal_as_text),
        Loss(
            "reasoning tokens",
            "never told apart: they are in the output",
            _usage_of("input", "output", "cache_read", "cache_write"),
        ),
    ),
}

# By format: what is lost although client and provider both speak it; not here is what passes as it is.
TOLD_ANEW = {"openai_responses": ("ids of the response and its items", "annotations", "log probabilities")}

# By provider format: what it says and no client hears, with the habit of ``habits.py`` that shows it.
UNHEARD = {
    "gemini": {"pictures that it made, code that it ran, grounding": "gemini, code and files"},
    "bedrock_converse": {"citations": "bedrock, a citation"},
}

# Cases that a format gets wrong though it could carry them: (client format, case) → what the client is told instead.
# Each is a strict expected failure, so that its entry has to go when it is mended.
DEFECTS: dict[tuple[str, str], str] = {}
# By provider format: what becomes of a conversation with gaps that is not repaired for it. As strict as the above.
UNREPAIRED: dict[str, str] = {}


def understood_by(losses: tuple[Loss, ...], said: Understood) -> Understood:
    """What is left of an answer."""
    for loss in losses:
        said = loss.change(said)
    return said
