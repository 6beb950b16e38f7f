"""Embeddings without a socket: what a request becomes, and vectors in both of their forms."""

import json
import struct
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.canonical.errors import ProviderProtocolError, RequestError
from gateway.canonical.events import Embeddings, Frame, MessageStart
from gateway.canonical.request import Message, Request, Text, Tokens
from gateway.canonical.usage import Usage
from gateway.metering.tokens import count_bytes, count_input
from gateway.protocols.openai_embeddings import (
    OpenAiEmbeddingsClient,
    OpenAiEmbeddingsServer,
    numbers_to_base64,
)
from gateway.protocols.wire import Cut, StreamMeta

SERVER, CLIENT = OpenAiEmbeddingsServer(), OpenAiEmbeddingsClient()
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


def request(**body: Any) -> Request:
    return SERVER.decode_request(json.dumps({"model": "m", "input": "Hi", **body}).encode(), {})


def answered(vectors: tuple[msgspec.Raw, ...], *, form: str = "float") -> list[Any]:
    encoder = SERVER.encoder(request(encoding_format=form), StreamMeta("r1", 0, None))
    encoder.encode(Frame((MessageStart("", "up", 0), Embeddings(vectors))))
    return [each["embedding"] for each in json.loads(encoder.end(Usage(input=1)))["data"]]


async def test_every_input_is_a_message_and_tokens_count_for_themselves() -> None:
    texts, numbers = request(input=["a", "bc"]), request(input=[[1, 2], [3]])
    assert texts.messages == (Message("user", (Text("a"),)), Message("user", (Text("bc"),)))
    assert numbers.messages == (Message("user", (Tokens((1, 2)),)), Message("user", (Tokens((3,)),)))
    assert request(input=[1, 2]).messages == (Message("user", (Tokens((1, 2)),)),)
    assert [await count_input(each, count_bytes) for each in (texts, numbers)] == [3, 3]
    assert texts.output_tokens_max == 0 and not texts.stream


@pytest.mark.parametrize("wrong", [["a", [1]], [[]], [[1], "a"], [True], [1.5], [2**31], {"a": 1}, None])
def test_inputs_that_are_mixed_or_no_inputs_are_refused(wrong: Any) -> None:
    with pytest.raises(RequestError) as refused:
        request(input=wrong)
    assert (refused.value.param or "").startswith("input")


@given(st.lists(FLOATS, max_size=8))
def test_numbers_become_base64_and_back_without_losing_a_bit(numbers: list[float]) -> None:
    sealed = numbers_to_base64(numbers)
    assert answered((sealed,)) == [numbers]
    assert answered((msgspec.Raw(msgspec.json.encode(numbers)),), form="base64") == [json.loads(bytes(sealed))]


def test_base64_is_little_endian_float32() -> None:
    assert bytes(numbers_to_base64([1.0])) == b'"AACAPw=="' and struct.pack("<f", 1.0) == b"\x00\x00\x80\x3f"


@pytest.mark.parametrize(
    ("vector", "form"),
    [(b'"!"', "float"), (b'"AAAA"', "float"), (b"[1e300]", "base64"), (b'["a"]', "base64"), (b"null", "base64")],
)
def test_a_vector_that_is_none_is_the_providers_fault(vector: bytes, form: str) -> None:
    with pytest.raises(ProviderProtocolError):
        answered((msgspec.Raw(vector),), form=form)


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b'{"data":[]}', b'{"data":[{"index":1,"embedding":[]}]}', b'{"data":[{"index":0}]}', b'{"a":"\xff"}'],
)
def test_an_answer_without_a_vector_for_every_input_is_the_providers_fault(body: bytes) -> None:
    with pytest.raises(ProviderProtocolError):
        CLIENT.decode_response(body, request(), "up")


def test_a_cut_gives_what_was_there_and_says_why() -> None:
    encoder = SERVER.encoder(request(), StreamMeta("r1", 0, None))
    answer = json.loads(encoder.cut(Cut("access_revoked", "Revoked."), Usage()))
    assert answer["data"] == [] and answer["x_gateway"]["reason"] == "access_revoked"
