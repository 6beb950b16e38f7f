"""What clients understand of the bytes they get, format by format.

The streams are taken apart by the strict readers that the protocols' own tests use; here their findings are put into
one shape. A reader fails where a client would.
"""

import json
from collections.abc import Callable
from typing import Any

import msgspec

from gateway.canonical.events import Unified
from gateway.canonical.usage import Usage
from gateway.config import Config
from gateway.protocols.ai_sdk_ui.parts import SIGNER
from gateway.protocols.openai_responses.items import seal_redacted, seal_signature
from gateway.protocols.wire import Reply, ServerRole
from gateway.surface import inference_roles
from tests.conformance.cases import Understood
from tests.protocols import chat_streams, ui_streams
from tests.protocols.anthropic_listener import assert_regular, parsed
from tests.protocols.test_ai_sdk_4 import lines
from tests.protocols.test_openai_responses import told

Object = dict[str, Any]

OPENAI_FINISH = {
    "stop": Unified.STOP,
    "length": Unified.LENGTH,
    "tool_calls": Unified.TOOL_CALLS,
    "content_filter": Unified.CONTENT_FILTER,
}
ANTHROPIC_FINISH = {
    "end_turn": Unified.STOP,
    "max_tokens": Unified.LENGTH,
    "tool_use": Unified.TOOL_CALLS,
    "refusal": Unified.CONTENT_FILTER,
}
INCOMPLETE = {"max_output_tokens": Unified.LENGTH, "content_filter": Unified.CONTENT_FILTER}


class Format(msgspec.Struct, frozen=True):
    """A format in which clients talk to us: how one asks, and how one reads. ``whole`` is ``None`` where it streams."""

    title: str
    path: str
    body: Object
    stream: Callable[[bytes], Understood]
    whole: Callable[[bytes], Understood] | None = None

    @property
    def role(self) -> ServerRole:
        """The role that the gateway serves at its path."""
        return inference_roles(Config())[self.path]

    def ask(self, *, stream: bool = True) -> bytes:
        """The body of the smallest request."""
        return json.dumps(self.body if self.whole is None else {**self.body, "stream": stream}).encode()


def refused(reply: Reply) -> Understood:
    """An HTTP answer that is an error: clients show the message of the object ``error``."""
    assert reply.status >= 400
    return Understood(error=json.loads(reply.body)["error"]["message"])


def arguments(text: str) -> str:
    """Arguments as a client reads them; what is no JSON stays as it is, to be seen in the comparison."""
    try:
        value = json.loads(text)
    except ValueError:
        return f"unreadable: {text!r}"
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


# ---- Chat Completions, and the legacy ones


def openai_usage(usage: Object | None) -> Usage | None:
    if usage is None:
        return None
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    read, written = usage["prompt_tokens_details"], usage["completion_tokens_details"]
    return Usage(
        input=usage["prompt_tokens"],
        output=usage["completion_tokens"],
        cache_read=read["cached_tokens"],
        cache_write=read.get("cache_write_tokens") or 0,
        reasoning=written["reasoning_tokens"],
    )


def without_error(output: bytes) -> tuple[bytes, str]:
    """A stream that an error may have ended: what came before, with a terminator, and the error's message."""
    head, _, last = output.removesuffix(b"\n\n").rpartition(b"\n\n")
    if not last.startswith(b'data: {"error":'):
        return output, ""
    return head + (b"\n\n" if head else b"") + chat_streams.DONE, json.loads(last[6:])["error"]["message"]


def data_of(stream: bytes) -> list[Object]:
    """The objects of a stream that ends in ``[DONE]``."""
    assert stream.endswith(chat_streams.DONE)
    return [json.loads(frame.removeprefix(b"data: ")) for frame in stream.split(b"\n\n")[:-2]]


def chat_stream(output: bytes) -> Understood:
    stream, error = without_error(output)
    said = chat_streams.heard(stream, include_usage=not error)[0]
    chunks = data_of(stream)
    details = [d for one in chunks for c in one["choices"] for d in c["delta"].get("reasoning_details") or ()]
    return Understood(
        text=said.text,
        reasoning=said.reasoning,
        signature="".join(detail.get("signature") or detail.get("data") or "" for detail in details),
        refusal=said.refusal,
        calls=tuple((identity, name, arguments(text)) for identity, name, text in said.calls),
        finish=OPENAI_FINISH[said.finish] if said.finish else None,
        usage=openai_usage(chunks[-1].get("usage")),
        error=error,
    )


def chat_whole(output: bytes) -> Understood:
    answer = json.loads(output)
    assert answer["object"] == "chat.completion"
    (choice,) = answer["choices"]
    message = choice["message"]
    calls = [(call["id"], call["function"]) for call in message.get("tool_calls") or ()]
    return Understood(
        text=message["content"] or "",
        reasoning=message.get("reasoning_content") or "",
        signature="".join(
            detail.get("signature") or detail.get("data") or "" for detail in message.get("reasoning_details") or ()
        ),
        refusal=message["refusal"] or "",
        calls=tuple((identity, function["name"], arguments(function["arguments"])) for identity, function in calls),
        finish=OPENAI_FINISH[choice["finish_reason"]],
        usage=openai_usage(answer["usage"]),
    )


def completion_stream(output: bytes) -> Understood:
    stream, error = without_error(output)
    chunks = data_of(stream)
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    finishes = [choice["finish_reason"] for choice in choices if choice["finish_reason"]]
    assert len(finishes) == (0 if error else 1)
    return Understood(
        text="".join(choice["text"] for choice in choices),
        finish=OPENAI_FINISH[finishes[0]] if finishes else None,
        usage=openai_usage(chunks[-1].get("usage")),
        error=error,
    )


def completion_whole(output: bytes) -> Understood:
    answer = json.loads(output)
    (choice,) = answer["choices"]
    finish = OPENAI_FINISH[choice["finish_reason"]]
    return Understood(text=choice["text"], finish=finish, usage=openai_usage(answer["usage"]))


# ---- Responses


def response(answer: Object) -> Understood:
    """A whole response; that a tool is called is seen by its items, as official clients do."""
    items = answer["output"]
    content = [part for item in items if item["type"] == "message" for part in item["content"]]
    thoughts = [item for item in items if item["type"] == "reasoning"]
    calls = [item for item in items if item["type"] == "function_call"]
    usage = answer["usage"]
    finish: Unified | None = Unified.TOOL_CALLS if calls else Unified.STOP
    if answer["status"] == "incomplete":
        finish = INCOMPLETE[answer["incomplete_details"]["reason"]]
    return Understood(
        text="".join(part["text"] for part in content if part["type"] == "output_text"),
        reasoning="".join(part["text"] for item in thoughts for part in item["summary"]),
        signature="".join(unsealed(item) for item in thoughts),
        refusal="".join(part["refusal"] for part in content if part["type"] == "refusal"),
        calls=tuple((item["call_id"], item["name"], arguments(item["arguments"])) for item in calls),
        finish=finish if answer["status"] != "failed" else None,
        usage=None if usage is None else response_usage(usage),
        error=(answer["error"] or {}).get("message", ""),
    )


def unsealed(item: Object) -> str:
    sealed: str = item.get("encrypted_content", "")
    return sealed.removeprefix(seal_signature("")).removeprefix(seal_redacted(""))


def response_usage(usage: Object) -> Usage:
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    return Usage(
        input=usage["input_tokens"],
        output=usage["output_tokens"],
        cache_read=usage["input_tokens_details"]["cached_tokens"],
        cache_write=usage["input_tokens_details"]["cache_write_tokens"],
        reasoning=usage["output_tokens_details"]["reasoning_tokens"],
    )


def responses_stream(output: bytes) -> Understood:
    """The final response; its text, which is also told piece by piece, has to be the same both times."""
    events = told(output)
    final = response(events[-1]["response"])

    def grown(kind: str) -> str:
        return "".join(event["delta"] for event in events if event["type"] == f"response.{kind}.delta")

    text = grown("output_text")
    if final.error:
        assert events[-2]["type"] == "error" and events[-2]["error"]["message"] == final.error
        return msgspec.structs.replace(final, text=text)
    assert (text, grown("refusal"), grown("reasoning_summary_text")) == (final.text, final.refusal, final.reasoning)
    return final


def responses_whole(output: bytes) -> Understood:
    return response(json.loads(output))


# ---- Anthropic Messages


def anthropic_usage(usage: Object) -> Usage:
    read, written = usage["cache_read_input_tokens"], usage["cache_creation_input_tokens"]
    return Usage(
        input=usage["input_tokens"] + read + written,
        output=usage["output_tokens"],
        cache_read=read,
        cache_write=written,
        reasoning=usage["output_tokens_details"]["thinking_tokens"],
    )


def anthropic_blocks(content: list[Object]) -> Understood:
    calls = [block for block in content if block["type"] == "tool_use"]
    return Understood(
        text="".join(block["text"] for block in content if block["type"] == "text"),
        reasoning="".join(block["thinking"] for block in content if block["type"] == "thinking"),
        signature="".join(
            block.get("signature", "") if block["type"] == "thinking" else block["data"]
            for block in content
            if block["type"] in ("thinking", "redacted_thinking")
        ),
        calls=tuple((block["id"], block["name"], arguments(json.dumps(block["input"]))) for block in calls),
    )


def anthropic_stream(output: bytes) -> Understood:
    """Blocks put together as official SDKs do it: a call without fragments has the input it began with."""
    payloads = parsed(output)
    blocks: dict[int, Object] = {}
    for event in payloads:
        if event["type"] == "content_block_start":
            blocks[event["index"]] = {**event["content_block"], "partial_json": ""}
        elif event["type"] == "content_block_delta":
            for name, piece in event["delta"].items():
                if name != "type":
                    blocks[event["index"]][name] += piece
    for block in blocks.values():
        if block["partial_json"]:
            block["input"] = json.loads(block["partial_json"])
    said = anthropic_blocks(list(blocks.values()))
    if payloads[-1]["type"] == "error":
        return msgspec.structs.replace(said, error=payloads[-1]["error"]["message"])
    assert_regular(output)
    end = payloads[-2]
    finish = ANTHROPIC_FINISH[end["delta"]["stop_reason"]]
    return msgspec.structs.replace(said, finish=finish, usage=anthropic_usage(end["usage"]))


def anthropic_whole(output: bytes) -> Understood:
    message = json.loads(output)
    said = anthropic_blocks(message["content"])
    finish = ANTHROPIC_FINISH[message["stop_reason"]]
    return msgspec.structs.replace(said, finish=finish, usage=anthropic_usage(message["usage"]))


# ---- AI SDK


def ai_sdk_4_stream(output: bytes) -> Understood:
    parts = lines(output)
    ended = [value for code, value in parts if code == "d"]
    calls = [value for code, value in parts if code == "9"]
    usage = ended[0]["usage"] if ended else None

    def joined(code: str) -> str:
        return "".join(value for kind, value in parts if kind == code)

    return Understood(
        text=joined("0"),
        reasoning=joined("g"),
        signature="".join(value.get("signature") or value["data"] for code, value in parts if code in ("i", "j")),
        calls=tuple((call["toolCallId"], call["toolName"], arguments(json.dumps(call["args"]))) for call in calls),
        finish=ui_finish(ended[0]["finishReason"]) if ended else None,
        usage=None if usage is None else Usage(input=usage["promptTokens"], output=usage["completionTokens"]),
        error=joined("3"),
    )


def ui_finish(word: str) -> Unified:
    return Unified(word.replace("-", "_"))


def ui_stream(output: bytes) -> Understood:
    shown = ui_streams.message(ui_streams.chunks(output))
    parts = shown["parts"]
    about = shown.get("metadata") or {}
    calls = [part for part in parts if part["type"].startswith("tool-")]
    signed = [part["providerMetadata"][SIGNER] for part in parts if "providerMetadata" in part]
    return Understood(
        text="".join(part["text"] for part in parts if part["type"] == "text"),
        reasoning="".join(part["text"] for part in parts if part["type"] == "reasoning"),
        signature="".join(own.get("signature") or own.get("redactedData") or "" for own in signed),
        calls=tuple((c["toolCallId"], c["type"][5:], arguments(json.dumps(c["input"]))) for c in calls),
        finish=ui_finish(about["finishReason"]) if about else None,
        usage=ui_usage(about["usage"]) if about else None,
        error=shown.get("error", ""),
    )


def ui_usage(usage: Object) -> Usage:
    assert usage["totalTokens"] == usage["inputTokens"] + usage["outputTokens"]
    return Usage(
        input=usage["inputTokens"],
        output=usage["outputTokens"],
        cache_read=usage["cachedInputTokens"],
        reasoning=usage["reasoningTokens"],
    )


_HI = [{"role": "user", "content": "Hi"}]
_CHAT = {"model": "m", "messages": _HI}
_UI = [{"id": "1", "role": "user", "parts": [{"type": "text", "text": "Hi"}]}]

FORMATS = {
    "openai_chat": Format("OpenAI Chat Completions", "/v1/chat/completions", _CHAT, chat_stream, chat_whole),
    "openai_responses": Format(
        "OpenAI Responses", "/v1/responses", {"model": "m", "input": "Hi"}, responses_stream, responses_whole
    ),
    "anthropic_messages": Format(
        "Anthropic Messages", "/v1/messages", {**_CHAT, "max_tokens": 99}, anthropic_stream, anthropic_whole
    ),
    "openai_completions": Format(
        "OpenAI Completions (legacy)",
        "/v1/completions",
        {"model": "m", "prompt": "Hi"},
        completion_stream,
        completion_whole,
    ),
    "ai_sdk_4": Format("AI SDK 4", "/api/ai/chat-stream", _CHAT, ai_sdk_4_stream),
    "ai_sdk_ui": Format("AI SDK 5 to 7", "/api/chat", {"model": "m", "messages": _UI}, ui_stream),
}
# Paths that need no line of their own here, and why.
ELSEWHERE = {
    "/v1/embeddings": "its answer has no words; tests/protocols/test_openai_embeddings.py",
    "/api/completion": "its streams are those of /api/chat and /api/ai/chat-stream",
}
