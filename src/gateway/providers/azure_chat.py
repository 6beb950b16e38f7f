"""Chat Completions as Azure speaks it: OpenAI's, with what its content filter says between the chunks.

The filter's verdict on the prompt comes before the answer, in a chunk without choices or a name, and with an
asynchronous filter those on the answer in chunks without a delta. OpenAI's clients trip over both, so neither is passed
on; a verdict that ends the answer is its finish reason.
https://learn.microsoft.com/azure/ai-foundry/openai/concepts/content-streaming
"""

import msgspec

from gateway.canonical.events import Frame
from gateway.protocols.openai_chat.client import ChatDecoder, OpenAiChatClient

_MARKS = (b'"prompt_filter_results"', b'"content_filter_offsets"')


class _Choice(msgspec.Struct, frozen=True):
    delta: msgspec.Raw = msgspec.Raw(b"null")
    finish_reason: str | None = None


class _Chunk(msgspec.Struct, frozen=True):
    choices: list[_Choice] = []
    usage: msgspec.Raw = msgspec.Raw(b"null")
    error: msgspec.Raw = msgspec.Raw(b"null")


_CHUNK = msgspec.json.Decoder(_Chunk)
_NOTHING = (b"null", b"{}")


class AzureChatClient(OpenAiChatClient):
    """The client role of Azure's Chat Completions."""

    def decoder(self, provider: str) -> "AzureChatDecoder":
        """A decoder for one stream."""
        return AzureChatDecoder(provider)


class AzureChatDecoder(ChatDecoder):
    """Bytes of one stream to frames, without those that bear only the filter's opinion."""

    __slots__ = ()

    def take(self, payload: bytes, *, whole: bool = False) -> list[Frame]:
        """The frames of one payload; ``whole`` for an answer that is not a chunk."""
        if not whole and any(mark in payload for mark in _MARKS) and _is_opinion(payload):
            return []
        return super().take(payload, whole=whole)


def _is_opinion(payload: bytes) -> bool:
    try:
        chunk = _CHUNK.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False  # whoever reads it next says what is wrong
    is_silent = all(bytes(choice.delta) in _NOTHING and not choice.finish_reason for choice in chunk.choices)
    return is_silent and bytes(chunk.usage) == bytes(chunk.error) == b"null"
