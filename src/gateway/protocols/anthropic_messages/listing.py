"""Models as Anthropic's clients list them, page by page.

Format: https://platform.claude.com/docs/en/api/models-list
"""

from collections.abc import Mapping, Sequence
from typing import Any

from gateway.canonical.errors import ErrorCode, RequestError

_CREATED_AT = "2025-01-01T00:00:00Z"  # models have no date of their own here
_PAGE = 20
_PAGE_MAX = 1000


def model_object(model: str) -> dict[str, Any]:
    """One model by its name."""
    return {"type": "model", "id": model, "display_name": model, "created_at": _CREATED_AT}


def model_page(models: Sequence[str], query: Mapping[str, str]) -> dict[str, Any]:
    """The page of the sorted ``models`` that ``limit``, ``after_id`` and ``before_id`` ask for."""
    limit = _limit(query.get("limit"))
    after, before = query.get("after_id"), query.get("before_id")
    if after is not None and before is not None:
        raise RequestError("Send after_id or before_id, not both.", code=ErrorCode.INVALID_VALUE, param="before_id")
    if before is not None:
        known = [model for model in models if model < before]
        page = known[-limit:]
    else:
        known = [model for model in models if after is None or model > after]
        page = known[:limit]
    return {
        "data": [model_object(model) for model in page],
        "has_more": len(known) > len(page),
        "first_id": page[0] if page else None,
        "last_id": page[-1] if page else None,
    }


def _limit(text: str | None) -> int:
    if text is None:
        return _PAGE
    if not (text.isascii() and text.isdigit() and len(text) <= 4 and 1 <= int(text) <= _PAGE_MAX):
        raise RequestError(
            f"limit must be a number from 1 to {_PAGE_MAX}.", code=ErrorCode.INVALID_VALUE, param="limit"
        )
    return int(text)
