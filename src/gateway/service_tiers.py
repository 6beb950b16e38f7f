"""Requests that ask a vendor to be served sooner for more, or later for less: held and charged at that tier's price.

Where the price of a tier is not known the request is refused, since nobody could say what it costs. A target whose
provider speaks another format is not told of the tier, and costs what it always does.
"""

from typing import Any

import msgspec

from gateway.canonical.errors import ErrorCode, RequestError
from gateway.canonical.request import Request
from gateway.router import Target

# https://platform.openai.com/docs/api-reference/chat/create#chat-create-service_tier
# https://docs.claude.com/en/api/service-tiers, and its fast mode, which is asked for as a speed.
_FIELDS = {"anthropic_messages": ("service_tier", "speed")}
_FIELD = ("service_tier",)
# What everybody is served with who asks for nothing, as OpenAI, Anthropic and Groq call it.
ORDINARY = frozenset(("auto", "default", "standard", "standard_only", "on_demand"))
_SHOWN_MAX = 40


def in_service_tier(request: Request, targets: tuple[Target, ...]) -> tuple[Target, ...]:
    """Those of the targets that have a price for what is asked, at that price; raises ``RequestError`` for none."""
    for field in _FIELDS.get(request.format, _FIELD):
        if field not in request.untold or field not in request.raw:  # which formats without providers do not keep
            continue
        asked = msgspec.json.decode(request.raw[field])
        if not (isinstance(asked, str) and asked in ORDINARY):
            targets = _priced(request, targets, field, asked)
    return targets


def _priced(request: Request, targets: tuple[Target, ...], field: str, asked: Any) -> tuple[Target, ...]:
    found = [target for it in targets if (target := _in_tier(request, it, str(asked))) is not None]
    if not found:
        raise RequestError(
            f"The model {request.model!r} has no price for the {field} {str(asked)[:_SHOWN_MAX]!r}; leave it out, or "
            "have the operator name one under price.service_tiers.",
            code=ErrorCode.UNSUPPORTED_VALUE,
            param=field,
        )
    return tuple(found)


def _in_tier(request: Request, target: Target, name: str) -> Target | None:
    if target.provider.wire != request.format:
        return target
    price = target.terms.price.in_service_tier(name)
    if price is None:
        return None
    return msgspec.structs.replace(target, terms=msgspec.structs.replace(target.terms, price=price))
