"""What requests lose between a client's format and a provider's: ``docs/translation.md`` is made of these rows."""

from collections.abc import Callable
from typing import Any, Literal

import msgspec

from tests.conformance import cases
from tests.conformance.requests import CHAT, MESSAGES, PIXEL, RESPONSES

Object = dict[str, Any]


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
GEMINI, BEDROCK = "gemini", "bedrock_converse"
CLOUDS = (GEMINI, BEDROCK)


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
_NO_TIME = "Claude does not think where it has to call"
_SIXTEEN = "sent as 16, the least it takes"
_THINKING: Object = {"tool_choice": None, "temperature": None, "top_p": None, "max_tokens": 9000}


def _budget(tokens: int) -> Object:
    return {**_THINKING, "thinking": {"type": "enabled", "budget_tokens": tokens}}


def _failed_results() -> list[Object]:
    question, calls, results = MESSAGES["messages"]
    blocks = [{**it, "is_error": True} if it["type"] == "tool_result" else it for it in results["content"]]
    return [question, calls, {"role": "user", "content": blocks}]


def _chat_image(detail: str | None) -> Object:
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}", "detail": detail}}
    return {"messages": _turn(CHAT, _WORDS, image)}


def _responses_image(detail: str | None) -> Object:
    image = {"type": "input_image", "image_url": f"data:image/png;base64,{PIXEL}", "detail": detail or "auto"}
    return {"input": [*RESPONSES["input"], {"role": "user", "content": [image]}]}


def _schema(**words: Any) -> Object:
    return {"type": "object", "properties": {"city": {"type": "string", **words}}, "required": ["city"]}


def _chat_tools(schema: Object, **more: Any) -> Object:
    return {"tools": [{"type": "function", "function": {"name": "weather", "parameters": schema, **more}}]}


def _responses_tools(schema: Object, **more: Any) -> Object:
    return {"tools": [{"type": "function", "name": "weather", "parameters": schema, **more}]}


def _anthropic_tools(schema: Object) -> Object:
    return {"tools": [{"name": "weather", "input_schema": schema}]}


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

# What Gemini loses of the above; the others are kept, or said by another word.
_UNKNOWN_TO_GEMINI = ("marks for the prompt cache (`cache_control`)", "thinking in the history, redacted or not")
_CHOICE = {"type": "tool", "name": "weather"}
_OF_CALLS_AND_USERS: tuple[tuple[str, str, Object, Object], ...] = (
    *(
        (client, what, {field: value}, {field: None})
        for client in (OPENAI, RESPONSES_API)
        for what, field, value in (
            ("`parallel_tool_calls: false`", "parallel_tool_calls", False),
            ("`user`", "user", "u1"),
        )
    ),
    (
        ANTHROPIC,
        "`disable_parallel_tool_use`",
        {"tool_choice": {**_CHOICE, "disable_parallel_tool_use": True}},
        {"tool_choice": _CHOICE},
    ),
    (ANTHROPIC, "`metadata.user_id`", {"metadata": {"user_id": "u1"}}, {"metadata": None}),
)
_TOOLS: dict[str, Callable[..., Object]] = {
    OPENAI: _chat_tools,
    RESPONSES_API: _responses_tools,
    ANTHROPIC: _anthropic_tools,
}
_ADDRESS = "https://example.com/z.png"
_BY_URL: dict[str, Object] = {
    OPENAI: {"messages": _turn(CHAT, _WORDS, {"type": "image_url", "image_url": {"url": _ADDRESS}})},
    RESPONSES_API: {
        "input": [
            *RESPONSES["input"],
            {"role": "user", "content": [{"type": "input_image", "image_url": _ADDRESS}]},
        ]
    },
    ANTHROPIC: {"messages": _turn(MESSAGES, {"type": "image", "source": {"type": "url", "url": _ADDRESS}})},
}

REQUESTS = (
    # Chat Completions → all others
    *(
        Unsent(OPENAI, provider, what, fields, field)
        for provider in (RESPONSES_API, ANTHROPIC, *CLOUDS)
        for what, fields, field in (
            ("custom tools", {"tools": [*CHAT["tools"], _TOOL]}, "tools[2]"),
            ("audio out (`modalities`, `audio`)", {"modalities": ["text", "audio"]}, "modalities"),
            ("`prediction`", {"prediction": {"type": "content", "content": "x"}}, "prediction"),
            ("`web_search_options`", {"web_search_options": {}}, "web_search_options"),
        )
    ),
    *(
        Unsent(OPENAI, provider, "several choices (`n`)", {"n": 2}, "n")
        for provider in (RESPONSES_API, ANTHROPIC, BEDROCK)
    ),
    Unsent(OPENAI, GEMINI, "more than eight choices (`n`)", {"n": 9}, "n"),
    *(
        Unsent(OPENAI, provider, "audio in", {"messages": _turn(CHAT, _WORDS, _SOUND)}, "messages")
        for provider in (RESPONSES_API, ANTHROPIC)
    ),
    *(
        Unsent(OPENAI, provider, what, fields, why=_NOT_MADE)
        for provider in (RESPONSES_API, ANTHROPIC, BEDROCK)
        for what, fields in (
            ("`seed`", {"seed": 7}),
            ("`frequency_penalty`, `presence_penalty`", {"frequency_penalty": 0.5, "presence_penalty": 0.5}),
        )
    ),
    Unsent(OPENAI, GEMINI, "a `seed` of more than 32 bits", {"seed": 2**40}, why="it takes no more"),
    *(
        Unsent(OPENAI, provider, "`logit_bias`", {"logit_bias": {"50256": -100}}, why=_NOT_MADE)
        for provider in (RESPONSES_API, ANTHROPIC, *CLOUDS)
    ),
    *(
        Unsent(OPENAI, provider, what, fields, why=why)
        for provider, why in (
            (RESPONSES_API, _NOT_TOLD),
            (ANTHROPIC, _NOT_MADE),
            (GEMINI, _NOT_TOLD),
            (BEDROCK, _NOT_TOLD),
        )
        for what, fields in (
            ("`logprobs`", {"logprobs": True, "top_logprobs": 2}),
            (
                "`metadata`, `store`, `service_tier`, `verbosity`",
                {"metadata": {"a": "b"}, "store": True, "service_tier": "flex", "verbosity": "low"},
            ),
        )
    ),
    *(
        Unsent(client, provider, "`detail` of an image", shown("high"), instead=shown(None), why=_NOT_MADE)
        for client, shown in ((OPENAI, _chat_image), (RESPONSES_API, _responses_image))
        for provider in (ANTHROPIC, *CLOUDS)
    ),
    *(
        Unsent(OPENAI, provider, "`reasoning_effort` beside a forced tool", {"reasoning_effort": "high"}, why=_NO_TIME)
        for provider in (ANTHROPIC, BEDROCK)
    ),
    *(
        Unsent(
            RESPONSES_API, provider, "`reasoning` beside a forced tool", {"reasoning": {"effort": "high"}}, why=_NO_TIME
        )
        for provider in (ANTHROPIC, BEDROCK)
    ),
    Unsent(
        OPENAI,
        GEMINI,
        "`reasoning_effort` above `high`",
        {"reasoning_effort": "xhigh"},
        instead={"reasoning_effort": "high"},
        why="sent as the highest level that all models take",
        fate="changed",
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
    *(
        Unsent(client, provider, "`temperature` above 1", {"temperature": 1.5}, "temperature")
        for client in (OPENAI, RESPONSES_API)
        for provider in (ANTHROPIC, BEDROCK)
    ),
    *(
        Unsent(
            OPENAI,
            provider,
            "`response_format` of type `json_object`",
            {"response_format": {"type": "json_object"}},
            why="without a schema the instructions have to say it",
        )
        for provider in (ANTHROPIC, BEDROCK)
    ),
    *(
        Unsent(
            client,
            GEMINI,
            "words of a schema that it does not know (`pattern`, `not`, …)",
            tools(_schema(pattern="^Z")),
            instead=tools(_schema()),
            why="sent without them: arguments of that shape and more",
            fate="changed",
        )
        for client, tools in _TOOLS.items()
    ),
    *(
        Unsent(
            client,
            GEMINI,
            "`strict` of tools",
            _TOOLS[client](_schema(), strict=True),
            instead=_TOOLS[client](_schema()),
            why=_NOT_MADE,
        )
        for client in (OPENAI, RESPONSES_API)
    ),
    # Responses → all others
    *(
        Unsent(
            RESPONSES_API,
            provider,
            "`metadata`, `truncation`, `service_tier`, `text.verbosity`",
            {"metadata": {"a": "b"}, "truncation": "auto", "service_tier": "flex", "text": {"verbosity": "low"}},
            why=_NOT_TOLD,
        )
        for provider in (OPENAI, ANTHROPIC, *CLOUDS)
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
        for provider in (OPENAI, ANTHROPIC, *CLOUDS)
    ),
    *(
        Unsent(RESPONSES_API, provider, what, fields, field)
        for provider in (OPENAI, RESPONSES_API, ANTHROPIC, *CLOUDS)
        for what, fields, field in (
            ("`previous_response_id`", {"previous_response_id": "resp_1"}, "previous_response_id"),
            ("`background`", {"background": True}, "background"),
            ("`top_logprobs`", {"top_logprobs": 2}, "top_logprobs"),
            ("OpenAI's built-in tools", {"tools": [{"type": "file_search"}]}, "tools[0]"),
        )
    ),
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
    # Anthropic → all others
    *(
        Unsent(ANTHROPIC, provider, what, fields, field)
        for provider in (OPENAI, RESPONSES_API, *CLOUDS)
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
    Unsent(
        ANTHROPIC,
        GEMINI,
        "more than five `stop_sequences`",
        {"stop_sequences": list("abcdef")},
        why="Google takes five at most",
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
    *(
        Unsent(ANTHROPIC, GEMINI, what, fields, instead=instead, why=why, fate=fate)
        for what, fields, instead, why, fate in _FROM_ANTHROPIC
        if what in _UNKNOWN_TO_GEMINI
    ),
    Unsent(
        ANTHROPIC,
        GEMINI,
        "the budget of `thinking`",
        _budget(5000),
        instead=_budget(8000),
        why="sent to models after 2.5 as a level: low up to 1,024 tokens, medium up to 8,192, else high",
        fate="changed",
    ),
    # All → Gemini and Bedrock
    *(
        Unsent(client, provider, what, fields, instead=instead, why=_NOT_MADE)
        for provider in CLOUDS
        for client, what, fields, instead in _OF_CALLS_AND_USERS
    ),
    *(Unsent(client, BEDROCK, "images by URL", fields, "messages") for client, fields in _BY_URL.items()),
)
