"""What vendors do that their format does not foresee: the bytes, and what is understood of them.

A habit is one row of ``HABITS``; of those of OpenAI's format many are the ``QUIRKS`` of the protocol's own tests.
"""

import json
from typing import Any

import msgspec

from gateway.canonical.errors import (
    ProviderError,
    ProviderProtocolError,
    ProviderRateLimited,
    ProviderRejected,
    ProviderUnavailable,
    StreamTruncated,
)
from gateway.canonical.events import Unified
from gateway.canonical.usage import Usage
from tests.protocols.chat_streams import (
    CITY,
    ENDING,
    QUIRKS,
    ROLE,
    TEXT,
    USAGE,
    call,
    calling,
    chunk,
    every,
    sse,
    stream,
)
from tests.protocols.chat_streams import (
    SPOKEN as SAID,
)
from tests.upstream.bedrock import Bedrock, event, exception


class Heard(msgspec.Struct, frozen=True, kw_only=True):
    """What an answer said. Arguments of ``calls`` are written anew; ``usage`` is without the vendor's object."""

    text: str = ""
    reasoning: str = ""
    refusal: str = ""
    calls: tuple[tuple[str, str], ...] = ()
    finish: Unified | None = Unified.STOP
    usage: Usage | None = None
    failure: type[ProviderError] | None = None


USED = Usage(input=12, output=7)
CALLS = (("weather", '{"city":"Zürich"}'), ("now", "{}"))
# How usage differs where a vendor of OpenAI's format tells more, or nothing.
FIGURES = {"deepseek": Usage(input=12, output=7, cache_read=8)}


def chat_error(**fields: Any) -> bytes:
    return b"".join(map(sse, (ROLE, TEXT[0], {"error": {"message": "No.", **fields}})))


def cut_short(failure: type[ProviderError]) -> Heard:
    return Heard(text="Hel", finish=None, failure=failure)


XAI = {**USAGE, "completion_tokens": 1, "total_tokens": 303, "completion_tokens_details": {"reasoning_tokens": 290}}
FILTER = {
    "choices": [],
    "prompt_filter_results": [{"prompt_index": 0}],
    "id": "",
    "model": "",
    "object": "",
    "created": 0,
}
LATER = {
    "choices": [{"index": 0, "content_filter_offsets": {}, "finish_reason": None}],
    "id": "",
    "model": "",
    "object": "",
}
TOTALS = [{**USAGE, "completion_tokens": count, "total_tokens": 12 + count} for count in (1, 4, 7)]
GEMINI_USED = {"usageMetadata": {"promptTokenCount": 12, "candidatesTokenCount": 7, "totalTokenCount": 19}}


def gemini(*parts: Any, finish: str | None = None, **more: Any) -> bytes:
    candidate = {"content": {"role": "model", "parts": list(parts)}, **({"finishReason": finish} if finish else {})}
    payload = {"candidates": [candidate], "modelVersion": "m", "responseId": "r", **more}
    return b"data: " + json.dumps(payload, ensure_ascii=False).encode() + b"\r\n\r\n"


def converse(*events: tuple[str, dict[str, Any]]) -> bytes:
    return b"".join(event(name, fields) for name, fields in events)


def at(index: int, **delta: Any) -> tuple[str, dict[str, Any]]:
    return "contentBlockDelta", {"contentBlockIndex": index, "delta": delta}


BEGUN = ("messageStart", {"role": "assistant"})
METERED = (
    "metadata",
    {"usage": {"inputTokens": 12, "outputTokens": 7, "totalTokens": 19}, "metrics": {"latencyMs": 5}},
)


def stopped(reason: str) -> tuple[str, dict[str, Any]]:
    return "messageStop", {"stopReason": reason}


def tool(index: int, name: str) -> tuple[str, dict[str, Any]]:
    start = {"toolUse": {"toolUseId": f"tooluse_{name}", "name": name}}
    return "contentBlockStart", {"contentBlockIndex": index, "start": start}


SIGNED = (at(0, reasoningContent={"text": "Hm."}), at(0, reasoningContent={"signature": "c2ln"}))

# Format, bytes, and what is understood.
HABITS: dict[str, tuple[str, bytes, Heard]] = {
    **{
        name: (
            "openai_chat",
            data,
            Heard(
                text=said.text,
                reasoning=said.reasoning,
                calls=tuple((tool, arguments) for _, tool, arguments in said.calls),
                finish=Unified(said.finish or ""),
                usage=FIGURES.get(name, USED),
            ),
        )
        for name, (data, said) in QUIRKS.items()
    },
    "groq, a whole call": (
        "openai_chat",
        stream(
            chunk({"role": "assistant", "content": None}, x_groq={"id": "r"}),
            chunk({"tool_calls": [call(0, "fc_1", "weather", CITY)]}),
            chunk({}, "tool_calls", x_groq={"id": "r", "usage": USAGE}, usage=USAGE),
        ),
        Heard(calls=CALLS[:1], finish=Unified.TOOL_CALLS, usage=USED),
    ),
    "vllm, reasoning and marks of its own": (
        "openai_chat",
        stream(
            *every((ROLE, chunk({"reasoning": "Hm."})), usage={**USAGE, "completion_tokens": 1, "total_tokens": 13}),
            *(
                {**one, "choices": [{**it, "token_ids": [1], "logprobs": None} for it in one["choices"]]}
                for one in TEXT
            ),
            {**chunk(), "choices": [{"index": 0, "delta": {}, "finish_reason": "stop", "stop_reason": 128009}]},
            chunk(usage=USAGE),
        ),
        Heard(text=SAID, reasoning="Hm.", usage=USED),
    ),
    "ollama, reasoning": (
        "openai_chat",
        stream(*every((chunk({"content": "", "reasoning": "Hm."}), *TEXT), {"role": "assistant"}), *ENDING),
        Heard(text=SAID, reasoning="Hm.", usage=USED),
    ),
    "alibaba, reasoning": (
        "openai_chat",
        stream(
            chunk({"role": "assistant", "content": None, "reasoning_content": ""}, usage=None),
            *every((chunk({"content": None, "reasoning_content": "Hm."}), *TEXT, ENDING[0]), usage=None),
            chunk(usage={**USAGE, "prompt_tokens_details": {"cached_tokens": 8}}),
        ),
        Heard(text=SAID, reasoning="Hm.", usage=Usage(input=12, output=7, cache_read=8)),
    ),
    "openrouter, the price of it": (
        "openai_chat",
        stream(
            ROLE, *TEXT, ENDING[0], chunk({"content": ""}, usage={**USAGE, "cost": 0.0125, "cost_details": {"x": 1}})
        ),
        Heard(text=SAID, usage=USED),
    ),
    "ids and names that are empty": (
        "openai_chat",
        calling(call(0, "call_a", "weather", '{"city":'), call(0, "", "", '"Zürich"}'), call(1, "call_b", "now", "{}")),
        Heard(calls=CALLS, finish=Unified.TOOL_CALLS, usage=USED),
    ),
    "fragments of nobody": (
        "openai_chat",
        calling(call(None, "call_a", "weather", '{"city":'), call(None, None, None, '"Zürich"}')),
        Heard(calls=CALLS[:1], finish=Unified.TOOL_CALLS, usage=USED),
    ),
    "ids that are numbers": (
        "openai_chat",
        calling(call(0, 7, "weather", CITY), call(1, 8, "now", "{}")),
        Heard(calls=CALLS, finish=Unified.TOOL_CALLS, usage=USED),
    ),
    "a call without arguments": (
        "openai_chat",
        calling(call(0, "call_a", "now", ""), call(1, "call_b", "now", None)),
        Heard(calls=CALLS[1:] * 2, finish=Unified.TOOL_CALLS, usage=USED),
    ),
    "xai, output without reasoning": (
        "openai_chat",
        stream(*TEXT, ENDING[0], chunk(usage=XAI)),
        Heard(text=SAID, usage=Usage(input=12, output=291, reasoning=290)),
    ),
    "perplexity, usage that grows": (
        "openai_chat",
        stream(
            *(one for text, usage in zip(TEXT, TOTALS, strict=True) for one in every((text,), usage=usage)), ENDING[0]
        ),
        Heard(text=SAID, usage=USED),
    ),
    "two choices in one chunk": (
        "openai_chat",
        stream(
            {**ROLE, "choices": [{"index": 1, "delta": {"content": "no"}}, *TEXT[0]["choices"]]},
            {**ROLE, "choices": [{"index": number, "delta": {}, "finish_reason": "stop"} for number in (0, 1)]},
            chunk(usage=USAGE),
        ),
        Heard(text="Hel", usage=USED),
    ),
    "no word of usage": ("openai_chat", stream(ROLE, *TEXT, ENDING[0]), Heard(text=SAID)),
    "groq, a call it could not read": (
        "openai_chat",
        chat_error(type="invalid_request_error", code="tool_use_failed", failed_generation="<x"),
        cut_short(ProviderRejected),
    ),
    "vllm, an error with a number": (
        "openai_chat",
        chat_error(type="BadRequestError", code=400) + b"data: [DONE]\n\n",
        cut_short(ProviderRejected),
    ),
    "openrouter, an error with a finish": (
        "openai_chat",
        stream(ROLE, TEXT[0], chunk({"content": ""}, "error", error={"code": 502, "message": "Down."})),
        cut_short(ProviderUnavailable),
    ),
    "a limit within": ("openai_chat", chat_error(code="rate_limit_exceeded"), cut_short(ProviderRateLimited)),
    "no end at all": ("openai_chat", b"".join(map(sse, (ROLE, TEXT[0]))), cut_short(StreamTruncated)),
    "no chunk": ("openai_chat", b"".join(map(sse, (ROLE, TEXT[0], [1]))), cut_short(ProviderProtocolError)),
    "azure, opinions": (
        "azure",
        stream(FILTER, ROLE, *TEXT, ENDING[0], LATER, ENDING[1]),
        Heard(text=SAID, usage=USED),
    ),
    "gemini, a call without id and arguments": (
        "gemini",
        gemini({"functionCall": {"name": "now"}}, finish="STOP", **GEMINI_USED),
        Heard(calls=(("now", "{}"),), finish=Unified.TOOL_CALLS, usage=USED),
    ),
    "gemini, a prompt that is blocked": (
        "gemini",
        b'data: {"promptFeedback":{"blockReason":"SAFETY"},"usageMetadata":{"promptTokenCount":12}}\r\n\r\n',
        Heard(finish=Unified.CONTENT_FILTER, usage=Usage(input=12)),
    ),
    "gemini, thoughts apart": (
        "gemini",
        gemini({"text": "Hm.", "thought": True})
        + gemini(
            {"text": SAID},
            finish="STOP",
            usageMetadata={
                "promptTokenCount": 12,
                "candidatesTokenCount": 5,
                "thoughtsTokenCount": 2,
                "totalTokenCount": 19,
            },
        ),
        Heard(text=SAID, reasoning="Hm.", usage=Usage(input=12, output=7, reasoning=2)),
    ),
    "gemini, a bare error": (
        "gemini",
        gemini({"text": "Hel"}) + b'{"error": {"code": 503, "message": "Busy.", "status": "UNAVAILABLE"}}\n',
        cut_short(ProviderUnavailable),
    ),
    "bedrock, usage before the end": (
        "bedrock_converse",
        converse(BEGUN, at(0, text=SAID), METERED, stopped("end_turn")),
        Heard(text=SAID, usage=USED),
    ),
    "gemini, a call whose arguments came in pieces": (
        "gemini",
        gemini({"functionCall": {"name": "weather", "args": {"city": "Zürich"}}, "thoughtSignature": "c2ln"})
        + gemini({"functionCall": {}}, {"functionCall": {"name": "now", "args": None}})
        + gemini(finish="STOP", **GEMINI_USED),
        Heard(calls=CALLS, finish=Unified.TOOL_CALLS, usage=USED),
    ),
    "gemini, words that look like an event": (
        "gemini",
        gemini({"text": "data: {}"}, finish="STOP", **GEMINI_USED),
        Heard(text="data: {}", usage=USED),
    ),
    "gemini, no content": (
        "gemini",
        gemini({"text": SAID}) + b'data: {"candidates":[{"finishReason":"STOP","index":0}],"usageMetadata":'
        b'{"promptTokenCount":12,"candidatesTokenCount":7}}\r\n\r\n',
        Heard(text=SAID, usage=USED),
    ),
    "gemini, code and files": (
        "gemini",
        gemini(
            {"executableCode": {"language": "PYTHON", "code": "1"}},
            {"codeExecutionResult": {"outcome": "OUTCOME_OK", "output": "1"}},
            {"inlineData": {"mimeType": "image/png", "data": "AAAA"}, "thoughtSignature": "c2ln"},
            {"text": SAID},
            finish="STOP",
            groundingMetadata={"webSearchQueries": ["x"]},
            **GEMINI_USED,
        ),
        Heard(text=SAID, usage=USED),
    ),
    "bedrock, a signed thought": (
        "bedrock_converse",
        converse(BEGUN, *SIGNED, ("contentBlockStop", {"contentBlockIndex": 0}), at(1, text=SAID))
        + converse(("contentBlockStop", {"contentBlockIndex": 1}), stopped("end_turn"), METERED),
        Heard(text=SAID, reasoning="Hm.", usage=USED),
    ),
    "bedrock, a citation": (
        "bedrock_converse",
        converse(BEGUN, at(0, text=SAID), at(0, citation={"title": "x"}), stopped("end_turn"), METERED),
        Heard(text=SAID, usage=USED),
    ),
    "bedrock, a call without arguments": (
        "bedrock_converse",
        converse(BEGUN, tool(0, "now"), at(0, toolUse={"input": ""}), ("contentBlockStop", {"contentBlockIndex": 0}))
        + converse(stopped("tool_use"), METERED),
        Heard(calls=(("now", "{}"),), finish=Unified.TOOL_CALLS, usage=USED),
    ),
    "bedrock, a guardrail": (
        "bedrock_converse",
        converse(BEGUN, at(0, text="Hel"), stopped("guardrail_intervened"), METERED),
        Heard(text="Hel", finish=Unified.CONTENT_FILTER, usage=USED),
    ),
    **{
        f"bedrock, {name}": (
            "bedrock_converse",
            converse(BEGUN, at(0, text="Hel")) + exception(name, "No."),
            cut_short(kind),
        )
        for name, kind in {
            "throttlingException": ProviderRateLimited,
            "modelStreamErrorException": ProviderUnavailable,
            "serviceUnavailableException": ProviderUnavailable,
            "internalServerException": ProviderUnavailable,
            "validationException": ProviderRejected,
        }.items()
    },
    "bedrock, a broken frame": (
        "bedrock_converse",
        converse(BEGUN, at(0, text="Hel")) + Bedrock.garbage,
        cut_short(ProviderProtocolError),
    ),
}
