"""A provider's URL taken apart, and the head of a request made of it."""

import pytest

from gateway.providers.address import address_of
from gateway.providers.dialing import Origin


@pytest.mark.parametrize(
    ("url", "origin", "host", "target"),
    [
        ("https://api.openai.com/v1/x", Origin("api.openai.com", 443, True), "api.openai.com", "/v1/x"),
        ("http://127.0.0.1:8000", Origin("127.0.0.1", 8000, False), "127.0.0.1:8000", "/"),
        ("http://Host:80/a?b=c&d=e#f", Origin("host", 80, False), "host", "/a?b=c&d=e"),
        ("https://[::1]:8443/{model}:go?alt=sse", Origin("::1", 8443, True), "[::1]:8443", "/{model}:go?alt=sse"),
        (
            "http://bücher.example/ü b/%2F",
            Origin("xn--bcher-kva.example", 80, False),
            "xn--bcher-kva.example",
            "/%C3%BC%20b/%2F",
        ),
    ],
)
def test_a_url_is_taken_apart(url: str, origin: Origin, host: str, target: str) -> None:
    address = address_of(url)
    assert (address.origin, address.host, address.target, address.basic) == (origin, host, target, None)
    assert address.url == f"{'https' if origin.is_tls else 'http'}://{host}{target}"


def test_a_user_name_in_a_url_becomes_a_header_and_nothing_else() -> None:
    address = address_of("http://us%40er:p%3Aw@host/v1")
    assert "us" not in address.url and "p%3Aw" not in address.url
    assert b"\r\nauthorization: Basic dXNAZXI6cDp3\r\n" in address.head({})


@pytest.mark.parametrize("url", ["ftp://host/", "host/v1", "http://", "http://host:99999/", "http:///v1"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(ValueError):
        address_of(url)


@pytest.mark.parametrize(
    ("name", "value"), [("x-key", "a\r\nx-other: b"), ("x-key", "a\0b"), ("x key", "a"), ("x-key\r\n", "a"), ("", "a")]
)
def test_no_header_makes_another_one(name: str, value: str) -> None:
    with pytest.raises(ValueError, match="cannot be sent"):
        address_of("http://host/").head({name: value})


def test_a_line_end_after_a_key_is_no_part_of_it() -> None:
    assert b"\r\nx-key: sk-1\r\n" in address_of("http://host/").head({"x-key": " sk-1\n"})
