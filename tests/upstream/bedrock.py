"""Bedrock's ``POST /model/{id}/converse-stream``: signatures checked, answers in AWS's binary event stream.

Sources: https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_ConverseStream.html for the events, and
https://smithy.io/2.0/aws/amazon-eventstream.html for the bytes of a message. What a request may hold is in
``bedrock_rules``.
"""

import base64
import binascii
import hashlib
import re
import struct
from collections.abc import Iterator
from itertools import groupby
from typing import Any
from urllib.parse import unquote

import msgspec

from .bedrock_rules import Issued, Keys, check_body, check_signature
from .exchange import Received, Rejected, Speech, Step, Vendor, Whole
from .plan import Piece, Plan, Usage
from .server import Upstream

STOP_REASONS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "content_filter": "content_filtered",
}
ERROR_TYPES = {
    400: "ValidationException",
    403: "AccessDeniedException",
    404: "ResourceNotFoundException",
    408: "ModelTimeoutException",
    424: "ModelErrorException",
    429: "ThrottlingException",
    500: "InternalServerException",
    503: "ServiceUnavailableException",
}
_PATH = re.compile(r"/model/([^/]+)/(converse-stream|converse)")
_STRING = 7


def encode_message(headers: dict[str, str], payload: bytes) -> bytes:
    """One message: lengths, their checksum, headers, payload, and the checksum of it all."""
    head = b"".join(
        struct.pack("!B", len(name)) + name.encode() + struct.pack("!BH", _STRING, len(value.encode())) + value.encode()
        for name, value in headers.items()
    )
    prelude = struct.pack("!II", 16 + len(head) + len(payload), len(head))
    message = prelude + struct.pack("!I", binascii.crc32(prelude)) + head + payload
    return message + struct.pack("!I", binascii.crc32(message))


def event(name: str, fields: dict[str, Any]) -> bytes:
    """An event of the stream, padded as AWS does against those who measure."""
    headers = {":event-type": name, ":content-type": "application/json", ":message-type": "event"}
    return encode_message(headers, msgspec.json.encode({**fields, "p": "abcdefghijkl"}))


def exception(name: str, message: str) -> bytes:
    """An exception within the stream."""
    headers = {":exception-type": name, ":content-type": "application/json", ":message-type": "exception"}
    return encode_message(headers, msgspec.json.encode({"message": message}))


class Bedrock:
    """The vendor's side of Converse. It remembers what it signed."""

    garbage = event("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": "?"}})[:-1] + b"\x00"
    stream_type = "application/vnd.amazon.eventstream"

    def __init__(self, keys: Keys | None, bearer: str | None) -> None:
        self._keys = keys
        self._bearer = bearer
        self._issued = Issued()
        self._error_types: dict[int, str] = {}

    def model(self, received: Received) -> str:
        """The model that the path names."""
        found = _PATH.fullmatch(received.path)
        if found is None:
            raise Rejected("Unable to determine service/operation name to be authorized", status=404)
        return unquote(found.group(1))

    def check(self, received: Received) -> None:
        """Raises ``Rejected`` as Bedrock would."""
        model = self.model(received)
        if received.method != "POST":
            raise Rejected("Unable to determine service/operation name to be authorized", status=403)
        if self._keys is not None:
            check_signature(received, self._keys)
        elif self._bearer is not None and received.key != self._bearer:
            raise Rejected("Authentication failed: Please make sure your API Key is valid.", status=403)
        check_body(received.body, model, self._issued)

    def headers(self, received: Received) -> dict[str, str]:
        """What AWS puts on every answer, and the name of an error on those that are one."""
        name = self._error_types.get(received.serial)
        request_id = {"x-amzn-requestid": f"00000000-0000-4000-8000-{received.serial:012d}"}
        return request_id | ({"x-amzn-errortype": f"{name}:http://internal.amazon.com/coral/"} if name else {})

    def ordered_error(self, status: int) -> Rejected:
        """What Bedrock says with this status."""
        return Rejected(f"ordered to answer {status}", status=status)

    def error(self, received: Received, rejected: Rejected) -> bytes:
        """AWS's envelope; the name goes into a header."""
        self._error_types[received.serial] = rejected.code or ERROR_TYPES.get(rejected.status, "InternalFailure")
        return msgspec.json.encode({"message": rejected.message})

    def error_event(self, received: Received, plan: Plan) -> bytes:
        """An exception in the stream; ``error_body`` may name another one."""
        ordered = plan.error_body if isinstance(plan.error_body, dict) else {}
        return exception(ordered.get("exception", "throttlingException"), ordered.get("message", "Too many tokens"))

    def stream(self, received: Received, plan: Plan) -> Iterator[Step]:
        """``messageStart``, the blocks one after another, ``messageStop``, ``metadata``."""
        speech = _speech(received.body, plan)
        yield Step(event("messageStart", {"role": "assistant"}))
        for index, (_, pieces) in enumerate(groupby(speech, _block_of)):
            yield from self._block(received, plan, index, list(pieces))
        stop = {"stopReason": _stop_reason(plan, speech)}
        yield Step(event("messageStop", stop), is_closing=True)
        usage = speech.usage()
        if plan.done and usage is not None:
            yield Step(event("metadata", {"usage": render_usage(usage), "metrics": {"latencyMs": 7}}))

    def _block(self, received: Received, plan: Plan, index: int, pieces: list[Piece]) -> Iterator[Step]:
        at = {"contentBlockIndex": index}
        first = pieces[0]
        if first.kind == "tool":
            start = {
                "toolUse": {"toolUseId": _call_id(received, plan, first), "name": plan.tool_calls[first.call].name}
            }
            yield Step(event("contentBlockStart", {**at, "start": start}))
        for piece in pieces:
            yield Step(event("contentBlockDelta", {**at, "delta": _delta(piece)}), piece.text)
        if first.kind == "reasoning":
            thought = "".join(piece.text for piece in pieces)
            signature = plan.signature or sign(thought)
            self._issued.note(thought, signature)
            delta = {"reasoningContent": {"signature": signature}}
            yield Step(event("contentBlockDelta", {**at, "delta": delta}))
        elif first.kind == "redacted":
            self._issued.note_redacted(first.text)
        yield Step(event("contentBlockStop", at))

    def whole(self, received: Received, plan: Plan) -> Whole:
        """The answer of ``/converse``, which also stands for a server that does not stream."""
        speech = _speech(received.body, plan)
        pieces = list(speech)
        content = [
            self._whole_block(received, plan, group[0], "".join(piece.text for piece in group))
            for group in (list(group) for _, group in groupby(pieces, _block_of))
        ]
        answer: dict[str, Any] = {
            "output": {"message": {"role": "assistant", "content": content}},
            "stopReason": _stop_reason(plan, speech),
            "metrics": {"latencyMs": 7},
        }
        if (usage := speech.usage()) is not None:
            answer["usage"] = render_usage(usage)
        return Whole(msgspec.json.encode(answer), [piece.text for piece in pieces])

    def _whole_block(self, received: Received, plan: Plan, piece: Piece, text: str) -> dict[str, Any]:
        match piece.kind:
            case "reasoning":
                signature = plan.signature or sign(text)
                self._issued.note(text, signature)
                return {"reasoningContent": {"reasoningText": {"text": text, "signature": signature}}}
            case "redacted":
                self._issued.note_redacted(text)
                return {"reasoningContent": {"redactedContent": text}}
            case "tool":
                call = {"toolUseId": _call_id(received, plan, piece), "name": plan.tool_calls[piece.call].name}
                return {"toolUse": {**call, "input": msgspec.json.decode(text or "{}")}}
        return {"text": text}


class BedrockUpstream(Upstream):
    """Bedrock on 127.0.0.1. ``keys`` are the only ones whose signatures are accepted, ``bearer`` the only API key."""

    def __init__(self, *, keys: Keys | None = None, bearer: str | None = None) -> None:
        super().__init__()
        self._bedrock = Bedrock(keys, bearer)

    def _vendor(self, received: Received) -> Vendor:
        return self._bedrock

    def _accept(self, received: Received, vendor: Vendor) -> Plan:
        vendor.check(received)
        if self._queue:
            return self._queue.popleft()
        return self._by_model.get(self._bedrock.model(received), self.plan)


def _speech(body: dict[str, Any], plan: Plan) -> Speech:
    return Speech(plan, (body.get("inferenceConfig") or {}).get("maxTokens"))


def _block_of(piece: Piece) -> tuple[str, int]:
    return ("text" if piece.kind == "refusal" else piece.kind), piece.call


def _delta(piece: Piece) -> dict[str, Any]:
    match piece.kind:
        case "reasoning":
            return {"reasoningContent": {"text": piece.text}}
        case "redacted":
            return {"reasoningContent": {"redactedContent": piece.text}}
        case "tool":
            return {"toolUse": {"input": piece.text}}
    return {"text": piece.text}


def _call_id(received: Received, plan: Plan, piece: Piece) -> str:
    return plan.tool_calls[piece.call].id or f"tooluse_{received.serial:018d}{piece.call:04d}"


def _stop_reason(plan: Plan, speech: Speech) -> str:
    reason = "content_filter" if plan.refusal and plan.finish_reason is None else speech.finish_reason
    return STOP_REASONS.get(reason, reason)


def sign(thought: str) -> str:
    """A signature; the same text is always signed alike."""
    return base64.b64encode(hashlib.sha512(thought.encode()).digest()).decode()


def render_usage(usage: Usage) -> dict[str, Any]:
    """Totals in Bedrock's convention: input tokens leave the cached ones out."""
    return {
        "inputTokens": usage.input - usage.cache_read - usage.cache_write,
        "outputTokens": usage.output,
        "totalTokens": usage.input + (usage.output or 0),
        "cacheReadInputTokens": usage.cache_read,
        "cacheWriteInputTokens": usage.cache_write,
    }
