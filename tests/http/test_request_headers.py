"""Headers of requests, read strictly."""

import pytest

from gateway.canonical.errors import ErrorCode, RequestError
from gateway.http.request_headers import idempotency_key


def headers(*values: bytes) -> list[tuple[bytes, bytes]]:
    return [(b"accept", b"*/*"), *((b"idempotency-key", value) for value in values)]


def test_a_request_needs_no_idempotency_key() -> None:
    assert idempotency_key(headers()) is None


@pytest.mark.parametrize("value", [b"a", b"~!", b"k" * 255, b"9f1c-{}:"])
def test_visible_ascii_is_a_key(value: bytes) -> None:
    assert idempotency_key(headers(value)) == value.decode()


@pytest.mark.parametrize(
    "values",
    [
        [b""],
        [b" "],
        [b"a b"],
        [b"a\tb"],
        [b"\xc3\xa4"],
        [b"a\x7f"],
        [b"a\n"],
        [b"k" * 256],
        [b"k" * 5000],
        [b"a", b"a"],
    ],
    ids=lambda values: f"{len(values)} of {values[0][:8]!r}",
)
def test_anything_else_is_refused_and_named(values: list[bytes]) -> None:
    with pytest.raises(RequestError) as caught:
        idempotency_key(headers(*values))
    assert (caught.value.code, caught.value.param) == (ErrorCode.INVALID_VALUE, "idempotency-key")
