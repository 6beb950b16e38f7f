"""What Google refuses in a ``generateContent`` request, with the words it uses.

Unknown names are refused on every level, as protobuf's JSON does. Thought signatures are accepted only where they were
issued, and demanded where the third generation demands them.
"""

import re
from typing import Any, TypeAlias

from .exchange import Rejected, unknown_field

# Each signature with the place that it was put on: a call (and its function) or the words.
Issued: TypeAlias = dict[str, tuple[str, str | None]]

DUMMY = "skip_thought_signature_validator"
FIELDS = frozenset(
    "contents systemInstruction tools toolConfig generationConfig safetySettings cachedContent labels".split()
)
CONFIG_FIELDS = frozenset(
    "temperature topP topK maxOutputTokens stopSequences responseMimeType responseSchema responseJsonSchema seed "
    "candidateCount frequencyPenalty presencePenalty thinkingConfig responseModalities mediaResolution".split()
)
PART_FIELDS = frozenset(
    "text thought thoughtSignature inlineData fileData functionCall functionResponse mediaResolution".split()
)
THINKING_FIELDS = frozenset("includeThoughts thinkingBudget thinkingLevel".split())
SCHEMA_FIELDS = frozenset(
    "$id $defs $ref $anchor type format title description enum items prefixItems minItems maxItems minimum maximum "
    "anyOf oneOf properties additionalProperties required propertyOrdering".split()
)
FUNCTION_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_.:-]{0,127}")
STOPS_MAX = 5
SIGNED_MODELS = re.compile(r"gemini-(?!1|2)")
LEVELS = ("MINIMAL", "LOW", "MEDIUM", "HIGH", "XHIGH")


def check(body: Any, model: str, issued: Issued) -> None:
    """Raises ``Rejected``."""
    if not isinstance(body, dict):
        raise Rejected("Invalid JSON payload received. Unexpected token.")
    _check_names("", body, FIELDS)
    if not body.get("contents"):
        raise Rejected("* GenerateContentRequest.contents: contents is not specified")
    names = _check_tools(body)
    _check_tool_config(body, names)
    _check_config(body.get("generationConfig") or {}, model)
    _check_contents(body["contents"], model, issued)
    system = body.get("systemInstruction")
    if system is not None and any(set(part) != {"text"} for part in system["parts"]):
        raise Rejected("System instruction can only hold text.")


def _check_names(where: str, value: dict[str, Any], known: frozenset[str]) -> None:
    if unknown := unknown_field(value, known):
        place = f" at '{where}'" if where else ""
        raise Rejected(f'Invalid JSON payload received. Unknown name "{unknown}"{place}: Cannot find field.')


def _check_config(config: dict[str, Any], model: str) -> None:
    _check_names("generation_config", config, CONFIG_FIELDS)
    for name, low, high in (("temperature", 0, 2), ("topP", 0, 1), ("seed", -(2**31), 2**31 - 1)):
        value = config.get(name)
        if value is not None and not low <= value <= high:
            raise Rejected(f"Unable to submit request because it has a {name} value of {value}.")
    if not 1 <= config.get("candidateCount", 1) <= 8:
        raise Rejected("The candidateCount must be between 1 and 8.")
    if len(config.get("stopSequences") or ()) > STOPS_MAX:
        raise Rejected("The number of stop sequences must be at most 5.")
    if "responseJsonSchema" in config:
        if config.get("responseMimeType") != "application/json":
            raise Rejected("response_mime_type must be application/json where there is a schema.")
        check_schema(config["responseJsonSchema"])
    _check_thinking(config.get("thinkingConfig"), model)


def _check_thinking(thinking: dict[str, Any] | None, model: str) -> None:
    if thinking is None:
        return
    _check_names("generation_config.thinking_config", thinking, THINKING_FIELDS)
    if "thinkingBudget" in thinking and "thinkingLevel" in thinking:
        raise Rejected("You can only set only one of thinking budget and thinking level.")
    if model.startswith(("gemini-1", "gemini-2.0")):
        raise Rejected("Thinking is not enabled for this model.")
    if "thinkingLevel" in thinking:
        level = thinking["thinkingLevel"]
        if level not in LEVELS:
            raise Rejected(f"Invalid value at 'generation_config.thinking_config.thinking_level': {level}")
        if model.startswith("gemini-2.5"):
            raise Rejected("Thinking level is not supported for this model.")
        if level == "MINIMAL" and "pro" in model:
            raise Rejected("Thinking level MINIMAL is not supported for this model. Please retry with other levels.")
    if thinking.get("thinkingBudget") == 0 and "pro" in model:
        raise Rejected("Budget 0 is invalid. This model only works in thinking mode.")


def check_schema(schema: Any) -> None:
    """Raises ``Rejected`` for what is not in Google's part of JSON Schema."""
    if not isinstance(schema, dict):
        return
    _check_names("schema", schema, SCHEMA_FIELDS)
    if "$ref" in schema and any(not name.startswith("$") for name in schema):
        raise Rejected("If $ref is set on a sub-schema, no other properties may be set.")
    inner = [*(schema.get("properties") or {}).values(), *(schema.get("$defs") or {}).values()]
    inner += [schema.get("items"), schema.get("additionalProperties")]
    for name in ("anyOf", "oneOf", "prefixItems"):
        inner += schema.get(name) or []
    for each in inner:
        check_schema(each)


def _check_tools(body: dict[str, Any]) -> list[str]:
    names = []
    for tool in body.get("tools") or ():
        _check_names("tools", tool, frozenset(("functionDeclarations",)))
        for declaration in tool["functionDeclarations"]:
            known = frozenset(("name", "description", "parameters", "parametersJsonSchema"))
            _check_names("tools.function_declarations", declaration, known)
            if not FUNCTION_NAME.fullmatch(str(declaration.get("name"))):
                raise Rejected("Invalid function name. Must start with a letter or an underscore.")
            names.append(declaration["name"])
            check_schema(declaration.get("parametersJsonSchema"))
    if len(names) != len(set(names)):
        raise Rejected("Duplicate function declaration found.")
    return names


def _check_tool_config(body: dict[str, Any], names: list[str]) -> None:
    if "toolConfig" not in body:
        return
    config = body["toolConfig"]["functionCallingConfig"]
    if config.get("mode") not in ("AUTO", "ANY", "NONE", "VALIDATED"):
        raise Rejected("Invalid value at 'tool_config.function_calling_config.mode'.")
    if not names:
        raise Rejected("Function calling config is set without function_declarations.")
    if unknown := set(config.get("allowedFunctionNames") or ()) - set(names):
        raise Rejected(f"allowed_function_names must be in function_declarations: {sorted(unknown)}")
    if "allowedFunctionNames" in config and config["mode"] not in ("ANY", "VALIDATED"):
        raise Rejected("Function calling mode must be ANY if allowed_function_names is set.")


def _check_contents(contents: list[dict[str, Any]], model: str, issued: Issued) -> None:
    before: dict[str, Any] | None = None
    turn_starts = max((place for place, content in enumerate(contents) if _is_turn(content)), default=0)
    for place, content in enumerate(contents):
        if content.get("role") not in ("user", "model"):
            raise Rejected("Please use a valid role: user, model.")
        if not content.get("parts"):
            raise Rejected(f"* GenerateContentRequest.contents[{place}].parts: contents.parts must not be empty.")
        for part in content["parts"]:
            _check_part(place, part)
        _check_calls(before, content)
        _check_signatures(content, issued, is_demanded=place > turn_starts and SIGNED_MODELS.match(model) is not None)
        before = content
    if before is not None and _calls(before):
        raise Rejected("Please ensure that function call turn is followed by a function response turn.")


def _is_turn(content: dict[str, Any]) -> bool:
    return content.get("role") == "user" and not any("functionResponse" in part for part in content["parts"])


def _check_part(place: int, part: dict[str, Any]) -> None:
    _check_names(f"contents[{place}].parts", part, PART_FIELDS)
    kinds = [name for name in ("text", "inlineData", "fileData", "functionCall", "functionResponse") if name in part]
    if len(kinds) != 1:
        raise Rejected(f"* contents[{place}].parts: exactly one of a part's fields must be initialized: {kinds}")
    if kinds == ["functionCall"] and not isinstance(part["functionCall"].get("args"), dict):
        raise Rejected("Invalid value at 'function_call.args' (type.googleapis.com/google.protobuf.Struct)")
    if kinds == ["functionResponse"]:
        response = part["functionResponse"]
        if not isinstance(response.get("response"), dict):
            raise Rejected("Invalid value at 'function_response.response' (type.googleapis.com/google.protobuf.Struct)")
        if not response.get("name"):
            raise Rejected("* function_response.name: Name cannot be empty.")
    if kinds == ["inlineData"] and not part["inlineData"].get("mimeType"):
        raise Rejected("Unable to submit request because it must have a mimeType parameter.")


def _calls(content: dict[str, Any]) -> list[dict[str, Any]]:
    return [part["functionCall"] for part in content["parts"] if "functionCall" in part]


def _check_calls(before: dict[str, Any] | None, content: dict[str, Any]) -> None:
    if _calls(content) and (before is None or before["role"] != "user"):
        raise Rejected(
            "Please ensure that function call turn comes immediately after a user turn or after a function response "
            "turn."
        )
    answers = [part["functionResponse"] for part in content["parts"] if "functionResponse" in part]
    asked = _calls(before) if before is not None else []
    if len(answers) != len(asked):
        raise Rejected(
            "Please ensure that the number of function response parts is equal to the number of function call parts of "
            "the function call turn."
        )
    for call, answer in zip(asked, answers, strict=True):
        if call["name"] != answer["name"] or call.get("id") != answer.get("id"):
            raise Rejected("Please ensure that function response parts answer the function call parts.")


def _check_signatures(content: dict[str, Any], issued: Issued, *, is_demanded: bool) -> None:
    is_first = True
    for part in content["parts"]:
        signature = part.get("thoughtSignature")
        call = part.get("functionCall")
        if signature not in (None, DUMMY):
            place = ("call", call["name"]) if call is not None else ("text", None)
            if issued.get(signature) != place:
                raise Rejected("Corrupted thought signature.")
        if call is not None:
            if is_first and is_demanded and signature is None:
                raise Rejected(
                    "Function call is missing a thought_signature in functionCall parts. This is required for tools to "
                    "work correctly."
                )
            is_first = False
