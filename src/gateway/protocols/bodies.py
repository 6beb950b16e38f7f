"""Clients' bodies: JSON, read strictly and with bounds, for every protocol that takes it.

A body is refused with the field it is wrong in, in the client's own spelling, and never echoed. What would decode and
then break whoever walks it or writes it out again (nesting, huge integers) is refused before it is decoded.
"""

import binascii
import re
from typing import TypeVar

import msgspec

from gateway.canonical.errors import ErrorCode, RequestError

T = TypeVar("T")

_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])

_MODEL_NAME = re.compile(r"[!-~]{1,256}")
_WHERE = re.compile(r" - at `\$\.?([^`]*)`$")
_MISSING = re.compile(r"missing required field `([^`]+)`")
_ENUM = re.compile(r"^Invalid enum value .*", re.DOTALL)

_NESTING_MAX = 64
_CONTAINERS_MAX = 200_000
# Numbers beyond 64 bits: nothing here could write them out again. The first pattern is what may stand between two
# brackets outside of strings, so that the loop over its matches is as short as the body has brackets.
_INTEGER_DIGITS_MAX = 19
_LONG_DIGITS = b"0" * (_INTEGER_DIGITS_MAX + 1)
_AS_ZEROS = bytes.maketrans(b"123456789", b"0" * 9)
_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_NEXT_BRACKET = re.compile(rb'(?:[^"\[\]{}]++|' + _STRING + rb")*+[\[\]{}]", re.DOTALL)
_LONG_INTEGER = re.compile(
    rb'(?:[^"0-9]++|' + _STRING + rb"|[0-9]++[.eE][0-9eE+.-]*+|[0-9]{1,%d}+(?![0-9]))*+[0-9]" % _INTEGER_DIGITS_MAX,
    re.DOTALL,
)


def decode_json(body: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """A client's body as a typed value; raises ``RequestError`` that names the field in the client's own spelling.

    Where a name stands twice in one object the last one counts, for every reader of the body alike.
    """
    try:
        body.decode("utf-8")  # msgspec passes over the inside of strings that nobody asked for
        _check_bounds(body)
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        message = str(error)
        where = _WHERE.search(message)
        path = where.group(1) if where else ""
        missing = _MISSING.search(message)
        if missing:
            path = f"{path}.{missing.group(1)}".lstrip(".")
        text = _ENUM.sub("This value is not allowed here", _WHERE.sub("", message))
        raise RequestError(
            f"{path}: {text}." if path else f"{text}.", code=ErrorCode.INVALID_VALUE, param=path or None
        ) from None
    except UnicodeDecodeError as error:
        raise RequestError(f"The body is not valid UTF-8 (byte {error.start}).", code=ErrorCode.INVALID_JSON) from None
    except msgspec.DecodeError as error:
        raise RequestError(f"The body is not valid JSON: {error}.", code=ErrorCode.INVALID_JSON) from None


def decode_fields(body: bytes) -> dict[str, msgspec.Raw]:
    """The fields of a body that ``decode_json`` has accepted, each as its JSON text."""
    return _FIELDS.decode(body)


def _check_bounds(body: bytes) -> None:
    """Refuse what would decode and then break whoever walks or re-encodes it. Cheap where a body is small or flat."""
    if body.count(b"[") + body.count(b"{") > _NESTING_MAX:
        _check_nesting(body)
    if _LONG_DIGITS in body.translate(_AS_ZEROS) and _LONG_INTEGER.match(body):
        raise RequestError(
            f"The body has an integer of more than {_INTEGER_DIGITS_MAX} digits.", code=ErrorCode.INVALID_VALUE
        )


def _check_nesting(body: bytes) -> None:
    depth = containers = position = 0
    while bracket := _NEXT_BRACKET.match(body, position):  # not finditer: where a string never ends, it looks n² times
        position = bracket.end()
        if body[position - 1] in b"]}":
            depth -= 1
            continue
        depth += 1
        containers += 1
        if depth > _NESTING_MAX:
            raise RequestError(f"The body is nested deeper than {_NESTING_MAX}.", code=ErrorCode.INVALID_JSON)
        if containers > _CONTAINERS_MAX:
            raise RequestError(f"The body has more than {_CONTAINERS_MAX} objects.", code=ErrorCode.INVALID_JSON)


def check_model_name(model: str) -> str:
    """A model's name as a client may write it: visible ASCII, at most 256 characters."""
    if not _MODEL_NAME.fullmatch(model):
        raise RequestError(
            "The model name must be 1 to 256 visible ASCII characters.", code=ErrorCode.MODEL_NOT_FOUND, param="model"
        )
    return model


def check_base64(text: str, where: str) -> None:
    """Raises ``RequestError`` where a file's text is not base64."""
    try:
        binascii.a2b_base64(text, strict_mode=True)
    except (binascii.Error, ValueError):
        raise RequestError(f"{where} does not hold valid base64.", code=ErrorCode.INVALID_VALUE, param=where) from None
