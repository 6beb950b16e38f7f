"""Clients' bodies: JSON, read strictly and with bounds, for every protocol that takes it.

A body is refused with the field it is wrong in, in the client's own spelling, and never echoed. What would decode and
then break whoever walks it or writes it out again (nesting, huge integers) is refused before it is decoded; what two
readers could read differently (a name that stands twice in one object, a number too large for a float) after it.
"""

import binascii
import json
import math
import re
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import NoReturn, TypeVar

import msgspec

from gateway.canonical.errors import ErrorCode, RequestError

T = TypeVar("T")

_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_MODEL_NAME = re.compile(r"[!-~]{1,256}")
_WHERE = re.compile(r" - at `\$\.?([^`]*)`$")
_MISSING = re.compile(r"missing required field `([^`]+)`")
_ENUM = re.compile(r"^Invalid enum value .*", re.DOTALL)

_NESTING_MAX = 64
_CONTAINERS_MAX = 200_000
_NAMES_MAX = 10_000  # in one object
# A file within a body, once decoded: what the largest provider takes.
_FILE_BYTES_MAX = 32 * 1024 * 1024
_SVG = "image/svg"
# Other gateways let a client choose where its request is sent; that hands the provider's key to whoever asks.
_ROUTING_FIELDS = frozenset(
    "api_base api_key api_version base_url extra_body extra_headers extra_query headers litellm_params user_config "
    "apiBase apiKey baseURL baseUrl".split()
)
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
    """A client's body as a typed value; raises ``RequestError`` that names the field in the client's own spelling."""
    try:
        text = body.decode("utf-8")  # msgspec passes over the inside of strings that nobody asked for
        _check_bounds(body)
        value = decoder.decode(body)
        _UNAMBIGUOUS.decode(text)
        return value
    except msgspec.ValidationError as error:
        raise invalid_value(error) from None
    except UnicodeDecodeError as error:
        raise RequestError(f"The body is not valid UTF-8 (byte {error.start}).", code=ErrorCode.INVALID_JSON) from None
    except msgspec.DecodeError as error:
        raise RequestError(f"The body is not valid JSON: {error}.", code=ErrorCode.INVALID_JSON) from None
    except json.JSONDecodeError as error:  # what msgspec passed over since nobody asked for it
        raise RequestError(
            f"The body is not valid JSON (character {error.pos}).", code=ErrorCode.INVALID_JSON
        ) from None


def invalid_value(error: msgspec.ValidationError, inside: str = "") -> RequestError:
    """What msgspec found wrong, with its place in the body; ``inside`` is the place of what was decoded."""
    message = str(error)
    where = _WHERE.search(message)
    path = where.group(1) if where else ""
    missing = _MISSING.search(message)
    if missing:
        path = f"{path}.{missing.group(1)}".lstrip(".")
    if inside:
        path = f"{inside}.{path}" if path else inside
    text = _ENUM.sub("This value is not allowed here", _WHERE.sub("", message))
    return RequestError(f"{path}: {text}." if path else f"{text}.", code=ErrorCode.INVALID_VALUE, param=path or None)


def decode_fields(body: bytes) -> dict[str, msgspec.Raw]:
    """The fields of a body that ``decode_json`` has accepted, each as its JSON text."""
    return _FIELDS.decode(body)


def untold_fields(
    raw: Mapping[str, msgspec.Raw], told: Collection[str], idle: Mapping[str, bytes] = MappingProxyType({})
) -> tuple[str, ...]:
    """A body's fields that ask for something and are not ``told`` to other formats. ``idle`` values ask nothing."""
    return tuple(
        [name for name, value in raw.items() if name not in told and bytes(value) not in (b"null", idle.get(name))]
    )


def _check_names(pairs: list[tuple[str, object]]) -> None:
    """Called for every object. A provider that reads the first of two names would not see what we looked at."""
    if len(dict(pairs)) != len(pairs):
        raise RequestError("The body has an object in which a name stands twice.", code=ErrorCode.INVALID_JSON)
    if len(pairs) > _NAMES_MAX:
        raise RequestError(f"The body has an object with more than {_NAMES_MAX} names.", code=ErrorCode.INVALID_JSON)


def _check_float(text: str) -> None:
    if math.isinf(float(text)):
        raise RequestError("The body has a number that is too large.", code=ErrorCode.INVALID_VALUE)


def _refuse_constant(name: str) -> NoReturn:
    raise RequestError("The body is not valid JSON: it has NaN or Infinity.", code=ErrorCode.INVALID_JSON)


# The standard library's scanner, since msgspec does not show names twice; nothing is kept of what it reads.
_UNAMBIGUOUS = json.JSONDecoder(
    object_pairs_hook=_check_names, parse_float=_check_float, parse_constant=_refuse_constant
)


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


def check_name(name: str, where: str) -> None:
    """Raises ``RequestError`` where an id or a name has control characters: it goes into headers and logs."""
    if _CONTROL.search(name):
        raise RequestError(f"{where} has control characters.", code=ErrorCode.INVALID_VALUE, param=where)


def check_model_name(model: str) -> str:
    """A model's name as a client may write it: visible ASCII, at most 256 characters."""
    if not _MODEL_NAME.fullmatch(model):
        raise RequestError(
            "The model name must be 1 to 256 visible ASCII characters.", code=ErrorCode.MODEL_NOT_FOUND, param="model"
        )
    return model


def refuse_routing_fields(names: Collection[str]) -> None:
    """Raises ``RequestError`` where a body's field would choose where its request is sent."""
    if _ROUTING_FIELDS.isdisjoint(names):
        return
    for name in sorted(_ROUTING_FIELDS.intersection(names)):
        raise RequestError(f"The field {name} is not accepted.", code=ErrorCode.UNSUPPORTED_VALUE, param=name)


def check_image_type(media_type: str, where: str) -> None:
    """Raises ``RequestError`` for SVG: no model sees it, and it is a program that may fetch what it likes."""
    if media_type.lower().startswith(_SVG):
        raise RequestError(f"{where} must not be an SVG.", code=ErrorCode.UNSUPPORTED_VALUE, param=where)


def check_base64(text: str, where: str) -> None:
    """Raises ``RequestError`` where a file's text is not base64, or (before it is decoded) too large."""
    if len(text) // 4 * 3 > _FILE_BYTES_MAX:
        raise RequestError(
            f"{where} holds a file of more than {_FILE_BYTES_MAX} bytes.", code=ErrorCode.REQUEST_TOO_LARGE, param=where
        )
    try:
        binascii.a2b_base64(text, strict_mode=True)
    except (binascii.Error, ValueError):
        raise RequestError(f"{where} does not hold valid base64.", code=ErrorCode.INVALID_VALUE, param=where) from None
