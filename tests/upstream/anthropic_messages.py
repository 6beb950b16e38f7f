"""Anthropic's ``POST /v1/messages``: named events, the whole answer, the envelope, and the signatures it issued.

Source: https://docs.anthropic.com/en/api/messages-streaming and recorded streams. What a request may hold is in
``anthropic_rules``; it gets to see which signatures this server gave out, for which text.
"""

import base64
import hashlib
from collections.abc import Iterator
from itertools import chain, groupby
from typing import Any

import msgspec

from .anthropic_rules import check
from .anthropic_turns import Issued
from .exchange import REQUEST_ID, Received, Rejected, Speech, Step, Whole, frame
from .plan import Piece, Plan, Usage

ERROR_TYPES = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    504: "timeout_error",
    529: "overloaded_error",
}
STOP_REASONS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}
VERSIONS = ("2023-06-01", "2026-10-21")


class AnthropicMessages:
    """The vendor's side of Messages. It remembers what it signed."""

    garbage = b'event: content_block_delta\ndata: {"type":"content_block_delta","ind\xff\xfe\n\n'

    def __init__(self) -> None:
        self._issued = Issued()

    def check(self, received: Received) -> None:
        """Raises ``Rejected`` as Anthropic would."""
        if not received.key:
            raise Rejected("x-api-key header is required", status=401)
        version = received.headers.get("anthropic-version")
        if version is None:
            raise Rejected("anthropic-version: header is required")
        if version not in VERSIONS:
            raise Rejected(f'anthropic-version: "{version}" is not a valid version')
        if received.method == "POST":
            check(received.body, version, self._issued)

    def headers(self, received: Received) -> dict[str, str]:
        """What Anthropic puts on every answer."""
        return {
            "request-id": REQUEST_ID.format(received.serial),
            "anthropic-organization-id": "upstream-org",
            "anthropic-ratelimit-requests-limit": "10000",
            "anthropic-ratelimit-requests-remaining": "9999",
            "anthropic-ratelimit-requests-reset": "2026-11-20T00:00:00Z",
        }

    def ordered_error(self, status: int) -> Rejected:
        """What Anthropic says with this status."""
        return Rejected("Overloaded" if status == 529 else f"ordered to answer {status}", status=status)

    def error(self, received: Received, rejected: Rejected) -> bytes:
        """Anthropic's envelope."""
        kind = ERROR_TYPES.get(rejected.status, "api_error" if rejected.status > 500 else "invalid_request_error")
        error = {"type": kind, "message": rejected.message}
        return msgspec.json.encode({"type": "error", "error": error, "request_id": REQUEST_ID.format(received.serial)})

    def error_event(self, received: Received, plan: Plan) -> bytes:
        """``event: error``, overloaded unless ordered otherwise."""
        payload = self.error(received, self.ordered_error(529))
        return frame(plan, payload if plan.error_body is None else msgspec.json.encode(plan.error_body), "error")

    def stream(self, received: Received, plan: Plan) -> Iterator[Step]:
        """``message_start``, ``ping``, the blocks one after another, ``message_delta``, ``message_stop``."""
        return EventStream(received, plan, self._issued).steps()

    def whole(self, received: Received, plan: Plan) -> Whole:
        """A ``message``."""
        speech = _speech(received.body, plan)
        pieces = list(speech)
        content = []
        for _, group in groupby(pieces, _block_of):
            block = list(group)
            text = "".join(piece.text for piece in block)
            content.append(_whole_block(received, plan, block[0], text))
            self._issued.note(content[-1])
        answer = _message(received, content) | _ending(received, plan, speech)
        if (usage := speech.usage()) is not None:
            answer["usage"] = render_usage(usage)
        return Whole(msgspec.json.encode(answer), [piece.text for piece in pieces])


class EventStream:
    """The events of one streamed answer."""

    def __init__(self, received: Received, plan: Plan, issued: Issued) -> None:
        self._received = received
        self._plan = plan
        self._issued = issued
        self._speech = _speech(received.body, plan)

    def _event(self, kind: str, **fields: Any) -> bytes:
        return frame(self._plan, msgspec.json.encode({"type": kind, **fields}), kind)

    def steps(self) -> Iterator[Step]:
        """All events in order."""
        message = _message(self._received, [])
        if (usage := self._speech.usage()) is not None:
            message["usage"] = render_usage(msgspec.structs.replace(usage, output=1, reasoning=0))
        yield Step(self._event("message_start", message=message))
        yield Step(self._event("ping"))
        for index, (_, block) in enumerate(groupby(self._speech, _block_of)):
            yield from self._block(index, block)
        closing: dict[str, Any] = {"delta": _ending(self._received, self._plan, self._speech)}
        if (usage := self._speech.usage()) is not None:
            rendered = render_usage(usage)
            closing["usage"] = {name: rendered[name] for name in rendered if name.endswith(("_tokens", "_details"))}
        yield Step(self._event("message_delta", **closing), is_closing=True)
        if self._plan.done:
            yield Step(self._event("message_stop"))

    def _block(self, index: int, pieces: Iterator[Piece]) -> Iterator[Step]:
        first = next(pieces)
        start = _whole_block(self._received, self._plan, first, "", is_start=True)
        if first.kind == "redacted":
            self._issued.note(start)
            yield Step(self._event("content_block_start", index=index, content_block=start), first.text)
            yield Step(self._event("content_block_stop", index=index))
            return
        yield Step(self._event("content_block_start", index=index, content_block=start))
        text = ""
        for piece in chain((first,), pieces):
            text += piece.text
            yield Step(self._event("content_block_delta", index=index, delta=_delta(piece)), piece.text)
        if first.kind == "reasoning":
            block = _whole_block(self._received, self._plan, first, text)
            self._issued.note(block)
            delta = {"type": "signature_delta", "signature": block["signature"]}
            yield Step(self._event("content_block_delta", index=index, delta=delta))
        yield Step(self._event("content_block_stop", index=index))


def _speech(body: dict[str, Any], plan: Plan) -> Speech:
    return Speech(plan, body["max_tokens"])


def _block_of(piece: Piece) -> tuple[str, int]:
    """What tells blocks apart; a refusal is said as text."""
    return ("text" if piece.kind == "refusal" else piece.kind), piece.call


def _delta(piece: Piece) -> dict[str, str]:
    match piece.kind:
        case "reasoning":
            return {"type": "thinking_delta", "thinking": piece.text}
        case "tool":
            return {"type": "input_json_delta", "partial_json": piece.text}
    return {"type": "text_delta", "text": piece.text}


def _whole_block(received: Received, plan: Plan, piece: Piece, text: str, is_start: bool = False) -> dict[str, Any]:
    """The block that ``piece`` begins, with all of its text, or as ``content_block_start`` shows it."""
    match piece.kind:
        case "reasoning":
            return {"type": "thinking", "thinking": text, "signature": "" if is_start else plan.signature or sign(text)}
        case "redacted":
            return {"type": "redacted_thinking", "data": piece.text}
        case "tool":
            call = plan.tool_calls[piece.call]
            name = call.id or f"toolu_{received.serial:020d}{piece.call:04d}"
            return {"type": "tool_use", "id": name, "name": call.name, "input": msgspec.json.decode(text or "{}")}
    return {"type": "text", "text": text}


def sign(thinking: str) -> str:
    """A signature in the look of Anthropic's; the same text is always signed alike."""
    return base64.b64encode(hashlib.sha512(thinking.encode()).digest()).decode()


def _message(received: Received, content: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": f"msg_{received.serial:024d}",
        "type": "message",
        "role": "assistant",
        "model": received.body["model"],
        "content": content,
        "stop_reason": None,
        "stop_sequence": None,
    }


def _ending(received: Received, plan: Plan, speech: Speech) -> dict[str, Any]:
    reason = "content_filter" if plan.refusal and plan.finish_reason is None else speech.finish_reason
    stops = received.body.get("stop_sequences") or [None]
    stop = stops[0] if reason == "stop_sequence" else None
    return {"stop_reason": STOP_REASONS.get(reason, reason), "stop_sequence": stop}


def render_usage(usage: Usage) -> dict[str, Any]:
    """Totals in Anthropic's convention: input tokens leave the cached ones out."""
    return {
        "input_tokens": usage.input - usage.cache_read - usage.cache_write,
        "cache_creation_input_tokens": usage.cache_write,
        "cache_read_input_tokens": usage.cache_read,
        "cache_creation": {"ephemeral_5m_input_tokens": usage.cache_write, "ephemeral_1h_input_tokens": 0},
        "output_tokens": usage.output,
        "output_tokens_details": {"thinking_tokens": usage.reasoning},
        "service_tier": "standard",
    }
