"""What every protocol asks of a client's body beside its shape."""

import json
from typing import Any

import msgspec
import pytest

from gateway.canonical.errors import ErrorCode, RequestError
from gateway.protocols import bodies
from gateway.protocols.bodies import check_base64, check_image_type, check_name, decode_json, refuse_routing_fields

ANYTHING: msgspec.json.Decoder[Any] = msgspec.json.Decoder(Any)


def refused(body: bytes) -> ErrorCode:
    with pytest.raises(RequestError) as caught:
        decode_json(body, ANYTHING)
    assert "canary" not in caught.value.message
    return caught.value.code


@pytest.mark.parametrize(
    "body",
    [
        b'{"canary":1,"canary":1}',
        b'{"canary":1,"x":{},"canary":2}',
        b'[{"x":{"canary":1,"b":2,"canary":3}}]',
        b'{"canary":1,"\\u0063anary":1}',
        b'{"\\u00e9":1,"\xc3\xa9":1}',
        b'{"":1,"":2}',
    ],
)
def test_a_name_that_stands_twice_in_an_object_is_refused(body: bytes) -> None:
    assert refused(body) is ErrorCode.INVALID_JSON


def test_a_name_may_stand_in_several_objects_and_in_text() -> None:
    value = {"a": {"a": [{"a": 1}, {"a": 2}]}, "A": '{"a":1,"a":2}'}
    assert decode_json(json.dumps(value).encode(), ANYTHING) == value


@pytest.mark.parametrize("number", ["1e999", "-1e999", "1E+400", "9" * 19 + "e300", "9" * 400 + ".0"])
def test_a_number_beyond_every_float_is_refused_wherever_it_stands(number: str) -> None:
    assert refused(f'{{"x":[1,{{"y":{number}}}]}}'.encode()) in (ErrorCode.INVALID_VALUE, ErrorCode.INVALID_JSON)


@pytest.mark.parametrize("number", ["1e308", "-0.0", "1e-999", "0", "-9223372036854775808"])
def test_every_other_number_passes(number: str) -> None:
    assert decode_json(f"[{number}]".encode(), ANYTHING) == [json.loads(number)]


def test_ten_thousand_names_in_an_object_are_enough() -> None:
    names = [str(number) for number in range(10_001)]
    assert len(decode_json(json.dumps(dict.fromkeys(names[1:])).encode(), ANYTHING)) == 10_000
    assert refused(json.dumps(dict.fromkeys(names)).encode()) is ErrorCode.INVALID_JSON


def test_a_files_size_is_known_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "_FILE_BYTES_MAX", 30)
    check_base64("A" * 40, "file")
    with pytest.raises(RequestError) as caught:
        check_base64("*" * 44, "file")
    assert (caught.value.code, caught.value.param) == (ErrorCode.REQUEST_TOO_LARGE, "file")


@pytest.mark.parametrize("media_type", ["image/svg+xml", "IMAGE/SVG+XML", "image/svg"])
def test_a_picture_that_is_a_program_is_refused(media_type: str) -> None:
    check_image_type("image/png", "url")
    with pytest.raises(RequestError):
        check_image_type(media_type, "url")


@pytest.mark.parametrize("name", ["a\0", "\n", "a\x7fb", "\x1b[2J"])
def test_control_characters_are_in_no_name(name: str) -> None:
    check_name("get_weather.v1 – é", "name")
    with pytest.raises(RequestError) as caught:
        check_name(name, "name")
    assert caught.value.param == "name" and name not in caught.value.message


def test_no_field_chooses_where_a_request_is_sent() -> None:
    refuse_routing_fields(["model", "messages", "x"])
    with pytest.raises(RequestError) as caught:
        refuse_routing_fields(["model", "base_url", "api_base"])
    assert (caught.value.code, caught.value.param) == (ErrorCode.UNSUPPORTED_VALUE, "api_base")
