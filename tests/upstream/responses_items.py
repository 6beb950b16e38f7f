"""What OpenAI refuses in the input of a Responses request: malformed items, calls and results that do not match.

Reasoning must come back as it was given out, id and content, so ``Issued`` remembers what was.
"""

import base64
import hashlib
import re
from typing import Any

from .exchange import Rejected

ROLES = frozenset("user assistant system developer".split())
PARTS = {
    "input_text": ("text",),
    "output_text": ("text",),
    "refusal": ("refusal",),
    "input_image": ("image_url", "file_id"),
    "input_file": ("file_data", "file_id", "file_url"),
    "summary_text": ("text",),
    "reasoning_text": ("text",),
}
SAID = frozenset(("output_text", "refusal"))
ASKED = frozenset(("input_text", "input_image", "input_file"))
PREFIXES = {"message": "msg", "function_call": "fc", "reasoning": "rs"}
CALL_ID_MAX = 64
ID = re.compile(r"[a-zA-Z0-9_-]{1,64}")


class Issued:
    """The reasoning that this server sealed."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}

    def note(self, item_id: str, content: str) -> None:
        """Remembers an item of an answer."""
        self._known[content] = item_id

    def check(self, item: dict[str, Any]) -> None:
        """Raises ``Rejected`` for reasoning that is not as it was given out."""
        content = item.get("encrypted_content")
        if content is None:
            raise Rejected(
                f"Item with id '{item.get('id')}' not found. Items are not persisted when `store` is set to false. "
                "Try again with `store` set to true, or remove this item from your input.",
                status=404,
                param="input",
            )
        known = self._known.get(content)
        if known is None or item.get("id") not in (None, known):
            reason = "could not be decrypted" if known is None else "item_id did not match the target item id"
            raise Rejected(
                f"The encrypted content for item {item.get('id')} could not be verified. Reason: Encrypted content "
                f"{reason}.",
                code="invalid_encrypted_content",
            )


def seal(text: str) -> str:
    """Encrypted content in the look of OpenAI's; the same text is always sealed alike."""
    return "gAAAAAB" + base64.urlsafe_b64encode(hashlib.sha512(text.encode()).digest()).decode()


def _missing(param: str) -> Rejected:
    return Rejected(f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter")


def _invalid(param: str, message: str) -> Rejected:
    return Rejected(message, param=param, code="invalid_value")


def check_items(items: Any, issued: Issued) -> None:
    """Raises ``Rejected``."""
    if isinstance(items, str):
        return
    if not isinstance(items, list) or not items:
        raise _invalid("input", "Invalid 'input': expected a string or a non-empty array.")
    for index, item in enumerate(items):
        _check_item(f"input[{index}]", item, issued)
    _check_reasoning_is_followed(items)
    _check_calls_answered(items)


def _check_item(param: str, item: Any, issued: Issued) -> None:
    if not isinstance(item, dict):
        raise _invalid(param, f"Invalid type for '{param}': expected an object.")
    kind = item.get("type", "message")
    _check_id(param, kind, item.get("id"))
    match kind:
        case "message":
            _check_message(param, item)
        case "function_call":
            _check_strings(param, item, ("call_id", "name", "arguments"))
        case "function_call_output":
            _check_strings(param, item, ("call_id",))
            if "output" not in item:
                raise _missing(f"{param}.output")
            if not isinstance(item["output"], str):
                _check_parts(f"{param}.output", item["output"], ASKED)
        case "reasoning":
            if not isinstance(item.get("summary"), list):
                raise _missing(f"{param}.summary")
            _check_parts(f"{param}.summary", item["summary"], frozenset(("summary_text",)))
            issued.check(item)
        case _:
            raise _invalid(f"{param}.type", f"Invalid value: '{kind}'.")


def _check_id(param: str, kind: str, identity: Any) -> None:
    prefix = PREFIXES.get(kind)
    if identity is None or prefix is None:
        return
    if not ID.fullmatch(str(identity)):
        raise _invalid(f"{param}.id", f"Invalid '{param}.id': expected up to 64 letters, numbers, '_' and '-'.")
    if not str(identity).startswith(prefix):
        raise _invalid(f"{param}.id", f"Invalid '{param}.id': Expected an ID that begins with '{prefix}'.")


def _check_strings(param: str, item: dict[str, Any], names: tuple[str, ...]) -> None:
    for name in names:
        if name not in item:
            raise _missing(f"{param}.{name}")
        if not isinstance(item[name], str):
            raise Rejected(f"Invalid type for '{param}.{name}'.", param=f"{param}.{name}", code="invalid_type")
    if not 1 <= len(item["call_id"]) <= CALL_ID_MAX:
        raise Rejected(
            f"Invalid '{param}.call_id': expected a string of 1 to 64 characters.",
            param=f"{param}.call_id",
            code="string_above_max_length",
        )


def _check_message(param: str, item: dict[str, Any]) -> None:
    role, content = item.get("role"), item.get("content")
    if role not in ROLES:
        raise _invalid(f"{param}.role", f"Invalid value: '{role}'.")
    if content is None:
        raise _missing(f"{param}.content")
    if not isinstance(content, str):
        _check_parts(f"{param}.content", content, SAID if role == "assistant" else ASKED)


def _check_parts(param: str, parts: Any, allowed: frozenset[str]) -> None:
    if not isinstance(parts, list):
        raise Rejected(f"Invalid type for '{param}'.", param=param, code="invalid_type")
    for index, part in enumerate(parts):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in allowed:
            expected = ", ".join(f"'{name}'" for name in sorted(allowed))
            raise _invalid(f"{param}[{index}]", f"Invalid value: '{kind}'. Supported values are: {expected}.")
        if not any(isinstance(part.get(name), str) for name in PARTS[kind]):
            raise _missing(f"{param}[{index}].{PARTS[kind][0]}")


def _check_reasoning_is_followed(items: list[dict[str, Any]]) -> None:
    for item, following in zip(items, [*items[1:], {}], strict=True):
        if item.get("type") != "reasoning":
            continue
        is_said = following.get("role") == "assistant" or following.get("type") in ("function_call", "reasoning")
        if not is_said:
            raise _invalid(
                "input",
                f"Item '{item.get('id')}' of type 'reasoning' was provided without its required following item.",
            )


def _check_calls_answered(items: list[dict[str, Any]]) -> None:
    """Each call has an output somewhere after it, and each output its call before it."""
    owed: list[str] = []
    for item in items:
        match item.get("type"):
            case "function_call":
                owed.append(item["call_id"])
            case "function_call_output" if item["call_id"] not in owed:
                raise _invalid("input", f"No tool call found for function call output with call_id {item['call_id']}.")
            case "function_call_output":
                owed.remove(item["call_id"])
    if owed:
        raise _invalid("input", f"No tool output found for function call {owed[0]}.")
