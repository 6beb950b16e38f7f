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
    """A plan, and what of it a client should understand. ``anthropic`` is the plan for Anthropic where it differs."""

    name: str
    plan: Plan
    understood: Understood
    anthropic: Plan | None = None
    anthropic_error: str = ""

    def plan_of(self, provider: str) -> Plan:
        """The plan for a provider of this format."""
        return self.anthropic if self.anthropic is not None and provider == "anthropic_messages" else self.plan

    def of(self, provider: str) -> Understood:
        """What there is to understand; providers word their errors differently."""
        if self.anthropic_error and provider == "anthropic_messages":
            return msgspec.structs.replace(self.understood, error=self.anthropic_error)
        return self.understood


def _said(finish: Unified = Unified.STOP, usage: Usage = cases.USAGE, **said: Any) -> Understood:
    return Understood(finish=finish, usage=usage, **said)


_WEATHER = upstream.ToolCall(name="weather", arguments=('{"city":', '"Zürich"}'), id="call_a")
_NOW = upstream.ToolCall(name="now", arguments=('{"zone":1.50}',), id="call_b")


def _bare(arguments: str) -> Plan:
    return Plan(tool_calls=(upstream.ToolCall(name="now", arguments=(arguments,), id="call_a"),), usage=_USED)


_REASONED = Plan(text=cases.WORDS, reasoning=cases.THOUGHTS, signature=cases.SIGNATURE, usage=_USED)
_DETAILED = upstream.Usage(input=20, output=7, cache_read=5, cache_write=4, reasoning=3)

PLANS = (
    Answer("text", Plan(text=cases.WORDS, usage=_USED), _said(text=cases.SAID)),
    Answer(
        "reasoning",
        _REASONED,
        _said(text=cases.SAID, reasoning="".join(cases.THOUGHTS), signature=cases.SIGNATURE),
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
        anthropic=_bare(""),
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
        anthropic_error="The provider is overloaded.",
    ),
    Answer(
        "truncated",
        Plan(text=cases.WORDS, fault="truncate", usage=_USED),
        Understood(text=cases.SAID, error=_BROKEN),
        anthropic_error="The provider's stream ended before the answer did.",
    ),
    Answer(
        "usage",
        Plan(text=cases.WORDS, usage=_DETAILED),
        _said(usage=cases.DETAILED, text=cases.SAID),
    ),
)


class Unsent(msgspec.Struct, frozen=True):
    """Something that a client may ask for and a provider of the other format is not asked.

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

REQUESTS = (
    # Chat Completions → Anthropic
    Unsent(OPENAI, ANTHROPIC, "several choices (`n`)", {"n": 2}, "n"),
    Unsent(OPENAI, ANTHROPIC, "`temperature` above 1", {"temperature": 1.5}, "temperature"),
    Unsent(OPENAI, ANTHROPIC, "custom tools", {"tools": [*CHAT["tools"], _TOOL]}, "tools[2]"),
    Unsent(OPENAI, ANTHROPIC, "audio in", {"messages": _turn(CHAT, _WORDS, _SOUND)}, "messages"),
    Unsent(OPENAI, ANTHROPIC, "audio out (`modalities`, `audio`)", {"modalities": ["text", "audio"]}, "modalities"),
    Unsent(OPENAI, ANTHROPIC, "`prediction`", {"prediction": {"type": "content", "content": "x"}}, "prediction"),
    Unsent(OPENAI, ANTHROPIC, "`web_search_options`", {"web_search_options": {}}, "web_search_options"),
    Unsent(OPENAI, ANTHROPIC, "`seed`", {"seed": 7}, why=_NOT_MADE),
    Unsent(
        OPENAI,
        ANTHROPIC,
        "`frequency_penalty`, `presence_penalty`",
        {"frequency_penalty": 0.5, "presence_penalty": 0.5},
        why=_NOT_MADE,
    ),
    Unsent(OPENAI, ANTHROPIC, "`logit_bias`", {"logit_bias": {"50256": -100}}, why=_NOT_MADE),
    Unsent(OPENAI, ANTHROPIC, "`logprobs`", {"logprobs": True, "top_logprobs": 2}, why=_NOT_MADE),
    Unsent(
        OPENAI,
        ANTHROPIC,
        "`response_format` of type `json_object`",
        {"response_format": {"type": "json_object"}},
        why="without a schema the instructions have to say it",
    ),
    Unsent(
        OPENAI,
        ANTHROPIC,
        "`metadata`, `store`, `service_tier`, `verbosity`",
        {"metadata": {"a": "b"}, "store": True, "service_tier": "flex", "verbosity": "low"},
        why=_NOT_MADE,
    ),
    # Responses → Chat Completions and Anthropic
    *(
        Unsent(
            RESPONSES_API,
            provider,
            "`metadata`, `truncation`, `service_tier`, `text.verbosity`",
            {"metadata": {"a": "b"}, "truncation": "auto", "service_tier": "flex", "text": {"verbosity": "low"}},
            why="not translated",
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
        for provider in (OPENAI, ANTHROPIC)
        for what, fields, field in (
            ("`previous_response_id`", {"previous_response_id": "resp_1"}, "previous_response_id"),
            ("`background`", {"background": True}, "background"),
            ("`top_logprobs`", {"top_logprobs": 2}, "top_logprobs"),
            ("OpenAI's built-in tools", {"tools": [{"type": "web_search"}]}, "tools[0]"),
        )
    ),
    Unsent(RESPONSES_API, ANTHROPIC, "`temperature` above 1", {"temperature": 1.5}, "temperature"),
    # Anthropic → Chat Completions
    Unsent(ANTHROPIC, OPENAI, "`container`", {"container": "c1"}, "container"),
    Unsent(
        ANTHROPIC,
        OPENAI,
        "`mcp_servers`",
        {"mcp_servers": [{"type": "url", "url": "https://x", "name": "x"}]},
        "mcp_servers",
    ),
    Unsent(
        ANTHROPIC,
        OPENAI,
        "Anthropic's built-in tools",
        {"tools": [*MESSAGES["tools"], {"type": "web_search_20250305", "name": "web_search"}]},
        "tools[2]",
    ),
    Unsent(
        ANTHROPIC,
        OPENAI,
        "more than four `stop_sequences`",
        {"stop_sequences": list("abcde")},
        why="OpenAI takes four at most",
        fate="rejected",
    ),
    Unsent(ANTHROPIC, OPENAI, "`top_k`", {"top_k": 5}, why=_NOT_MADE),
    Unsent(
        ANTHROPIC,
        OPENAI,
        "marks for the prompt cache (`cache_control`)",
        {"messages": _turn(MESSAGES, {**_WORDS, **_CACHE})},
        instead={"messages": _turn(MESSAGES, _WORDS)},
        why="its caches need no marks",
    ),
    Unsent(
        ANTHROPIC,
        OPENAI,
        "thinking in the history, redacted or not",
        {"messages": _turn(MESSAGES, _THOUGHT, _SEALED, _WORDS, role="assistant")},
        instead={"messages": _turn(MESSAGES, _WORDS, role="assistant")},
        why="only the model that signed it can read it",
    ),
    Unsent(
        ANTHROPIC,
        OPENAI,
        "the budget of `thinking`",
        {"tool_choice": None, "temperature": None, "max_tokens": 9000}
        | {"top_p": None, "thinking": {"type": "enabled", "budget_tokens": 5000}},
        instead={"tool_choice": None, "temperature": None, "max_tokens": 9000}
        | {"top_p": None, "thinking": {"type": "enabled", "budget_tokens": 8000}},
        why="sent as a reasoning effort: low up to 2,048 tokens, medium up to 8,192, else high",
        fate="changed",
    ),
    Unsent(
        ANTHROPIC,
        OPENAI,
        "`is_error` of a tool's result",
        {
            "messages": [
                *MESSAGES["messages"][:2],
                {
                    "role": "user",
                    "content": [
                        {**block, "is_error": True} if block["type"] == "tool_result" else block
                        for block in MESSAGES["messages"][2]["content"]
                    ],
                },
            ]
        },
        why="the result's text has to say it",
    ),
)
