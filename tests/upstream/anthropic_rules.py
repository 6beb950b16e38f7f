"""What Anthropic refuses in a Messages request, with the words it uses.

Here are the rules about parameters; those about messages are in ``anthropic_turns``. Unknown fields are refused on
every level, as the real server does.
"""

import re
from typing import Any

from .anthropic_turns import VERSION_WITHOUT_SAMPLING, Issued, check_block, check_turns
from .exchange import Rejected, unknown_field

FIELDS = frozenset(
    "cache_control container diagnostics inference_geo max_tokens messages metadata model output_config service_tier "
    "speed stop_sequences stream system thinking tool_choice tools user_profile_id workspace_id temperature top_p "
    "top_k context_management mcp_servers".split()
)
SAMPLING = {"temperature": 1, "top_p": 1, "top_k": 10**9}
TOOL_NAME = re.compile(r"[a-zA-Z0-9_-]{1,128}")
BUDGET_MIN = 1024


def check(body: Any, version: str, issued: Issued) -> None:
    """Raises ``Rejected``."""
    if not isinstance(body, dict):
        raise Rejected("The request body is not valid JSON")
    for name in ("model", "max_tokens", "messages"):
        if body.get(name) is None:
            raise Rejected(f"{name}: Field required")
    if unknown := unknown_field(body, FIELDS):
        raise Rejected(f"{unknown}: Extra inputs are not permitted")
    if isinstance(body["max_tokens"], bool) or not isinstance(body["max_tokens"], int) or body["max_tokens"] < 0:
        raise Rejected("max_tokens: Input should be a valid integer, greater than or equal to 0")
    if not isinstance(body["messages"], list) or not body["messages"]:
        raise Rejected("messages: at least one message is required")
    _check_sampling(body, version)
    _check_thinking(body)
    _check_tools(body)
    _check_system(body.get("system"))
    check_turns(body, version, issued)


def _check_sampling(body: dict[str, Any], version: str) -> None:
    for name, high in SAMPLING.items():
        value = body.get(name)
        if value is None:
            continue
        if version == VERSION_WITHOUT_SAMPLING:
            raise Rejected(f"{name}: Extra inputs are not permitted")
        if not isinstance(value, int | float) or not 0 <= value <= high:
            raise Rejected(f"{name}: Input should be between 0 and {high}")


def _check_thinking(body: dict[str, Any]) -> None:
    thinking = body.get("thinking")
    if thinking is None:
        return
    if not isinstance(thinking, dict) or thinking.get("type") not in (
        "enabled",
        "adaptive",
        "disabled",
        "between_tools",
    ):
        raise Rejected("thinking: Input tag does not match any of the expected tags")
    if thinking["type"] != "enabled":
        return
    budget = thinking.get("budget_tokens")
    if not isinstance(budget, int):
        raise Rejected("thinking.enabled.budget_tokens: Field required")
    if budget < BUDGET_MIN:
        raise Rejected(f"thinking.enabled.budget_tokens: Input should be greater than or equal to {BUDGET_MIN}")
    if budget >= body["max_tokens"]:
        raise Rejected("`max_tokens` must be greater than `thinking.budget_tokens`.")
    if (body.get("tool_choice") or {}).get("type") in ("any", "tool"):
        raise Rejected("Thinking may not be enabled when tool_choice forces tool use.")
    if body.get("temperature") not in (None, 1):
        raise Rejected("`temperature` may only be set to 1 when thinking is enabled.")


def _check_tools(body: dict[str, Any]) -> None:
    names = []
    for index, tool in enumerate(body.get("tools") or ()):
        where = f"tools.{index}"
        if not isinstance(tool, dict) or not TOOL_NAME.fullmatch(str(tool.get("name", ""))):
            raise Rejected(f"{where}.custom.name: String should match pattern '^[a-zA-Z0-9_-]{{1,128}}$'")
        names.append(tool["name"])
        if tool.get("type") not in (None, "custom"):
            continue
        schema = tool.get("input_schema")
        if not isinstance(schema, dict):
            raise Rejected(f"{where}.custom.input_schema: Field required")
        if schema.get("type") != "object":
            raise Rejected(f"{where}.custom.input_schema.type: Input should be 'object'")
    if len(names) != len(set(names)):
        raise Rejected("tools: Tool names must be unique.")
    _check_tool_choice(body.get("tool_choice"), names)


def _check_tool_choice(choice: Any, names: list[str]) -> None:
    if choice is None:
        return
    if not isinstance(choice, dict) or choice.get("type") not in ("auto", "any", "tool", "none"):
        raise Rejected("tool_choice: Input tag does not match any of the expected tags: 'auto', 'any', 'tool', 'none'")
    if choice["type"] in ("any", "tool") and not names:
        raise Rejected("tool_choice: may only be specified while providing tools")
    if choice["type"] == "tool" and choice.get("name") not in names:
        raise Rejected(f"Tool '{choice.get('name')}' not found in provided tools")


def _check_system(system: Any) -> None:
    if system is None or isinstance(system, str):
        return
    if not isinstance(system, list):
        raise Rejected("system: Input should be a valid string or list")
    for index, block in enumerate(system):
        if not isinstance(block, dict) or block.get("type") != "text":
            raise Rejected(f"system.{index}.type: Input should be 'text'")
        check_block(f"system.{index}", block)
