"""One part of a UI message as a part of a canonical one.

Where a client's part came from this gateway, it goes back as the provider sent it: reasoning with its signature, a
call with the arguments as the client posts them. Nothing here runs a tool: what a client claims about a call is shown
to the model and believed by nobody else.
"""

import re

import msgspec

from gateway.canonical.errors import ErrorCode, RequestError
from gateway.canonical.request import Audio, Document, Image, Part, Reasoning, Text, ToolCall, ToolResult
from gateway.protocols.ai_sdk_ui.shapes import NOTHING, UiPart
from gateway.protocols.bodies import check_base64, check_image_type

SIGNER = "anthropic"
"""Where reasoning's signatures are kept in ``providerMetadata``: as the SDK's own servers do."""

_DATA_URL = re.compile(r"data:([\w.+-]+/[\w.+-]+)(?:;[\w.+-]+=[\w.+-]+)*;base64,", re.ASCII)
_AUDIO_FORMATS = {"mpeg": "mp3", "x-wav": "wav", "wave": "wav", "mp4": "m4a", "x-m4a": "m4a"}
_DENIED = "The user denied this tool call."
_NOT_RUN = "The user approved this tool call, but nothing has run it."


def user_part(part: UiPart, where: str) -> Part | None:
    """What a user said or showed; ``None`` for what is not meant for the model."""
    if part.type == "text":
        return Text(part.text or "")
    return _file(part, where) if part.type == "file" else None


def assistant_part(part: UiPart) -> Part | None:
    """What the model said or thought; files are not sent back, since no provider takes them from an assistant."""
    if part.type == "text":
        return Text(part.text) if part.text else None
    if part.type != "reasoning":
        return None
    own = (part.providerMetadata or {}).get(SIGNER)
    own = own if isinstance(own, dict) else {}
    signature, redacted = own.get("signature"), own.get("redactedData")
    if isinstance(redacted, str) and redacted:
        return Reasoning(redacted=redacted)
    return Reasoning(part.text or "", signature if isinstance(signature, str) else "")


def tool_call(part: UiPart, where: str) -> ToolCall:
    """The call that a tool part stands for. Arguments that were no object come back as the text they were."""
    name = part.toolName if part.type == "dynamic-tool" else part.type.removeprefix("tool-")
    if not name or not part.toolCallId:
        missing = f"{where}.{'toolCallId' if name else 'toolName'}"
        raise RequestError(f"{missing} must name the call.", code=ErrorCode.INVALID_VALUE, param=missing)
    given = part.input if _is_given(part.input) else part.rawInput
    return ToolCall(part.toolCallId, name, _as_text(given) if _is_given(given) else "{}")


def tool_result(part: UiPart) -> ToolResult | None:
    """The answer to the call; ``None`` where there is none yet."""
    identity = part.toolCallId or ""
    approval = part.approval
    match part.state:
        case "output-available":
            return ToolResult(identity, (Text(_as_text(part.output)),))
        case "output-error":
            return ToolResult(identity, (Text(part.errorText or ""),), is_error=True)
        case "output-denied":
            return _denied(identity, approval.reason if approval else None)
        case "approval-responded" if approval is not None and approval.approved is not None:
            if approval.approved:
                return ToolResult(identity, (Text(_NOT_RUN),), is_error=True)
            return _denied(identity, approval.reason)
    return None


def _denied(identity: str, reason: str | None) -> ToolResult:
    return ToolResult(identity, (Text(f"{_DENIED} {reason}" if reason else _DENIED),), is_error=True)


def _is_given(value: msgspec.Raw) -> bool:
    return bytes(value) != bytes(NOTHING)


def _as_text(value: msgspec.Raw) -> str:
    """A string's own text, and the JSON of anything else as it was written."""
    text = bytes(value)
    return msgspec.json.decode(text, type=str) if text.startswith(b'"') else text.decode()


def _file(part: UiPart, where: str) -> Part:
    where = f"{where}.url"
    url = part.url or ""
    inline = _DATA_URL.match(url)
    named = inline.group(1) if inline else ""
    media_type = part.mediaType or named
    check_image_type(named, where)
    check_image_type(media_type, where)
    if inline is None:
        if media_type.startswith("image/") and url.startswith(("https://", "http://")):
            return Image(url=url, media_type=media_type)
        raise RequestError(
            f"{where} must be an image's http(s) URL or a base64 data URL.", code=ErrorCode.INVALID_VALUE, param=where
        )
    data = url[inline.end() :]
    check_base64(data, where)
    kind, _, subtype = media_type.partition("/")
    if kind == "image":
        return Image(data=data, media_type=media_type)
    if kind == "audio":
        return Audio(data, _AUDIO_FORMATS.get(subtype, subtype))
    return Document(data=data, media_type=media_type, filename=part.filename)
