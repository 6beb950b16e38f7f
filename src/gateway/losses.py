"""What a provider is not asked for as the client did: named in a header, or refused where the client wants all of it.

The header is a list of ``fate:field`` (``lowered:max_tokens, dropped:top_k``), the field in the client's own spelling.
It has names and no values; a name that could be anything else is called ``unknown``, and what does not fit in its
bounds is counted in a last ``more:3``.
"""

import re
from collections.abc import Callable, Iterable

from gateway.canonical.errors import ErrorCode, RequestError
from gateway.canonical.request import Loss, Request
from gateway.catalogue import fitting
from gateway.protocols.wire import Headers
from gateway.providers.provider import Call
from gateway.router import Target

HEADER = b"x-gateway-warnings"

_BYTES_MAX = 1000
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.\[\]-]{0,63}")


def keeping(request: Request, targets: tuple[Target, ...]) -> tuple[Target, ...]:
    """Those of the targets that are asked for all of it; raises ``RequestError`` that names a field where none is."""
    return those(targets, lambda target: _refuse(request, target))


def serving(request: Request, targets: tuple[Target, ...]) -> tuple[Target, ...]:
    """Those of the targets that have what it needs; raises ``RequestError`` that says what the first one lacks."""
    if len(targets) == 1:
        fitting.check_capabilities(request, targets[0].card)
        return targets
    return those(targets, lambda target: fitting.check_capabilities(request, target.card))


def those(targets: tuple[Target, ...], check: Callable[[Target], None]) -> tuple[Target, ...]:
    """The targets that pass a check; raises the first one's ``RequestError`` where none does."""
    kept: list[Target] = []
    refusals: list[RequestError] = []
    for target in targets:
        try:
            check(target)
        except RequestError as refusal:
            refusals.append(refusal)
        else:
            kept.append(target)
    if not kept:
        raise refusals[0]
    return tuple(kept)


def _refuse(request: Request, target: Target) -> None:
    unfit = fitting.losses(request, target.card)
    lost = unfit or target.provider.losses(Call(fitting.fitted(request, target.card), target.model))
    if lost:
        name = _spelled(lost[0], request)
        raise RequestError(
            f"{name} would be {lost[0].fate} for this model; without x-gateway-strict the request is answered all the "
            "same.",
            code=ErrorCode.UNSUPPORTED_VALUE,
            param=name,
        )


def warning_headers(request: Request, target: Target, asked: Request) -> Headers:
    """``x-gateway-warnings`` where ``asked``, as it went to the target, is less than the client's request."""
    lost = [*fitting.losses(request, target.card), *target.provider.losses(Call(asked, target.model))]
    if request.output_tokens_max is not None and asked.output_tokens_max != request.output_tokens_max:
        lost.insert(0, Loss("lowered", "max_tokens"))
    return ((HEADER, _listed(lost, request)),) if lost else ()


def _listed(lost: Iterable[Loss], request: Request) -> bytes:
    entries = list(dict.fromkeys(f"{loss.fate}:{_spelled(loss, request)}" for loss in lost))
    size = 0
    for number, entry in enumerate(entries):
        size += len(entry) + 2
        if size > _BYTES_MAX:
            entries[number:] = [f"more:{len(entries) - number}"]
            break
    return ", ".join(entries).encode("ascii")


def _spelled(loss: Loss, request: Request) -> str:
    """In the client's own word; a name it made up goes into a header only where it is one."""
    name = request.spelling.get(loss.field, loss.field)
    return name if _NAME.fullmatch(name) else "unknown"
