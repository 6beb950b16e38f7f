"""What goes through the pairs of formats: the answers that a provider is ordered to give, and what requests lose.

``docs/translation.md`` is made of the second.
"""

from typing import Any, Literal

import msgspec

from gateway.canonical.events import Unified
from gateway.canonical.usage import Usage
from tests.conformance import cases
from tests.conformance.cases import Understood
from tests.conformance.requests import CHAT, MESSAGES, RESPONSES
from tests.upstream import plan as upstream
from tests.upstream.plan import Plan

Object = dict[str, Any]

_USED = upstream.Usage(input=20, output=7, reasoning=0)
_BROKEN = "The provider's stream ended before it was complete."


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
        wordings={"openai_responses": {"signature": _ISSUED}},
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
    # As the vendors send it: OpenAI writes an empty object, Anthropic nothing.
    Answer(
        "tool without arguments",
        _bare("{}"),
        _said(Unified.TOOL_CALLS, calls=(("call_a", "now", "{}"),)),
        plans={"anthropic_messages": _bare("")},
    ),
    Answer("refusal", Plan(refusal=("I will ", "not."), usage=_USED), _said(refusal="I will not.")),
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
        wordings={"anthropic_messages": {"error": "The provider is overloaded."}},
    ),
    Answer(
        "truncated",
        Plan(text=cases.WORDS, fault="truncate", usage=_USED),
        Understood(text=cases.SAID, error=_BROKEN),
        wordings={"anthropic_messages": {"error": "The provider's stream ended before the answer did."}},
    ),
    Answer(
        "usage",
        Plan(text=cases.WORDS, usage=_DETAILED),
        _said(usage=cases.DETAILED, text=cases.SAID),
    ),
)


class Unsent(msgspec.Struct, frozen=True):
    """Something that a client may ask for and a provider is not asked.

    ``refused`` is the field that our error names, or ``None`` where it goes out: ``dropped`` or ``changed`` to what it
    would be if the client had written ``instead`` of ``fields``, or as it is, to be ``rejected`` by the provider.
    """

    client: str
    provider: str
    what: str
    fields: Object
    refused: str | None = None
    instead: Object = {}
    why: str = ""
    fate: Literal["dropped", "changed", "rejected"] = "dropped"


OPENAI, RESPONSES_API, ANTHROPIC = "openai_chat", "openai_responses", "anthropic_messages"


def _turn(body: Object, *content: Object, role: str = "user") -> list[Object]:
    return [*body["messages"], {"role": role, "content": list(content)}]


_WORDS = {"type": "text", "text": "Go on."}
_CACHE = {"cache_control": {"type": "ephemeral"}}
_THOUGHT = {"type": "thinking", "thinking": "Hm.", "signature": cases.SIGNATURE}
_SEALED = {"type": "redacted_thinking", "data": "c2VjcmV0"}
_SUMMARY = {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "Hm."}]}
_SOUND = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}
_TOOL = {"type": "custom", "custom": {"name": "grep"}}
_NOT_MADE = "the format has no such field"
_NOT_TOLD = "not translated"
_SIXTEEN = "sent as 16, the least it takes"
_THINKING: Object = {"tool_choice": None, "temperature": None, "top_p": None, "max_tokens": 9000}


def _budget(tokens: int) -> Object:
    return {**_THINKING, "thinking": {"type": "enabled", "budget_tokens": tokens}}


def _failed_results() -> list[Object]:
    question, calls, results = MESSAGES["messages"]
    blocks = [{**it, "is_error": True} if it["type"] == "tool_result" else it for it in results["content"]]
    return [question, calls, {"role": "user", "content": blocks}]


_FROM_ANTHROPIC: tuple[tuple[str, Object, Object, str, Literal["dropped", "changed"]], ...] = (
    ("`top_k`", {"top_k": 5}, {}, _NOT_MADE, "dropped"),
    (
        "marks for the prompt cache (`cache_control`)",
        {"messages": _turn(MESSAGES, {**_WORDS, **_CACHE})},
        {"messages": _turn(MESSAGES, _WORDS)},
        "its caches need no marks",
        "dropped",
    ),
    (
        "thinking in the history, redacted or not",
        {"messages": _turn(MESSAGES, _THOUGHT, _SEALED, _WORDS, role="assistant")},
        {"messages": _turn(MESSAGES, _WORDS, role="assistant")},
        "only the model that signed it can read it",
        "dropped",
    ),
    (
        "the budget of `thinking`",
        _budget(5000),
        _budget(8000),
        "sent as a reasoning effort: low up to 2,048 tokens, medium up to 8,192, else high",
        "changed",
    ),
    (
        "`is_error` of a tool's result",
        {"messages": _failed_results()},
        {},
        "the result's text has to say it",
        "dropped",
    ),
)

REQUESTS = (
    # Chat Completions → Responses and Anthropic
    *(
        Unsent(OPENAI, provider, what, fields, field)
        for provider in (RESPONSES_API, ANTHROPIC)
        for what, fields, field in (
            ("several choices (`n`)", {"n": 2}, "n"),
            ("custom tools", {"tools": [*CHAT["tools"], _TOOL]}, "tools[2]"),
            ("audio in", {"messages": _turn(CHAT, _WORDS, _SOUND)}, "messages"),
            ("audio out (`modalities`, `audio`)", {"modalities": ["text", "audio"]}, "modalities"),
            ("`prediction`", {"prediction": {"type": "content", "content": "x"}}, "prediction"),
            ("`web_search_options`", {"web_search_options": {}}, "web_search_options"),
        )
    ),
    *(
        Unsent(OPENAI, provider, what, fields, why=_NOT_MADE)
        for provider in (RESPONSES_API, ANTHROPIC)
        for what, fields in (
            ("`seed`", {"seed": 7}),
            ("`frequency_penalty`, `presence_penalty`", {"frequency_penalty": 0.5, "presence_penalty": 0.5}),
            ("`logit_bias`", {"logit_bias": {"50256": -100}}),
        )
    ),
    *(
        Unsent(OPENAI, provider, what, fields, why=why)
        for provider, why in ((RESPONSES_API, _NOT_TOLD), (ANTHROPIC, _NOT_MADE))
        for what, fields in (
            ("`logprobs`", {"logprobs": True, "top_logprobs": 2}),
            (
                "`metadata`, `store`, `service_tier`, `verbosity`",
                {"metadata": {"a": "b"}, "store": True, "service_tier": "flex", "verbosity": "low"},
            ),
        )
    ),
    Unsent(OPENAI, RESPONSES_API, "`stop`", {"stop": ["END"]}, "stop"),
    Unsent(
        OPENAI,
        RESPONSES_API,
        "less than 16 output tokens",
        {"max_tokens": 5},
        instead={"max_tokens": 16},
        why=_SIXTEEN,
        fate="changed",
    ),
    Unsent(OPENAI, ANTHROPIC, "`temperature` above 1", {"temperature": 1.5}, "temperature"),
    Unsent(
        OPENAI,
        ANTHROPIC,
        "`response_format` of type `json_object`",
        {"response_format": {"type": "json_object"}},
        why="without a schema the instructions have to say it",
    ),
    # Responses → Chat Completions and Anthropic
    *(
        Unsent(
            RESPONSES_API,
            provider,
            "`metadata`, `truncation`, `service_tier`, `text.verbosity`",
            {"metadata": {"a": "b"}, "truncation": "auto", "service_tier": "flex", "text": {"verbosity": "low"}},
            why=_NOT_TOLD,
        )
        for provider in (OPENAI, ANTHROPIC)
    ),
    *(
        Unsent(
            RESPONSES_API,
            provider,
            "reasoning in the input that no provider here sealed",
            {"input": [*RESPONSES["input"], _SUMMARY, {"role": "user", "content": "Go on."}]},
            instead={
                "input": [
                    *RESPONSES["input"],
                    {"role": "assistant", "content": ""},
                    {"role": "user", "content": "Go on."},
                ]
            },
            why="a provider takes back only what it signed",
        )
        for provider in (OPENAI, ANTHROPIC)
    ),
    *(
        Unsent(RESPONSES_API, provider, what, fields, field)
        for provider in (OPENAI, RESPONSES_API, ANTHROPIC)
        for what, fields, field in (
            ("`previous_response_id`", {"previous_response_id": "resp_1"}, "previous_response_id"),
            ("`background`", {"background": True}, "background"),
            ("`top_logprobs`", {"top_logprobs": 2}, "top_logprobs"),
            ("OpenAI's built-in tools", {"tools": [{"type": "file_search"}]}, "tools[0]"),
        )
    ),
    Unsent(RESPONSES_API, ANTHROPIC, "`temperature` above 1", {"temperature": 1.5}, "temperature"),
    # Responses → Responses
    Unsent(
        RESPONSES_API,
        RESPONSES_API,
        "reasoning in the input without its encrypted content",
        {"input": [*RESPONSES["input"], _SUMMARY, {"role": "user", "content": "Go on."}]},
        instead={"input": [*RESPONSES["input"], {"role": "user", "content": "Go on."}]},
        why="nothing is stored at the provider, so it knows no reasoning by its id",
    ),
    Unsent(
        RESPONSES_API,
        RESPONSES_API,
        "`store`",
        {"store": True},
        instead={"store": False},
        why="sent as false: what the gateway keeps is not kept twice",
        fate="changed",
    ),
    # Anthropic → Chat Completions and Responses
    *(
        Unsent(ANTHROPIC, provider, what, fields, field)
        for provider in (OPENAI, RESPONSES_API)
        for what, fields, field in (
            ("`container`", {"container": "c1"}, "container"),
            ("`mcp_servers`", {"mcp_servers": [{"type": "url", "url": "https://x", "name": "x"}]}, "mcp_servers"),
            (
                "Anthropic's built-in tools",
                {"tools": [*MESSAGES["tools"], {"type": "web_search_20250305", "name": "web_search"}]},
                "tools[2]",
            ),
        )
    ),
    Unsent(
        ANTHROPIC,
        OPENAI,
        "more than four `stop_sequences`",
        {"stop_sequences": list("abcde")},
        why="OpenAI takes four at most",
        fate="rejected",
    ),
    Unsent(ANTHROPIC, RESPONSES_API, "`stop_sequences`", {"stop_sequences": ["END"]}, "stop_sequences"),
    Unsent(
        ANTHROPIC,
        RESPONSES_API,
        "less than 16 output tokens",
        {"max_tokens": 5},
        instead={"max_tokens": 16},
        why=_SIXTEEN,
        fate="changed",
    ),
    *(
        Unsent(ANTHROPIC, provider, what, fields, instead=instead, why=why, fate=fate)
        for provider in (OPENAI, RESPONSES_API)
        for what, fields, instead, why, fate in _FROM_ANTHROPIC
    ),
)
