"""What OpenAI refuses in a Chat Completions request, with the words it uses.

Only rules that the vendor documents or was seen to apply; compatible servers are laxer, so a gateway that passes here
passes there.
"""

import re
from typing import Any

from .exchange import Rejected, unknown_field

FIELDS = frozenset(
    "audio frequency_penalty function_call functions logit_bias logprobs max_completion_tokens max_tokens messages "
    "metadata modalities model moderation n parallel_tool_calls prediction presence_penalty prompt_cache_key "
    "prompt_cache_options prompt_cache_retention reasoning_effort response_format safety_identifier seed service_tier "
    "stop store stream stream_options temperature tool_choice tools top_logprobs top_p user verbosity "
    "web_search_options".split()
)
MESSAGE_FIELDS = frozenset("role content name refusal audio tool_calls function_call tool_call_id".split())
ROLES = frozenset("developer system user assistant tool function".split())
RANGES = {
    "temperature": (0, 2),
    "top_p": (0, 1),
    "frequency_penalty": (-2, 2),
    "presence_penalty": (-2, 2),
    "n": (1, 128),
    "top_logprobs": (0, 20),
    "max_tokens": (1, 10**9),
    "max_completion_tokens": (1, 10**9),
}
FUNCTION_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
PART_FIELDS = {
    "text": "text",
    "image_url": "image_url",
    "input_audio": "input_audio",
    "file": "file",
    "refusal": "refusal",
}


def check(body: Any, strict_fields: bool) -> None:
    """Raises ``Rejected``."""
    if not isinstance(body, dict):
        raise Rejected("We could not parse the JSON body of your request.")
    if not isinstance(body.get("model"), str) or not body["model"]:
        raise Rejected("you must provide a model parameter")
    if strict_fields and (name := unknown_field(body, FIELDS)):
        raise Rejected(f"Unrecognized request argument supplied: {name}", param=name, code="unknown_parameter")
    _check_numbers(body)
    _check_stream(body)
    _check_tools(body)
    messages = body.get("messages")
    if not isinstance(messages, list):
        raise Rejected("Missing required parameter: 'messages'.", param="messages", code="missing_required_parameter")
    if not messages:
        raise Rejected("Invalid 'messages': empty array.", param="messages", code="empty_array")
    for index, message in enumerate(messages):
        _check_message(index, message, strict_fields)
    _check_calls_answered(messages)


def _invalid(param: str, message: str) -> Rejected:
    return Rejected(message, param=param, code="invalid_value")


def _check_numbers(body: dict[str, Any]) -> None:
    for name, (low, high) in RANGES.items():
        value = body.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise Rejected(f"Invalid type for '{name}': expected a number.", param=name, code="invalid_type")
        if not low <= value <= high:
            side = "below_min" if value < low else "above_max"
            code = f"{'integer' if isinstance(low, int) and isinstance(value, int) else 'decimal'}_{side}_value"
            raise Rejected(f"Invalid '{name}': expected a value between {low} and {high}.", param=name, code=code)
    if body.get("max_tokens") is not None and body.get("max_completion_tokens") is not None:
        raise _invalid(
            "max_tokens", "Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported."
        )
    if body.get("top_logprobs") is not None and not body.get("logprobs"):
        raise _invalid("top_logprobs", "'top_logprobs' needs 'logprobs'.")
    if isinstance(stop := body.get("stop"), list) and len(stop) > 4:
        raise _invalid("stop", "Invalid 'stop': array too long. Expected at most 4.")


def _check_stream(body: dict[str, Any]) -> None:
    if not isinstance(body.get("stream", False), bool | None):
        raise Rejected("Invalid type for 'stream': expected a boolean.", param="stream", code="invalid_type")
    if body.get("stream_options") is None:
        return
    if not body.get("stream"):
        raise _invalid("stream_options", "The 'stream_options' parameter is only allowed when 'stream' is enabled.")
    if not isinstance(body["stream_options"], dict):
        raise Rejected("Invalid type for 'stream_options'.", param="stream_options", code="invalid_type")


def _check_tools(body: dict[str, Any]) -> None:
    tools = body.get("tools")
    if tools is None:
        for name in ("tool_choice", "parallel_tool_calls"):
            if body.get(name) not in (None, "none", "auto") or (name in body and name == "parallel_tool_calls"):
                raise _invalid(name, f"'{name}' is only allowed when 'tools' are specified.")
        return
    if not isinstance(tools, list) or not tools:
        raise _invalid("tools", f"{tools} is too short - 'tools'")
    for index, tool in enumerate(tools):
        _check_tool(index, tool)
    names = {tool["function"]["name"] for tool in tools if tool["type"] == "function"}
    choice = body.get("tool_choice")
    if isinstance(choice, dict) and choice.get("type") == "function" and choice["function"]["name"] not in names:
        raise _invalid("tool_choice", "Tool choice names a function that is not in 'tools'.")


def _check_tool(index: int, tool: Any) -> None:
    param = f"tools[{index}]"
    if not isinstance(tool, dict) or tool.get("type") not in ("function", "custom"):
        raise _invalid(f"{param}.type", f"Invalid value for '{param}.type'.")
    inner = tool.get(tool["type"])
    if not isinstance(inner, dict) or not FUNCTION_NAME.fullmatch(str(inner.get("name", ""))):
        raise _invalid(f"{param}.function.name", f"Invalid '{param}.function.name': expected ^[a-zA-Z0-9_-]+$.")
    if not isinstance(inner.get("parameters", {}), dict | None):
        raise Rejected(f"Invalid type for '{param}.function.parameters'.", param=param, code="invalid_type")


def _check_message(index: int, message: Any, strict_fields: bool) -> None:
    param = f"messages[{index}]"
    if not isinstance(message, dict) or message.get("role") not in ROLES:
        raise _invalid(f"{param}.role", f"Invalid value for '{param}.role'.")
    if strict_fields and (name := unknown_field(message, MESSAGE_FIELDS)):
        raise Rejected(f"Unknown parameter: '{param}.{name}'.", param=f"{param}.{name}", code="unknown_parameter")
    calls = message.get("tool_calls")
    if calls is not None and (not isinstance(calls, list) or not calls):
        raise _invalid(f"{param}.tool_calls", f"Invalid '{param}.tool_calls': expected a non-empty array.")
    for call in calls or ():
        _check_call(f"{param}.tool_calls", call)
    if message["role"] == "tool" and not message.get("tool_call_id"):
        raise Rejected(
            f"Missing parameter 'tool_call_id': messages with role 'tool' must have one ('{param}').",
            param=f"{param}.tool_call_id",
        )
    _check_content(param, message)


def _check_call(param: str, call: Any) -> None:
    if not isinstance(call, dict) or not call.get("id") or call.get("type") not in ("function", "custom"):
        raise _invalid(param, f"Invalid '{param}': a call needs an id and a type.")
    function = call.get("function")
    if call["type"] == "function" and not (isinstance(function, dict) and isinstance(function.get("name"), str)):
        raise _invalid(param, f"Invalid '{param}': a call needs a function with a name.")
    if isinstance(function, dict) and not isinstance(function.get("arguments"), str):
        raise Rejected(
            f"Invalid type for '{param}.function.arguments': expected a string.", param=param, code="invalid_type"
        )


def _check_content(param: str, message: dict[str, Any]) -> None:
    content = message.get("content")
    if content is None:
        is_optional = any(message.get(name) for name in ("tool_calls", "function_call", "audio", "refusal"))
        if message["role"] == "assistant" and is_optional:
            return
        raise _invalid(f"{param}.content", f"Invalid value for 'content': expected a string, got null ('{param}').")
    if isinstance(content, str):
        return
    if not isinstance(content, list) or not content:
        raise _invalid(f"{param}.content", f"Invalid type for '{param}.content': expected a string or parts.")
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in PART_FIELDS or PART_FIELDS[kind] not in part:
            raise _invalid(f"{param}.content", f"Invalid value for '{param}.content[].type': {kind!r}.")


def _check_calls_answered(messages: list[dict[str, Any]]) -> None:
    """Every call must be answered before the next message that is no tool's."""
    owed: list[str] = []
    for index, message in enumerate(messages):
        if message["role"] == "tool":
            if message["tool_call_id"] not in owed:
                raise _invalid(
                    f"messages.[{index}].role",
                    "messages with role 'tool' must be a response to a preceeding message with 'tool_calls'.",
                )
            owed.remove(message["tool_call_id"])
            continue
        _check_nothing_owed(index, owed)
        owed = [call["id"] for call in message.get("tool_calls") or ()]
    _check_nothing_owed(len(messages), owed)


def _check_nothing_owed(index: int, owed: list[str]) -> None:
    if owed:
        raise Rejected(
            "An assistant message with 'tool_calls' must be followed by tool messages responding to each "
            f"'tool_call_id'. The following tool_call_ids did not have response messages: {', '.join(owed)}",
            param=f"messages.[{index}].role",
        )
