"""A canonical conversation as Anthropic's turns: alternating, every call answered in the turn that follows it.

Clients of other formats send histories that Anthropic answers with 400: calls without results after an abort, results
without calls after a trim, empty texts, ids in another alphabet. They are repaired here, never sent on; what cannot
be carried at all raises ``RequestError``. Rules: https://platform.claude.com/docs/en/api/messages and
https://platform.claude.com/docs/en/agents-and-tools/tool-use/implement-tool-use#handling-tool-use-and-tool-result-content-blocks
"""

import base64
import hashlib
import re
from collections.abc import Iterable
from typing import Any, Literal, TypeAlias

import msgspec

from gateway.canonical.errors import ErrorCode, RequestError
from gateway.canonical.request import (
    Document,
    Image,
    Message,
    Part,
    Reasoning,
    Refusal,
    Text,
    ToolCall,
    ToolResult,
)
from gateway.protocols.anthropic_messages.shapes import (
    Base64Source,
    Block,
    DocumentBlock,
    FileSource,
    ImageBlock,
    RedactedThinkingBlock,
    TextBlock,
    TextSource,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
    Turn,
    UrlSource,
)
from gateway.protocols.signatures import is_signed_by_anthropic

UNANSWERED = "The tool call was not answered."

_ReasoningBlock: TypeAlias = ThinkingBlock | RedactedThinkingBlock
_TOOL_ID = re.compile(r"[a-zA-Z0-9_-]+")


def encode_system(messages: Iterable[Message]) -> str | list[TextBlock] | None:
    """All system messages in their order, wherever they stood: one string, or blocks where one has a cache marker."""
    blocks: list[TextBlock] = []
    for message in messages:
        if message.role == "system":
            for part in message.parts:
                block = _content_block(part)
                if isinstance(block, TextBlock):
                    blocks.append(block)
                elif block is not None:
                    raise _unsupported("A system message can hold only text for this model.")
    if not blocks:
        return None
    if any(block.cache_control for block in blocks):
        return blocks
    return "\n\n".join(block.text for block in blocks)


def encode_turns(messages: tuple[Message, ...]) -> list[Turn]:
    """Everything but the system messages, repaired."""
    answers = _match_answers(messages)
    turns = _Turns()
    for message, answer in zip(messages, answers, strict=True):
        if message.role == "assistant":
            turns.add_assistant(_assistant_blocks(message.parts), answer)
        elif message.role != "system":
            turns.add_user(_user_blocks(message.parts))
    return turns.close()


def can_continue_thinking(turns: list[Turn]) -> bool:
    """Whether ``thinking`` may be asked for: not while the last assistant turn called tools and lacks its reasoning.

    Once that turn was followed by another one the loop is closed, and what was lost in it is of no interest any more.
    https://platform.claude.com/docs/en/build-with-claude/extended-thinking#extended-thinking-with-tool-use
    """
    last = next((turn.content for turn in reversed(turns) if turn.role == "assistant"), [])
    marks = [block for block in last if isinstance(block, ToolUseBlock | _ReasoningBlock)]
    is_open = any(isinstance(block, ToolUseBlock) for block in marks)
    return not is_open or isinstance(marks[0], _ReasoningBlock)


class _Turns:
    """Merges blocks into alternating turns and puts the results of a turn's calls first in the turn after it."""

    __slots__ = ("_turns", "_waiting")

    def __init__(self) -> None:
        self._turns: list[Turn] = []
        self._waiting: list[Block] = []

    def add_assistant(self, blocks: list[Block], answers: list[Block]) -> None:
        self._extend("assistant", blocks)
        self._waiting += answers

    def add_user(self, blocks: list[Block]) -> None:
        self._end_assistant()
        self._extend("user", self._waiting + blocks)
        self._waiting = []

    def close(self) -> list[Turn]:
        if self._waiting:
            self.add_user([])
        self._end_assistant()
        if self._turns and self._turns[-1].role == "assistant":
            self._trim_prefill(self._turns[-1].content)
        return self._turns

    def _extend(self, role: Literal["user", "assistant"], blocks: list[Block]) -> None:
        if not blocks:
            return
        if self._turns and self._turns[-1].role == role:
            self._turns[-1].content.extend(blocks)
        else:
            self._turns.append(Turn(role, list(blocks)))

    def _end_assistant(self) -> None:
        # "The final block in an assistant message cannot be `thinking`": what a stream cut short in thought leaves.
        if self._turns and self._turns[-1].role == "assistant":
            content = self._turns[-1].content
            while content and isinstance(content[-1], _ReasoningBlock):
                content.pop()
            if not content:
                self._turns.pop()

    @staticmethod
    def _trim_prefill(content: list[Block]) -> None:
        # "final assistant content cannot end with trailing whitespace"; text of nothing else is gone already.
        last = content[-1]
        if isinstance(last, TextBlock):
            content[-1] = msgspec.structs.replace(last, text=last.text.rstrip())


def _match_answers(messages: tuple[Message, ...]) -> list[list[Block]]:
    """Per message, one result for each call it makes, in the calls' order.

    Read from the end, so that a call gets the nearest result after it and an id used twice keeps its pairs apart.
    Results that no call asks for are left over and so dropped.
    """
    open_results: dict[str, ToolResult] = {}
    answers: list[list[Block]] = [[] for _ in messages]
    for position in range(len(messages) - 1, -1, -1):
        message = messages[position]
        if message.role == "assistant":
            calls = dict.fromkeys(part.id for part in message.parts if isinstance(part, ToolCall))
            answers[position] = [_answer(call_id, open_results.pop(call_id, None)) for call_id in calls]
        else:
            results = [part for part in message.parts if isinstance(part, ToolResult)]
            open_results.update((result.tool_call_id, result) for result in reversed(results))
    return answers


def _answer(call_id: str, result: ToolResult | None) -> ToolResultBlock:
    if result is None:
        return ToolResultBlock(_tool_id(call_id), (TextBlock(UNANSWERED),), is_error=True)
    return ToolResultBlock(
        _tool_id(call_id), tuple(_user_blocks(result.content)), is_error=result.is_error, cache_control=result.cache
    )


def _user_blocks(parts: tuple[Part, ...]) -> list[Block]:
    blocks = (_content_block(part) for part in parts if not isinstance(part, ToolResult))
    return [block for block in blocks if block is not None]


def _assistant_blocks(parts: tuple[Part, ...]) -> list[Block]:
    blocks: list[Block] = []
    for part in parts:
        match part:
            case ToolCall():
                blocks.append(ToolUseBlock(_tool_id(part.id), part.name, _tool_input(part.arguments), part.cache))
            case Reasoning() if not is_signed_by_anthropic(part):
                pass
            case Reasoning(redacted=redacted) if redacted:
                blocks.append(RedactedThinkingBlock(redacted))
            case Reasoning():
                blocks.append(ThinkingBlock(part.text, part.signature))
            case _:
                block = _content_block(part)
                if block is not None:
                    blocks.append(block)
    return blocks


def _content_block(part: Part) -> Block | None:
    match part:
        case Text(text=text):
            # "text content blocks must contain non-whitespace text"
            return TextBlock(text, part.cache) if text.strip() else None
        case Refusal(text=text):
            return TextBlock(text) if text.strip() else None
        case Image():
            return ImageBlock(_image_source(part), part.cache)
        case Document():
            return DocumentBlock(_document_source(part), part.filename or None, part.cache)
        case _:
            raise _unsupported(f"This model does not take {type(part).__name__.lower()} content here.")


def _image_source(part: Image) -> Base64Source | UrlSource:
    if part.data is not None and part.media_type:
        return Base64Source(part.media_type, part.data)
    if part.url:
        return UrlSource(part.url)
    raise _unsupported("An image needs a URL, or base64 data with its media type.")


def _document_source(part: Document) -> Base64Source | TextSource | FileSource:
    if part.file_id:
        return FileSource(part.file_id)
    media_type = (part.media_type or "").partition(";")[0].strip().lower()
    if part.data is not None and media_type == "application/pdf":
        return Base64Source(media_type, part.data)
    if part.data is not None and media_type.startswith("text/"):
        # Anthropic knows one kind of text; Markdown or CSV is read as well when it is called plain.
        return TextSource(_decode_text(part.data))
    raise _unsupported("A document must be a PDF, text, or a file id for this model.")


def _decode_text(data: str) -> str:
    try:
        return base64.b64decode(data, validate=True).decode("utf-8")
    except ValueError as error:
        raise RequestError(
            "A text document is not valid UTF-8 in base64.", code=ErrorCode.INVALID_VALUE, param="messages"
        ) from error


def _tool_id(call_id: str) -> str:
    """The id itself where Anthropic takes it, else a digest: the same in every request, so prompt caches still hit."""
    if _TOOL_ID.fullmatch(call_id):
        return call_id
    return "call_" + hashlib.sha256(call_id.encode("utf-8", "surrogatepass")).hexdigest()[:24]


def _tool_input(arguments: str) -> msgspec.Raw:
    """The arguments as the text of an object, unchanged where they are one, so that numbers keep their digits."""
    if not arguments.strip():
        return msgspec.Raw(b"{}")
    text = arguments.encode("utf-8", "replace")
    try:
        msgspec.json.decode(text, type=dict[str, Any])
    except (ValueError, RecursionError):
        # A model wrote this and nothing will run it again. An error would lock the client out of its conversation
        # for good, and {} would show the model a call it never made; wrapped, it sees its own mistake.
        return msgspec.Raw(msgspec.json.encode({"_raw": arguments}))
    return msgspec.Raw(text)


def _unsupported(message: str) -> RequestError:
    return RequestError(message, code=ErrorCode.UNSUPPORTED_VALUE, param="messages")
