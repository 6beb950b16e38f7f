"""OpenAI's ``POST /v1/responses``: numbered events, the whole response, the envelope, and the reasoning it sealed.

Source: https://platform.openai.com/docs/api-reference/responses-streaming and recorded streams. What a request may
hold is in ``responses_rules`` and ``responses_items``; the latter gets to see which reasoning this server gave out.
"""

from collections.abc import Generator, Iterator
from itertools import groupby
from typing import Any

import msgspec

from .exchange import CREATED, Received, Rejected, Speech, Step, Whole, frame
from .openai_chat import SERVER_ERROR, OpenAIChat
from .plan import Piece, Plan, Usage
from .responses_items import Issued, seal
from .responses_rules import ENCRYPTED, check

INCOMPLETE = {"length": "max_output_tokens"}
COMPLETED = ("stop", "tool_calls", "function_call")
ECHOED: dict[str, Any] = {
    "background": False,
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "prompt_cache_key": None,
    "reasoning": {"effort": None, "summary": None},
    "safety_identifier": None,
    "service_tier": "default",
    "store": True,
    "temperature": 1.0,
    "text": {"format": {"type": "text"}, "verbosity": "medium"},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "top_p": 1.0,
    "truncation": "disabled",
    "user": None,
}

Object = dict[str, Any]


class OpenAIResponses:
    """The vendor's side of Responses; what does not depend on the format is as in Chat Completions."""

    garbage = b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","del\xff\xfe\n\n'

    def __init__(self, strict_fields: bool) -> None:
        self._strict_fields = strict_fields
        self._issued = Issued()
        self._streams: dict[int, EventStream] = {}
        chat = OpenAIChat(strict_fields)
        self.headers, self.error, self.ordered_error = chat.headers, chat.error, chat.ordered_error

    def check(self, received: Received) -> None:
        """Raises ``Rejected`` as OpenAI would."""
        if not received.key:
            raise Rejected("You didn't provide an API key.", status=401)
        check(received.body, self._strict_fields, self._issued)

    def error_event(self, received: Received, plan: Plan) -> bytes:
        """``error``, nested as it really comes, and ``response.failed``."""
        stream = self._streams.get(received.serial) or EventStream(received, plan, self._issued)
        return stream.broken()

    def stream(self, received: Received, plan: Plan) -> Iterator[Step]:
        """``response.created``, the items one after another, ``response.completed``."""
        stream = self._streams[received.serial] = EventStream(received, plan, self._issued)
        return stream.steps()

    def whole(self, received: Received, plan: Plan) -> Whole:
        """A ``response``."""
        stream = EventStream(received, plan, self._issued)
        pieces = [step.piece for step in stream.steps() if step.piece is not None]
        return Whole(msgspec.json.encode(stream.ended), pieces)


class EventStream:
    """The events of one streamed answer; ``ended`` is the response at its end."""

    def __init__(self, received: Received, plan: Plan, issued: Issued) -> None:
        self.ended: Object = {}
        self._received = received
        self._plan = plan
        self._issued = issued
        self._speech = Speech(plan, received.body.get("max_output_tokens"))
        self._is_sealed = ENCRYPTED in (received.body.get("include") or ())
        self._output: list[Object] = []
        self._sequence = 0

    def _event(self, kind: str, **fields: Any) -> bytes:
        payload = {"type": kind, "sequence_number": self._sequence, **fields}
        self._sequence += 1
        return frame(self._plan, msgspec.json.encode(payload), kind)

    def _response(self, status: str, **more: Any) -> Object:
        body = self._received.body
        echoed = {name: default if body.get(name) is None else body[name] for name, default in ECHOED.items()}
        return {
            "id": f"resp_{self._received.serial:032x}",
            "object": "response",
            "created_at": CREATED,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "model": body["model"],
            "output": list(self._output),
            "usage": None,
            **echoed,
            **more,
        }

    def steps(self) -> Iterator[Step]:
        """All events in order."""
        yield Step(self._event("response.created", response=self._response("in_progress")))
        yield Step(self._event("response.in_progress", response=self._response("in_progress")))
        for _, pieces in groupby(self._speech, _item_of):
            yield from self._item(Ahead(pieces))
        reason = self._speech.finish_reason
        usage = self._speech.usage()
        told = None if usage is None else render_usage(usage)
        if reason in COMPLETED:
            self.ended = self._response("completed", usage=told, completed_at=CREATED + 1)
        else:
            details = {"reason": INCOMPLETE.get(reason, reason)}
            self.ended = self._response("incomplete", usage=told, incomplete_details=details)
        if self._plan.done:
            yield Step(self._event(f"response.{self.ended['status']}", response=self.ended), is_closing=True)

    def broken(self) -> bytes:
        """What is said when it goes wrong within the stream."""
        error = {"type": "server_error", "code": "server_error", "message": SERVER_ERROR, "param": None}
        failed = self._response("failed", error={"code": "server_error", "message": SERVER_ERROR})
        if self._plan.error_body is not None:
            return frame(self._plan, msgspec.json.encode(self._plan.error_body), "error")
        return self._event("error", error=error) + self._event("response.failed", response=failed)

    def _item(self, pieces: "Ahead") -> Iterator[Step]:
        place = len(self._output)
        match pieces.first.kind:
            case "reasoning" | "redacted":
                inner = self._reasoning(place, pieces)
            case "tool":
                inner = self._call(place, pieces)
            case _:
                inner = self._message(place, pieces)
        item = yield from inner
        self._output.append(item)
        # What cannot be read is nowhere but in the whole item.
        piece = pieces.first.text if pieces.first.kind == "redacted" else None
        yield Step(self._event("response.output_item.done", output_index=place, item=item), piece)

    def _add(self, place: int, item: Object) -> Step:
        return Step(self._event("response.output_item.added", output_index=place, item=item))

    def _name(self, prefix: str, place: int) -> str:
        return f"{prefix}_{self._received.serial:016x}{place:016x}"

    # A message, with a part for its text and one for its refusal.

    def _message(self, place: int, pieces: "Ahead") -> Generator[Step, None, Object]:
        name = self._name("msg", place)
        item: Object = {"id": name, "type": "message", "status": "in_progress", "content": [], "role": "assistant"}
        yield self._add(place, item)
        content: list[Object] = []
        for kind, group in groupby(pieces, lambda piece: piece.kind):
            where = {"item_id": name, "output_index": place, "content_index": len(content)}
            content.append((yield from self._part("refusal" if kind == "refusal" else "output_text", where, group)))
        return item | {"status": "completed", "content": content}

    def _part(self, kind: str, where: Object, pieces: Iterator[Piece]) -> Generator[Step, None, Object]:
        field = "refusal" if kind == "refusal" else "text"
        extra: Object = {} if kind == "refusal" else {"logprobs": []}
        part: Object = {"type": kind, field: "", **({} if kind == "refusal" else {"annotations": [], "logprobs": []})}
        yield Step(self._event("response.content_part.added", **where, part=part))
        text = ""
        for piece in pieces:
            text += piece.text
            yield Step(self._event(f"response.{kind}.delta", **where, delta=piece.text, **extra), piece.text)
        yield Step(self._event(f"response.{kind}.done", **where, **{field: text}, **extra))
        yield Step(self._event("response.content_part.done", **where, part=part | {field: text}))
        return part | {field: text}

    # Reasoning: a summary, or its own words as open-weight models show them, or nothing that could be read.

    def _reasoning(self, place: int, pieces: "Ahead") -> Generator[Step, None, Object]:
        name, plan = self._name("rs", place), self._plan
        item: Object = {"id": name, "type": "reasoning", "summary": []}
        yield self._add(place, item)
        if pieces.first.kind == "redacted":
            return self._sealed(item, plan.redacted)
        if plan.reasoning_field == "reasoning":
            where = {"item_id": name, "output_index": place, "content_index": 0}
            text = yield from self._shown("response.reasoning_text", where, pieces)
            item["content"] = [{"type": "reasoning_text", "text": text}]
        else:
            where = {"item_id": name, "output_index": place, "summary_index": 0}
            empty = {"type": "summary_text", "text": ""}
            yield Step(self._event("response.reasoning_summary_part.added", **where, part=empty))
            text = yield from self._shown("response.reasoning_summary_text", where, pieces)
            yield Step(self._event("response.reasoning_summary_part.done", **where, part=empty | {"text": text}))
            item["summary"] = [empty | {"text": text}]
        return self._sealed(item, plan.signature or seal(text))

    def _shown(self, kind: str, where: Object, pieces: "Ahead") -> Generator[Step, None, str]:
        text = ""
        for piece in pieces:
            text += piece.text
            yield Step(self._event(f"{kind}.delta", **where, delta=piece.text), piece.text)
        yield Step(self._event(f"{kind}.done", **where, text=text))
        return text

    def _sealed(self, item: Object, content: str) -> Object:
        if not self._is_sealed:
            return item
        self._issued.note(item["id"], content)
        return item | {"encrypted_content": content}

    # A function call.

    def _call(self, place: int, pieces: "Ahead") -> Generator[Step, None, Object]:
        number = pieces.first.call
        ordered = self._plan.tool_calls[number]
        name = self._name("fc", place)
        call_id = ordered.id or f"call_{self._received.serial:020d}{number:04d}"
        item = {"id": name, "type": "function_call", "status": "in_progress", "arguments": ""}
        item |= {"call_id": call_id, "name": ordered.name}
        yield self._add(place, item)
        where, arguments = {"item_id": name, "output_index": place}, ""
        for piece in pieces:
            arguments += piece.text
            kind = "response.function_call_arguments.delta"
            yield Step(self._event(kind, **where, delta=piece.text), piece.text)
        yield Step(self._event("response.function_call_arguments.done", **where, arguments=arguments))
        return item | {"status": "completed", "arguments": arguments}


class Ahead:
    """Pieces of one item, of which the first can be looked at."""

    def __init__(self, pieces: Iterator[Piece]) -> None:
        self.first = next(pieces)
        self._rest = pieces

    def __iter__(self) -> Iterator[Piece]:
        yield self.first
        yield from self._rest


def _item_of(piece: Piece) -> tuple[str, int]:
    """What tells items apart; a refusal is a part of the message."""
    return ("text" if piece.kind == "refusal" else piece.kind), piece.call


def render_usage(usage: Usage) -> Object:
    """Totals as Responses names them: all that was read, all that was written."""
    output = usage.output or 0
    return {
        "input_tokens": usage.input,
        "input_tokens_details": {"cached_tokens": usage.cache_read, "cache_write_tokens": usage.cache_write},
        "output_tokens": output,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning or 0},
        "total_tokens": usage.input + output,
    }
