"""The body of a call to Gemini: the canonical request in its words. The model stands in the URL, not here.

Reference: https://ai.google.dev/api/generate-content#request-body.
"""

from typing import Any

import msgspec

from gateway.canonical.errors import ErrorCode, RequestError
from gateway.canonical.request import Request, Tool
from gateway.protocols.gemini.history import encode_contents, encode_system
from gateway.protocols.gemini.schema import translate
from gateway.protocols.gemini.thinking import must_be_signed, thinking_config

CHOICES_MAX = 8
_MODES = {"none": "NONE", "required": "ANY", "tool": "ANY"}


def encode(request: Request, model: str) -> bytes:
    """The canonical request as a body; raises ``RequestError`` for what the format cannot carry."""
    refuse_unsupported(request)
    contents = encode_contents(request.messages, must_be_signed=must_be_signed(model))
    if not contents:
        raise RequestError(
            "This model needs at least one message with content beside the system messages.",
            code=ErrorCode.INVALID_VALUE,
            param="messages",
        )
    body: dict[str, Any] = {
        "contents": contents,
        "systemInstruction": encode_system(request.messages),
        "tools": [{"functionDeclarations": [_declaration(tool) for tool in request.tools]}] if request.tools else None,
        "toolConfig": _tool_config(request),
        "generationConfig": _generation_config(request, model) or None,
    }
    return msgspec.json.encode({name: value for name, value in body.items() if value is not None})


def refuse_unsupported(request: Request) -> None:
    """Raises ``RequestError`` for more choices than Gemini gives."""
    if request.choices > CHOICES_MAX:
        raise RequestError(
            f"This model gives at most {CHOICES_MAX} choices per request.", code=ErrorCode.UNSUPPORTED_VALUE, param="n"
        )


def is_seed(seed: int | None) -> bool:
    """Whether it is one for Gemini, which takes 32 bits."""
    return seed is not None and -(2**31) <= seed < 2**31


def _declaration(tool: Tool) -> dict[str, Any]:
    declaration: dict[str, Any] = {"name": tool.name}
    if tool.description is not None:
        declaration["description"] = tool.description
    # An object without properties is no schema here; a function without parameters has none.
    if tool.parameters and (tool.parameters.keys() - {"type", "properties"} or tool.parameters.get("properties")):
        declaration["parametersJsonSchema"] = translate({"type": "object", **tool.parameters})
    return declaration


def _tool_config(request: Request) -> dict[str, Any] | None:
    choice = request.tool_choice
    if choice is None or not request.tools or choice.mode not in _MODES:
        return None
    config: dict[str, Any] = {"mode": _MODES[choice.mode]}
    if choice.mode == "tool":
        config["allowedFunctionNames"] = [choice.name]
    return {"functionCallingConfig": config}


def _generation_config(request: Request, model: str) -> dict[str, Any]:
    sampling, wanted = request.sampling, request.json_schema
    schema = wanted.schema if wanted is not None else None
    config: dict[str, Any] = {
        "maxOutputTokens": request.output_tokens_max,
        "temperature": sampling.temperature,
        "topP": sampling.top_p,
        "topK": sampling.top_k,
        "seed": sampling.seed if is_seed(sampling.seed) else None,
        "stopSequences": list(sampling.stop) or None,
        "frequencyPenalty": sampling.frequency_penalty,
        "presencePenalty": sampling.presence_penalty,
        "candidateCount": request.choices if request.choices > 1 else None,
        "responseMimeType": "application/json" if wanted is not None else None,
        "responseJsonSchema": translate(schema) if schema is not None else None,
        "thinkingConfig": thinking_config(request, model),
    }
    return {name: value for name, value in config.items() if value is not None}
