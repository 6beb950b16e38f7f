"""Google's ``streamGenerateContent``, on its own API and on Vertex AI: chunks, the whole answer and the envelope.

Source: https://ai.google.dev/api/generate-content and recorded streams. What a request may hold is in
``gemini_rules``. A signature comes with what was thought: on the first call, or on an empty part after the words.
"""

import base64
import hashlib
import re
from collections.abc import Iterator
from typing import Any

import msgspec

from .anthropic_messages import AnthropicMessages
from .exchange import Received, Rejected, Speech, Step, Whole, frame
from .gemini_rules import Issued, check
from .plan import Piece, Plan, Usage

PATH = re.compile(r"/v1(?:beta1?)?/(?:projects/[^/]+/locations/[^/]+/publishers/google/)?models/([^/:]+):(\w+)")
CLAUDE_PATH = re.compile(r"/v1/projects/[^/]+/locations/[^/]+/publishers/anthropic/models/([^/:]+):streamRawPredict")
METHODS = ("streamGenerateContent", "generateContent")
REASONS = {"stop": "STOP", "tool_calls": "STOP", "length": "MAX_TOKENS", "content_filter": "SAFETY"}
# A plan's reason that begins so is why the prompt got no answer at all.
BLOCKED = "PROMPT_"
STATUSES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
SERVER_ERROR = "An internal error has occurred. Please retry or report in https://developers.generativeai.google/guide."


class Gemini:
    """The vendor's side of ``streamGenerateContent``."""

    garbage = b'data: {"candidates":[{"content":{"\xff\xfe\r\n\r\n'

    def __init__(self) -> None:
        self.issued: Issued = {}

    def check(self, received: Received) -> None:
        """Raises ``Rejected`` as Google would."""
        if not received.key:
            raise Rejected("Method doesn't allow unregistered callers. Please use API Key.", status=403)
        found = PATH.fullmatch(received.path)
        if found is None or found.group(2) not in METHODS:
            raise Rejected(f"Unknown method {received.path}", status=404)
        check(received.body, model_of(received), self.issued)

    def headers(self, received: Received) -> dict[str, str]:
        """What Google puts on every answer."""
        return {"server": "scaffolding on HTTPServer2", "vary": "Origin", "server-timing": "gfet4t7; dur=12"}

    def ordered_error(self, status: int) -> Rejected:
        """What Google says with this status."""
        message = SERVER_ERROR if status >= 500 else f"The simulated provider was ordered to answer {status}."
        return Rejected(message, status=status)

    def error(self, received: Received, rejected: Rejected) -> bytes:
        """A ``google.rpc.Status``."""
        status = STATUSES.get(rejected.status, "UNKNOWN")
        error = {"code": rejected.status, "message": rejected.message, "status": status}
        return msgspec.json.encode({"error": error})

    def error_event(self, received: Received, plan: Plan) -> bytes:
        """An error within a stream: as an event, or as bare JSON where the plan has text."""
        if isinstance(plan.error_body, str):
            return plan.error_body.encode()
        payload = self.error(received, self.ordered_error(503))
        return frame(_crlf(plan), payload if plan.error_body is None else msgspec.json.encode(plan.error_body))

    def stream(self, received: Received, plan: Plan) -> Iterator[Step]:
        """A chunk per piece, and one with the reason."""
        for chunk, piece, is_closing in Answer(self, received, plan).chunks():
            yield Step(frame(_crlf(plan), msgspec.json.encode(chunk)), piece, is_closing)

    def whole(self, received: Received, plan: Plan) -> Whole:
        """Without ``alt=sse``: the same chunks in an array."""
        chunks = list(Answer(self, received, plan).chunks())
        return Whole(
            msgspec.json.encode([chunk for chunk, _, _ in chunks]),
            [piece for _, piece, _ in chunks if piece is not None],
        )


class VertexClaude(AnthropicMessages):
    """Anthropic's side on Vertex AI: the model stands in the path, the version in the body."""

    def check(self, received: Received) -> None:
        """Raises ``Rejected`` as Google or Anthropic would; ``raw`` keeps what was sent."""
        body = received.body
        if not isinstance(body, dict) or body.get("anthropic_version") != "vertex-2023-10-16":
            raise Rejected("anthropic_version: Field required")
        if "model" in body:
            raise Rejected("model: Extra inputs are not permitted")
        found = CLAUDE_PATH.fullmatch(received.path)
        assert found is not None
        rest = {name: value for name, value in body.items() if name != "anthropic_version"}
        received.body = {**rest, "model": found.group(1)}
        received.headers = {**received.headers, "anthropic-version": "2023-06-01"}
        super().check(received)


class Answer:
    """The chunks of one answer."""

    def __init__(self, vendor: Gemini, received: Received, plan: Plan) -> None:
        self._vendor = vendor
        self._received = received
        self._plan = plan
        config = received.body.get("generationConfig") or {}
        spoken = msgspec.structs.replace(plan, redacted="", refusal=(), whole_tool_call=True)
        self._speech = Speech(spoken, config.get("maxOutputTokens"))
        self._choices: int = config.get("candidateCount") or 1
        self._signature = plan.signature or (_signature(received.serial) if plan.reasoning else "")

    def chunks(self) -> Iterator[tuple[dict[str, Any], str | None, bool]]:
        """Each with its piece, and whether it is the first after the content."""
        plan = self._plan
        if (plan.finish_reason or "").startswith(BLOCKED):
            blocked = {"blockReason": (plan.finish_reason or "").removeprefix(BLOCKED)}
            yield self._chunk(promptFeedback=blocked), None, True
            return
        for piece in self._speech:
            yield self._chunk(candidates=self._candidates([self._part(piece)])), piece.text, False
        reason = self._speech.finish_reason
        ending = {"text": ""} | self._sign("text", None)
        more = {"finishReason": REASONS.get(reason, reason)} if plan.done else {}
        yield self._chunk(candidates=self._candidates([ending], **more)), None, True

    def _candidates(self, parts: list[dict[str, Any]], **more: Any) -> list[dict[str, Any]]:
        content = {"parts": parts, "role": "model"}
        return [{"content": content, **more, "index": index} for index in range(self._choices)]

    def _chunk(self, **content: Any) -> dict[str, Any]:
        usage = self._speech.usage(self._choices)
        counted = {} if usage is None else {"usageMetadata": render_usage(usage)}
        head = {"modelVersion": model_of(self._received), "responseId": f"resp-{self._received.serial:010d}"}
        return {**content, **counted, **head}

    def _part(self, piece: Piece) -> dict[str, Any]:
        if piece.kind == "reasoning":
            return {"text": piece.text, "thought": True}
        if piece.kind != "tool":
            return {"text": piece.text}
        ordered = self._plan.tool_calls[piece.call]
        call: dict[str, Any] = {"name": ordered.name, "args": msgspec.Raw((piece.text or "{}").encode())}
        if ordered.id:
            call["id"] = ordered.id
        return {"functionCall": call} | (self._sign("call", ordered.name) if piece.call == 0 else {})

    def _sign(self, place: str, name: str | None) -> dict[str, str]:
        """One signature per answer; it belongs where it was put."""
        if not self._signature or (place == "text" and self._plan.tool_calls):
            return {}
        self._vendor.issued[self._signature] = (place, name)
        return {"thoughtSignature": self._signature}


def model_of(received: Received) -> str:
    """The model stands in the path."""
    found = PATH.fullmatch(received.path)
    return found.group(1) if found is not None else ""


def _signature(serial: int) -> str:
    return base64.b64encode(hashlib.sha512(f"thought {serial}".encode()).digest()).decode()


def _crlf(plan: Plan) -> Plan:
    return msgspec.structs.replace(plan, crlf=True)


def render_usage(usage: Usage) -> dict[str, Any]:
    """Totals in Google's convention: the answer without the thoughts, the prompt with what was cached."""
    output, reasoning = usage.output or 0, usage.reasoning or 0
    counted = {
        "promptTokenCount": usage.input,
        "candidatesTokenCount": output - reasoning,
        "totalTokenCount": usage.input + output,
        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": usage.input}],
        "serviceTier": "standard",
    }
    if usage.cache_read:
        counted["cachedContentTokenCount"] = usage.cache_read
    if reasoning:
        counted["thoughtsTokenCount"] = reasoning
    return counted
