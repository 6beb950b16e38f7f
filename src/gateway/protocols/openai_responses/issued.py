"""Reasoning that a Responses provider issued, on its way through other formats.

Only the provider can read it, and it takes it back only with the id it had. Both travel as one signature, marked so
that no other provider's signature is ever taken for one: OpenAI answers foreign reasoning with 400, and so do others.
"""

import re
from typing import Any

from gateway.canonical.request import Reasoning
from gateway.protocols.openai_responses.items import seal_redacted, seal_signature

# Neither mark nor colon is base64, of which all other vendors' signatures are made.
_ISSUED = re.compile(r"responses:([^:]*):(.+)", re.DOTALL)
_SEALS = (seal_signature(""), seal_redacted(""))


def mark(item_id: str, encrypted: str) -> str:
    """The signature, or redacted data, that stands for an item's ``encrypted_content``."""
    return f"responses:{item_id.replace(':', '')}:{encrypted}"


def reasoning_item(part: Reasoning) -> dict[str, Any] | None:
    """The item as it was issued; ``None`` for what no Responses provider did."""
    issued = _ISSUED.fullmatch(part.signature or part.redacted)
    if issued is None:
        return None
    summary = [{"type": "summary_text", "text": part.text}] if part.text else []
    identity = {"id": issued.group(1)} if issued.group(1) else {}
    return {"type": "reasoning", **identity, "summary": summary, "encrypted_content": issued.group(2)}


def unseal(encrypted: str) -> tuple[str, str] | None:
    """Id and content of what the gateway sealed for a client; ``None`` where the provider cannot have issued it."""
    for seal in _SEALS:
        if encrypted.startswith(seal):
            issued = _ISSUED.fullmatch(encrypted.removeprefix(seal))
            return None if issued is None else (issued.group(1), issued.group(2))
    return "", encrypted
