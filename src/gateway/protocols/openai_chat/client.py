"""Chat Completions towards providers: OpenAI itself and everything that calls itself compatible.

A chunk that official clients read without trouble passes as it is. One with a quirk (a role on every chunk, usage
beside choices, a tool call without an index …) loses its raw bytes here, and the encoder writes a clean one instead.
"""

import time
from collections.abc import Mapping
from itertools import islice
from typing import Any

import msgspec

from gateway.canonical.errors import ProviderError, ProviderProtocolError, StreamTruncated
from gateway.canonical.events import (
    Event,
    Failure,
    Finish,
    FinishReason,
    Frame,
    MessageStart,
    ReasoningDelta,
    RefusalDelta,
    TextDelta,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
    Unified,
    UsageReport,
)
from gateway.canonical.request import Loss, Request
from gateway.canonical.usage import Usage
from gateway.protocols.openai_chat import NAME, outgoing
from gateway.protocols.openai_chat.losses import losses
from gateway.protocols.openai_chat.shapes import Chunk, ChunkChoice, ChunkUsage, Delta, PlainChunk, ToolCallChunk
from gateway.protocols.openai_errors import answered_error, provider_error
from gateway.protocols.sse import EventTooLarge, SseDecoder, encode_data
from gateway.protocols.wire import NO_HEADERS

_PLAIN_CHANCES = 8
_CONTENT = b'"content":"'
# Looked for as numbers: as bytes they are first taken for numbers, in vain, at seven times the cost.
_LF, _QUOTE, _BACKSLASH = b'\n"\\'
_PLAIN = msgspec.json.Decoder(PlainChunk)
_CHUNK = msgspec.json.Decoder(Chunk)
_LAX_CHUNK = msgspec.json.Decoder(Chunk, strict=False)
_OBJECT = msgspec.json.Decoder(dict[str, Any])

_FINISH = {
    "stop": Unified.STOP,
    "length": Unified.LENGTH,
    "tool_calls": Unified.TOOL_CALLS,
    "function_call": Unified.TOOL_CALLS,
    "content_filter": Unified.CONTENT_FILTER,
    "error": Unified.ERROR,
}


class OpenAiChatClient:
    """The client role of Chat Completions."""

    name = NAME

    def encode_request(self, request: Request, model: str) -> bytes:
        """The client's own body where it is of this format, else the canonical request."""
        if request.format == NAME:
            return outgoing.forward(request, model)
        return outgoing.encode(request, model)

    def losses(self, request: Request, model: str) -> tuple[Loss, ...]:
        """What ``encode_request`` leaves out or changes of a request in another format."""
        return () if request.format == NAME else losses(request)

    def decoder(self, provider: str) -> "ChatDecoder":
        """A decoder for one stream."""
        return ChatDecoder(provider)

    def decode_response(self, body: bytes, provider: str) -> list[Frame]:
        """A whole answer, read as if it had come in one chunk."""
        decoder = ChatDecoder(provider)
        return [*decoder.take(body, whole=True), *decoder.end_of_bytes()]

    def decode_error(
        self, status: int, body: bytes, provider: str, headers: Mapping[str, str] = NO_HEADERS
    ) -> ProviderError:
        """An error answer."""
        return answered_error(status, body, provider)


class _ToolCalls:
    """The calls of one choice: which vendor key stands for which dense index."""

    __slots__ = ("_by_key", "_ids", "current")

    def __init__(self) -> None:
        self._by_key: dict[object, int] = {}
        self._ids: list[str] = []
        self.current = -1

    def __len__(self) -> int:
        return len(self._ids)

    def locate(self, call: ToolCallChunk) -> tuple[int, bool]:
        """The dense index of a fragment, and whether it opens a call.

        By index where there is one, else by id, else it belongs to the latest call. Some servers give every call the
        index 0: a new id under a known index opens a new call.
        """
        identity = "" if call.id is None else str(call.id)
        key: object = call.index if call.index is not None else (identity or None)
        known = self._by_key.get(key) if key is not None else (self.current if self.current >= 0 else None)
        if known is not None and not (identity and self._ids[known] and self._ids[known] != identity):
            self.current = known
            return known, False
        index = len(self._ids)
        self._ids.append(identity)
        self._by_key[key] = index
        self.current = index
        return index, True


class ChatDecoder:
    """Bytes of one stream to frames."""

    __slots__ = (
        "_calls",
        "_close",
        "_finished",
        "_head",
        "_lead",
        "_like_chances",
        "_like_choice",
        "_plain_chances",
        "_provider",
        "_roles",
        "_sse",
        "_started",
        "_tail",
        "is_done",
    )

    def __init__(self, provider: str) -> None:
        self.is_done = False
        self._provider = provider
        self._sse = SseDecoder()
        self._started = False
        self._plain_chances = _PLAIN_CHANCES
        # What stands before and after the text of the plain chunk before, where all may look alike.
        self._head = self._tail = b""
        self._lead = self._close = b""  # the same where the chunk is an event
        self._like_choice = 0
        self._like_chances = _PLAIN_CHANCES
        self._roles: set[int] = set()
        self._calls: dict[int, _ToolCalls] = {}
        self._finished: set[int] = set()

    def feed(self, chunk: bytes) -> list[Frame]:
        """Frames that these bytes complete."""
        if self.is_done:
            return []
        if self._lead and chunk.startswith(self._lead) and (like := self._take_like_alone(chunk)) is not None:
            return [like]
        payloads = self._sse.whole(chunk)
        if payloads is None:
            try:
                payloads = [event.data for event in self._sse.feed(chunk)]
            except EventTooLarge:
                return [self._broken("an event larger than the gateway accepts")]
        return self._take_all(payloads)

    def _take_all(self, payloads: list[bytes]) -> list[Frame]:
        frames: list[Frame] = []
        at = 0
        while at < len(payloads):
            likes = self._take_likes(payloads, at) if self._head else None
            if likes:
                frames += likes
                at += len(likes)
                continue
            payload = payloads[at]
            at += 1
            plain = None
            if self._plain_chances and self._roles and payload.find(b'"content"') > 0:
                plain = self._take_plain(payload)
            if plain is not None:
                frames.append(plain)
            elif payload.startswith(b"[DONE]"):
                self.is_done = True
                break
            elif payload:
                frames += self.take(payload)
        return frames

    def end_of_bytes(self) -> list[Frame]:
        """What was left. An end without ``[DONE]`` is accepted from a stream whose every choice had finished."""
        frames: list[Frame] = []
        for event in self._sse.flush():
            if event.data.startswith(b"[DONE]"):
                self.is_done = True
            elif event.data and not self.is_done:
                frames += self.take(event.data)
        if not self.is_done and not (self._finished and self._finished >= self._roles):
            error = StreamTruncated("The provider's stream ended before it was complete.", provider=self._provider)
            frames.append(Frame((Failure(error),)))
        return frames

    def _broken(self, what: str) -> Frame:
        return Frame((Failure(ProviderProtocolError(f"The provider sent {what}.", provider=self._provider)),))

    def take(self, payload: bytes, *, whole: bool = False) -> list[Frame]:
        """The frames of one payload; ``whole`` for an answer that is not a chunk."""
        try:
            if not payload.isascii():
                payload.decode()  # msgspec passes over the inside of strings that nobody asked for
            chunk, is_well_typed = _chunk_of(payload)
            usage = None if chunk.usage is None else _usage(chunk.usage)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return [self._broken("a chunk that is not of its format")]
        if chunk.error:
            return [Frame((Failure(provider_error(None, chunk.error, self._provider)),))]
        events: list[Event] = []
        is_clean = is_well_typed and not whole and (chunk.usage is None or usage is not None)
        if not self._started:
            self._started = True
            events.append(MessageStart(str(chunk.id or ""), chunk.model or "", _created(chunk.created)))
        choices = chunk.choices or []
        for choice in choices:
            is_clean &= self._take_choice(choice, events)
        if usage is not None:
            is_clean &= not choices
            events.append(UsageReport(usage))
        # An event may have several data lines; between JSON's tokens, where alone it may stand, a line end is a space.
        return [Frame(tuple(events), encode_data(payload.replace(b"\n", b" ")) if is_clean else None)]

    def _take_plain(self, payload: bytes) -> Frame | None:
        """The short way for the chunk that most are. A vendor whose chunks are never plain is not asked for ever."""
        try:
            choices = _PLAIN.decode(payload).choices
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            self._plain_chances -= 1
            return None
        if len(choices) != 1:
            return None
        choice = choices[0]
        index, text = choice.index, choice.delta.content
        if not text or index not in self._roles or index in self._finished or _LF in payload:
            return None
        self._plain_chances = _PLAIN_CHANCES
        if self._like_chances:
            self._learn(payload, text, index)
        return Frame((TextDelta(text, index),), b"data: %b\n\n" % payload, True)

    def _learn(self, payload: bytes, text: str, index: int) -> None:
        """Most vendors' plain chunks differ in nothing but their text, so that the next need not be read as JSON."""
        self._like_chances -= 1
        head, found, rest = payload.partition(_CONTENT)
        raw = text.encode()
        if found and rest.startswith(raw + b'"') and _CONTENT not in rest:
            self._head, self._tail, self._like_choice = head + found, rest[len(raw) :], index
            self._lead, self._close = b"data: " + self._head, self._tail + b"\n\n"

    def _take_like_alone(self, chunk: bytes) -> Frame | None:
        """A read that is one event and nothing else, like the one before: as paced streams come."""
        if not chunk.endswith(self._close) or not self._sse.is_between_events or self._like_choice in self._finished:
            return None
        text = _unescaped(chunk[len(self._lead) : -len(self._close)])
        if text is None:
            return None
        self._like_chances = _PLAIN_CHANCES
        return Frame((TextDelta(text, self._like_choice),), chunk, True)

    def _take_likes(self, payloads: list[bytes], at: int) -> list[Frame]:
        """The chunks from ``at`` on that are like the one before, with other texts."""
        head, tail, choice = self._head, self._tail, self._like_choice
        text_at, text_to = len(head), -len(tail)
        frames: list[Frame] = []
        if choice in self._finished:
            return frames
        for payload in islice(payloads, at, None):
            if payload[:text_at] != head or payload[text_to:] != tail:
                break
            text = _unescaped(payload[text_at:text_to])
            if text is None:
                break
            frames.append(Frame((TextDelta(text, choice),), b"data: %b\n\n" % payload, True))
        if frames:
            self._like_chances = _PLAIN_CHANCES
        return frames

    def _take_choice(self, choice: ChunkChoice, events: list[Event]) -> bool:
        """Append the choice's events; returns whether official clients can read it as it is."""
        delta = choice.delta or choice.message
        index = choice.index
        is_first = index not in self._roles
        if is_first:
            self._roles.add(index)
        if index in self._finished:
            return False
        # The role of a further choice is the encoder's to send: it has to know which choices were opened.
        is_clean = not (is_first and index)
        if delta is not None:
            is_clean &= not (delta.role and not is_first)
            is_clean &= self._take_delta(delta, index, events)
        if choice.finish_reason is None:
            return is_clean
        return self._take_finish(choice.finish_reason, index, events) and is_clean

    def _take_delta(self, delta: Delta, index: int, events: list[Event]) -> bool:
        is_clean = True
        reasoning = delta.reasoning_content or delta.reasoning
        if reasoning:
            events.append(ReasoningDelta(reasoning, index))
        content = delta.content
        if type(content) is str:
            if content:
                events.append(TextDelta(content, index))
        elif content:
            events += _part_events(content, index)  # type: ignore[arg-type]
            is_clean = False
        if delta.refusal:
            events.append(RefusalDelta(delta.refusal, index))
        if delta.tool_calls:
            for call in delta.tool_calls:
                is_clean &= self._take_call(call, index, events)
        elif delta.function_call is not None:
            self._take_call(ToolCallChunk(0, None, delta.function_call), index, events)
        return is_clean

    def _take_call(self, call: ToolCallChunk, choice: int, events: list[Event]) -> bool:
        calls = self._calls.setdefault(choice, _ToolCalls())
        index, is_new = calls.locate(call)
        function = call.function
        name = (function.name if function is not None else None) or ""
        arguments = function.arguments if function is not None else None
        is_clean = call.index == index and not isinstance(arguments, dict)
        if is_new:
            identity = str(call.id) if call.id else f"call_{choice}_{index}"
            is_clean &= isinstance(call.id, str) and bool(call.id)
            events.append(ToolCallStart(index, identity, name, choice))
        else:
            is_clean &= call.id is None and not name
        if isinstance(arguments, dict):
            arguments = msgspec.json.encode(arguments).decode()
        if arguments:
            events.append(ToolCallDelta(index, arguments, choice))
        return is_clean

    def _take_finish(self, reason: str, index: int, events: list[Event]) -> bool:
        if not reason:
            return False
        self._finished.add(index)
        calls = self._calls.get(index)
        unified = _FINISH.get(reason, Unified.OTHER)
        if calls is not None:
            events += [ToolCallEnd(i, index) for i in range(len(calls))]
        # Some servers say "stop" after tool calls; an agent that trusts them would never run the tools.
        is_clean = True
        if calls and unified is Unified.STOP:
            unified, reason, is_clean = Unified.TOOL_CALLS, "tool_calls", False
        events.append(Finish(FinishReason(unified, reason), index))
        return is_clean


def _part_events(parts: list[dict[str, Any]], choice: int) -> list[Event]:
    """Content in parts, as Mistral sends it: text, and thinking that holds parts of its own."""
    events: list[Event] = []
    for part in parts:
        if part.get("type") == "thinking":
            inner = part.get("thinking")
            pieces = inner if isinstance(inner, list) else [{"text": inner}]
            texts = [piece.get("text") for piece in pieces if isinstance(piece, dict)]
            events += [ReasoningDelta(text, choice) for text in texts if text and isinstance(text, str)]
        elif isinstance(part.get("text"), str):
            events.append(TextDelta(part["text"], choice))
    return events


def _created(seconds: float | None) -> int:
    """The provider's word where it is a time, else ours; some send 0, and a lax reader takes ``"nan"`` for a number."""
    return int(seconds) if seconds is not None and 0 < seconds < 1e12 else int(time.time())


def _usage(reported: Any) -> Usage | None:
    """Totals by our reading; ``None`` where the figures are no figures, and our own count stands.

    Some leave what the model thought out of ``completion_tokens`` (xAI, Gemini); their ``total_tokens`` gives it away.
    """
    try:
        usage = msgspec.convert(reported, ChunkUsage)
    except msgspec.ValidationError:
        return None
    prompt, output = usage.prompt_tokens or 0, usage.completion_tokens or 0
    details = usage.prompt_tokens_details
    cache_read = (details.cached_tokens if details else None) or usage.prompt_cache_hit_tokens or 0
    cache_write = (details.cache_write_tokens if details else None) or 0
    reasoning = (usage.completion_tokens_details and usage.completion_tokens_details.reasoning_tokens) or 0
    unnamed = (usage.total_tokens or 0) - prompt - output
    if unnamed > 0 and prompt:
        output, reasoning = output + unnamed, max(reasoning, unnamed)
    return Usage(
        input=prompt,
        output=output,
        cache_read=cache_read,
        cache_write=cache_write,
        reasoning=reasoning,
        raw=reported,
    )


def _chunk_of(payload: bytes) -> tuple[Chunk, bool]:
    """A chunk, and whether its values are of their types: ``"7"`` is read for 7, and ``"null"`` for nothing."""
    try:
        return _CHUNK.decode(payload), True
    except msgspec.ValidationError:
        return _LAX_CHUNK.decode(payload), False


def _unescaped(raw: bytes) -> str | None:
    """The inside of a JSON string as text, where nothing in it is escaped or has to be, and there is something."""
    if _QUOTE in raw or _BACKSLASH in raw:
        return None
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        return None
    return text if text.isprintable() and text else None
