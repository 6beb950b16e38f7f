"""What OpenAI refuses in a Responses request, with the words it uses.

Here are the rules about parameters; those about the input are in ``responses_items``.
"""

from typing import Any

from .exchange import Rejected, unknown_field
from .openai_rules import FUNCTION_NAME
from .responses_items import Issued, check_items

ENCRYPTED = "reasoning.encrypted_content"
FIELDS = frozenset(
    "background context_management conversation include input instructions max_output_tokens max_tool_calls metadata "
    "model moderation parallel_tool_calls previous_response_id prompt prompt_cache_key prompt_cache_options "
    "prompt_cache_retention reasoning safety_identifier service_tier store stream stream_options temperature text "
    "tool_choice tools top_logprobs top_p truncation user".split()
)
INCLUDABLE = frozenset(
    (
        ENCRYPTED,
        "code_interpreter_call.outputs",
        "computer_call_output.output.image_url",
        "file_search_call.results",
        "message.input_image.image_url",
        "message.output_text.logprobs",
        "web_search_call.action.sources",
        "web_search_call.results",
    )
)
RANGES = {"temperature": (0, 2), "top_p": (0, 1), "top_logprobs": (0, 20), "max_output_tokens": (16, 10**9)}
EFFORTS = frozenset("none minimal low medium high xhigh max".split())
SUMMARIES = (None, "auto", "concise", "detailed")
# Models that do not reason start so.
PLAIN_MODELS = "gpt-4"


def check(body: Any, strict_fields: bool, issued: Issued) -> None:
    """Raises ``Rejected``."""
    if not isinstance(body, dict):
        raise Rejected("We could not parse the JSON body of your request.")
    if not isinstance(body.get("model"), str) or not body["model"]:
        raise Rejected("Missing required parameter: 'model'.", param="model", code="missing_required_parameter")
    if strict_fields and (name := unknown_field(body, FIELDS)):
        raise Rejected(f"Unknown parameter: '{name}'.", param=name, code="unknown_parameter")
    if body.get("input") is None:
        raise Rejected("Missing required parameter: 'input'.", param="input", code="missing_required_parameter")
    _check_numbers(body)
    _check_storage(body)
    _check_reasoning(body)
    _check_tools(body)
    _check_text(body.get("text"))
    check_items(body["input"], issued)


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
            kind = "integer" if isinstance(value, int) else "decimal"
            message = f"Invalid '{name}': expected a value between {low} and {high}."
            raise Rejected(message, param=name, code=f"{kind}_{side}_value")


def _check_storage(body: dict[str, Any]) -> None:
    for name in ("store", "stream", "background", "parallel_tool_calls"):
        if not isinstance(body.get(name), bool | None):
            raise Rejected(f"Invalid type for '{name}': expected a boolean.", param=name, code="invalid_type")
    if (earlier := body.get("previous_response_id")) is not None:
        raise Rejected(
            f"Previous response with id '{earlier}' not found.",
            param="previous_response_id",
            code="previous_response_not_found",
        )
    if body.get("stream_options") is not None and not body.get("stream"):
        raise _invalid("stream_options", "The 'stream_options' parameter is only allowed when 'stream' is enabled.")


def _check_reasoning(body: dict[str, Any]) -> None:
    for index, name in enumerate(body.get("include") or ()):
        if name not in INCLUDABLE:
            raise _invalid(f"include[{index}]", f"Invalid value: '{name}'.")
        if name == ENCRYPTED and body["model"].startswith(PLAIN_MODELS):
            raise Rejected("Encrypted content is not supported with this model.", param="include")
    reasoning = body.get("reasoning")
    if reasoning is None:
        return
    if not isinstance(reasoning, dict):
        raise Rejected("Invalid type for 'reasoning': expected an object.", param="reasoning", code="invalid_type")
    if reasoning.get("effort") is not None and reasoning["effort"] not in EFFORTS:
        raise _invalid("reasoning.effort", f"Invalid value: '{reasoning['effort']}'.")
    if reasoning.get("summary") not in SUMMARIES:
        raise _invalid("reasoning.summary", f"Invalid value: '{reasoning['summary']}'.")


def _check_tools(body: dict[str, Any]) -> None:
    tools = body.get("tools")
    if not isinstance(tools, list | None):
        raise Rejected("Invalid type for 'tools': expected an array.", param="tools", code="invalid_type")
    names = set()
    for index, tool in enumerate(tools or ()):
        _check_tool(f"tools[{index}]", tool)
        names.add(tool.get("name"))
    choice = body.get("tool_choice")
    if isinstance(choice, dict) and choice.get("type") == "function":
        if not isinstance(choice.get("name"), str):
            raise Rejected(
                "Missing required parameter: 'tool_choice.name'.",
                param="tool_choice.name",
                code="missing_required_parameter",
            )
        if choice["name"] not in names:
            raise _invalid("tool_choice", f"Tool choice '{choice['name']}' not found in 'tools' parameter.")
    if choice == "required" and not tools:
        raise _invalid("tool_choice", "Tool choice 'required' must be specified with 'tools' parameter.")


def _check_tool(param: str, tool: Any) -> None:
    if not isinstance(tool, dict) or not isinstance(tool.get("type"), str):
        raise _invalid(f"{param}.type", f"Invalid value for '{param}.type'.")
    if tool["type"] != "function":
        return
    # Nested as in Chat Completions, a function has no name here.
    if "name" not in tool:
        name = f"{param}.name"
        raise Rejected(f"Missing required parameter: '{name}'.", param=name, code="missing_required_parameter")
    if not FUNCTION_NAME.fullmatch(str(tool["name"])):
        raise _invalid(f"{param}.name", f"Invalid '{param}.name': expected ^[a-zA-Z0-9_-]+$.")
    parameters = tool.get("parameters")
    if not isinstance(parameters, dict | None):
        raise Rejected(f"Invalid type for '{param}.parameters'.", param=f"{param}.parameters", code="invalid_type")
    if tool.get("strict") is True and (parameters or {}).get("additionalProperties") is not False:
        raise Rejected(
            f"Invalid schema for function '{tool['name']}': 'additionalProperties' is required to be supplied and to "
            "be false.",
            param=f"{param}.parameters",
            code="invalid_function_parameters",
        )


def _check_text(text: Any) -> None:
    wanted = text.get("format") if isinstance(text, dict) else None
    if wanted is None:
        return
    if not isinstance(wanted, dict) or wanted.get("type") not in ("text", "json_object", "json_schema"):
        raise _invalid("text.format.type", "Invalid value for 'text.format.type'.")
    for name in ("name", "schema") if wanted["type"] == "json_schema" else ():
        if name not in wanted:
            param = f"text.format.{name}"
            raise Rejected(f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter")
