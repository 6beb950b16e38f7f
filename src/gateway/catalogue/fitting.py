"""A request held against a model's card: what the model cannot serve, and what it is sent without.

What changes the answer's meaning is refused, with the field and the reason: pictures nobody would look at, a shape
nobody would keep to. What the answer only does without is dropped by name, towards a provider of the client's own
format too. A prompt is too long only where its words alone are.
"""

from collections.abc import Iterable, Iterator
from typing import Any, get_args

import msgspec

from gateway.canonical.errors import ErrorCode, RequestError
from gateway.canonical.request import Audio, Document, Image, Loss, Message, Part, Request, ToolResult
from gateway.catalogue.cards import NOTHING_KNOWN, Capability, ModelCard, Refusable
from gateway.limits.features import features_of

# Windows are given in the model's own tokens, and ours are an estimate for most of them: a prompt that is sent in vain
# costs one refusal more, one that is refused in vain cannot be sent at all.
_ESTIMATE_PERCENT = 125

# What a request needs, the field that asks for it, and what is said where a model lacks it.
_NEEDS: dict[str, tuple[Capability, str, str]] = {
    "images": ("images", "messages", "takes no images"),
    "documents": ("documents", "messages", "takes no documents"),
    "audio": ("audio", "messages", "takes no audio"),
    "tools": ("tools", "tools", "calls no tools"),
    "structured_output": ("json_schema", "response_format", "keeps to no JSON schema"),
}
_SPELLED = {
    "openai_responses": {"messages": "input", "response_format": "text.format", "reasoning_effort": "reasoning.effort"},
    "openai_completions": {"messages": "prompt"},
}
# Where a field stands in a body, where that is not under its own name.
_PLACES = {
    ("openai_responses", "reasoning_effort"): "reasoning.effort",
    ("anthropic_messages", "reasoning_effort"): "output_config.effort",
}
_SAMPLING = frozenset(("temperature", "top_p", "top_k", "seed", "frequency_penalty", "presence_penalty"))
_ASKED = {"reasoning_effort": "effort", "thinking": "thinking", "parallel_tool_calls": "parallel_tool_calls"}
# In this order they are told.
_REFUSABLE: tuple[Refusable, ...] = get_args(Refusable)
# Values that ask for what the model does anyway.
_IDLE: dict[str, tuple[object, ...]] = {
    "temperature": (1,),
    "top_p": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "parallel_tool_calls": (True,),
    "reasoning_effort": ("none",),
}
_ANY = msgspec.json.Decoder()


def check_capabilities(request: Request, card: ModelCard) -> None:
    """Raises ``RequestError`` where the request needs what the model is known not to have."""
    if card.capabilities is not None and request.embedding is None:
        for feature in sorted(features_of(request)):
            capability, field, text = _NEEDS.get(feature, ("reasoning", "", ""))
            if text and card.lacks(capability) and not _is_any_object(request, feature):
                raise _refusal(request, field, f"The model {request.model!r} {text}.")
    if request.sampling.stop and "stop" in (card.refuses or ()):
        # Without them the answer would go on past where the client wanted it to end.
        raise _refusal(request, "stop", f"The model {request.model!r} takes no stop sequences.")


def _is_any_object(request: Request, feature: str) -> bool:
    return feature == "structured_output" and request.json_schema is not None and request.json_schema.schema is None


def _refusal(request: Request, field: str, text: str) -> RequestError:
    return RequestError(text, code=ErrorCode.UNSUPPORTED_VALUE, param=spelled(field, request))


def spelled(field: str, request: Request) -> str:
    """A field in the client's own word."""
    own = _SPELLED.get(request.format, {})
    return request.spelling.get(field) or own.get(field) or field


def prompt_tokens_max(context_tokens: int | None) -> int | None:
    """How many tokens of ours a prompt may have before it is certain that it does not fit."""
    return None if context_tokens is None else context_tokens * _ESTIMATE_PERCENT // 100


def check_length(request: Request, tokens: int, tokens_max: int | None) -> None:
    """Raises ``RequestError`` where a prompt of so many tokens is too long for the model."""
    if tokens_max is not None and tokens > tokens_max:
        raise RequestError(
            f"The prompt is too long: {tokens} tokens > {tokens_max} maximum context length of the model "
            f"{request.model!r}.",
            code=ErrorCode.CONTEXT_LENGTH_EXCEEDED,
            param=spelled("messages", request),
        )


def words_of(request: Request) -> Request:
    """The request without what is only estimated in tokens: files, tools, and what no part stands for."""
    messages = tuple(Message(message.role, _words(message.parts)) for message in request.messages)
    return msgspec.structs.replace(request, messages=messages, tools=(), json_schema=None, unread=())


def _words(parts: Iterable[Part]) -> tuple[Part, ...]:
    kept: list[Part] = []
    for part in parts:
        if isinstance(part, ToolResult):
            kept.append(msgspec.structs.replace(part, content=_words(part.content)))
        elif not isinstance(part, Image | Document | Audio):
            kept.append(part)
    return tuple(kept)


def losses(request: Request, card: ModelCard) -> tuple[Loss, ...]:
    """What the model is not sent, as far as the client asked for something with it."""
    if card is NOTHING_KNOWN or request.embedding is not None:
        return ()
    dropped = [_named(name, request) for name in _unwanted(request, card) if not _is_idle(request, name)]
    lost = tuple(Loss("dropped", name) for name in dict.fromkeys(dropped))
    return lost if _bound(request, card) == request.output_tokens_max else (Loss("lowered", "max_tokens"), *lost)


def _named(name: str, request: Request) -> str:
    """An effort that was read off a thinking budget has the name of that."""
    if name == "reasoning_effort" and request.thinking is not None and not _stands_in(request, name):
        return "thinking"
    return _SPELLED.get(request.format, {}).get(name, name)


def fitted(request: Request, card: ModelCard) -> Request:
    """The request as the model takes it; the same one where nothing is known against it."""
    if card is NOTHING_KNOWN or request.embedding is not None:
        return request
    unwanted, bound = tuple(_unwanted(request, card)), _bound(request, card)
    if not unwanted and bound == request.output_tokens_max:
        return request
    raw = dict(request.raw)
    for name in unwanted:
        _leave_out(raw, _PLACES.get((request.format, name), name))
    changes: dict[str, Any] = {"output_tokens_max": bound, "raw": raw}
    changes |= {field: None for name, field in _ASKED.items() if name in unwanted}
    return msgspec.structs.replace(
        request,
        sampling=msgspec.structs.replace(request.sampling, **dict.fromkeys(_SAMPLING.intersection(unwanted))),
        untold=tuple(name for name in request.untold if name not in unwanted),
        **changes,
    )


def _bound(request: Request, card: ModelCard) -> int | None:
    asked, most = request.output_tokens_max, card.output_tokens_max
    return asked if asked is None or most is None else min(asked, most)


def _unwanted(request: Request, card: ModelCard) -> Iterator[str]:
    """The fields a request has that the model would refuse it for."""
    refused = card.refuses or frozenset[Refusable]()
    for name in _REFUSABLE:
        is_unwanted = name in refused or (name == "reasoning_effort" and card.lacks("reasoning"))
        if is_unwanted and name != "stop" and _value(request, name) is not None:
            yield name
    if card.lacks("reasoning") and request.thinking is not None:
        yield "thinking"


def _value(request: Request, name: str) -> object:
    if name in _SAMPLING:
        return getattr(request.sampling, name)
    if name in _ASKED:
        return getattr(request, _ASKED[name])
    return _ANY.decode(request.raw[name]) if name in request.raw else None


def _stands_in(request: Request, name: str) -> bool:
    field, _, inner = _PLACES.get((request.format, name), name).partition(".")
    value = _ANY.decode(request.raw.get(field, b"null"))
    return value is not None and (not inner or (isinstance(value, dict) and value.get(inner) is not None))


def _is_idle(request: Request, name: str) -> bool:
    value = _value(request, name)
    if name == "thinking":
        return isinstance(value, dict) and value.get("type") == "disabled"
    return value in _IDLE.get(name, ())


def _leave_out(raw: dict[str, msgspec.Raw], place: str) -> None:
    """Take a field out of a body; of one within another, that alone."""
    field, _, inner = place.partition(".")
    value = raw.pop(field, None)
    if value is None or not inner:
        return
    rest = _ANY.decode(value)
    if isinstance(rest, dict) and rest.keys() - {inner}:
        raw[field] = msgspec.Raw(msgspec.json.encode({name: it for name, it in rest.items() if name != inner}))
