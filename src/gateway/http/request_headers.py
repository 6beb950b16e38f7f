"""Request headers that mean something to us and are not a credential, each read strictly."""

import re
from collections.abc import Iterable

from gateway.canonical.errors import ErrorCode, RequestError

# The same bounds as the admin API's, and Stripe's.
_IDEMPOTENCY_KEY = re.compile(rb"[!-~]{1,255}")
_NAME = "idempotency-key"


_TRUTHS = {b"1": True, b"true": True, b"0": False, b"false": False}


def truth(headers: Iterable[tuple[bytes, bytes]], wanted: bytes) -> bool | None:
    """A header that says yes or no, ``None`` where there is none; raises ``RequestError`` where it says neither."""
    answer = None
    for name, value in headers:
        if name == wanted:
            answer = _TRUTHS.get(value.lower())
            if answer is None:
                header = wanted.decode()
                raise RequestError(f"{header} must be true or false.", code=ErrorCode.INVALID_VALUE, param=header)
    return answer


def idempotency_key(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """The request's ``Idempotency-Key``, ``None`` where there is none; raises ``RequestError`` where it is no key."""
    values = [value for name, value in headers if name == b"idempotency-key"]
    if not values:
        return None
    if len(values) > 1 or not _IDEMPOTENCY_KEY.fullmatch(values[0]):
        raise RequestError(
            "Idempotency-Key must be one header of 1 to 255 visible ASCII characters.",
            code=ErrorCode.INVALID_VALUE,
            param=_NAME,
        )
    return values[0].decode("ascii")
