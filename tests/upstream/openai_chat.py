"""OpenAI's ``POST /v1/chat/completions``: the order of chunks, the whole answer and the envelope.

Source: https://platform.openai.com/docs/api-reference/chat and recorded streams; the quirks are those of compatible
servers. What a request may hold is in ``openai_rules``.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from .exchange import CREATED, REQUEST_ID, Received, Rejected, Speech, Step, Whole, frame
from .openai_rules import check
from .plan import Piece, Plan, Usage

ERROR_TYPES = {429: "requests", 500: "server_error", 503: "service_unavailable_error"}
ERROR_CODES = {401: "invalid_api_key", 404: "model_not_found", 429: "rate_limit_exceeded", 503: "server_is_overloaded"}
SERVER_ERROR = "The server had an error while processing your request. Sorry about that!"


class OpenAIChat:
    """The vendor's side of Chat Completions."""

    garbage = b'data: {"id":"chatcmpl-\xff\xfe","choi\n\n'

    def __init__(self, strict_fields: bool) -> None:
        self._strict_fields = strict_fields

    def check(self, received: Received) -> None:
        """Raises ``Rejected`` as OpenAI would."""
        if not received.key:
            raise Rejected("You didn't provide an API key.", status=401)
        if received.method == "POST":
            check(received.body, self._strict_fields)

    def headers(self, received: Received) -> dict[str, str]:
        """What OpenAI puts on every answer."""
        return {
            "x-request-id": REQUEST_ID.format(received.serial),
            "openai-version": "2020-10-01",
            "openai-organization": "upstream-org",
            "openai-processing-ms": "12",
            "x-ratelimit-limit-requests": "10000",
            "x-ratelimit-remaining-requests": "9999",
            "x-ratelimit-reset-requests": "6ms",
        }

    def ordered_error(self, status: int) -> Rejected:
        """What OpenAI says with this status."""
        message = SERVER_ERROR if status >= 500 else f"The simulated provider was ordered to answer {status}."
        return Rejected(message, status=status, code=ERROR_CODES.get(status))

    def error(self, received: Received, rejected: Rejected) -> bytes:
        """OpenAI's envelope."""
        kind = ERROR_TYPES.get(rejected.status, "server_error" if rejected.status > 500 else "invalid_request_error")
        error = {"message": rejected.message, "type": kind, "param": rejected.param, "code": rejected.code}
        return msgspec.json.encode({"error": error})

    def error_event(self, received: Received, plan: Plan) -> bytes:
        """A chunk with a top-level error."""
        payload = self.error(received, Rejected(SERVER_ERROR, status=500))
        return frame(plan, payload if plan.error_body is None else msgspec.json.encode(plan.error_body))

    def stream(self, received: Received, plan: Plan) -> Iterator[Step]:
        """Role, content, finish, usage if asked for, ``[DONE]``."""
        return ChunkStream(received, plan).steps()

    def whole(self, received: Received, plan: Plan) -> Whole:
        """A ``chat.completion``."""
        body = received.body
        speech = _speech(body, plan)
        pieces = list(speech)
        message = _whole_message(received, plan, pieces)
        choices = body.get("n") or 1
        answer: dict[str, Any] = {
            "id": f"chatcmpl-{received.serial:029d}",
            "object": "chat.completion",
            "created": CREATED,
            "model": body["model"],
            "choices": [_choice(index, speech.finish_reason, message=message) for index in range(choices)],
            "service_tier": "default",
            "system_fingerprint": "fp_upstream",
        }
        if (usage := speech.usage(choices)) is not None:
            answer["usage"] = render_usage(usage, plan)
        return Whole(msgspec.json.encode(answer), [piece.text for piece in pieces] * choices)


class ChunkStream:
    """The chunks of one streamed answer."""

    def __init__(self, received: Received, plan: Plan) -> None:
        self._received = received
        self._plan = plan
        self._speech = _speech(received.body, plan)
        self._choices: int = received.body.get("n") or 1
        options = received.body.get("stream_options") or {}
        self._wants_usage = options.get("include_usage") is True and plan.usage != "missing"

    def steps(self) -> Iterator[Step]:
        """All events in order."""
        plan = self._plan
        opening = {"role": "assistant", "content": "" if plan.words else None, "refusal": None}
        yield from (Step(self._chunk([_choice(i, None, delta=opening)])) for i in range(self._choices))
        for piece in self._speech:
            for index in range(self._choices):
                delta = self._delta(piece)
                yield Step(self._chunk([_choice(index, None, delta=delta)]), piece.text)
        reason = self._speech.finish_reason
        for index in range(self._choices):
            is_last = index == self._choices - 1
            role = {"role": "assistant"} if plan.role_on_every_chunk else {}
            choice = _choice(index, reason, delta=role)
            yield Step(self._chunk([choice], has_usage=is_last and plan.usage_in_choices_chunk), is_closing=index == 0)
        if self._wants_usage and not plan.usage_in_choices_chunk:
            yield Step(self._chunk([], has_usage=True))
        if plan.done:
            yield Step(frame(plan, b"[DONE]"))

    def _chunk(self, choices: list[dict[str, Any]], *, has_usage: bool = False) -> bytes:
        chunk: dict[str, Any] = {
            "id": f"chatcmpl-{self._received.serial:029d}",
            "object": "chat.completion.chunk",
            "created": CREATED,
            "model": self._received.body["model"],
            "service_tier": "default",
            "system_fingerprint": "fp_upstream",
            "choices": choices,
        }
        if self._wants_usage:
            chunk["usage"] = None
        if has_usage or self._plan.usage_on_every_chunk:
            usage = self._speech.usage(self._choices)
            chunk["usage"] = None if usage is None else render_usage(usage, self._plan)
        return frame(self._plan, msgspec.json.encode(chunk))

    def _delta(self, piece: Piece) -> dict[str, Any]:
        plan = self._plan
        delta: dict[str, Any] = {"role": "assistant"} if plan.role_on_every_chunk else {}
        match piece.kind:
            case "reasoning":
                return delta | {plan.reasoning_field: piece.text}
            case "refusal":
                return delta | {"refusal": piece.text}
            case "tool":
                return delta | {"tool_calls": [self._fragment(piece)]}
        return delta | {"content": piece.text}

    def _fragment(self, piece: Piece) -> dict[str, Any]:
        """Id, type and name stand in the first fragment of a call and nowhere else."""
        index = {} if self._plan.no_tool_index else {"index": piece.call}
        if not piece.is_first:
            return index | {"function": {"arguments": piece.text}}
        return index | _call(self._received, self._plan, piece.call, piece.text)


def _speech(body: dict[str, Any], plan: Plan) -> Speech:
    """OpenAI's format has no place for redacted reasoning."""
    tokens_max = body.get("max_completion_tokens") or body.get("max_tokens")
    return Speech(msgspec.structs.replace(plan, redacted=""), tokens_max)


def _choice(index: int, reason: str | None, **content: Any) -> dict[str, Any]:
    return {"index": index, **content, "logprobs": None, "finish_reason": reason}


def _call(received: Received, plan: Plan, call: int, arguments: str) -> dict[str, Any]:
    ordered = plan.tool_calls[call]
    function = {"name": ordered.name, "arguments": arguments}
    return {"id": ordered.id or f"call_{received.serial:020d}{call:04d}", "type": "function", "function": function}


def _whole_message(received: Received, plan: Plan, pieces: Iterable[Piece]) -> dict[str, Any]:
    said: dict[str, str] = {}
    calls: dict[int, str] = {}
    for piece in pieces:
        if piece.kind == "tool":
            calls[piece.call] = calls.get(piece.call, "") + piece.text
        else:
            said[piece.kind] = said.get(piece.kind, "") + piece.text
    message: dict[str, Any] = {"role": "assistant", "content": said.get("text"), "refusal": said.get("refusal")}
    if "reasoning" in said:
        message[plan.reasoning_field] = said["reasoning"]
    if calls:
        message["tool_calls"] = [_call(received, plan, call, text) for call, text in calls.items()]
    return message | {"annotations": []}


def render_usage(usage: Usage, plan: Plan) -> dict[str, Any]:
    """Totals in OpenAI's convention, or in xAI's, where completion tokens leave the reasoning out."""
    output, reasoning = usage.output or 0, usage.reasoning or 0
    return {
        "prompt_tokens": usage.input,
        "completion_tokens": output - reasoning if plan.output_excludes_reasoning else output,
        "total_tokens": usage.input + output,
        "prompt_tokens_details": {
            "cached_tokens": usage.cache_read,
            "cache_write_tokens": usage.cache_write,
            "audio_tokens": 0,
        },
        "completion_tokens_details": {
            "reasoning_tokens": reasoning,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }
